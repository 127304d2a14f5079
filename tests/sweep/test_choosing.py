"""Choosing on one half and confirming on the other: the rule step by step, and its promise in a simulation."""

import random

import numpy as np
import pytest

from realign_pipes.sweep.bounds import bootstrap_means, lower_bound
from realign_pipes.sweep.choosing import Rule, confirmed, first_half, halves, order_candidates
from realign_pipes.sweep.metrics import Answers, compare, read_answers

MARGIN = 0.02
RULE = Rule(MARGIN, bootstrap_samples=100, bootstrap_seed=3)
CANDIDATES = 20
PER_HALF = 75  # problems of a task, as in the default run, which has two tasks


def test_halves_depend_on_the_ids_alone():
    ids = [f"sums-{number:05d}" for number in range(31)]
    mask = first_half(ids)
    assert mask.sum() == 15
    chosen = {one for one, here in zip(ids, mask, strict=True) if here}
    shuffled = random.Random(1).sample(ids, len(ids))
    assert {one for one, here in zip(shuffled, first_half(shuffled), strict=True) if here} == chosen
    # fixed for ever: hashes do not follow the order of the problems, nor Python's seed for its own hash
    assert first_half(ids[:8]).tolist() == [False, False, True, True, False, True, True, False]
    assert first_half(["a"]).tolist() == [False] and first_half(["a", "b"]).sum() == 1


def test_each_task_is_halved_and_columns_stay_with_their_problems(make_answers):
    answers = make_answers({"a": 7, "b": 10})
    choosing, confirming = halves(answers)
    for task, size in (("a", 7), ("b", 10)):
        assert (len(choosing.problems[task]), len(confirming.problems[task])) == (size // 2, size - size // 2)
        assert sorted([*choosing.problems[task], *confirming.problems[task]]) == answers.problems[task]
        for half in (choosing, confirming):
            for column, values in answers.values[task].items():
                for place, problem in enumerate(half.problems[task]):
                    whole = values[:, answers.problems[task].index(problem)]
                    assert half.values[task][column][:, place].tolist() == whole.tolist()


def sweep_of(*candidates: tuple[float, float], problems: int = 400) -> dict:
    """One task's values of the reference (right on 3 of 4, 100 tokens) and of candidates (difference, saving)."""
    generator = np.random.default_rng(8)
    correct, tokens = [np.tile([1.0, 1.0, 1.0, 0.0], problems // 4)], [np.full(problems, 100.0)]
    for difference, saving in candidates:
        answers = correct[0].copy()
        changed = generator.permutation(np.flatnonzero(answers == (difference < 0)))
        answers[changed[: round(abs(difference) * problems)]] = difference > 0
        correct.append(answers)
        tokens.append((1 - saving) * 100 + generator.permutation(np.linspace(-20, 20, problems)))
    return {"a": {"correct": np.stack(correct), "completion_tokens": np.stack(tokens), "finished": np.ones((1, 1))}}


def order(*candidates: tuple[float, float], alphas: list[float] | None = None) -> list[int]:
    """Places in the order, the first candidate being 1."""
    moves = np.array([np.nan, *(alphas or [1.0] * len(candidates))])
    return order_candidates(sweep_of(*candidates), 0, moves, RULE)


def test_the_order_goes_from_the_most_correct_to_the_boldest():
    assert order((-0.01, 0.5), (0.01, 0.2), (0.0, 0.3)) == [2, 3, 1]


def test_more_tokens_or_a_saving_within_noise_is_no_candidate():
    assert order((0.05, -0.1), (0.0, 0.0005), (0.0, 0.1)) == [3]


def test_what_loses_more_than_the_margin_is_no_candidate():
    assert order((-0.0225, 0.6), (-0.0175, 0.5)) == [2]


def test_a_saving_that_does_not_differ_with_confidence_costs_no_correctness():
    """72.4 tokens at 60.9 % against 74.0 at 68.8 %: the aligned model, not trra-2, was the one to take."""
    assert order((0.0, 0.3), (-0.01, 0.3005)) == [1]
    assert order((0.0, 0.3), (-0.01, 0.35)) == [1, 2]


def test_of_equals_the_smaller_move_comes_first():
    assert order((0.0, 0.3), (0.0, 0.3002), alphas=[2.0, -1.5]) == [2]
    assert order((0.0, 0.3002), (0.0, 0.3), alphas=[1.5, np.nan]) == [2]  # the aligned model: alpha 1
    assert order((0.0, 0.3), (0.0, 0.3002), alphas=[1.5, 1.5]) == [2]  # then the larger saving


def test_the_first_failure_ends_the_tests():
    tasks = sweep_of((0.0, 0.2), (-0.05, 0.3), (0.0, 0.4), (0.0, 0.0))
    assert confirmed([1, 2, 3], tasks, 0, RULE) == [1]
    assert confirmed([1, 3, 2], tasks, 0, RULE) == [1, 3]
    assert confirmed([2, 1], tasks, 0, RULE) == []
    assert confirmed([4, 1], tasks, 0, RULE) == []  # no saving
    assert confirmed([], tasks, 0, RULE) == []


def test_a_candidate_passes_on_its_bound_and_not_on_its_mean():
    tasks = sweep_of((-0.01, 0.3))
    low = compare(list(tasks.values()), 0)["difference_low"][1]
    assert -0.03 < low < -0.012
    assert confirmed([1], tasks, 0, Rule(-low + 1e-9, 100, 3)) == [1]
    assert confirmed([1], tasks, 0, Rule(-low - 1e-9, 100, 3)) == []


@pytest.fixture
def make_answers():
    """`make_answers({task: problems})`: three candidates' answers at random."""
    import pandas as pd

    def make(sizes: dict[str, int]) -> Answers:
        generator = np.random.default_rng(0)
        frames = {}
        for kind in ("reference", "aligned", "trra"):
            rows = [(task, f"{task}-{number}") for task, size in sizes.items() for number in range(size)]
            frames[kind] = pd.DataFrame(rows, columns=["task", "problem_id"]).assign(
                candidate=kind,
                kind=kind,
                alpha=1.0 if kind == "trra" else np.nan,
                plausibility=0.0,
                engine="transformers 5.23.0 float32",
                sample=0,
                seconds=1.0,
                train_seconds=0.0,
                bytes=0,
                finished=True,
                correct=generator.random(len(rows)) < 0.5,
                completion_tokens=generator.integers(1, 1000, len(rows)),
            )
        return read_answers(frames)

    return make


def slips(generator: np.random.Generator, sweeps: int, loss: float | np.ndarray) -> np.ndarray:
    """Right answers [sweeps, 1 + candidates, problems] of a reference that is right in 93 %, and of worse candidates.

    Four samples a problem; some problems are harder. Candidates share half of the reference's random numbers.
    """
    shape = (sweeps, 1 + CANDIDATES, 2 * PER_HALF)
    right = generator.beta(9, 0.7, (sweeps, 1, 2 * PER_HALF))
    right = right * np.where(np.arange(1 + CANDIDATES) > 0, 1 - loss / (9 / 9.7), 1)[:, None]
    correct = np.zeros(shape)
    for _ in range(4):
        own, common = generator.random(shape), generator.random((sweeps, 1, 2 * PER_HALF))
        correct += np.where(generator.random(shape) < 0.5, common, own) < right
    return correct / 4


def whole_problems(generator: np.random.Generator, sweeps: int, loss: float) -> np.ndarray:
    """A reference that is always right, and candidates that lose a few problems wholly: the worst case for bounds."""
    correct = (generator.random((sweeps, 1 + CANDIDATES, 2 * PER_HALF)) >= loss).astype(float)
    correct[:, 0] = 1
    return correct


class Sweeps:
    """Two tasks, whose problems' first half is for choosing; candidates save 5 to 60 % and lose alike."""

    def __init__(self, world, loss: float | np.ndarray, sweeps: int) -> None:
        generator = np.random.default_rng(11)
        savings = np.array([0.0, *np.linspace(0.05, 0.6, CANDIDATES)])[:, None]
        self.correct = {task: world(generator, sweeps, loss) for task in ("a", "b")}
        self.tokens = {
            task: generator.lognormal(4, 0.2, correct.shape) * (1 - savings) for task, correct in self.correct.items()
        }
        self.sweeps = sweeps

    def recommended(self, order=order_candidates) -> int:
        """The number of sweeps that recommend a candidate."""
        alphas = np.array([np.nan, *range(1, CANDIDATES + 1)], float)
        found = 0
        for sweep in range(self.sweeps):
            choosing, confirming = (
                {
                    task: {
                        "correct": correct[sweep][:, half],
                        "completion_tokens": self.tokens[task][sweep][:, half],
                        "finished": np.ones((1, 1)),
                    }
                    for task, correct in self.correct.items()
                }
                for half in (slice(None, PER_HALF), slice(PER_HALF, None))
            )
            found += bool(confirmed(order(choosing, 0, alphas, RULE), confirming, 0, RULE))
        return found

    def recommended_on_the_same_problems(self, bound) -> int:
        """The number of sweeps in which some candidate's bound on all problems is within the margin."""
        differences = [(correct[:, 1:] - correct[:, :1]).reshape(-1, 2 * PER_HALF) for correct in self.correct.values()]
        return int((bound(differences).reshape(self.sweeps, CANDIDATES) >= -MARGIN).any(axis=1).sum())


def percentile_bootstrap(differences: list[np.ndarray]) -> np.ndarray:
    means = [bootstrap_means(one, 300, [7, number]) for number, one in enumerate(differences)]
    return np.quantile(np.mean(means, axis=0), 0.05, axis=1)


@pytest.mark.parametrize("world", [slips, whole_problems])
def test_what_loses_more_than_the_margin_is_recommended_in_at_most_one_sweep_in_twenty(world):
    """1,000 sweeps of equal candidates, each of which loses just more than the margin: nothing should be recommended.

    Choosing and reporting on the same problems recommends one in far more of them, with the percentile bootstrap, as
    it was done before, and with today's bound.
    """
    made = Sweeps(world, MARGIN + 1e-4, sweeps=1000)
    confirmed_ones = made.recommended()
    on_the_same = [made.recommended_on_the_same_problems(bound) for bound in (percentile_bootstrap, lower_bound)]
    print(f"{world.__name__}: {confirmed_ones} of {made.sweeps} sweeps; on the same problems {on_the_same}")  # for docs
    assert confirmed_ones / made.sweeps <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / made.sweeps)  # Monte Carlo error
    assert min(on_the_same) / made.sweeps > 0.3


@pytest.mark.parametrize("world", [slips, whole_problems])
def test_the_bound_is_wrong_in_one_test_in_twenty_and_the_percentile_bootstrap_in_more(world):
    """On a half's 150 problems, for 20 candidates in 300 sweeps that lose just more than the margin."""
    made = Sweeps(world, MARGIN + 1e-4, sweeps=300)
    half = [(correct[:, 1:] - correct[:, :1])[..., :PER_HALF] for correct in made.correct.values()]
    differences = [task.reshape(-1, PER_HALF) for task in half]
    ours, percentiles = (np.mean(bound(differences) >= -MARGIN) for bound in (lower_bound, percentile_bootstrap))
    print(f"{world.__name__}: {ours:.3f} and {percentiles:.3f}")
    assert ours < 0.056 and percentiles > 0.058


def test_candidates_as_good_as_the_reference_are_confirmed_in_most_sweeps():
    """The promise is not kept by never recommending anything."""
    made = Sweeps(slips, 0.0, sweeps=200)
    found = made.recommended()
    print(f"{found} of {made.sweeps} sweeps")
    assert found / made.sweeps > 0.5


def boldest(tasks: dict, reference: int, alphas: np.ndarray, rule: Rule) -> list[int]:
    """A rule that puts one candidate to the test: the largest saving within the margin when choosing."""
    figures = compare(list(tasks.values()), reference)
    within = (figures["difference_low"] >= -rule.margin) & (figures["token_reduction"] > 0)
    return [int(np.where(within, figures["token_reduction"], 0).argmax())] if within.any() else []


def test_a_walk_confirms_a_candidate_more_often_than_one_bold_pick():
    """Candidates that lose from nothing to 4 points, the more the more they save."""
    losses = np.array([0.0, *np.linspace(0, 0.04, CANDIDATES)])
    made = Sweeps(slips, losses, sweeps=200)
    walk, pick = made.recommended(), made.recommended(boldest)
    print(f"{walk} and {pick} of {made.sweeps} sweeps")
    assert walk > 1.2 * pick
