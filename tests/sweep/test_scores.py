"""Metrics of graders: their means and intervals against sums by hand, and a recommendation by two of them."""

import numpy as np
import pandas as pd
import pytest

from realign_pipes.errors import InputError
from realign_pipes.graders.metrics import find_metric, metrics_of
from realign_pipes.graders.parameters import ALWAYS, RESERVED, Refusal, Rules, Scores
from realign_pipes.reporting.recommendation import (
    headline,
    recommend,
    step_cells,
    task_recommendation_cells,
)
from realign_pipes.sweep.bounds import seed_of
from realign_pipes.sweep.choosing import first_half
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, defined, gain_low, gain_of, graded, resampled_gain
from realign_pipes.sweep.metrics import read_answers, summarise_sweep
from realign_pipes.sweep.scores import summarise_scores

PROBLEMS = 200
REWARD = graded("reward", "reward", "number", "", higher_is_better=True)
REFUSED = graded("no_harmless", "refusal rate", "share", "", higher_is_better=False)


def generations(candidates: dict[str, float], tasks: tuple[str, ...] = ("chat",)) -> dict[str, pd.DataFrame]:
    """Candidates of two samples a problem, by name their alpha; of 100 tokens, all correct."""
    frames = {}
    for name, alpha in candidates.items():
        rows = [(task, f"{task}-{number:05d}", sample) for task in tasks for number in range(PROBLEMS)
                for sample in range(2)]  # fmt: skip
        frames[name] = pd.DataFrame(rows, columns=["task", "problem_id", "sample"]).assign(
            candidate=name, kind="reference" if name == "reference" else "dera", alpha=alpha, plausibility=0.0,
            engine="transformers", completion="", completion_tokens=100, finished=True, correct=True, seconds=1.0,
        )  # fmt: skip
    return frames


def scored(frames: dict[str, pd.DataFrame], metric: str, score, tasks=("chat",)) -> pd.DataFrame:
    """`score(candidate, number of the problem, sample)`, which may be None."""
    rows = [
        (row.candidate, row.task, row.problem_id, row.sample, metric, value)
        for frame in frames.values()
        for row in frame.itertuples()
        if row.task in tasks and (value := score(row.candidate, int(row.problem_id[-5:]), row.sample)) is not None
    ]
    return pd.DataFrame(rows, columns=["candidate", "task", "problem_id", "sample", "metric", "score"])


FRAMES = generations({"reference": np.nan, "dera-1": 1.0, "dera-2": 2.0})
NOISE = np.random.default_rng(3).normal(size=PROBLEMS)


def test_figures_are_those_of_a_plain_bootstrap():
    """Resamples by drawing problems, where ours multiplies with counts of the same generator."""
    gains = {"reference": 0.0, "dera-1": 0.5, "dera-2": 1.0}
    scores = scored(FRAMES, "reward", lambda name, number, sample: gains[name] * (1 + NOISE[number]) + sample)
    found = summarise_scores(read_answers(FRAMES), scores, [REWARD], bootstrap_samples=400, bootstrap_seed=9)
    assert found["task"].unique().tolist() == ["chat", "all"] and set(found["problems"]) == {PROBLEMS}
    counts = np.random.default_rng(seed_of(9, "chat")).multinomial(PROBLEMS, np.full(PROBLEMS, 1 / PROBLEMS), size=400)
    drawn = [np.repeat(np.arange(PROBLEMS), row) for row in counts]
    for row in found.itertuples():
        values = gains[row.candidate] * (1 + NOISE) + 0.5
        assert row.mean == pytest.approx(values.mean())
        assert (row.low, row.high) == pytest.approx(np.quantile([values[one].mean() for one in drawn], [0.025, 0.975]))
        paired = [(values - 0.5)[one].mean() for one in drawn]  # the reference's are all 0.5
        assert row.difference == pytest.approx(values.mean() - 0.5)
        assert (row.difference_low, row.difference_high) == pytest.approx(np.quantile(paired, [0.025, 0.975]))


def test_a_metric_counts_where_it_is_defined():
    frames = generations({"reference": np.nan, "dera-1": 1.0}, ("chat", "sums"))
    some = scored(frames, "no_harmless", lambda name, number, sample: (name == "dera-1") * 1.0 if number < 10 else None)
    answers = read_answers(frames)
    found = summarise_scores(answers, some, [REFUSED, TOKENS], bootstrap_samples=10, bootstrap_seed=0)
    of_metric = found[found["metric"] == "no_harmless"]
    assert of_metric["task"].unique().tolist() == ["chat", "all"] and set(of_metric["problems"]) == {10}
    assert of_metric.set_index(["candidate", "task"])["mean"].loc["dera-1"].tolist() == [1, 1]
    assert found[found["metric"] == "tokens"]["task"].unique().tolist() == ["chat", "sums", "all"]
    with pytest.raises(InputError, match="scores hold nothing of dera-1, a candidate of the sweep"):
        summarise_scores(
            answers, some[some["candidate"] == "reference"], [REFUSED], bootstrap_samples=9, bootstrap_seed=0
        )
    without = some.assign(metric=some["metric"].where(some["candidate"] == "reference", "words"))
    only = summarise_scores(answers, without, [REFUSED], bootstrap_samples=10, bootstrap_seed=0)
    assert only["candidate"].unique().tolist() == ["reference"]  # a candidate without the metric has no row
    with pytest.raises(InputError, match="no_harmless of task chat: dera-1 was not scored on the problems"):
        summarise_scores(answers, some.iloc[:-4], [REFUSED], bootstrap_samples=10, bootstrap_seed=0)
    with pytest.raises(InputError, match="scores hold no metric reward"):
        summarise_scores(answers, some, [REWARD], bootstrap_samples=10, bootstrap_seed=0)


def test_gains_have_the_direction_of_their_metric():
    values = {"a": np.array([[2.0, 4.0], [1.0, 2.0]]), "b": np.array([[10.0], [20.0]])}
    assert gain_of(values, 0, TOKENS)[1] == pytest.approx((0.5 - 1) / 2)  # half the tokens of one, twice of the other
    assert gain_of(values, 0, REWARD)[1] == pytest.approx((-1.5 + 10) / 2)
    assert gain_of(values, 0, REFUSED)[1] == pytest.approx((1.5 - 10) / 2)
    resampled = resampled_gain(values, 0, REWARD, 50, 1)
    low = gain_low(values, 0, REWARD, 50, 1)
    assert low[1] == pytest.approx(np.quantile(resampled[1], 0.05)) and low[0] == 0


def test_the_largest_gain_of_a_reward_at_a_loss_of_refusals():
    """dera-2 has the larger reward, and refuses harmless prompts; dera-1 does not."""
    gains = {"reference": 0.0, "dera-1": 0.5, "dera-2": 1.0}
    refuses = {"reference": 0, "dera-1": 0, "dera-2": 1}
    scores = pd.concat(
        [
            scored(FRAMES, "reward", lambda name, number, sample: gains[name] + NOISE[number] / 10),
            scored(FRAMES, "no_harmless", lambda name, number, sample: float(number % 10 == 0) * refuses[name]),
        ]
    )
    options = {"bootstrap_samples": 100, "bootstrap_seed": 1, "gain": REWARD, "scores": scores}
    found = recommend(FRAMES, 0.05, loss=REFUSED, **options)
    assert (found["candidate"], found["survived"]) == ("dera-1", True)
    ids = [f"chat-{number:05d}" for number in range(PROBLEMS)]
    confirming = ~first_half(ids)
    assert found["reward"] == pytest.approx(0.5 + NOISE[confirming].mean() / 10)
    assert found["reward_gain"] == pytest.approx(0.5)
    assert (found["no_harmless"], found["reference_no_harmless"], found["difference"]) == (0, 0, 0)
    assert found["difference_low"] == pytest.approx(-(1 - 0.05 ** (1 / 100)))  # no problem of the half was lost
    assert found["sentence"].startswith(
        f"No training is needed: use dera-1 (DeRa). It raises reward by 0.5 ({found['reward']:.3g} instead of "
    )
    assert "at refusal rate 0.0 % against 0.0 %" in found["sentence"]
    assert "its refusal rate is at most 3.0 points above the reference's (allowed: 5.0 points)" in found["sentence"]
    assert "Of gains in reward that do not differ with 95 % confidence, the lower refusal rate was" in found["sentence"]
    assert step_cells(found, REWARD, REFUSED).header[:3] == ["candidate", "refusal rate when choosing", "reward gained"]
    assert task_recommendation_cells(found, REWARD, REFUSED).rows[0][4] == "0.5"
    results = summarise_sweep(FRAMES, bootstrap_samples=10, bootstrap_seed=0)
    assert headline(results, found, REWARD, REFUSED) == {
        name: found[name]
        for name in ("candidate", "no_harmless", "reward", "reference_no_harmless", "reference_reward")
    }
    assert recommend(FRAMES, 0.5, loss=REFUSED, **options)["candidate"] == "dera-2"
    kept = recommend(FRAMES, 0.05, loss=PASS_AT_1, **(options | {"gain": TOKENS}))
    assert "no candidate saves tokens and loses at most 5.0 points of pass@1" in kept["sentence"]


def test_gain_and_loss_may_be_of_different_tasks():
    frames = generations({"reference": np.nan, "dera-1": 1.0}, ("chat", "sums"))
    frames = {name: one.assign(correct=one["correct"] & (one["task"] == "sums")) for name, one in frames.items()}
    scores = scored(frames, "reward", lambda name, number, sample: float(name == "dera-1") + NOISE[number] / 10)
    found = recommend(frames, 0.05, bootstrap_samples=100, bootstrap_seed=1, gain=REWARD, scores=scores)
    assert found["candidate"] == "dera-1" and found["pass_at_1"] == 0.5
    assert list(found["tasks"]) == ["chat"]  # sums have no reward


def test_without_answers_there_is_nothing_to_lose():
    answers = read_answers(FRAMES)
    nothing = np.full_like(answers.values["chat"]["correct"], np.nan)
    assert defined({"chat": {"correct": nothing}}, PASS_AT_1, 0) == {}
    frames = {name: one.assign(correct=np.nan) for name, one in FRAMES.items()}
    found = recommend(frames, 0.02, bootstrap_samples=10, bootstrap_seed=0)
    assert (found["candidate"], found["graded_tasks"], found["pass_at_1"], found["tasks"]) == ("reference", 0, None, {})
    assert "no task has answers, so there is no pass@1 to lose" in found["sentence"]
    with pytest.raises(InputError, match="the metric reward is not defined for any problem"):
        scores = scored(FRAMES, "reward", lambda name, number, sample: float("nan"))
        recommend(FRAMES, 0.02, bootstrap_samples=10, bootstrap_seed=0, gain=REWARD, scores=scores)


def test_metrics_have_the_names_of_their_graders():
    rules = Rules(kind="rules", instructions=[{"kind": "json"}])
    metrics = metrics_of(Scores(graders={"form": rules, "no": Refusal(kind="refusal", field="class")}, distinct_n=3))
    named = ["pass_at_1", "tokens", "words", "distinct", "form", "form_each", "no_harmful", "no_harmless"]
    assert [metric.name for metric in metrics] == named
    better = [metric.name for metric in metrics if metric.higher_is_better]
    assert better == ["pass_at_1", "distinct", "form", "form_each", "no_harmful"]
    assert find_metric(metrics, "tokens", "reporting.gain") is TOKENS
    with pytest.raises(
        InputError, match=r"reporting.gain: there is no metric 'no_harmles': did you mean 'no_harmless'"
    ):
        find_metric(metrics, "no_harmles", "reporting.gain")
    with pytest.raises(ValueError, match="tokens: a metric of that name is always there"):
        Scores(graders={"tokens": rules}, distinct_n=2)
    with pytest.raises(ValueError, match="form_each: two graders have a metric of that name"):
        Scores(graders={"form": rules, "form_each": rules}, distinct_n=2)
    for name in ("difference", "correct", "reference_words", "words_gain"):
        with pytest.raises(ValueError, match=f"{name}: results have another figure of that name"):
            Scores(graders={name: rules}, distinct_n=2)
    both = metrics_of(Scores(graders={name: Refusal(kind="refusal", field="class") for name in "ab"}, distinct_n=2))
    assert len({metric.label for metric in both}) == len(both)


def test_no_grader_can_have_the_name_of_a_figure_of_the_recommendation():
    found = recommend(FRAMES, 0.02, bootstrap_samples=10, bootstrap_seed=0)
    for figure in {*found, *found["tasks"]["chat"]} - ALWAYS:
        assert figure in RESERVED or figure.startswith("reference_") or figure.endswith("_given_away"), figure
