"""The outcomes of a recommendation, on completions made by hand for either half of the problems."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from realign_pipes.reporting.recommendation import headline, recommend, step_cells, task_recommendation_cells
from realign_pipes.sweep.bounds import lower_bound
from realign_pipes.sweep.choosing import first_half
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import summarise_sweep

PROBLEMS = 400  # of a task: 200 in either half
RIGHT = 190  # of 200: the reference's
TASK = "sums"

Half = tuple[int, float]
"""Of the 200 problems of one half: right ones more than the reference's; mean tokens."""


def frame(name: str, kind: str, alpha: float, halves: dict[str, tuple[Half, Half]]) -> pd.DataFrame:
    """One candidate's completions, by task for the choosing and the confirming half. Token counts vary by ±10."""
    rows = []
    for task, of_halves in halves.items():
        ids = [f"{task}-{number:05d}" for number in range(PROBLEMS)]
        mask = first_half(ids)
        for here, (more, tokens) in zip((True, False), of_halves, strict=True):
            half = [problem for problem, chosen in zip(ids, mask, strict=True) if chosen == here]
            # A loss is on problems that the reference has right, a gain on those that it has wrong.
            for place, problem in enumerate(half):
                right = place < RIGHT + more
                rows.append((task, problem, right, round(tokens) + (10 if place % 2 else -10)))
    made = pd.DataFrame(rows, columns=["task", "problem_id", "correct", "completion_tokens"])
    return made.assign(candidate=name, kind=kind, alpha=alpha, plausibility=0.0, engine="transformers",
                       sample=0, finished=True, seconds=1.0, train_seconds=0.0, bytes=0, completion="")  # fmt: skip


@pytest.fixture
def make_sweep() -> Callable[..., dict[str, pd.DataFrame]]:
    """`make_sweep({name: (kind, alpha, choosing half, confirming half)})`, one task, with a reference of 100 tokens."""

    def make(candidates: dict[str, tuple[str, float, Half, Half]]) -> dict[str, pd.DataFrame]:
        frames = {"reference": frame("reference", "reference", np.nan, {TASK: ((0, 100), (0, 100))})}
        for name, (kind, alpha, choosing, confirming) in candidates.items():
            frames[name] = frame(name, kind, alpha, {TASK: (choosing, confirming)})
        return frames

    return make


def recommend_of(frames: dict[str, pd.DataFrame], margin: float = 0.02) -> dict:
    return recommend(frames, margin, bootstrap_samples=200, bootstrap_seed=0)


ALIGNED = ("aligned", np.nan, (1, 82), (1, 80))
TRRA = ("trra", 1.5, (0, 70), (1, 72))


def test_what_survives_is_recommended_with_the_confirming_halfs_figures(make_sweep):
    frames = make_sweep({"aligned": ALIGNED, "trra-1.5": TRRA})
    found = recommend_of(frames)
    assert (found["candidate"], found["kind"], found["alpha"], found["survived"]) == ("trra-1.5", "trra", 1.5, True)
    assert (found["chosen_on"], found["confirmed_on"], found["margin"], found["confidence"]) == (200, 200, 0.02, 0.95)
    assert found["pass_at_1"] == pytest.approx(191 / 200) and found["reference_pass_at_1"] == pytest.approx(190 / 200)
    assert found["mean_tokens"] == 72 and found["token_reduction"] == pytest.approx(0.28)
    assert found["reference_mean_tokens"] == 100
    assert found["difference"] == pytest.approx(1 / 200)
    bound = 1 / 200 - (1 - 0.05 ** (1 / 200))  # no problem of the confirming half was lost
    assert found["difference_low"] == pytest.approx(bound)
    assert found["sentence"] == (
        "Use trra-1.5: it saves 28.0 % of the reference's tokens (72.0 instead of 100.0 per completion) at pass@1 "
        "95.5 % against 95.0 %, and with 95 % confidence its pass@1 is at most 1.0 point below the reference's "
        "(allowed: 2.0 points). It was chosen on 200 problems; these figures are from 200 problems that had no part in "
        "the choice. Of savings that do not differ with 95 % confidence, the higher pass@1 was taken, then the smaller "
        "move."
    )
    assert [(step["candidate"], step["confirmed"]) for step in found["steps"]] == [
        ("aligned", True),
        ("trra-1.5", True),
    ]
    assert found["steps"][0]["chosen_on"]["token_reduction"] == pytest.approx(0.18)
    assert found["steps"][0]["confirmed_on"]["token_reduction"] == pytest.approx(0.2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_figures_are_those_of_the_problems_of_the_confirming_half(make_sweep):
    """A second way to them: the table of the sweep, on these problems alone."""
    frames = make_sweep({"aligned": ALIGNED, "trra-1.5": ("trra", 1.5, (-1, 70), (-1, 61))})
    found = recommend_of(frames, margin=0.05)
    ids = frames["reference"]["problem_id"].sort_values().tolist()
    confirming = {problem for problem, chosen in zip(ids, first_half(ids), strict=True) if not chosen}
    half = {name: one[one["problem_id"].isin(confirming)] for name, one in frames.items()}
    table = summarise_sweep(half, bootstrap_samples=10, bootstrap_seed=0).query("task == 'all'").set_index("candidate")
    for figure in ("pass_at_1", "mean_tokens", "token_reduction", "difference", "difference_low"):
        assert found[figure] == pytest.approx(table.loc["trra-1.5", figure]), figure
    lost = np.array([-1.0] + [0.0] * 199)
    assert found["difference_low"] == pytest.approx(lower_bound([lost[None]])[0])


@pytest.mark.parametrize(("tokens", "taken"), [(72.4, "aligned"), (60.0, "trra-2")])
def test_tokens_within_noise_cost_no_correctness(tokens, taken):
    """72.4 tokens at 60.9 % against the aligned model's 74.0 at 68.8 %, as on a pretrained model once; 60 tokens are a
    saving worth the walk's next step."""
    ids = [f"{TASK}-{number:05d}" for number in range(640)]
    mask = first_half(ids)
    generator = np.random.default_rng(5)
    frames = {}
    for name, alpha, right, mean in (
        ("reference", np.nan, 200, 116.0), ("aligned", np.nan, 220, 74.0), ("trra-2", 2.0, 195, tokens),
    ):  # fmt: skip
        halves = []
        for here in (True, False):  # 320 problems each
            half = [problem for problem, chosen in zip(ids, mask, strict=True) if chosen == here]
            noise = generator.normal(0, 20, 320)
            completion_tokens = mean + noise - noise.mean()
            halves.append(pd.DataFrame({"problem_id": half, "correct": np.arange(320) < right,
                                        "completion_tokens": completion_tokens}))  # fmt: skip
        frames[name] = pd.concat(halves).assign(
            candidate=name, kind=name.split("-")[0], alpha=alpha, plausibility=0.0, task=TASK, sample=0, finished=True,
            seconds=1.0, completion="", engine="transformers 5.23.0 float32",
        )  # fmt: skip
    table = (
        summarise_sweep(frames, bootstrap_samples=10, bootstrap_seed=0).query("task == 'all'").set_index("candidate")
    )
    assert table.loc[["aligned", "trra-2"], "pass_at_1"].round(3).tolist() == [0.688, 0.609]
    assert table.loc[["aligned", "trra-2"], "mean_tokens"].tolist() == pytest.approx([74.0, tokens])
    found = recommend_of(frames, margin=0.1)
    assert found["candidate"] == taken
    assert "the higher pass@1 was taken, then the smaller move" in found["sentence"]


def test_too_few_problems_to_tell_are_said_and_how_many_it_takes():
    """A candidate that answers as the reference does: 60 problems leave 9.5 points open, 297 are within 2."""

    def sweep_of(problems):
        ids = [f"{TASK}-{number:05d}" for number in range(problems)]
        rows = pd.DataFrame({"problem_id": ids, "correct": True, "task": TASK, "sample": 0, "finished": True,
                             "seconds": 1.0, "plausibility": 0.0, "alpha": np.nan,
                             "engine": "transformers 5.23.0 float32"})  # fmt: skip
        return {name: rows.assign(candidate=name, kind=name, completion_tokens=tokens)
                for name, tokens in (("reference", 100), ("aligned", 50))}  # fmt: skip

    found = recommend_of(sweep_of(60))
    assert (found["candidate"], found["smallest_task"], found["problems_needed"]) == ("reference", 60, 297)
    assert found["sentence"].endswith(
        " There are too few problems to tell: the smallest task has 60, and confirming a loss of at most 2.0 points "
        "takes 297 of each task, even for a candidate that loses none of them."
    )
    assert task_recommendation_cells(found).rows[0][1] == "reference (too few problems to tell: 60 of 297)"
    assert not recommend_of(sweep_of(296))["survived"]
    enough = recommend_of(sweep_of(297))
    assert enough["survived"] and enough["problems_needed"] is None and "too few" not in enough["sentence"]
    assert task_recommendation_cells(enough).rows[0][1] == "aligned"


def test_what_only_the_choosing_half_likes_is_not_recommended(make_sweep):
    lucky = ("trra", 2.0, (0, 60), (-12, 60))
    found = recommend_of(make_sweep({"aligned": ALIGNED, "trra-1.5": TRRA, "trra-2": lucky}))
    assert found["candidate"] == "trra-1.5"
    tested = [(step["candidate"], step["confirmed"]) for step in found["steps"]]
    assert tested == [("aligned", True), ("trra-1.5", True), ("trra-2", False)]


def test_nothing_survives(make_sweep):
    lucky = ("trra", 2.0, (0, 60), (-12, 62))
    found = recommend_of(make_sweep({"trra-2": lucky, "trra-3": ("trra", 3.0, (-1, 50), (0, 50))}))
    assert (found["candidate"], found["kind"], found["survived"], found["alpha"]) == (
        "reference", "reference", False, None,
    )  # fmt: skip
    assert (found["token_reduction"], found["difference"], found["difference_low"]) == (0, 0, 0)
    assert [step["candidate"] for step in found["steps"]] == ["trra-2"]  # no second pick on the same problems
    assert found["sentence"].startswith(
        "Keep the reference (reference): no saving was confirmed. trra-2 was chosen on 200 problems, where it saves "
        "40.0 % of the tokens at pass@1 95.0 %; on 200 problems that had no part in the choice it saves 38.0 %, and "
        "with 95 % confidence its pass@1 is at most "
    )
    assert found["sentence"].endswith(" points below the reference's (allowed: 2.0 points).")


@pytest.mark.parametrize(
    "candidate", [("dera", -1.0, (5, 110), (5, 110)), ("trra", 5.0, (-20, 30), (0, 30))], ids=["longer", "worse"]
)
def test_nothing_to_confirm(make_sweep, candidate):
    found = recommend_of(make_sweep({"one": candidate}))
    assert found["sentence"] == (
        "Keep the reference (reference): on 200 problems, no candidate saves tokens and loses at most 2.0 points of "
        "pass@1, so there was nothing to confirm on the others."
    )
    assert found["steps"] == [] and not found["survived"]


def test_the_margin_decides(make_sweep):
    frames = make_sweep({"aligned": ALIGNED, "trra-2": ("trra", 2.0, (-3, 60), (-3, 60))})
    low = recommend_of(frames, margin=0.2)
    assert low["candidate"] == "trra-2" and -0.05 < low["difference_low"] < -0.03
    assert recommend_of(frames, margin=-low["difference_low"] + 1e-6)["candidate"] == "trra-2"
    assert recommend_of(frames, margin=-low["difference_low"] - 1e-6)["candidate"] == "aligned"


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("trra", "Use one: it saves 28.0 % of"),
        ("merge", "No training is needed: use one (Merged weights). It saves 28.0 % of"),
        ("lora_scale", "An alternative to the paper's methods does best: use one (Scaled LoRA). It saves 28.0 % of"),
    ],
)
def test_a_free_alternative_is_named_first(make_sweep, kind, first):
    assert recommend_of(make_sweep({"one": (kind, *TRRA[1:])}))["sentence"].startswith(first)


def test_a_candidate_named_as_its_kind_is_named_once(make_sweep):
    assert recommend_of(make_sweep({"aligned": ALIGNED}))["sentence"].startswith(
        "No training is needed: use aligned. It saves 20.0 % of"
    )


def test_kinds_that_need_a_training():
    trained = {name for name, kind in KINDS.items() if kind.trains}
    assert trained >= {"trra", "trra_iter", "inra", "token_budget"}
    assert not trained & {"reference", "aligned", "dera", "merge", "ties", "svd", "truncation"}


def test_one_problem_has_no_halves():
    frames = {kind: frame(kind, kind, np.nan, {TASK: ((0, 100), (0, 50))}).head(1) for kind in ("reference", "aligned")}
    found = recommend_of(frames)
    assert (found["candidate"], found["chosen_on"]) == ("reference", 0)
    assert found["sentence"].endswith("choosing and confirming need at least two problems of each task.")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


EASY = {"reference": (0, 100), "aligned": (0, 80), "trra-2": (0, 40)}
HARD = {"reference": (0, 300), "aligned": (1, 240), "trra-2": (-20, 120)}


@pytest.fixture
def two_tasks() -> dict[str, pd.DataFrame]:
    """An easy task, on which trra-2 loses nothing, and a hard one, on which it loses 10 points.

    All but the reference write 5 tokens more on the confirming halves.
    """
    kinds = {"reference": ("reference", np.nan), "aligned": ("aligned", np.nan), "trra-2": ("trra", 2.0)}

    def halves(name: str, more: int, tokens: int) -> tuple[Half, Half]:
        return (more, tokens), (more, tokens + (0 if name == "reference" else 5))

    return {
        name: frame(name, *kinds[name], {"easy": halves(name, *EASY[name]), "hard": halves(name, *HARD[name])})
        for name in kinds
    }


def test_each_task_has_its_own_and_what_one_for_all_gives_away(two_tasks):
    found = recommend_of(two_tasks)
    assert (found["candidate"], found["chosen_on"], found["confirmed_on"]) == ("aligned", 400, 400)
    assert found["token_reduction"] == pytest.approx((15 / 100 + 55 / 300) / 2)
    assert found["pass_at_1"] == pytest.approx(381 / 400)
    assert list(found["tasks"]) == ["easy", "hard"]
    easy, hard = found["tasks"]["easy"], found["tasks"]["hard"]
    assert (easy["candidate"], easy["alpha"], easy["survived"]) == ("trra-2", 2.0, True)
    assert easy["token_reduction"] == pytest.approx(0.55) and easy["confirmed_on"] == 200
    assert easy["overall"]["mean_tokens"] == 85 and easy["tokens_given_away"] == 40
    assert easy["pass_at_1_given_away"] == 0
    assert (hard["candidate"], hard["tokens_given_away"], hard["pass_at_1_given_away"]) == ("aligned", 0, 0)
    first, second = task_recommendation_cells(found).rows
    assert first[:6] == ["easy", "trra-2", "95.0 / 95.0", "45.0 / 100.0", "55.0 %", "−1.5 points"]
    assert first[6:] == ["95.0 / 85.0", "40.0", "0.0 points"]
    assert second[:6] == ["hard", "aligned", "95.5 / 95.0", "245.0 / 300.0", "18.3 %", "−1.0 points"]
    assert second[6:] == ["95.5 / 245.0", "0.0", "0.0 points"]


def test_a_task_on_which_nothing_survives_keeps_the_reference(two_tasks):
    """A margin of 9 points allows trra-2 the mean of 0 and 10, and not the 10 on the hard task."""
    found = recommend_of({name: two_tasks[name] for name in ("reference", "trra-2")}, margin=0.09)
    assert found["candidate"] == "trra-2"
    hard = found["tasks"]["hard"]
    assert (hard["candidate"], hard["survived"], hard["steps"]) == ("reference", False, [])
    assert hard["tokens_given_away"] == 125 - 300 and hard["pass_at_1_given_away"] == pytest.approx(0.1)
    cells = task_recommendation_cells(found)
    assert cells.rows[1][1:6] == ["reference", "95.0 / 95.0", "300.0 / 300.0", "–", "–"]
    assert cells.rows[1][6:] == ["85.0 / 125.0", "−175.0", "10.0 points"]
    assert cells.header[6] == "trra-2: pass@1 % / tokens"


def test_the_steps_as_a_table(make_sweep):
    cells = step_cells(recommend_of(make_sweep({"aligned": ALIGNED, "trra-2": ("trra", 2.0, (-1, 60), (-12, 62))})))
    assert cells.rows[0] == ["aligned", "0.5 points", "18.0 %", "0.5 points", "−1.0 points", "20.0 %", "yes"]
    assert cells.rows[1][:4] == ["trra-2", "−0.5 points", "40.0 %", "−6.0 points"] and cells.rows[1][-1] == "no"


def table(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    """(candidate, kind, difference_low, token reduction)"""
    results = pd.DataFrame(rows, columns=["candidate", "kind", "difference_low", "token_reduction"])
    # a row of a single task must not be looked at
    lure = results.tail(1).assign(task="chain_sum", token_reduction=0.99, difference_low=0.5)
    return pd.concat([lure, results.assign(task="all")], ignore_index=True)


def test_the_headline_has_the_best_of_each_trained_method_whichever_is_recommended(make_sweep):
    results = table(
        ("reference", "reference", 0.0, 0.0),
        ("aligned", "aligned", 0.0, 0.7),
        ("trra-1.5", "trra", -0.018, 0.28),
        ("trra-2", "trra", -0.071, 0.339),
        ("trra-iter1-1.5", "trra_iter", -0.019, 0.3),
        ("inra-1", "inra", -0.01, 0.6),
        ("inra-0.5", "inra", -0.1, 0.8),
    )
    found = headline(results, recommend_of(make_sweep({"aligned": ALIGNED})))
    assert found == {
        "candidate": "aligned",
        "pass_at_1": pytest.approx(191 / 200),
        "mean_tokens": 80,
        "reference_pass_at_1": pytest.approx(0.95),
        "reference_mean_tokens": 100,
        "trra_token_reduction": 0.3,
        "inra_token_reduction": 0.6,
    }


def test_the_headline_of_a_sweep_that_saves_nothing(make_sweep):
    results = table(("reference", "reference", 0.0, 0.0), ("trra-2", "trra", -0.1, 0.3), ("trra--1", "trra", 0.0, -0.1))
    figures = headline(results, recommend_of(make_sweep({})))
    assert (figures["candidate"], figures["trra_token_reduction"], figures["inra_token_reduction"]) == (
        "reference",
        0,
        0,
    )
