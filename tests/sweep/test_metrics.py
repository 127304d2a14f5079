"""Metrics against hand-computed values, the paper's table and scipy's bootstrap."""

import zlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from realign_pipes.sweep.bounds import bootstrap_means, lower_bound, problems_needed, unseen_loss
from realign_pipes.sweep.metrics import (
    pareto_front,
    saved_interval,
    summarise_budgets,
    summarise_sweep,
)

# tokens on AIME24, AIME25 and MATH-500, and the reduction that the paper prints
PAPER = {
    "reference": ((12602, 12278, 4699), 0.0),
    "aligned": ((8520, 8143, 3030), 33.86),
    "trra_0.5": ((10678, 10254, 3734), 17.42),
    "trra_1.5": ((8091, 7353, 2982), 37.48),
    "trra_2.0": ((7441, 6498, 2897), 42.11),
    "trra_5.0": ((6297, 5652, 2844), 47.83),
    "trra_10.0": ((6004, 5174, 2713), 50.83),
    "trra_iter_1": ((5631, 4434, 2599), 54.63),
    "trra_iter_2": ((4294, 3887, 2483), 60.48),
}


def frame(
    candidate: str, correct: dict[str, list[list[int]]], tokens: dict[str, list[list[int]]] | None = None, **about
) -> pd.DataFrame:
    """One candidate's frame from task -> problems -> samples."""
    about = {
        "kind": candidate.rpartition("_")[0] or candidate,
        "alpha": np.nan,
        "plausibility": 0.0,
        "engine": "transformers 5.23.0 float32",
        "seconds": 5.0,
    } | about
    return pd.DataFrame(
        [
            {
                "candidate": candidate,
                "task": task,
                "problem_id": f"{task}-{problem}",
                "sample": sample,
                "completion": "…",
                "completion_tokens": tokens[task][problem][sample] if tokens else 10,
                "finished": not tokens or tokens[task][problem][sample] < 100,
                "correct": bool(right),
            }
            | about
            for task, problems in correct.items()
            for problem, samples in enumerate(problems)
            for sample, right in enumerate(samples)
        ]
    )


def summarise(*frames: pd.DataFrame, samples: int = 200, seed: int = 0) -> pd.DataFrame:
    generations = {one["candidate"].iloc[0]: one for one in frames}
    return summarise_sweep(generations, bootstrap_samples=samples, bootstrap_seed=seed)


def row(results: pd.DataFrame, candidate: str, task: str = "all") -> pd.Series:
    (found,) = results[(results["candidate"] == candidate) & (results["task"] == task)].to_dict("records")
    return pd.Series(found)


def random_correct(seed: int, problems: int, samples: int, rate: float) -> list[list[int]]:
    return (np.random.default_rng(seed).random((problems, samples)) < rate).astype(int).tolist()


def test_hand_computed_sweep():
    reference = frame(
        "reference",
        {"a": [[1, 0], [1, 1]], "b": [[0, 0], [1, 0], [1, 1]]},
        {"a": [[10, 20], [30, 40]], "b": [[100, 50], [60, 70], [80, 60]]},
    )
    trra = frame(
        "trra_1.5",
        {"a": [[1, 1], [1, 1]], "b": [[0, 0], [0, 0], [1, 0]]},
        {"a": [[10, 10], [10, 20]], "b": [[120, 110], [20, 20], [20, 20]]},
        alpha=1.5,
        seconds=3.0,
    )
    results = summarise(reference, trra)
    assert list(results["candidate"]) == ["reference"] * 3 + ["trra_1.5"] * 3
    assert list(results["task"]) == ["a", "b", "all"] * 2

    a, b, every = row(results, "trra_1.5", "a"), row(results, "trra_1.5", "b"), row(results, "trra_1.5")
    assert a["pass_at_1"] == 1 and b["pass_at_1"] == pytest.approx(1 / 6)
    assert every["pass_at_1"] == pytest.approx((1 + 1 / 6) / 2)  # over tasks, not over the five problems
    assert a["mean_tokens"] == 12.5 and b["mean_tokens"] == pytest.approx(310 / 6)
    assert a["token_reduction"] == pytest.approx(1 - 12.5 / 25)
    assert b["token_reduction"] == pytest.approx(1 - 310 / 420)
    assert every["token_reduction"] == pytest.approx((12.5 / 25 + 110 / 420) / 2)
    assert b["truncated"] == pytest.approx(2 / 6) and every["truncated"] == pytest.approx(1 / 6)
    assert a["difference"] == pytest.approx(0.25) and b["difference"] == pytest.approx(1 / 6 - 1 / 2)
    assert (every["problems"], every["samples"], every["seconds"], every["alpha"]) == (5, 2, 3.0, 1.5)

    same = row(results, "reference")
    assert same["token_reduction"] == same["difference"] == same["difference_low"] == 0


def test_costs_stand_beside_the_figures():
    """Those of a candidate as they are given, NaN where they are not; those of its kind from the table of kinds."""
    frames = (
        frame("reference", {"a": [[1]]}),
        frame("inra_2", {"a": [[1]]}, alpha=2.0),
        frame("dera_2", {"a": [[1]]}, alpha=2.0),
    )
    results = summarise_sweep(
        {one["candidate"].iloc[0]: one for one in frames},
        bootstrap_samples=5,
        bootstrap_seed=0,
        costs={"reference": {"train_seconds": 0, "bytes": 0}, "inra_2": {"train_seconds": None, "bytes": 12}},
    )
    columns = ["train_seconds", "bytes", "models", "kv_streams", "passes"]
    found = results[results["task"] == "all"].set_index("candidate")[columns]
    assert found.loc["reference"].tolist() == [0, 0, 1, 1, 1]
    assert np.isnan(found.loc["inra_2", "train_seconds"]) and found.loc["inra_2"].tolist()[1:] == [12, 1, 2, 2]
    assert found.loc["dera_2"].isna().tolist() == [True, True, False, False, False]
    assert found.loc["dera_2"].tolist()[2:] == [2, 2, 2]


def test_paper_reductions():
    tasks = ("AIME24", "AIME25", "MATH-500")
    correct = {task: [[1]] for task in tasks}
    frames = [
        frame(
            name, correct, {task: [[count]] for task, count in zip(tasks, tokens, strict=True)}, kind=kind, alpha=alpha
        )
        for name, (tokens, _) in PAPER.items()
        for kind, alpha in [(name, np.nan) if name in ("reference", "aligned") else ("trra", 1.0)]
    ]
    results = summarise(*frames)
    for name, (_, printed) in PAPER.items():
        # The paper reduces before it rounds the tokens: its 42.11 % is 42.13 % from the tokens it prints.
        assert 100 * row(results, name)["token_reduction"] == pytest.approx(printed, abs=0.025), name


def test_bootstrap_of_two_problems_is_binomial():
    means = bootstrap_means(np.array([[0.0, 1.0]]), 40_000, 3)
    shares = [(means == value).mean() for value in (0.0, 0.5, 1.0)]
    assert means.shape == (1, 40_000)
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_interval_agrees_with_scipy():
    trra = random_correct(2, 60, 4, 0.6)
    results = summarise(
        frame("reference", {"a": random_correct(1, 60, 4, 0.8)}),
        frame("trra_2", {"a": trra}, alpha=2.0),
        samples=50_000,
    )
    theirs = stats.bootstrap(
        (np.mean(trra, axis=1),), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    ours = row(results, "trra_2", "a")
    assert (ours["pass_at_1_low"], ours["pass_at_1_high"]) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def student_low(differences: np.ndarray) -> float:
    return stats.ttest_1samp(differences, 0, alternative="greater").confidence_interval(0.95).low


def symmetric(seed: int, size: int, spread: float) -> np.ndarray:
    """Differences with no skewness, some of them losses."""
    half = spread * np.random.default_rng(seed).random(size)
    return np.concatenate([half, -half]) - 0.01


def test_the_bound_of_symmetric_differences_is_students():
    one, other = symmetric(1, 30, 0.5), symmetric(2, 30, 0.05)
    bounds = lower_bound([np.stack([one, other])])
    assert bounds == pytest.approx([student_low(one), student_low(other)])


def test_gains_that_are_rare_and_large_do_not_lift_the_bound():
    gains = np.array([0.5] * 3 + [-0.05] * 47)
    assert stats.skew(gains) > 3
    assert lower_bound([gains[None]]) == pytest.approx([student_low(gains)])


def test_losses_that_are_rare_and_large_lower_the_bound():
    """Edgeworth's term of the Studentized mean at its quantile: skewness (2 t² + 1) / (6 √n), skewness over s³."""
    losses = np.array([-1.0, -0.75, *[0.25] * 8, *[0.0] * 90])
    size, deviation = len(losses), losses.std(ddof=1)
    skewness = np.mean((losses - losses.mean()) ** 3) / deviation**3
    quantile = stats.t.ppf(0.95, size - 1)
    correction = -skewness * (2 * quantile**2 + 1) / (6 * np.sqrt(size))
    bound = lower_bound([losses[None]])[0]
    assert bound == pytest.approx(losses.mean() - (quantile + correction) * deviation / np.sqrt(size))
    assert bound < student_low(losses) - 0.005


def test_the_bound_over_tasks_is_welchs():
    one, other = symmetric(1, 20, 0.5), symmetric(2, 50, 0.1)
    difference = stats.ttest_ind(one, -other, equal_var=False, alternative="greater").confidence_interval(0.95)
    assert lower_bound([one[None], other[None]]) == pytest.approx([difference.low / 2])


def test_skewness_over_tasks_is_that_of_their_mean():
    """Cumulants of independent means add up: with equal tasks, that of one sample of both, but for the spread."""
    losses = np.array([-1.0, -0.75, *[0.25] * 8, *[0.0] * 90])
    size, deviation = len(losses), losses.std(ddof=1)
    skewness = np.mean((losses - losses.mean()) ** 3) / deviation**3 / np.sqrt(2 * size)
    quantile = stats.t.ppf(0.95, 2 * (size - 1))
    expected = losses.mean() - (quantile - skewness * (2 * quantile**2 + 1) / 6) * deviation / np.sqrt(2 * size)
    assert lower_bound([losses[None], losses[None]]) == pytest.approx([expected])


@pytest.mark.parametrize("sizes", [(60,), (60, 90)])
def test_losses_of_which_none_was_seen(sizes: tuple[int, ...]):
    """A loss of whole problems that no sample of this size shows with a chance of 5 %: (1 - share)^n = 0.05."""
    share = stats.binomtest(0, 60, alternative="less").proportion_ci(0.95).high  # Clopper and Pearson's
    expected = -share / len(sizes)  # all of the loss in the smallest task
    same = [np.zeros((1, size)) for size in sizes]
    gained = [np.eye(1, size) for size in sizes]
    assert lower_bound(same) == pytest.approx([expected])
    assert lower_bound(gained) == pytest.approx([expected + np.mean([1 / size for size in sizes])])
    lost = [-task for task in gained]
    assert lower_bound(lost)[0] < expected


def test_a_task_of_one_problem_says_nothing():
    assert lower_bound([np.zeros((2, 50)), np.zeros((2, 1))]).tolist() == [-1, -1]


def test_the_tables_bound_is_of_the_differences_by_problem_and_task():
    sizes = {"a": 40, "b": 25}
    reference, trra = (
        {task: random_correct(seed + size, size, 4, rate) for task, size in sizes.items()}
        for seed, rate in ((1, 0.8), (2, 0.6))
    )
    results = summarise(frame("reference", reference), frame("trra_2", trra, alpha=2.0))
    differences = {task: (np.mean(trra[task], axis=1) - np.mean(reference[task], axis=1))[None] for task in sizes}
    assert row(results, "trra_2", "a")["difference_low"] == pytest.approx(lower_bound([differences["a"]])[0])
    assert row(results, "trra_2")["difference_low"] == pytest.approx(lower_bound(list(differences.values()))[0])
    assert (results[results["kind"] == "reference"]["difference_low"] == 0).all()


def test_overall_interval_resamples_within_each_task():
    # The same answers in both tasks: resampled alike instead of independently, the interval would be √2 times as wide.
    correct = {task: random_correct(3, 60, 2, 0.7) for task in "ab"}
    every = row(summarise(frame("reference", correct), samples=50_000), "reference")
    variances = [np.var(np.mean(correct[task], axis=1)) / len(correct[task]) for task in correct]
    # of the mean of two independent means; 1.96 of its deviations to either side, as it is nearly normal
    half = 1.96 * np.sqrt(sum(variances)) / 2
    assert every["pass_at_1_low"] == pytest.approx(every["pass_at_1"] - half, abs=0.005)
    assert every["pass_at_1_high"] == pytest.approx(every["pass_at_1"] + half, abs=0.005)


def test_difference_is_paired():
    """Equal answers are equal whatever problems are drawn, though each pass@1 by itself is uncertain."""
    correct = {"a": random_correct(5, 30, 2, 0.5)}
    same = row(summarise(frame("reference", correct), frame("aligned", correct)), "aligned")
    assert same["pass_at_1_high"] - same["pass_at_1_low"] > 0.1
    assert same["difference"] == 0
    assert same["difference_low"] == pytest.approx(-(1 - 0.05 ** (1 / 30)))  # which says nothing of unseen losses


def test_result_depends_on_the_seed_and_on_nothing_else():
    correct = {task: random_correct(number, 30, 2, 0.6) for number, task in enumerate("ab")}
    reference, aligned = frame("reference", correct), frame("aligned", {task: correct[task][::-1] for task in "ab"})
    other = frame("trra_1", {task: random_correct(9, 30, 2, 0.5) for task in "ab"}, alpha=1.0)
    both = summarise(reference, aligned)
    shuffled = {
        "y": lambda: aligned.sample(frac=1, random_state=1),
        "z": other,
        "x": reference.sample(frac=1, random_state=2),
    }
    again = summarise_sweep(shuffled, bootstrap_samples=200, bootstrap_seed=0)
    pd.testing.assert_frame_equal(both, again[again["kind"] != "trra"])
    assert not both.equals(summarise(reference, aligned, seed=1))


def test_order_is_kind_alpha_name():
    correct = {"a": [[1]]}
    frames = [
        frame("trra_10", correct, alpha=10.0),
        frame("inra_-1", correct, alpha=-1.0),
        frame("trra_2", correct, alpha=2.0),
        frame("trra_iter_1", correct, alpha=2.0),
        frame("dera_3", correct, alpha=3.0),
        frame("aligned", correct),
        frame("reference", correct),
    ]
    order = summarise(*frames).query("task == 'all'")["candidate"].tolist()
    assert order == ["reference", "aligned", "dera_3", "trra_2", "trra_10", "trra_iter_1", "inra_-1"]


TWO = {"a": [[1, 0], [1, 1]]}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (frame("aligned", {"a": [[1, 0]]}), r"aligned was not measured .* lacks 2 \(task a, problem a-1, sample 0;"),
        (frame("aligned", {"a": [[1, 0], [1, 1], [0, 1]]}), r"aligned .* has besides 2 \(task a, problem a-2"),
        (frame("aligned", {"a": [[1], [1]]}), r"lacks 2 \(task a, problem a-0, sample 1; task a, problem a-1"),
        (frame("aligned", {"b": [[1, 0], [1, 1]]}), r"lacks 4 .*; …\) and has besides 4 \(task b"),
        (pd.concat([frame("aligned", TWO)] * 2), r"aligned holds task a, problem a-0, sample 0.* more than once"),
        (pd.concat([frame("aligned", TWO), frame("dera_1", TWO)]), r"several values of candidate: \['aligned', 'dera"),
        (frame("aligned", TWO).drop(columns="finished"), r"lack the columns \['finished'\]"),
        (frame("aligned", TWO).head(0), r"hold no completion"),
        (frame("aligned", TWO, kind="base"), r"kind 'base'; known kinds are reference, aligned"),
        (frame("aligned", TWO, kind="reference"), r"needs one candidate of kind reference; this one has \['aligned', "),
        (
            frame("aligned", TWO, alpha=1.0),
            r"aligned of kind aligned has alpha 1.0; reference, aligned, prompt, other h",
        ),
        (frame("trra_2", TWO), r"trra_2 of kind trra has alpha nan"),
        (frame("aligned", {"all": [[1]]}), r"a task cannot be named 'all'"),
    ],
)
def test_what_cannot_be_compared_is_refused(broken: pd.DataFrame, message: str):
    generations = {"first": frame("reference", TWO), "second": broken}
    with pytest.raises(ValueError, match=message):
        summarise_sweep(generations, bootstrap_samples=10, bootstrap_seed=0)


def test_a_sweep_without_reference_is_refused():
    with pytest.raises(ValueError, match="kind reference; this one has none"):
        summarise(frame("aligned", TWO))


def test_pareto_front():
    tokens = np.array([10.0, 20.0, 20.0, 30.0, 10.0, 40.0])
    correct = np.array([0.5, 0.7, 0.6, 0.7, 0.5, 0.9])
    # 20/0.6 and 30/0.7 are beaten by 20/0.7; the two equal points do not beat each other
    assert pareto_front(tokens, correct).tolist() == [True, True, False, False, True, True]


def budget_frame(kind: str, budget: int, correct: dict, tokens: dict | None = None) -> pd.DataFrame:
    """A frame of budget_generations; completions as long as the budget were cut off."""
    made = frame(f"{kind}-{budget}", correct, tokens, kind=kind, budget=budget)
    return made.assign(finished=made["completion_tokens"] < budget)


def baselines(correct: dict) -> list[pd.DataFrame]:
    """What every budget has."""
    return [budget_frame(kind, 24, correct) for kind in ("truncation", "forced_close")]


def summarise_budget_frames(*frames: pd.DataFrame, samples: int = 200, seed: int = 0) -> pd.DataFrame:
    generations = {f"partition-{number}": one for number, one in enumerate(frames)}
    return summarise_budgets(generations, bootstrap_samples=samples, bootstrap_seed=seed)


def test_hand_computed_budgets():
    results = summarise_budget_frames(
        budget_frame(
            "token_budget",
            100,
            {"a": [[1, 1], [1, 1]], "b": [[1, 0], [1, 1], [1, 1]]},
            {"a": [[10, 20], [30, 40]], "b": [[100, 50], [60, 70], [80, 60]]},
        ).assign(plausibility=0.1),
        budget_frame("truncation", 32, {"a": [[0, 0], [0, 0]], "b": [[0, 0], [0, 0], [0, 1]]}),
        budget_frame("forced_close", 32, {"a": [[1, 0], [1, 1]], "b": [[0, 0], [0, 0], [0, 1]]}),
        budget_frame("forced_close", 100, {"a": [[1, 1], [1, 1]], "b": [[1, 0], [0, 0], [0, 0]]}),
        budget_frame(
            "truncation",
            100,
            {"a": [[1, 0], [1, 1]], "b": [[0, 0], [1, 0], [0, 0]]},
            {"a": [[100, 20], [100, 40]], "b": [[100, 100], [100, 70], [80, 60]]},
        ),
    )
    assert results["candidate"].tolist() == [
        "truncation-32", "forced_close-32", "truncation-100", "forced_close-100", "token_budget-100",
    ]  # fmt: skip
    kinds = ["truncation", "forced_close"]
    assert results["kind"].tolist() == [*kinds, *kinds, "token_budget"]
    assert results["budget"].tolist() == [32, 32, 100, 100, 100]
    assert results["plausibility"].tolist() == [0.0, 0.0, 0.0, 0.0, 0.1]
    # plain means over the two tasks, not over the five problems
    assert results["pass_at_1"].tolist() == pytest.approx(
        [1 / 12, (3 / 4 + 1 / 6) / 2, (3 / 4 + 1 / 6) / 2, (1 + 1 / 6) / 2, (1 + 5 / 6) / 2]
    )
    assert results["difference"].tolist() == pytest.approx([0, 3 / 8, 0, 1 / 8, (1 / 4 + 4 / 6) / 2])
    assert results["forced_difference"].tolist() == pytest.approx([-3 / 8, 0, -1 / 8, 0, (0 + 4 / 6) / 2])
    assert results["truncated"].tolist() == pytest.approx([0, 0, (2 / 4 + 3 / 6) / 2, 0, (0 + 1 / 6) / 2])
    assert results["mean_tokens"].tolist() == pytest.approx(
        [10, 10, (260 / 4 + 510 / 6) / 2, 10, (100 / 4 + 420 / 6) / 2]
    )
    for kind, column in (("truncation", "difference"), ("forced_close", "forced_difference")):
        itself = results[results["kind"] == kind]
        assert (itself[[f"{column}_low", f"{column}_high"]] == 0).all(axis=None)


def test_budget_intervals_agree_with_a_loop_over_resamples():
    sizes = {"a": 30, "b": 45}
    correct = {
        (kind, budget): {task: random_correct(10 * number + len(task), size, 3, rate) for task, size in sizes.items()}
        for number, (kind, budget, rate) in enumerate(
            [
                ("truncation", 24, 0.2),
                ("forced_close", 24, 0.5),
                ("token_budget", 24, 0.7),
                ("truncation", 64, 0.9),
                ("forced_close", 64, 0.9),
                ("token_budget", 64, 0.9),
            ]
        )
    }
    frames = [budget_frame(kind, budget, answers) for (kind, budget), answers in correct.items()]
    results = summarise_budget_frames(*frames, samples=1300, seed=7)

    generators = {task: np.random.default_rng([7, zlib.crc32(task.encode())]) for task in sizes}
    resampled: dict[tuple[str, int], list[float]] = {candidate: [] for candidate in correct}
    for _ in range(1300):
        drawn = {  # problems in the order of their ids
            task: np.repeat(sorted(range(size), key=str), generators[task].multinomial(size, [1 / size] * size))
            for task, size in sizes.items()
        }
        for candidate, answers in correct.items():
            by_task = [np.mean([np.mean(answers[task][problem]) for problem in drawn[task]]) for task in sizes]
            resampled[candidate].append(float(np.mean(by_task)))
    for one in results.itertuples():
        means = np.array(resampled[one.kind, one.budget])
        assert (one.pass_at_1_low, one.pass_at_1_high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
        for kind, ends in (
            ("truncation", (one.difference_low, one.difference_high)),
            ("forced_close", (one.forced_difference_low, one.forced_difference_high)),
        ):
            differences = means - np.array(resampled[kind, one.budget])
            assert ends == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))
    assert results["difference_low"].gt(0).tolist() == [False, True, True, False, False, False]
    assert results["forced_difference_low"].gt(0).tolist() == [False, False, True, False, False, False]


def test_budgets_and_sweep_draw_the_same_resamples():
    correct = {task: random_correct(number, 30, 2, 0.6) for number, task in enumerate("ab")}
    budgets = summarise_budget_frames(*baselines(correct), seed=4).iloc[0]
    sweep = row(summarise(frame("reference", correct), seed=4), "reference")
    same = ["pass_at_1", "pass_at_1_low", "pass_at_1_high"]
    assert budgets[same].tolist() == sweep[same].tolist()


def test_no_budgets_give_no_rows():
    results = summarise_budgets({}, bootstrap_samples=10, bootstrap_seed=0)
    assert results.empty
    assert results.columns.tolist() == summarise_budget_frames(*baselines(TWO)).columns.tolist()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            budget_frame("token_budget", 48, TWO),
            r"budget 48 of candidate token_budget-48 has no candidate of kind trunc",
        ),
        (
            budget_frame("truncation", 48, TWO),
            r"budget 48 of candidate truncation-48 has no candidate of kind forced_close to compare with",
        ),
        (
            budget_frame("token_budget", 24, {"a": [[1, 0]]}),
            r"token_budget-24 was not measured .* of truncation-24: .* l",
        ),
        (budget_frame("token_budget", 24, TWO).drop(columns="budget"), r"of partition-2 lack the columns \['budget'\]"),
        (budget_frame("token_budget", 24, TWO).head(0), r"partition-2 hold no completion"),
        (
            budget_frame("reference", 24, TWO),
            r"kind 'reference'; known kinds are truncation, forced_close, token_budget",
        ),
        (budget_frame("truncation", 24, TWO).assign(candidate="b"), r"24 has two candidates of kind truncation: .*, b"),
        (
            budget_frame("token_budget", 24, TWO).assign(budget=[24, 24, 48, 48]),
            r"several values of budget: \[24, 48\]",
        ),
    ],
)
def test_budgets_that_cannot_be_compared_are_refused(broken: pd.DataFrame, message: str):
    with pytest.raises(ValueError, match=message):
        summarise_budget_frames(*baselines(TWO), broken)


def test_the_interval_of_the_saving_is_scipys_paired_bootstrap_of_the_ratio():
    """One task, 60 problems: percentile bootstrap of 1 - mean / mean, the same problems resampled for both."""
    random = np.random.default_rng(3)
    theirs = random.integers(20, 100, (60, 2))
    ours = np.maximum(theirs * random.uniform(0.4, 0.9, (60, 1)), 1).astype(int)
    right = {"a": np.ones((60, 2), int).tolist()}
    frames = [frame(name, right, {"a": one.tolist()}) for name, one in (("reference", theirs), ("trra_2", ours))]
    low, high = saved_interval(*frames, bootstrap_samples=20_000, bootstrap_seed=0)
    expected = stats.bootstrap(
        (theirs.mean(1), ours.mean(1)),
        lambda x, y, axis: 1 - y.mean(axis) / x.mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.001)
    assert low < 1 - ours.mean() / theirs.mean() < high


def test_the_saving_over_two_tasks_is_the_mean_of_both():
    right = {"a": [[1], [1]], "b": [[1], [1]]}
    reference = frame("reference", right, {"a": [[10], [10]], "b": [[100], [100]]})
    candidate = frame("trra_2", right, {"a": [[5], [5]], "b": [[90], [90]]})
    assert saved_interval(reference, candidate, bootstrap_samples=50, bootstrap_seed=0) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.1])
def test_the_problems_needed_are_the_fewest_whose_bound_is_within_the_margin(margin, tasks):
    """By trying: the bound itself on tasks of so many problems, none of which was lost, and of one less."""
    needed = problems_needed(margin, tasks)
    bounds = [lower_bound([np.zeros((1, size))] * tasks)[0] for size in (needed, needed - 1)]
    assert bounds[0] >= -margin > bounds[1]
    assert bounds[0] == -unseen_loss(needed, tasks)


def test_no_number_of_problems_confirms_a_margin_of_nothing():
    assert problems_needed(0.0, 2) is None
    assert problems_needed(0.6, 2) == 2


def ungraded(frame: pd.DataFrame) -> pd.DataFrame:
    """The same completions as one more task, of prompts without answers."""
    chats = frame[frame["task"] == "a"].assign(task="chats", correct=pd.NA, completion_tokens=30)
    return pd.concat([frame, chats], ignore_index=True).astype({"correct": "boolean"})


def test_a_task_without_answers_counts_for_tokens_and_not_for_pass_at_1():
    """The row `all` has the pass@1 of the tasks that have answers, to the last digit, and the tokens of all tasks."""
    reference = frame("reference", {"a": random_correct(1, 9, 2, 0.7), "b": random_correct(2, 5, 2, 0.4)})
    aligned = frame("aligned", {"a": random_correct(3, 9, 2, 0.9), "b": random_correct(4, 5, 2, 0.6)})
    graded, both = summarise(reference, aligned), summarise(ungraded(reference), ungraded(aligned))
    columns = ["pass_at_1", "pass_at_1_low", "pass_at_1_high", "difference", "difference_low"]
    for name in ("reference", "aligned"):
        for task in ("a", "b", "all"):
            assert row(both, name, task)[columns].tolist() == row(graded, name, task)[columns].tolist()
        assert row(both, name, "chats")[columns].isna().all()
        assert row(both, name, "all")["mean_tokens"] == pytest.approx((10 + 10 + 30) / 3)
    none = [one[one["task"] == "chats"] for one in (ungraded(reference), ungraded(aligned))]
    alone = summarise(*none)
    assert alone[columns].isna().all(axis=None) and set(alone["mean_tokens"]) == {30.0}
    broken = none[1].assign(correct=[True] + [pd.NA] * (len(none[1]) - 1))
    with pytest.raises(ValueError, match="some completions of task chats are graded and others are not"):
        summarise(none[0], broken)
