"""What must hold of the project's data sets: their Great Expectations suites, and the validator that runs them.

The catalog runs a suite where it saves a data set:

    calibration_set:
      ...
      validator:
        class: realign_pipes.validation.GreatExpectations
        on: save
        options: {suite: calibration, filepath: "${globals:data}/08_reporting/validation/calibration.json"}

One function below is one suite; further `options` are its arguments. Every expectation carries in `notes` what it
asks for, in words. A failure stops the run with these words, how many rows fail, and some of them; an expectation of
severity warning logs the same and lets the run go on. Passed or failed, what was found is in the file `filepath`,
from which the stage reporting builds Data Docs. A set states by itself the bounds that it was made with (the columns
min_tokens and max_tokens), so that the catalog has no second copy of the stage's parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.expectations import Expectation

logger = logging.getLogger(__name__)

EXAMPLES = 5
FINITE = 1e15
"""More than any count of tokens or seconds: what is above it is infinite."""


# -- suites -----------------------------------------------------------------------------------------------------------
PROBLEM_COLUMNS = ("id", "task", "question", "answer", "metadata", "prompt", "prompt_ids", "prompt_tokens")
COMPLETION_COLUMNS = ("problem_id", "sample", "completion", "completion_ids", "completion_tokens", "correct",
                      "finished", "source")  # fmt: skip
PAIR_COLUMNS = ("id", "problem_id", "prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids",
                "prompt_tokens", "chosen_tokens", "rejected_tokens", "rejected_correct")  # fmt: skip
SHORT_COLUMNS = ("id", "problem_id", "prompt", "completion", "prompt_ids", "completion_ids", "prompt_tokens",
                 "completion_tokens", "thinking_tokens")  # fmt: skip
GENERATION_COLUMNS = ("candidate", "kind", "task", "problem_id", "sample", "completion", "completion_tokens",
                      "finished", "correct", "seconds")  # fmt: skip
SWEEP_COLUMNS = ("candidate", "kind", "task", "problems", "samples", "pass_at_1", "pass_at_1_low", "pass_at_1_high",
                 "difference", "difference_low", "mean_tokens", "token_reduction", "truncated")  # fmt: skip


def samples(min_correct: float) -> list[Expectation]:
    """calibration_samples. `min_correct`: the share of completions that has to be right, above 0 and at most 1."""
    import great_expectations.expectations as gxe

    return [
        *_problems(*COMPLETION_COLUMNS),
        *_counts("completion"),
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
        *_problems(*COMPLETION_COLUMNS, "min_tokens", "max_tokens"),
        *_counts("completion"),
        gxe.ExpectColumnValuesToBeInSet(column="correct", value_set=[True], notes="every completion is right"),
        gxe.ExpectColumnValuesToBeInSet(column="finished", value_set=[True], notes="no completion was cut off"),
        gxe.ExpectColumnValuesToBeInSet(
            column="think_closes", value_set=[1], notes="every completion has exactly one </think>"
        ),
        _at_least("completion_tokens", "min_tokens", "no completion is shorter than min_tokens"),
        _at_least("max_tokens", "completion_tokens", "no completion is longer than max_tokens"),
    ]


def evaluation() -> list[Expectation]:
    """evaluation_set: problems, none of which the calibration has seen."""
    import great_expectations.expectations as gxe

    return [
        *_problems("in_calibration"),
        gxe.ExpectColumnValuesToBeInSet(
            column="in_calibration", value_set=[False], notes="no problem is among those of the calibration"
        ),
    ]


def preference_pairs() -> list[Expectation]:
    """preference_pairs: a short right completion is chosen, a longer or a wrong one rejected."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        *_columns(PAIR_COLUMNS),
        *_prompts(),
        *_counts("chosen"),
        *_counts("rejected"),
        gxe.ExpectColumnValuesToBeInSet(
            column="chosen_is_rejected", value_set=[False], notes="chosen and rejected differ"
        ),
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="rejected_tokens",
            column_B="chosen_tokens",
            row_condition=Column("rejected_correct") == 1,  # True: conditions know no booleans
            ignore_row_if="either_value_is_missing",
            notes="a rejected completion that is right is longer than the chosen one",
        ),
    ]


def short_solutions() -> list[Expectation]:
    """short_solutions: completions without thinking; what was cut of the thinking is in the prompt."""
    import great_expectations.expectations as gxe

    return [
        *_columns(SHORT_COLUMNS),
        *_prompts(),
        *_counts("completion"),
        gxe.ExpectColumnValuesToMatchRegex(column="completion", regex=r"\S", notes="no completion is empty"),
        gxe.ExpectColumnValuesToBeBetween(
            column="thinking_tokens", min_value=0, notes="thinking_tokens is not negative"
        ),
        _at_least("prompt_tokens", "thinking_tokens", "the prompt holds all of its thinking_tokens"),
        gxe.ExpectColumnValuesToBeBetween(
            column="think_closes", max_value=1, notes="no completion has more than one </think>"
        ),
        gxe.ExpectColumnValuesToNotMatchRegex(
            column="completion", regex=r"(?s)\S.*</think>", notes="no completion has thinking before its </think>"
        ),
    ]


def generations() -> list[Expectation]:
    """generations: graded completions of all candidates; `partition` is the name that a candidate is saved under."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    return [
        *_columns(GENERATION_COLUMNS, optional=["alpha"]),
        *_candidates(),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["candidate", "task", "problem_id", "sample"],
            notes="no candidate has a sample of a problem twice",
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="candidate", column_B="partition", notes="every candidate is saved under its own name"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="completion_tokens", min_value=1, max_value=FINITE, notes="completions have a token or more"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="seconds", min_value=0, max_value=FINITE, notes="seconds is a time that has passed"
        ),
        gxe.ExpectColumnValuesToBeInSet(column="correct", value_set=[True, False], notes="correct is true or false"),
        gxe.ExpectColumnValuesToBeInSet(column="finished", value_set=[True, False], notes="finished is true or false"),
        gxe.ExpectColumnValuesToBeInSet(
            column="finished",
            value_set=[True],
            mostly=0.5,
            severity=FailureSeverity.WARNING,
            notes="at most half of the completions are cut off (alpha_sweep.sampling.max_new_tokens)",
        ),
    ]


def sweep_results() -> list[Expectation]:
    """sweep_results: one row a candidate and task, with shares, intervals around them, and one reference."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.row_conditions import Column

    reference = Column("kind") == "reference"
    shares = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "truncated")
    return [
        *_columns(SWEEP_COLUMNS, optional=["alpha", "seconds"]),
        *_candidates(),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["candidate", "task"], notes="no candidate has two rows for a task"
        ),
        gxe.ExpectColumnUniqueValueCountToBeBetween(
            column="candidate",
            min_value=1,
            max_value=1,
            row_condition=reference,
            notes="there is exactly one reference",
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=name, min_value=0, max_value=1, notes=f"{name} is a share between 0 and 1"
            )
            for name in shares
        ),
        _at_least("pass_at_1", "pass_at_1_low", "no interval begins above its pass@1"),
        _at_least("pass_at_1_high", "pass_at_1", "no interval ends below its pass@1"),
        _at_least("difference", "difference_low", "no lower bound is above its difference"),
        gxe.ExpectColumnValuesToBeBetween(
            column="mean_tokens", min_value=1, max_value=FINITE, notes="mean_tokens is 1 or more"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="token_reduction", min_value=-FINITE, max_value=1, notes="token_reduction is 1 at most"
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="token_reduction",
            value_set=[0],
            row_condition=reference,
            notes="the reference's token_reduction is 0",
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="truncated",
            max_value=0.5,
            severity=FailureSeverity.WARNING,
            notes="no candidate has more than half of a task cut off (alpha_sweep.sampling.max_new_tokens)",
        ),
    ]


def _problems(*others: str) -> list[Expectation]:
    """What holds of problems, in every set whose rows carry one; `others` are the columns that it has besides."""
    return [*_columns((*PROBLEM_COLUMNS, *others)), *_prompts()]


def _columns(names: Sequence[str], optional: Sequence[str] = ()) -> list[Expectation]:
    """The columns are there, with rows, and without gaps; the `optional` ones may have gaps."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=[*names, *optional], exact_match=False, notes="the columns are there"
        ),
        gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are rows"),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name, notes=f"{name} is never missing") for name in names),
    ]


def _prompts() -> list[Expectation]:
    """Rows are told apart by their ids, and each has a prompt."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeUnique(column="id", notes="ids are unique"),
        gxe.ExpectColumnValuesToMatchRegex(column="prompt", regex=r"\S", notes="no prompt is empty"),
        gxe.ExpectColumnValuesToBeBetween(column="prompt_tokens", min_value=1, notes="every prompt has tokens"),
        *_counts("prompt"),
    ]


def _counts(text: str) -> list[Expectation]:
    """The column of counts is as long as the lists of ids are."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A=f"{text}_tokens", column_B=f"{text}_ids", notes=f"{text}_tokens counts {text}_ids"
        )
    ]


def _at_least(larger: str, smaller: str, notes: str) -> Expectation:
    """In no row is the column `larger` below the column `smaller`; that one is missing is for others to say."""
    import great_expectations.expectations as gxe

    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=larger, column_B=smaller, or_equal=True, ignore_row_if="either_value_is_missing", notes=notes
    )


def _candidates() -> list[Expectation]:
    """Candidates are of a known kind, and have an alpha exactly if their kind has one."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    from realign_pipes.sweep.kinds import SWEEP_KINDS, WITHOUT_ALPHA

    return [
        gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=list(SWEEP_KINDS), notes="every kind is known"),
        gxe.ExpectColumnValuesToBeNull(
            column="alpha",
            row_condition=Column("kind").is_in(list(WITHOUT_ALPHA)),
            notes=f"candidates of kind {' and '.join(WITHOUT_ALPHA)} have no alpha",
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="alpha",
            row_condition=Column("kind").is_not_in(list(WITHOUT_ALPHA)),
            notes="candidates of all other kinds have an alpha",
        ),
    ]


SUITES: dict[str, Callable[..., list[Expectation]]] = {
    "samples": samples,
    "calibration": calibration,
    "evaluation": evaluation,
    "preference_pairs": preference_pairs,
    "short_solutions": short_solutions,
    "generations": generations,
    "sweep_results": sweep_results,
}
