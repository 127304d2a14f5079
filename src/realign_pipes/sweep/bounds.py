"""Bounds on what a sample of problems shows: a lower bound on paired differences, and bootstrap intervals."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES_AT_ONCE = 1000
TINY = np.finfo(float).tiny

Floats = NDArray[np.float64]


def lower_bound(differences: Sequence[Floats]) -> Floats:
    """What the mean of paired differences is not below, at 95 % confidence and one-sided: [candidates].

    `differences` are of one task each, [candidates, problems], in [-1, 1]; the mean is the plain mean over tasks of
    the means over their problems. Losses are rare and large, and the percentile bootstrap's bound then misses too
    often: on 150 problems in 6 % of the tests instead of 5 %, and in 19 % where few problems are lost, but wholly
    (tests/sweep/test_choosing.py). So this is Student's t corrected for negative skewness (P. Hall, The Bootstrap and
    Edgeworth Expansion, 1992, on the Studentized mean: the term of order n^-1/2), with Welch's degrees of freedom for
    several tasks. A candidate that lost on no problem may still lose on others: `unseen_loss`. A task of one problem
    says nothing: the bound is -1.
    """
    from scipy.stats import t as student  # half a second, which a run that only draws budgets need not wait

    sizes = np.array([task.shape[1] for task in differences])
    if sizes.min() < 2:
        return np.full(len(differences[0]), -1.0)
    mean = np.mean([task.mean(axis=1) for task in differences], axis=0)
    centred = [task - task.mean(axis=1, keepdims=True) for task in differences]
    shares = np.stack([task.var(axis=1, ddof=1) / task.shape[1] for task in differences]) / len(sizes) ** 2
    variance = shares.sum(axis=0)
    third_moment = np.sum([(task**3).mean(axis=1) / task.shape[1] ** 2 for task in centred], axis=0) / len(sizes) ** 3
    varies = variance > 0
    safe = np.where(varies, variance, 1)
    freedom = np.where(varies, safe**2 / np.maximum((shares.T**2 / (sizes - 1)).sum(axis=1), TINY), 1)
    quantile = student.ppf(CONFIDENCE, freedom)
    skewness = np.minimum(third_moment / safe**1.5, 0)
    low = mean - np.sqrt(variance) * (quantile - skewness * (2 * quantile**2 + 1) / 6)
    lost_none = np.all([(task >= 0).all(axis=1) for task in differences], axis=0)
    unseen = unseen_loss(int(sizes.min()), len(sizes))
    bound: Floats = np.maximum(np.where(lost_none, np.minimum(low, mean - unseen), low), -1)
    return bound


def unseen_loss(problems: int, tasks: int) -> float:
    """What may be lost, with 95 % confidence, where nothing was lost on the `problems` of the smallest of the `tasks`.

    A share 1 - 0.05^(1/n) of its problems, about 3 / n; so much of the mean over the tasks.
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / problems)) / tasks


def problems_needed(margin: float, tasks: int) -> int | None:
    """How many problems the smallest of the `tasks` needs for `unseen_loss` to be within `margin`; None if none do."""
    if margin == 0:
        return None
    return max(2, math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-margin * tasks))) if margin * tasks < 1 else 2


def bootstrap_means(values: Floats, samples: int, seed: int | Sequence[int]) -> Floats:
    """Means of resampled problems: [candidates, problems] -> [candidates, samples].

    A resample draws as many problems as there are, with replacement, the same ones for every candidate. How often each
    problem is drawn is multinomial, so a resampled mean is a product with those counts.
    """
    generator = np.random.default_rng(seed)
    problems = values.shape[1]
    means = []
    for start in range(0, samples, RESAMPLES_AT_ONCE):  # in pieces: counts of all resamples may not fit in memory
        size = min(RESAMPLES_AT_ONCE, samples - start)
        counts = generator.multinomial(problems, np.full(problems, 1 / problems), size=size)
        means.append(values @ counts.T.astype(float) / problems)
    return np.concatenate(means, axis=1)


def seed_of(seed: int, task: str) -> list[int]:
    """The seed of a task's resamples, so that equal problems are resampled alike for every figure."""
    return [seed, zlib.crc32(task.encode())]


def interval(means: Floats) -> Floats:
    """Low and high end of the percentile interval: [candidates, samples] -> [2, candidates]."""
    ends: Floats = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    return ends
