"""Each expectation of each suite, on a good set (holds) and on one corrupted in one way (fails, and alone)."""

from typing import Any

import pytest
from datasets import Dataset
from kedro.io import DataCatalog
from kedro.validation import DataValidationError, ValidationConfigurationError

from realign_pipes.validation import GreatExpectations

SUITES: dict[str, dict[str, Any]] = {
    "samples": {"suite": "samples", "min_correct": 0.9},
    "calibration": {"suite": "calibration"},
    "evaluation": {"suite": "evaluation"},
}


def good(suite: str, rows: int = 20) -> Dataset:
    columns: dict[str, list[Any]] = {
        "id": [f"row-{n}" for n in range(rows)],
        "task": ["sums"] * rows,
        "question": [f"{n} + 1" for n in range(rows)],
        "answer": [f"{n + 1}" for n in range(rows)],
        "metadata": ["{}"] * rows,
        "prompt": [f"user {n} + 1" for n in range(rows)],
        "prompt_ids": [[5] * (n + 1) for n in range(rows)],
        "prompt_tokens": [n + 1 for n in range(rows)],
    }
    if suite == "evaluation":
        columns["in_calibration"] = [False] * rows
    else:
        columns |= {
            "problem_id": columns["id"],
            "sample": [0] * rows,
            "completion": ["<think> a </think> b"] * rows,
            "completion_ids": [[1] * (n + 5) for n in range(rows)],
            "completion_tokens": [n + 5 for n in range(rows)],
            "correct": [True] * rows,
            "finished": [True] * rows,
            "source": ["sampled"] * rows,
        }
    if suite == "calibration":
        columns |= {"min_tokens": [5] * rows, "max_tokens": [rows + 4] * rows}
    return Dataset.from_dict(columns)


def corrupted(suite: str, row: int, **values: Any) -> Dataset:
    """The good set with other values in one row."""
    rows = good(suite).to_list()
    rows[row].update(values)
    return Dataset.from_list(rows)


def failure(suite: str, data: Dataset) -> DataValidationError:
    with pytest.raises(DataValidationError) as raised:
        GreatExpectations(**SUITES[suite]).validate(data)
    return raised.value


@pytest.mark.parametrize("suite", SUITES)
def test_good_set_passes_unchanged_and_in_silence(suite: str, capfd: pytest.CaptureFixture) -> None:
    data = good(suite)
    assert GreatExpectations(**SUITES[suite]).validate(data) is data
    assert capfd.readouterr() == ("", "")


EVERY_SUITE = [
    ({"id": "row-4"}, "ids are unique: not so in 2 of 20 rows (10 %)", ["row-4", "row-4"]),
    ({"id": None}, "id is never missing: not so in 1 of 20 rows (5 %)", ["None"]),
    ({"question": None}, "question is never missing: not so in 1 of 20 rows (5 %)", ["row-3, None"]),
    ({"prompt": " \n"}, "no prompt is empty: not so in 1 of 20 rows (5 %)", ["row-3,  \n"]),
    ({"prompt_ids": [], "prompt_tokens": 0}, "every prompt has tokens: not so in 1 of 20 rows (5 %)", ["row-3, 0"]),
    ({"prompt_tokens": 7}, "prompt_tokens counts prompt_ids: not so in 1 of 20 rows (5 %)", ["row-3, 4, 7"]),
]
WITH_COMPLETIONS = [
    ({"completion": None}, "completion is never missing: not so in 1 of 20 rows (5 %)", ["row-3, None"]),
    (
        {"completion_tokens": 9},
        "completion_tokens counts completion_ids: not so in 1 of 20 rows (5 %)",
        ["row-3, 8, 9"],
    ),
]
CALIBRATION = [
    ({"correct": False}, "every completion is right: not so in 1 of 20 rows (5 %)", ["row-3, False"]),
    ({"finished": False}, "no completion was cut off: not so in 1 of 20 rows (5 %)", ["row-3, False"]),
    ({"completion": "b"}, "every completion has exactly one </think>: not so in 1 of 20 rows (5 %)", ["row-3, 0"]),
    (
        {"completion": "a </think> b </think>"},
        "every completion has exactly one </think>: not so in 1 of 20 rows (5 %)",
        ["row-3, 2"],
    ),
    ({"min_tokens": 9}, "no completion is shorter than min_tokens: not so in 1 of 20 rows (5 %)", ["row-3, 8, 9"]),
    ({"max_tokens": 7}, "no completion is longer than max_tokens: not so in 1 of 20 rows (5 %)", ["row-3, 8, 7"]),
]
EVALUATION = [
    (
        {"in_calibration": True},
        "no problem is among those of the calibration: not so in 1 of 20 rows (5 %)",
        ["row-3, True"],
    ),
]


@pytest.mark.parametrize(
    ("suite", "values", "check", "examples"),
    [(suite, *case) for suite in SUITES for case in EVERY_SUITE]
    + [(suite, *case) for suite in ("samples", "calibration") for case in WITH_COMPLETIONS]
    + [("calibration", *case) for case in CALIBRATION]
    + [("evaluation", *case) for case in EVALUATION],
)
def test_one_corruption_fails_one_expectation(
    suite: str, values: dict[str, Any], check: str, examples: list[str]
) -> None:
    raised = failure(suite, corrupted(suite, 3, **values))
    failed = {found.check: found.failure_examples for found in raised.failures}
    assert list(failed) == [check]
    assert [sorted(example.split(", ")) for example in failed[check]] == [
        sorted(example.split(", ")) for example in examples
    ]


def test_share_of_right_samples() -> None:
    def samples(wrong: int) -> Dataset:
        rows = good("samples").to_list()
        for row in rows[:wrong]:
            row["correct"] = False
        return Dataset.from_list(rows)

    GreatExpectations(suite="samples", min_correct=0.9).validate(samples(2))
    raised = failure("samples", samples(3))
    assert [found.check for found in raised.failures] == [
        "at least 90% of the completions are right: not so in 3 of 20 rows (15 %)"
    ]
    assert [found.failure_examples for found in raised.failures] == [["row-0, False", "row-1, False", "row-2, False"]]


@pytest.mark.parametrize("suite", SUITES)
def test_missing_columns_are_all_that_is_said(suite: str) -> None:
    raised = failure(suite, good(suite).remove_columns(["prompt", "id"]))
    assert [found.check for found in raised.failures] == ["the columns are there: missing ['id', 'prompt']"]


@pytest.mark.parametrize("suite", SUITES)
def test_empty_set(suite: str) -> None:
    raised = failure(suite, good(suite).select([]))
    assert [found.check for found in raised.failures] == ["there are rows: 0"]


def test_rows_left_out_by_a_selection_are_not_checked() -> None:
    GreatExpectations(suite="evaluation").validate(corrupted("evaluation", 3, in_calibration=True).select([0, 1, 2, 4]))


def test_failure_names_the_set_the_expectations_and_rows(tmp_path) -> None:
    catalog = DataCatalog.from_config(
        {
            "evaluation_set": {
                "type": "realign_pipes.datasets.arrow.ArrowDataset",
                "filepath": str(tmp_path / "evaluation_set"),
                "validator": {
                    "class": "realign_pipes.validation.GreatExpectations",
                    "on": "save",
                    "options": {"suite": "evaluation"},
                },
            }
        }
    )
    catalog.save("evaluation_set", good("evaluation"))
    rows = good("evaluation").to_list()
    for row in rows[:7]:
        row["in_calibration"] = True
    rows[9]["prompt"] = ""
    with pytest.raises(DataValidationError) as raised:
        catalog.save("evaluation_set", Dataset.from_list(rows))
    message = str(raised.value)
    assert "Validation failed for dataset 'evaluation_set' on save" in message
    assert "no problem is among those of the calibration: not so in 7 of 20 rows (35 %)" in message
    assert "row-0" in message and "row-4" in message and "row-5" not in message  # five examples
    assert "no prompt is empty: not so in 1 of 20 rows (5 %)" in message and "row-9" in message
    assert not any(catalog.load("evaluation_set")["in_calibration"])  # what was saved before is still there


@pytest.mark.parametrize("options", [{"suite": "calibratoin"}, {"suite": "calibration", "bounds": 3}, {}])
def test_wrong_options(options: dict[str, Any], tmp_path) -> None:
    entry = {
        "type": "realign_pipes.datasets.arrow.ArrowDataset",
        "filepath": str(tmp_path / "set"),
        "validator": {"class": "realign_pipes.validation.GreatExpectations", "options": options},
    }
    with pytest.raises(ValidationConfigurationError, match=r"calibration_set|GreatExpectations"):
        DataCatalog.from_config({"calibration_set": entry}).save("calibration_set", good("calibration"))
