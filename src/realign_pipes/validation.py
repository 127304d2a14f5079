"""What must hold of the project's data sets: their Great Expectations suites, and the validator that runs them.

The catalog runs a suite where it saves a data set:

    calibration_set:
      ...
      validator:
        class: realign_pipes.validation.GreatExpectations
        on: save
        options: {suite: calibration}

One function below is one suite; further `options` are its arguments. Every expectation carries in `notes` what it
asks for, in words, and a failure stops the run with these words, how many rows fail, and some of them. A set states
by itself the bounds that it was made with (the columns min_tokens and max_tokens), so that the catalog has no second
copy of the stage's parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kedro.validation import CheckFailure, DataValidationError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from great_expectations.expectations import Expectation

EXAMPLES = 5


# -- suites -----------------------------------------------------------------------------------------------------------
PROBLEM_COLUMNS = ("id", "task", "question", "answer", "metadata", "prompt", "prompt_ids", "prompt_tokens")
SAMPLE_COLUMNS = (*PROBLEM_COLUMNS, "problem_id", "sample", "completion", "completion_ids", "completion_tokens",
                  "correct", "finished", "source")  # fmt: skip


def samples(min_correct: float) -> list[Expectation]:
    """calibration_samples. `min_correct`: the share of completions that has to be right, above 0 and at most 1."""
    import great_expectations.expectations as gxe

    return [
        *_columns(SAMPLE_COLUMNS),
        *_prompts(),
        *_completions(),
        gxe.ExpectColumnValuesToBeInSet(
            column="correct",
            value_set=[True],
            mostly=min_correct,
            notes=f"at least {min_correct:.0%} of the completions are right",
        ),
    ]


def calibration() -> list[Expectation]:
    """calibration_set: right, finished completions that think once and are of the length asked for."""
    import great_expectations.expectations as gxe

    return [
        *_columns((*SAMPLE_COLUMNS, "min_tokens", "max_tokens")),
        *_prompts(),
        *_completions(),
        gxe.ExpectColumnValuesToBeInSet(column="correct", value_set=[True], notes="every completion is right"),
        gxe.ExpectColumnValuesToBeInSet(column="finished", value_set=[True], notes="no completion was cut off"),
        gxe.ExpectColumnValuesToBeInSet(
            column="think_closes", value_set=[1], notes="every completion has exactly one </think>"
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="completion_tokens",
            column_B="min_tokens",
            or_equal=True,
            notes="no completion is shorter than min_tokens",
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="max_tokens",
            column_B="completion_tokens",
            or_equal=True,
            notes="no completion is longer than max_tokens",
        ),
    ]


def evaluation() -> list[Expectation]:
    """evaluation_set: problems, none of which the calibration has seen."""
    import great_expectations.expectations as gxe

    return [
        *_columns((*PROBLEM_COLUMNS, "in_calibration")),
        *_prompts(),
        gxe.ExpectColumnValuesToBeInSet(
            column="in_calibration", value_set=[False], notes="no problem is among those of the calibration"
        ),
    ]


def _columns(names: Sequence[str]) -> list[Expectation]:
    """The columns are there, with rows, and without gaps."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(names), exact_match=False, notes="the columns are there"),
        gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are rows"),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name, notes=f"{name} is never missing") for name in names),
    ]


def _prompts() -> list[Expectation]:
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeUnique(column="id", notes="ids are unique"),
        gxe.ExpectColumnValuesToMatchRegex(column="prompt", regex=r"\S", notes="no prompt is empty"),
        gxe.ExpectColumnValuesToBeBetween(column="prompt_tokens", min_value=1, notes="every prompt has tokens"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="prompt_tokens", column_B="prompt_ids", notes="prompt_tokens counts prompt_ids"
        ),
    ]


def _completions() -> list[Expectation]:
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="completion_tokens", column_B="completion_ids", notes="completion_tokens counts completion_ids"
        )
    ]


SUITES: dict[str, Callable[..., list[Expectation]]] = {
    "samples": samples,
    "calibration": calibration,
    "evaluation": evaluation,
}


# -- the validator ----------------------------------------------------------------------------------------------------
class GreatExpectations:
    """Kedro's `validator:` for a `datasets.Dataset`: passes it on unchanged, or raises DataValidationError."""

    def __init__(self, suite: str, **options: Any) -> None:
        if suite not in SUITES:
            raise ValueError(f"there is no suite {suite!r} in realign_pipes.validation: {', '.join(SUITES)}")
        inspect.signature(SUITES[suite]).bind(**options)  # an option that it lacks or does not know is said now
        self.suite = suite
        self.options = options

    def validate(self, data: Dataset) -> Dataset:
        """Check `data` against the suite. DataValidationError lists every failed expectation with example rows."""
        suite = SUITES[self.suite](**self.options)
        frame = _frame(data)
        columns, *others = suite
        # Without its columns nothing else can be asked.
        failures = _failures(frame, [columns]) or _failures(frame, others)
        if failures:
            raise DataValidationError(f"the suite {self.suite} is not met", failures=failures)
        return data


def _frame(data: Dataset) -> pd.DataFrame:
    """`data` for pandas: of lists of ids their lengths, and how often the thinking closes in a completion."""
    import pyarrow as pa
    from pyarrow import compute

    table = data.with_format("arrow")[:]
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            table = table.set_column(number, field.name, compute.list_value_length(table[field.name]))
    if "completion" in table.column_names:
        table = table.append_column("think_closes", compute.count_substring(table["completion"], "</think>"))
    return table.to_pandas()


def _failures(frame: pd.DataFrame, expectations: list[Expectation]) -> list[CheckFailure]:
    """One entry for each of the `expectations` that `frame` does not meet."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # All in memory: without a configuration of its own, a context logs a temporary folder for its documentation.
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("frame")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    # Each row of a failure is named by its id.
    result_format = {"result_format": "SUMMARY", "unexpected_index_column_names": ["id"] if "id" in frame else []}
    report = batch.validate(gx.ExpectationSuite(name="suite", expectations=expectations), result_format=result_format)
    return [_failure(outcome.to_json_dict()) for outcome in report.results if not outcome.success]


def _failure(outcome: dict[str, Any]) -> CheckFailure:
    """Great Expectations' report of one failed expectation, in words."""
    config, result = outcome["expectation_config"], outcome["result"]
    if not result:
        raise RuntimeError(f"Great Expectations could not check {config}: {outcome['exception_info']}")
    if "unexpected_count" in result:
        count = result["unexpected_count"]
        said = f"{config['notes']}: not so in {count} of {result['element_count']} rows"
        said += f" ({result['unexpected_percent']:.3g} %)"
        rows = result["partial_unexpected_index_list"][:EXAMPLES]
        examples = [", ".join([str(row.pop("id")), *map(str, row.values())]) for row in rows]
    else:  # of the table as a whole
        count = 1
        missing = result.get("details", {}).get("mismatched", {}).get("missing")
        said = f"{config['notes']}: missing {missing}" if missing else f"{config['notes']}: {result['observed_value']}"
        examples = []
    return CheckFailure(message=said, check=said, failure_count=count, failure_examples=examples)
