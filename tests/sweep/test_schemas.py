"""Whoever makes a frame of the sweep makes exactly the columns that are declared."""

import pandas as pd
import pytest

from realign_pipes.sweep.metrics import summarise_budgets, summarise_sweep
from realign_pipes.sweep.schemas import BUDGET_GENERATIONS, BUDGET_RESULTS, GENERATIONS, SWEEP_RESULTS, conform


def generations(columns: dict[str, str], **values: object) -> pd.DataFrame:
    """Four completions of two problems, with the declared columns."""
    frame = pd.DataFrame(
        {
            "alpha": [None] * 4,
            "plausibility": 0.0,
            "engine": "transformers 5.23.0 float32",
            "task": "sums",
            "problem_id": ["p-0", "p-0", "p-1", "p-1"],
            "sample": [0, 1, 0, 1],
            "completion": "<think>",
            "completion_tokens": [5, 6, 7, 8],
            "finished": True,
            "correct": [True, False, True, True],
            "seconds": 1,
            **values,
        }
    )
    return conform(frame, columns)


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


def test_conform_orders_and_types_columns_and_drops_others():
    frame = pd.DataFrame({"other": ["x"], "b": [1], "a": [2]})
    assert dtypes(conform(frame, {"a": "float64", "b": "str"})) == {"a": "float64", "b": "str"}
    with pytest.raises(KeyError, match="missing"):
        conform(frame, {"a": "float64", "missing": "str"})


def test_results_have_the_declared_columns():
    reference = generations(GENERATIONS, candidate="reference", kind="reference")
    assert dtypes(reference) == GENERATIONS
    results = summarise_sweep({"reference": reference}, bootstrap_samples=10, bootstrap_seed=0)
    assert dtypes(results) == SWEEP_RESULTS
    truncation = generations(BUDGET_GENERATIONS, candidate="truncation-8", kind="truncation", budget=8)
    assert dtypes(truncation) == BUDGET_GENERATIONS
    forced = truncation.assign(candidate="forced-close-8", kind="forced_close")
    budgets = summarise_budgets(
        {"truncation-8": truncation, "forced-close-8": forced}, bootstrap_samples=10, bootstrap_seed=0
    )
    assert dtypes(budgets) == BUDGET_RESULTS
    assert dtypes(summarise_budgets({}, bootstrap_samples=10, bootstrap_seed=0)) == BUDGET_RESULTS
