"""Choosing a candidate on one half of the problems and confirming it on the other.

The best of twenty candidates looks better on the problems that it was chosen on than it is: where each of them loses
just too much, testing all of them calls one harmless in 37 to 95 % of the sweeps. So the first half only says in which
order the second one tests them, from the most correct candidate to bolder ones, and the first failure ends it. As the
order comes from other problems, the chance that anything is confirmed that loses more than the margin is at most 5 %,
that of the first such test, however many candidates there are (a fixed sequence of tests: Maurer, Hothorn and Lehmacher
1995).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from realign_pipes.sweep.bounds import CONFIDENCE, Floats
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric, defined, gain_low, gain_of, resampled_gain
from realign_pipes.sweep.metrics import Answers, Values


@dataclass(frozen=True)
class Rule:
    """What a candidate has to gain, and what it has to keep, to be recommended."""

    margin: float
    """How much of `loss` it may lose: of a share or a count a share, of another number a difference."""
    bootstrap_samples: int
    bootstrap_seed: int
    gain: Metric = TOKENS
    loss: Metric = PASS_AT_1

    def resampled_gain(self, tasks: Mapping[str, Values], reference: int) -> Floats:
        """[candidates, samples]: what is gained on resampled problems."""
        values = defined(tasks, self.gain, reference)
        return resampled_gain(values, reference, self.gain, self.bootstrap_samples, self.bootstrap_seed)

    def difference_low(self, tasks: Mapping[str, Values], reference: int) -> Floats:
        """[candidates]: the lower bound on what becomes of `loss`, where a loss is negative."""
        values = defined(tasks, self.loss, reference)
        return gain_low(values, reference, self.loss, self.bootstrap_samples, self.bootstrap_seed)


def first_half(ids: list[str]) -> NDArray[np.bool_]:
    """[problems]: True for the half on which candidates are chosen, the smaller one of an odd number.

    The halves depend on the ids alone: they are those of a task's problems in the order of their hashes, so that no
    pattern in the order of the problems decides.
    """
    hashed = sorted(ids, key=lambda problem: sha256(problem.encode()).digest())
    chosen = set(hashed[: len(ids) // 2])
    return np.array([problem in chosen for problem in ids])


def halves(answers: Answers) -> tuple[Answers, Answers]:
    """The same candidates on the half of each task's problems for choosing, and on that for confirming."""
    masks = {task: first_half(ids) for task, ids in answers.problems.items()}
    return _on(answers, masks), _on(answers, {task: ~mask for task, mask in masks.items()})


def _on(answers: Answers, masks: Mapping[str, NDArray[np.bool_]]) -> Answers:
    return replace(
        answers,
        problems={
            task: [problem for problem, kept in zip(ids, masks[task], strict=True) if kept]
            for task, ids in answers.problems.items()
        },
        values={
            task: {column: of_all[:, masks[task]] for column, of_all in values.items()}
            for task, values in answers.values.items()
        },
    )


def order_candidates(tasks: Mapping[str, Values], reference: int, alphas: Floats, rule: Rule) -> list[int]:
    """The candidates that the other half should confirm, in this order, as rows of the values.

    Those that gain (with 95 % confidence) and lose no more than the margin (as measured), from the best in what may be
    lost down; of equals the smaller move in alpha first, then the larger gain. One that does not gain more than the one
    before it, with 95 % confidence, is left out: it would cost something for nothing. So with tokens and pass@1, of
    savings that do not differ with confidence, the higher pass@1 is taken, then the smaller move.
    """
    gains = rule.resampled_gain(tasks, reference)
    gain = gain_of(defined(tasks, rule.gain, reference), reference, rule.gain)
    difference = gain_of(defined(tasks, rule.loss, reference), reference, rule.loss)
    eligible = _surely_positive(gains) & (difference >= -rule.margin)
    moves = np.nan_to_num(np.abs(alphas), nan=1.0)  # a whole step for a kind without an alpha, as the aligned model is
    ranks = np.lexsort((-gain, moves, -difference.round(12)))
    ordered: list[int] = []
    for place in ranks[eligible[ranks]].tolist():
        if not ordered or _surely_positive(gains[[place]] - gains[ordered[-1]]):
            ordered.append(place)
    return ordered


def confirmed(ordered: list[int], tasks: Mapping[str, Values], reference: int, rule: Rule) -> list[int]:
    """The first of `ordered` that gain and lose at most the margin on these problems, up to the first failure.

    Each with 95 % confidence, and so are all of them together, if `ordered` comes from other problems.
    """
    if not ordered:
        return []
    low = rule.difference_low(tasks, reference)
    holds = _surely_positive(rule.resampled_gain(tasks, reference)) & (low >= -rule.margin)
    return list(takewhile(lambda place: holds[place], ordered))


def _surely_positive(resampled: Floats) -> NDArray[np.bool_]:
    """[candidates, samples] -> [candidates]: whether a figure is above 0 with one-sided 95 % confidence."""
    above: NDArray[np.bool_] = np.quantile(resampled, 1 - CONFIDENCE, axis=1) > 0
    return above
