"""Choosing the calibration set from graded completions."""

from collections.abc import Callable

import pytest
from datasets import Dataset

from realign_pipes.pipelines.data_prep.nodes import select_calibration
from realign_pipes.pipelines.data_prep.parameters import DataPrep

ABOUT = {"prompt": "?", "answer": "b", "thinking": "required", "think_open": "<think>", "think_close": "</think>"}


def rows(*entries: tuple[str, int, bool, bool, str]) -> Dataset:
    """(problem, tokens, correct, finished, completion) each."""
    names = ("problem_id", "completion_tokens", "correct", "finished", "completion")
    return Dataset.from_list(
        [{"id": f"{number}", **ABOUT, **dict(zip(names, entry, strict=True))} for number, entry in enumerate(entries)]
    )


ONE = "<think> a </think> b"
SAMPLES = rows(
    ("a", 10, True, True, ONE),
    ("a", 14, True, True, ONE),
    ("a", 14, True, True, ONE),
    ("a", 20, False, True, ONE),  # wrong
    ("a", 30, True, False, ONE),  # cut off after the answer
    ("b", 12, True, True, ONE),
    ("b", 16, True, True, ONE + " </think> c"),  # thinks twice
    ("c", 18, True, True, "b"),  # does not think
    ("d", 40, True, True, ONE),
)


@pytest.fixture
def select(sampled) -> Callable[..., Dataset]:
    """`select(samples=SAMPLES, keep="longest", min_tokens=1, max_tokens=100)`"""

    def select(samples: Dataset = SAMPLES, **calibration: object) -> Dataset:
        return select_calibration(sampled(**{"max_tokens": 100, **calibration}), samples)

    return select


def test_longest_of_each_problem(select) -> None:
    chosen = select(keep="longest")
    assert chosen["id"][:] == ["1", "5", "8"]  # the first of two equally long ones
    assert set(chosen["min_tokens"]) == {1} and set(chosen["max_tokens"]) == {100}


def test_all_correct_ones(select) -> None:
    assert select(keep="all")["id"][:] == ["0", "1", "2", "5", "8"]


def test_bounds_are_inclusive_and_applied_before_the_longest_is_chosen(select) -> None:
    assert select(keep="longest", min_tokens=10, max_tokens=13)["id"][:] == ["0", "5"]
    assert select(keep="all", min_tokens=14, max_tokens=40)["id"][:] == ["1", "2", "8"]


def test_nothing_of_that_length(select) -> None:
    with pytest.raises(ValueError, match=r"none of the 5 usable completions has min_tokens 50 to max_tokens 60. They "
                                         r"are 10 to 40 tokens long, 14 in the median. Change the bounds"):  # fmt: skip
        select(min_tokens=50, max_tokens=60)


def test_nothing_usable(select) -> None:
    with pytest.raises(ValueError) as refusal:
        select(SAMPLES.select([3, 4, 7]))
    assert str(refusal.value) == (
        "data_prep.calibration: 2 of 3 completions are right, but none of them is finished and has </think> exactly "
        "once, so none can be learned from.\n  the first right completion: '<think> a </think> b'\nIf the models "
        "think between other tags, name them in models.thinking; data_prep.thinking says whether they have to think."
    )


def test_thinking_between_other_tags(select) -> None:
    def other(row: dict) -> dict:
        return {"completion": row["completion"].replace("</think>", "[/T]"), "think_close": "[/T]"}

    assert select(SAMPLES.map(other), keep="all")["id"][:] == select(keep="all")["id"][:]


def test_bounds_the_wrong_way_round(sampled) -> None:
    with pytest.raises(ValueError, match="min_tokens 9 is larger than max_tokens 8"):
        sampled(min_tokens=9, max_tokens=8)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("calibration", "source"), "web", "source.*'sampled', 'dataset'"),
        (("calibration", "keep"), "shortest", "calibration.sampled.keep"),
        (("calibration", "sampling", "temperature"), float("nan"), "temperature"),
        (("calibration", "sampling", "top_p"), 1.5, "top_p"),
        (("calibration", "task", "problems"), 0, "problems"),
        (
            ("tasks", "short", "problem"),
            3,
            "tasks.short.reasoning_gym.*no parameter 'problem': did you mean 'problems'",
        ),
        (("tasks",), {}, "tasks"),
        (("seed",), -1, "seed"),
    ],
)
def test_parameters_are_checked(where: tuple[str, ...], value: object, message: str, sampled) -> None:
    raw = sampled().model_dump()
    node = raw
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    with pytest.raises(ValueError, match=f"(?s){message}"):
        DataPrep.model_validate(raw)


@pytest.mark.parametrize("name", ["thinking", "preference_pairs"])
def test_no_value_has_a_second_place(name: str, sampled) -> None:
    """conf/base has them, and the code no defaults."""
    with pytest.raises(ValueError, match=rf"{name}\n  Field required"):
        DataPrep.model_validate(sampled().model_dump(exclude={name}))
