"""Each expectation of each suite, on good data (holds) and on data corrupted in one way (fails, and alone)."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value
from kedro.io import DataCatalog
from kedro.validation import DataValidationError, ValidationConfigurationError

from realign_pipes.data import schemas
from realign_pipes.validation import suites
from realign_pipes.validation.suites import SUITES
from realign_pipes.validation.validator import GreatExpectations

OPTIONS: dict[str, dict[str, Any]] = {suite: {} for suite in SUITES} | {"samples": {"min_correct": 0.9}}
PROBLEMS = ("samples", "calibration", "evaluation")
ROWS = 20

Rows = list[dict[str, Any]]


def good_rows(suite: str) -> Rows:
    """20 rows: the reference's 10 and trra-1.5's 10 in generations, five candidates on four tasks in sweep_results."""
    if suite == "generations":
        return [generation(name, problem) for name in ("reference", "trra-1.5") for problem in range(ROWS // 2)]
    if suite == "sweep_results":
        names = ("reference", "aligned", "dera-2", "trra-1.5", "trra-iter1-1.5")
        return [figures(name, task) for name in names for task in ("even", "odd", "sums", "all")]
    return [{"preference_pairs": pair, "short_solutions": short}.get(suite, example(suite))(n) for n in range(ROWS)]


def example(suite: str) -> Callable[[int], dict[str, Any]]:
    def row(n: int) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": f"row-{n}",
            "task": "sums",
            "question": f"{n} + 1",
            "answer": f"{n + 1}",
            "metadata": "{}",
            "prompt": f"user {n} + 1",
            "thinking": "required",
            "think_open": "<think>",
            "think_close": "</think>",
            "prompt_ids": [5] * (n + 1),
            "prompt_tokens": n + 1,
        }
        if suite == "evaluation":
            del values["thinking"]
            return values | {"messages": [{"role": "user", "content": f"{n} + 1"}], "in_calibration": False}
        values |= {
            "problem_id": f"row-{n}",
            "sample": 0,
            "completion": "<think> a </think> b",
            "completion_ids": [1] * (n + 5),
            "completion_tokens": n + 5,
            "correct": True,
            "finished": True,
            "source": "sampled",
        }
        return values | ({"min_tokens": 5, "max_tokens": ROWS + 4} if suite == "calibration" else {})

    return row


def pair(n: int) -> dict[str, Any]:
    """Row 3's rejected completion is right and longer than the chosen one, row 4's is wrong and shorter."""
    rejected = 9 if n % 2 else 4
    return {
        "id": f"row-{n}",
        "problem_id": f"p-{n}",
        "prompt": f"user {n} + 1",
        "chosen": f"= {n + 1}",
        "rejected": f"hm, = {n + 1}",
        "prompt_ids": [5] * (n + 1),
        "chosen_ids": [1] * 8,
        "rejected_ids": [1] * rejected,
        "prompt_tokens": n + 1,
        "chosen_tokens": 8,
        "rejected_tokens": rejected,
        "rejected_correct": n % 2 == 1,
        "source": "samples",
    }


def short(n: int) -> dict[str, Any]:
    """Row 3's thinking is closed in its completion, row 4's in its prompt."""
    return {
        "id": f"row-{n}",
        "problem_id": f"p-{n}",
        "prompt": f"user {n} + 1 <think>",
        "thinking": "required",
        "think_open": "<think>",
        "think_close": "</think>",
        "completion": f"\n</think>\n{n + 1}" if n % 2 else f"{n + 1}",
        "prompt_ids": [5] * (n + 1),
        "completion_ids": [1] * 4,
        "prompt_tokens": n + 1,
        "completion_tokens": 4,
        "thinking_tokens": n if n % 2 else 0,
        "source": "samples",
    }


def generation(name: str, problem: int) -> dict[str, Any]:
    return {
        "partition": name,
        "candidate": name,
        "kind": "reference" if name == "reference" else "trra",
        "alpha": math.nan if name == "reference" else 1.5,
        "plausibility": 0.0 if name == "reference" else 0.1,
        "engine": "transformers 5.23.0 float32",
        "task": "sums",
        "problem_id": f"p-{problem}",
        "sample": 0,
        "completion": "",
        "completion_tokens": 1 + problem,
        "finished": problem % 2 == 0,  # half of them, which is just allowed
        "correct": problem % 3 == 0,
        "seconds": 0.0,
    }


def figures(name: str, task: str) -> dict[str, Any]:
    kind = {"trra-1.5": "trra", "trra-iter1-1.5": "trra_iter", "dera-2": "dera"}.get(name, name)
    return {
        "candidate": name,
        "kind": kind,
        "alpha": math.nan if kind == name else 1.5,
        "plausibility": 0.0 if kind == name else 0.1,
        "engine": "vllm 0.32.0 bfloat16",
        "task": task,
        "problems": 10,
        "samples": 1,
        "pass_at_1": 0.5,
        "pass_at_1_low": 0.0,
        "pass_at_1_high": 1.0,
        "difference": 0.0,
        "difference_low": -0.1,
        "mean_tokens": 1.0,
        "token_reduction": 0.0 if name == "reference" else -2.0,
        "truncated": 0.5,
        "seconds": 3.0 if task == "all" else math.nan,
        "train_seconds": math.nan,
        "bytes": 0,
        "models": 1,
        "kv_streams": 1,
        "passes": 1,
    }


def as_data(suite: str, rows: Rows) -> Any:
    """What the catalog would be given: a Dataset, a frame, or for each partition one."""
    if suite == "sweep_results":
        return pd.DataFrame(rows)
    if suite == "generations":
        return {name: frame.drop(columns="partition") for name, frame in pd.DataFrame(rows).groupby("partition")}
    return Dataset.from_list(rows)


def corrupted(suite: str, row: int, **values: Any) -> Any:
    """The good data with other values in one row."""
    rows = good_rows(suite)
    rows[row] |= values
    return as_data(suite, rows)


def validate(suite: str, data: Any, folder: Path) -> dict[str, Any]:
    """The results of data that pass."""
    validator = GreatExpectations(suite, filepath=str(folder / "validation" / "found.json"), **OPTIONS[suite])
    assert validator.validate(data) is data
    return json.loads(validator.filepath.read_text())


def failure(suite: str, data: Any, folder: Path) -> tuple[DataValidationError, dict[str, Any]]:
    """The error that data raise, and the results that are written all the same."""
    with pytest.raises(DataValidationError) as raised:
        validate(suite, data, folder)
    return raised.value, json.loads((folder / "validation" / "found.json").read_text())


@pytest.mark.parametrize("suite", SUITES)
def test_good_data_pass_unchanged_and_in_silence(suite: str, tmp_path, capfd, caplog) -> None:
    found = validate(suite, as_data(suite, good_rows(suite)), tmp_path)
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert (found["suite"], found["success"], found["rows"]) == (suite, True, ROWS)
    assert (found["failed"], found["warnings"]) == (0, 0)
    assert found["expectations"] == len(found["results"]) == len(SUITES[suite](**OPTIONS[suite]))
    assert all(one["success"] for one in found["results"])


ONE_ROW = "does not hold in 1 of 20 rows (5 %)"
TWO_ROWS = "does not hold in 2 of 20 rows (10 %)"
# what is changed in row 3; what is said; the rows that are named
WITH_PROMPTS = [
    ({"id": "row-4"}, f"ids are unique: {TWO_ROWS}", ["row-4", "row-4"]),
    ({"id": None}, f"id is never missing: {ONE_ROW}", ["None"]),
    ({"prompt": " \n"}, f"no prompt is empty: {ONE_ROW}", ["row-3,  \n"]),
    ({"prompt": None}, f"prompt is never missing: {ONE_ROW}", ["row-3, None"]),
    ({"prompt_tokens": 7}, f"prompt_tokens counts prompt_ids: {ONE_ROW}", ["row-3, 7, 4"]),
]
CASES: dict[str, list[tuple[dict[str, Any], str, list[str]]]] = {
    "problems": [
        ({"question": None}, f"question is never missing: {ONE_ROW}", ["row-3, None"]),
        ({"prompt_ids": [], "prompt_tokens": 0}, f"every prompt has tokens: {ONE_ROW}", ["row-3, 0"]),
    ],
    "samples": [
        ({"completion": None}, f"completion is never missing: {ONE_ROW}", ["row-3, None"]),
        ({"completion_tokens": 9}, f"completion_tokens counts completion_ids: {ONE_ROW}", ["row-3, 9, 8"]),
    ],
    "calibration": [
        ({"completion": None}, f"completion is never missing: {ONE_ROW}", ["row-3, None"]),
        ({"completion_tokens": 9}, f"completion_tokens counts completion_ids: {ONE_ROW}", ["row-3, 9, 8"]),
        ({"correct": False}, f"every completion is right: {ONE_ROW}", ["row-3, False"]),
        ({"finished": False}, f"no completion was cut off: {ONE_ROW}", ["row-3, False"]),
        ({"completion": "b"}, f"every completion closes the thinking exactly once: {ONE_ROW}", ["row-3, 0"]),
        (
            {"completion": "a </think> b </think>"},
            f"every completion closes the thinking exactly once: {ONE_ROW}",
            ["row-3, 2"],
        ),
        ({"think_close": "[/T]"}, f"every completion closes the thinking exactly once: {ONE_ROW}", ["row-3, 0"]),
        ({"min_tokens": 9}, f"no completion is shorter than min_tokens: {ONE_ROW}", ["row-3, 8, 9"]),
        ({"max_tokens": 7}, f"no completion is longer than max_tokens: {ONE_ROW}", ["row-3, 7, 8"]),
    ],
    "evaluation": [
        ({"messages": []}, f"every problem has messages: {ONE_ROW}", ["row-3, 0"]),
        ({"in_calibration": True}, f"no problem is among those of the calibration: {ONE_ROW}", ["row-3, True"]),
    ],
    "preference_pairs": [
        ({"prompt_ids": [], "prompt_tokens": 0}, f"every prompt has tokens: {ONE_ROW}", ["row-3, 0"]),
        ({"source": "hub"}, f"every source is known: {ONE_ROW}", ["row-3, hub"]),
        ({"chosen": " "}, f"no chosen completion is empty: {ONE_ROW}", ["row-3,  "]),
        ({"rejected": " "}, f"no rejected completion is empty: {ONE_ROW}", ["row-3,  "]),
        ({"chosen": None}, f"chosen is never missing: {ONE_ROW}", ["row-3, None"]),
        ({"chosen_ids": [1]}, f"chosen_tokens counts chosen_ids: {ONE_ROW}", ["row-3, 8, 1"]),
        ({"rejected_ids": [1]}, f"rejected_tokens counts rejected_ids: {ONE_ROW}", ["row-3, 9, 1"]),
        ({"chosen": "= 4", "rejected": "= 4"}, f"chosen and rejected differ: {ONE_ROW}", ["row-3, True"]),
        (
            {"rejected_tokens": 8, "rejected_ids": [1] * 8},
            "a rejected completion that is right is longer than the chosen one: does not hold in 1 of 10 rows (10 %)",
            ["row-3, 8, 8"],
        ),
    ],
    "short_solutions": [
        (
            {"prompt_ids": [], "prompt_tokens": 0, "thinking_tokens": 0},
            f"every prompt has tokens: {ONE_ROW}",
            ["row-3, 0"],
        ),
        ({"thinking_tokens": None}, f"thinking_tokens is never missing: {ONE_ROW}", ["row-3, None"]),
        ({"completion_tokens": 9}, f"completion_tokens counts completion_ids: {ONE_ROW}", ["row-3, 9, 4"]),
        ({"source": "hub"}, f"every source is known: {ONE_ROW}", ["row-3, hub"]),
        ({"completion": "\n"}, f"no completion is empty: {ONE_ROW}", ["row-3, \n"]),
        ({"thinking_tokens": -1}, f"thinking_tokens is not negative: {ONE_ROW}", ["row-3, -1"]),
        ({"thinking_tokens": 5}, f"the prompt holds all of its thinking_tokens: {ONE_ROW}", ["row-3, 4, 5"]),
        (
            {"completion": "hm\n</think>\n4"},
            f"no completion thinks before it closes the thinking: {ONE_ROW}",
            ["row-3, hm\n"],
        ),
        (
            {"completion": "hm[/T]4", "think_close": "[/T]"},
            f"no completion thinks before it closes the thinking: {ONE_ROW}",
            ["row-3, hm"],
        ),
    ],
    "generations": [
        ({"task": None}, f"task is never missing: {ONE_ROW}", ["reference, p-3, 0, None"]),
        ({"finished": None}, f"finished is never missing: {ONE_ROW}", ["reference, p-3, 0, None"]),
        (
            {"correct": None},
            f"correct is there throughout a task, or nowhere in it: {ONE_ROW}",
            ["reference, p-3, 0, None"],
        ),
        ({"correct": "yes"}, f"correct is true or false: {ONE_ROW}", ["reference, p-3, 0, yes"]),
        ({"kind": "trar", "alpha": 1.0}, f"every kind is known: {ONE_ROW}", ["reference, p-3, 0, trar"]),
        (
            {"alpha": 0.5},
            "candidates of kind reference, aligned, prompt, other have no alpha: does not hold in 1 of 10 rows (10 %)",
            ["reference, p-3, 0, 0.5"],
        ),
        (
            {"kind": "trra"},
            "candidates of all other kinds have an alpha: does not hold in 1 of 11 rows (9.09 %)",
            ["reference, p-3, 0, None"],
        ),
        (
            {"problem_id": "p-4"},
            f"no candidate has a sample of a problem twice: {TWO_ROWS}",
            ["reference, p-4, 0, sums", "reference, p-4, 0, sums"],
        ),
        (
            {"candidate": "trra-2"},
            f"every candidate is saved under its own name: {ONE_ROW}",
            ["trra-2, p-3, 0, reference"],
        ),
        ({"completion_tokens": 0}, f"every completion has tokens: {ONE_ROW}", ["reference, p-3, 0, 0"]),
        (
            {"completion_tokens": math.inf},
            f"every completion has tokens: {ONE_ROW}",
            ["reference, p-3, 0, Infinity"],
        ),
        ({"seconds": -1.0}, f"seconds is not negative: {ONE_ROW}", ["reference, p-3, 0, -1.0"]),
        ({"plausibility": 1.0}, f"plausibility is at least 0 and below 1: {ONE_ROW}", ["reference, p-3, 0, 1.0"]),
        ({"engine": "vllmore"}, f"every row says which engine drew it: {ONE_ROW}", ["reference, p-3, 0, vllmore"]),
    ],
    "sweep_results": [  # row 3 is the reference on all tasks
        ({"kind": "refrence", "alpha": 1.0}, f"every kind is known: {ONE_ROW}", ["reference, all, refrence"]),
        ({"pass_at_1": math.nan}, f"pass_at_1 is there wherever its interval is: {ONE_ROW}", ["reference, all, None"]),
        (
            {"alpha": 0.5},
            "candidates of kind reference, aligned, prompt, other have no alpha: does not hold in 1 of 8 rows (12.5 %)",
            ["reference, all, 0.5"],
        ),
        (
            {"kind": "dera"},
            "candidates of all other kinds have an alpha: does not hold in 1 of 13 rows (7.69 %)",
            ["reference, all, None"],
        ),
        (
            {"task": "sums"},
            f"no candidate has two rows for a task: {TWO_ROWS}",
            ["reference, sums", "reference, sums"],
        ),
        ({"candidate": "other"}, "there is exactly one reference: 2", []),
        ({"pass_at_1_low": -0.1}, f"pass_at_1_low is a share between 0 and 1: {ONE_ROW}", ["reference, all, -0.1"]),
        ({"pass_at_1_high": 1.1}, f"pass_at_1_high is a share between 0 and 1: {ONE_ROW}", ["reference, all, 1.1"]),
        ({"truncated": -0.1}, f"truncated is a share between 0 and 1: {ONE_ROW}", ["reference, all, -0.1"]),
        ({"pass_at_1_low": 0.6}, f"no interval begins above its pass@1: {ONE_ROW}", ["reference, all, 0.5, 0.6"]),
        ({"pass_at_1_high": 0.4}, f"no interval ends below its pass@1: {ONE_ROW}", ["reference, all, 0.4, 0.5"]),
        ({"difference_low": 0.1}, f"no lower bound is above its difference: {ONE_ROW}", ["reference, all, 0.0, 0.1"]),
        ({"mean_tokens": 0.9}, f"mean_tokens is 1 or more: {ONE_ROW}", ["reference, all, 0.9"]),
        ({"plausibility": 1.0}, f"plausibility is at least 0 and below 1: {ONE_ROW}", ["reference, all, 1.0"]),
        ({"engine": ""}, f"every row says which engine drew it: {ONE_ROW}", ["reference, all, "]),
        ({"train_seconds": -1.0}, f"train_seconds is not negative: {ONE_ROW}", ["reference, all, -1.0"]),
        ({"bytes": -1}, f"bytes is not negative: {ONE_ROW}", ["reference, all, -1"]),
        ({"mean_tokens": math.inf}, f"mean_tokens is 1 or more: {ONE_ROW}", ["reference, all, Infinity"]),
        (
            {"token_reduction": -0.1},
            "the reference's token_reduction is 0: does not hold in 1 of 4 rows (25 %)",
            ["reference, all, -0.1"],
        ),
    ],
}
ALL_CASES = [
    *[(suite, *case) for suite in (*PROBLEMS, "preference_pairs", "short_solutions") for case in WITH_PROMPTS],
    *[(suite, *case) for suite in PROBLEMS for case in CASES["problems"]],
    *[(suite, *case) for suite in SUITES for case in CASES[suite]],
]


@pytest.mark.parametrize(("suite", "values", "check", "examples"), ALL_CASES)
def test_one_corruption_fails_one_expectation(suite, values, check, examples, tmp_path) -> None:
    raised, found = failure(suite, corrupted(suite, 3, **values), tmp_path)
    assert [(one.check, sorted(one.failure_examples)) for one in raised.failures] == [(check, sorted(examples))]
    (failed,) = [one for one in found["results"] if not one["success"] and one["severity"] == "critical"]
    assert (found["success"], found["failed"]) == (False, 1)
    assert check.startswith(f"{failed['notes']}: ")
    if examples:
        assert failed["result"]["unexpected_count"] == raised.failures[0].failure_count == len(examples)


def test_every_expectation_of_every_suite_is_seen_failing() -> None:
    """Except those of a table as a whole and of single gaps, which have tests of their own or stand for one another."""
    seen = {(suite, check.split(":")[0]) for suite, _, check, _ in ALL_CASES}
    elsewhere = {
        "all columns are there",
        "there are rows",
        "at least 90% of the completions are right",
        "no completion closes the thinking more than once",
        "token_reduction is at most 1",
        "pass_at_1 is a share between 0 and 1",
        "finished is true or false",
        "every completion of a problem with an answer is graded",
        "no completion of a problem without an answer is graded",
        "thinking is required, optional or none",
        "no completion thinks where none is to",
        "no completion closes the thinking twice where that is optional",
        "every completion closes the thinking exactly once",
        "at most half of the completions are cut off (alpha_sweep.sampling.max_new_tokens)",
        "no candidate has more than half of a task cut off (alpha_sweep.sampling.max_new_tokens)",
    }
    for suite, make in SUITES.items():
        notes = {one.notes for one in make(**OPTIONS[suite])}
        unseen = {note for note in notes - elsewhere if (suite, note) not in seen}
        ends = (" is never missing", " is there wherever pass_at_1 is")
        assert not {note for note in unseen if not note.endswith(ends)}, suite


def test_corruptions_that_break_two_expectations(tmp_path) -> None:
    raised, _ = failure(
        "short_solutions", corrupted("short_solutions", 3, completion="</think> a </think> 4"), tmp_path
    )
    assert {one.check for one in raised.failures} == {
        f"no completion closes the thinking more than once: {ONE_ROW}",
        f"no completion thinks before it closes the thinking: {ONE_ROW}",
    }
    raised, _ = failure("sweep_results", corrupted("sweep_results", 3, pass_at_1=1.1, pass_at_1_high=1.1), tmp_path)
    assert {one.check for one in raised.failures} == {
        f"pass_at_1 is a share between 0 and 1: {ONE_ROW}",
        f"pass_at_1_high is a share between 0 and 1: {ONE_ROW}",
    }
    raised, _ = failure("sweep_results", corrupted("sweep_results", 3, token_reduction=1.1), tmp_path)
    assert {one.check for one in raised.failures} == {
        f"token_reduction is at most 1: {ONE_ROW}",
        "the reference's token_reduction is 0: does not hold in 1 of 4 rows (25 %)",
    }
    raised, found = failure("generations", corrupted("generations", 4, finished="yes"), tmp_path)
    assert [one.check for one in raised.failures] == [f"finished is true or false: {ONE_ROW}"]
    assert found["warnings"] == 1  # now 11 of 20 are not known to be finished


def test_share_of_right_samples(tmp_path) -> None:
    def samples(wrong: int) -> Dataset:
        return Dataset.from_list([row | {"correct": n >= wrong} for n, row in enumerate(good_rows("samples"))])

    validate("samples", samples(2), tmp_path)
    raised, _ = failure("samples", samples(3), tmp_path)
    assert [one.check for one in raised.failures] == [
        "at least 90% of the completions are right: does not hold in 3 of 20 rows (15 %)"
    ]
    assert raised.failures[0].failure_examples == ["row-0, False", "row-1, False", "row-2, False"]


def test_no_reference_in_a_sweep(tmp_path) -> None:
    rows = [row for row in good_rows("sweep_results") if row["kind"] != "reference"]
    raised, _ = failure("sweep_results", as_data("sweep_results", rows), tmp_path)
    assert [one.check for one in raised.failures] == ["there is exactly one reference: 0"]


def test_the_last_digit_of_a_bound_does_not_matter(tmp_path) -> None:
    validate("sweep_results", corrupted("sweep_results", 3, pass_at_1=2 / 3, pass_at_1_high=2 / 3 - 1e-16), tmp_path)


def test_a_warning_is_said_and_written_and_stops_nothing(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = validate("generations", corrupted("generations", 4, finished=False), tmp_path)
    said = "at most half of the completions are cut off (alpha_sweep.sampling.max_new_tokens)"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and f"{said}: does not hold in 11 of 20 rows" in record.getMessage()
    assert "the suite generations warns" in record.getMessage() and "reference, p-1, 0" in record.getMessage()
    assert (found["success"], found["failed"], found["warnings"]) == (True, 0, 1)
    (warned,) = [one for one in found["results"] if not one["success"]]
    assert warned["severity"] == "warning" and warned["result"]["unexpected_count"] == 11

    caplog.clear()
    found = validate("sweep_results", corrupted("sweep_results", 9, truncated=0.51), tmp_path)
    assert "does not hold in 1 of 20 rows (5 %)" in caplog.text and "dera-2, odd, 0.51" in caplog.text
    assert found["warnings"] == 1


def test_results_hold_what_was_counted_and_nothing_of_the_run(tmp_path) -> None:
    rows = [
        row | {"correct": n % 3 > 0, "finished": n % 5 > 0, "min_tokens": 12}
        for n, row in enumerate(good_rows("calibration"))
    ]
    _, found = failure("calibration", Dataset.from_list(rows), tmp_path)
    wrong = [row["id"] for row in rows if not row["correct"]]
    cut = [row["id"] for row in rows if not row["finished"]]
    too_short = [row["id"] for row in rows if row["completion_tokens"] < 12]
    expected = {
        "every completion is right": wrong,
        "no completion was cut off": cut,
        "no completion is shorter than min_tokens": too_short,
    }
    failed = {one["notes"]: one["result"] for one in found["results"] if not one["success"]}
    assert found["failed"] == len(failed) == 3 and failed.keys() == expected.keys()
    for notes, ids in expected.items():
        assert failed[notes]["unexpected_count"] == len(ids)
        assert failed[notes]["unexpected_percent"] == pytest.approx(100 * len(ids) / ROWS)
        assert [row["id"] for row in failed[notes]["partial_unexpected_index_list"]] == ids[:5]

    written = (tmp_path / "validation" / "found.json").read_bytes()
    assert str(tmp_path).encode() not in written and b"batch_id" not in written
    failure("calibration", Dataset.from_list(rows), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "validation" / "found.json").read_bytes() == written


def test_tags_of_the_data_are_counted(tmp_path) -> None:
    """And not `</think>`, whatever they are."""
    rows = [row | {"think_close": "</t>", "completion": "<t> </think> </t> b"} for row in good_rows("calibration")]
    validate("calibration", as_data("calibration", rows), tmp_path)
    rows[3]["completion"] = "<think> a </think> b"
    raised, _ = failure("calibration", as_data("calibration", rows), tmp_path)
    assert [one.check for one in raised.failures] == [f"every completion closes the thinking exactly once: {ONE_ROW}"]
    solutions = [row | {"think_close": "</t>", "completion": "hm</think> 4"} for row in good_rows("short_solutions")]
    validate("short_solutions", as_data("short_solutions", solutions), tmp_path)
    solutions[3]["completion"] = "hm</t> 4"
    raised, _ = failure("short_solutions", as_data("short_solutions", solutions), tmp_path)
    check = f"no completion thinks before it closes the thinking: {ONE_ROW}"
    assert [one.check for one in raised.failures] == [check]


@pytest.mark.parametrize("suite", SUITES)
def test_missing_columns_are_all_that_is_said(suite: str, tmp_path) -> None:
    lost = ["candidate", "kind"] if suite in ("generations", "sweep_results") else ["id", "prompt"]
    rows = [{name: value for name, value in row.items() if name not in lost} for row in good_rows(suite)]
    raised, found = failure(suite, as_data(suite, rows), tmp_path)
    assert [one.check for one in raised.failures] == [f"all columns are there: missing {lost}"]
    assert (found["expectations"], found["failed"], len(found["results"])) == (1, 1, 1)


DECLARED = {
    "samples": (schemas, "SAMPLE_COLUMNS"),
    "calibration": (schemas, "CALIBRATION_COLUMNS"),
    "evaluation": (schemas, "EVALUATION_COLUMNS"),
    "preference_pairs": (schemas, "PAIR_COLUMNS"),
    "short_solutions": (schemas, "SOLUTION_COLUMNS"),
    "generations": (suites, "GENERATIONS"),
    "sweep_results": (suites, "SWEEP_RESULTS"),
}


@pytest.mark.parametrize("suite", SUITES)
def test_a_column_that_is_declared_is_expected_without_another_edit(suite: str, tmp_path, monkeypatch) -> None:
    where, name = DECLARED[suite]
    declared = getattr(where, name)
    more = Features({**declared, "new": Value("string")}) if isinstance(declared, Features) else {**declared, "new": ""}
    monkeypatch.setattr(where, name, more)
    raised, _ = failure(suite, as_data(suite, good_rows(suite)), tmp_path)
    assert [one.check for one in raised.failures] == ["all columns are there: missing ['new']"]
    rows = [row | {"new": "a"} for row in good_rows(suite)]
    validate(suite, as_data(suite, rows), tmp_path)
    rows[3]["new"] = None
    raised, _ = failure(suite, as_data(suite, rows), tmp_path)
    assert [one.check for one in raised.failures] == [f"new is never missing: {ONE_ROW}"]


def checks(suite: str, rows: Rows, folder: Path) -> list[str]:
    """What fails."""
    try:
        validate(suite, as_data(suite, rows), folder)
    except DataValidationError as error:
        return [one.check for one in error.failures]
    return []


@pytest.mark.parametrize("suite", ["samples", "calibration"])
def test_without_answers_nothing_is_graded(suite: str, tmp_path) -> None:
    rows = [row | {"answer": None, "correct": None} for row in good_rows(suite)]
    assert checks(suite, rows, tmp_path) == []
    rows[3]["correct"] = True
    assert checks(suite, rows, tmp_path) == [f"no completion of a problem without an answer is graded: {ONE_ROW}"]
    rows[3] |= {"answer": "4", "correct": None}
    assert checks(suite, rows, tmp_path) == [
        "every completion of a problem with an answer is graded: does not hold in 1 of 1 rows (100 %)"
    ]


@pytest.mark.parametrize(("suite", "given"), [("calibration", {}), ("short_solutions", {"source": "dataset"})])
def test_completions_think_as_their_column_says(suite: str, given: dict[str, Any], tmp_path) -> None:
    def found(thinking: str, **row: str) -> list[str]:
        rows = [one | given | {"thinking": thinking, "completion": "b"} for one in good_rows(suite)]
        rows[3] |= row
        return checks(suite, rows, tmp_path)

    assert found("none") == found("optional") == found("optional", completion="a</think>b") == []
    assert found("none", completion="a</think>b") == [f"no completion thinks where none is to: {ONE_ROW}"]
    twice = f"no completion closes the thinking twice where that is optional: {ONE_ROW}"
    assert twice in found("optional", completion="a</think></think>b")
    assert "every completion closes the thinking exactly once: does not hold in 20 of 20 rows (100 %)" in found(
        "required"
    )
    rows = good_rows(suite)
    rows[3]["thinking"] = "some"
    assert checks(suite, rows, tmp_path) == [f"thinking is required, optional or none: {ONE_ROW}"]


def test_tasks_without_answers_in_the_sweep(tmp_path) -> None:
    """Their figures are missing together, and no other is."""
    none = dict.fromkeys(("pass_at_1", "pass_at_1_low", "pass_at_1_high", "difference", "difference_low"), math.nan)
    rows = good_rows("sweep_results")
    rows = [row | (none if row["task"] == "odd" else {}) for row in rows]
    assert checks("sweep_results", rows, tmp_path) == []
    for name in ("pass_at_1_low", "pass_at_1_high", "difference", "difference_low"):
        missing = [rows[0] | {name: math.nan}, *rows[1:]]
        gap = f"{name} is there wherever pass_at_1 is: does not hold in 1 of 15 rows (6.67 %)"
        assert checks("sweep_results", missing, tmp_path) == [gap]
    generations = [row | {"correct": None} for row in good_rows("generations")]
    assert checks("generations", generations, tmp_path) == []


def test_there_may_be_no_pairs(tmp_path) -> None:
    data = as_data("preference_pairs", good_rows("preference_pairs")).select([])
    validate("preference_pairs", data, tmp_path)


def test_a_list_of_ids_that_is_declared_is_counted(tmp_path, monkeypatch) -> None:
    columns = Features({**schemas.PAIR_COLUMNS, "new_ids": List(Value("int32")), "new_tokens": Value("int32")})
    monkeypatch.setattr(schemas, "PAIR_COLUMNS", columns)
    rows = [row | {"new_ids": [1, 2], "new_tokens": 2} for row in good_rows("preference_pairs")]
    validate("preference_pairs", as_data("preference_pairs", rows), tmp_path)
    rows[3]["new_ids"] = [1]
    raised, _ = failure("preference_pairs", as_data("preference_pairs", rows), tmp_path)
    assert [one.check for one in raised.failures] == [f"new_tokens counts new_ids: {ONE_ROW}"]


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "preference_pairs"])
def test_empty_data(suite: str, tmp_path) -> None:
    data = as_data(suite, good_rows(suite))
    if suite == "generations":
        data = {name: frame.head(0) for name, frame in data.items()}
    else:
        data = data.select([]) if isinstance(data, Dataset) else data.head(0)
    raised, _ = failure(suite, data, tmp_path)
    assert raised.failures[0].check == "there are rows: 0"


def test_a_column_missing_in_one_partition(tmp_path) -> None:
    data = as_data("generations", good_rows("generations"))
    data["trra-1.5"] = data["trra-1.5"].drop(columns="seconds")
    raised, _ = failure("generations", data, tmp_path)
    (failed,) = raised.failures
    assert failed.check == "seconds is never missing: does not hold in 10 of 20 rows (50 %)"
    assert failed.failure_examples[0] == "trra-1.5, p-0, 0, None"


def test_rows_left_out_by_a_selection_are_not_checked(tmp_path) -> None:
    validate("evaluation", corrupted("evaluation", 3, in_calibration=True).select([0, 1, 2, 4]), tmp_path)


def catalog_with(name: str, suite: str, folder: Path, **entry: Any) -> DataCatalog:
    options = {"suite": suite, "filepath": str(folder / f"{suite}.json")}
    validator = {"class": "realign_pipes.validation.GreatExpectations", "on": "save", "options": options}
    return DataCatalog.from_config({name: {**entry, "validator": validator}})


def test_failure_names_the_set_the_expectations_and_rows(tmp_path) -> None:
    catalog = catalog_with(
        "evaluation_set",
        "evaluation",
        tmp_path,
        type="realign_pipes.datasets.arrow.ArrowDataset",
        filepath=str(tmp_path / "evaluation_set"),
    )
    rows = good_rows("evaluation")
    catalog.save("evaluation_set", Dataset.from_list(rows))
    for row in rows[:7]:
        row["in_calibration"] = True
    rows[9]["prompt"] = ""
    with pytest.raises(DataValidationError) as raised:
        catalog.save("evaluation_set", Dataset.from_list(rows))
    message = str(raised.value)
    assert "Validation failed for dataset 'evaluation_set' on save" in message
    assert "no problem is among those of the calibration: does not hold in 7 of 20 rows (35 %)" in message
    assert "row-0" in message and "row-4" in message and "row-5" not in message  # five examples
    assert "no prompt is empty: does not hold in 1 of 20 rows (5 %)" in message and "row-9" in message
    assert not any(catalog.load("evaluation_set")["in_calibration"])  # what was saved before is still there


def test_partitions_are_checked_before_any_is_saved(tmp_path) -> None:
    catalog = catalog_with(
        "generations",
        "generations",
        tmp_path,
        type="partitions.PartitionedDataset",
        path=str(tmp_path / "generations"),
        dataset={"type": "pandas.ParquetDataset"},
        filename_suffix=".parquet",
        overwrite=True,
    )
    catalog.save("generations", as_data("generations", good_rows("generations")))
    with pytest.raises(DataValidationError, match="every completion has tokens"):
        catalog.save("generations", corrupted("generations", 13, completion_tokens=0))
    saved = catalog.load("generations")
    assert sorted(saved) == ["reference", "trra-1.5"] and saved["trra-1.5"]()["completion_tokens"].min() == 1


@pytest.mark.parametrize("options", [{"suite": "calibratoin"}, {"suite": "calibration", "bounds": 3}, {}])
def test_wrong_options(options: dict[str, Any], tmp_path) -> None:
    entry = {
        "type": "realign_pipes.datasets.arrow.ArrowDataset",
        "filepath": str(tmp_path / "set"),
        "validator": {
            "class": "realign_pipes.validation.GreatExpectations",
            "options": {"filepath": str(tmp_path / "found.json"), **options},
        },
    }
    with pytest.raises(ValidationConfigurationError, match=r"calibration_set|GreatExpectations"):
        DataCatalog.from_config({"calibration_set": entry}).save(
            "calibration_set", as_data("calibration", good_rows("calibration"))
        )
