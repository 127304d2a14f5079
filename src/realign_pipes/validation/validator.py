"""A Kedro `validator:` that runs a suite of Great Expectations when the catalog saves a data set."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.validation import CheckFailure, DataValidationError

from realign_pipes.errors import InputError
from realign_pipes.runtime.files import atomic_path
from realign_pipes.validation.suites import SUITES

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.datasource.fluent.interfaces import Batch
    from great_expectations.expectations import Expectation

logger = logging.getLogger(__name__)

EXAMPLES = 5


class GreatExpectations:
    """A Kedro `validator:` that checks data against a suite: returns them unchanged, or raises DataValidationError.

    The data can be a `datasets.Dataset`, a DataFrame, or the DataFrames of a PartitionedDataset. The partitions are
    checked together, because Kedro ignores a validator of the dataset that saves each of them.

    The file `filepath` (JSON) gets a summary in plain numbers, and in `results` each expectation with what Great
    Expectations found. It has no times or paths: the same data give the same bytes.
    """

    def __init__(self, suite: str, filepath: str, **options: Any) -> None:
        if suite not in SUITES:
            raise InputError(f"there is no suite {suite!r} in realign_pipes.validation: {', '.join(SUITES)}")
        inspect.signature(SUITES[suite]).bind(**options)  # TypeError for an option that is missing or unknown
        self.suite = suite
        self.filepath = Path(filepath)
        self.options = options

    def validate(self, data: Any) -> Any:
        """Check `data` against the suite. DataValidationError lists every failed expectation with example rows."""
        frame = _frame(data)
        columns, *others = SUITES[self.suite](**self.options)
        batch = _batch(frame)
        outcomes = _check(batch, [columns], _key(frame.columns))
        if outcomes[0]["success"]:  # all other expectations need the columns
            outcomes += _check(batch, others, _key(frame.columns))
        unmet = [found for found in outcomes if not found["success"]]
        failures = [describe_failure(found) for found in unmet if found["severity"] == "critical"]
        warnings = [describe_failure(found) for found in unmet if found["severity"] != "critical"]
        summary = {
            "suite": self.suite,
            "success": not failures,
            "rows": len(frame),
            "expectations": len(outcomes),
            "failed": len(failures),
            "warnings": len(warnings),
        }
        with atomic_path(self.filepath) as temporary:
            temporary.write_text(
                json.dumps(summary | {"results": outcomes}, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        if warnings:
            logger.warning("%s", DataValidationError(f"the suite {self.suite} warns", failures=warnings))
        if failures:
            raise DataValidationError(f"the suite {self.suite} failed", failures=failures)
        return data


def _frame(data: Any) -> pd.DataFrame:
    """`data` as one frame, with the lengths of a Dataset's lists in their place, and further columns for the suites."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import compute

    from realign_pipes.sweep.metrics import load_frame

    if isinstance(data, Mapping):
        frames = [load_frame(frame).assign(partition=name) for name, frame in data.items()]
        frame = pd.concat(frames, ignore_index=True)
        if {"task", "correct"} <= set(frame):  # whether anything of the row's task is graded
            frame["graded"] = frame.groupby("task")["correct"].transform("count") > 0
        return frame
    if isinstance(data, pd.DataFrame):
        return data.round(9)  # summed in another order, a bound may differ from its value in the last digit

    table = data.with_format("arrow")[:]
    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            table = table.set_column(number, field.name, compute.list_value_length(table[field.name]))
    if {"chosen", "rejected"} <= set(table.column_names):
        table = table.append_column("chosen_is_rejected", compute.equal(table["chosen"], table["rejected"]))
    frame = table.to_pandas()
    if {"completion", "think_close"} <= set(frame):
        pairs = zip(frame["completion"], frame["think_close"], strict=True)
        known = [pair if all(isinstance(text, str) for text in pair) else None for pair in pairs]  # else is missing
        frame["think_closes"] = [pair and pair[0].count(pair[1]) for pair in known]
        frame["thought"] = [pair and pair[0].rpartition(pair[1])[0] for pair in known]
    return frame


def _batch(frame: pd.DataFrame) -> Batch:
    """`frame` as a batch of Great Expectations, in a context of its own."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # In memory: without this configuration, a context makes a temporary folder for its documentation and logs it.
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("frame")
    return asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})


def _check(batch: Batch, expectations: list[Expectation], key: list[str]) -> list[dict[str, Any]]:
    """What Great Expectations found for each of the `expectations`, as plain data; `key` names a row."""
    import great_expectations as gx

    result_format = {
        "result_format": "SUMMARY",
        "partial_unexpected_count": EXAMPLES,
        "unexpected_index_column_names": key,
    }
    report = batch.validate(gx.ExpectationSuite(name="suite", expectations=expectations), result_format=result_format)
    return [_outcome(found.to_json_dict()) for found in report.results]


def _key(columns: Collection[str]) -> list[str]:
    """The columns that name a row: its id, or in a sweep the candidate and more."""
    keys = (["id"], ["candidate", "problem_id", "sample"], ["candidate", "task"])
    return next((key for key in keys if set(key) <= set(columns)), [])


def _outcome(found: dict[str, Any]) -> dict[str, Any]:
    """Great Expectations' result for one expectation, without what differs from run to run."""
    config, result = found["expectation_config"], found["result"]
    if not result:
        raise RuntimeError(f"Great Expectations could not check {config}: {found['exception_info']}")
    outcome = {
        "notes": config["notes"],
        "severity": config["severity"],
        "success": found["success"],
        "type": config["type"],
        "kwargs": {name: value for name, value in config["kwargs"].items() if name != "batch_id"},
        "result": result,
    }
    return json.loads(json.dumps(outcome), parse_constant=str)  # infinity becomes text: JSON has no such number


def describe_failure(outcome: Mapping[str, Any]) -> CheckFailure:
    """One failed expectation of a results file, for Kedro's error."""
    said = f"{outcome['notes']}: {describe_result(outcome)}"
    count = outcome["result"].get("unexpected_count", 1)  # an expectation of the whole table fails once
    return CheckFailure(message=said, check=said, failure_count=count, failure_examples=describe_examples(outcome))


def describe_result(outcome: Mapping[str, Any]) -> str:
    """What was found for one expectation of a results file: in how many rows it fails, or what the table has."""
    result = outcome["result"]
    if "unexpected_count" not in result:
        missing = result.get("details", {}).get("mismatched", {}).get("missing")
        return f"missing {missing}" if missing else f"{result['observed_value']}"
    count, rows = result["unexpected_count"], result["element_count"]
    return f"does not hold in {count} of {rows} rows ({100 * count / rows:.3g} %)" if count else f"holds in {rows} rows"


def describe_examples(outcome: Mapping[str, Any]) -> list[str]:
    """Some rows in which an expectation of a results file fails: what names them, and the values looked at."""
    return [
        ", ".join(str(row[name]) for name in dict.fromkeys([*_key(row), *row]))  # its key first
        for row in outcome["result"].get("partial_unexpected_index_list", [])
    ]
