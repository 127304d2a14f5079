"""The Great Expectations suites of the project's data sets.

The catalog runs a suite when it saves a data set:

    calibration_set:
      ...
      validator:
        class: realign_pipes.validation.GreatExpectations
        on: save
        options: {suite: calibration, filepath: "${globals:data}/08_reporting/validation/calibration.json"}

Each public function below is a suite; further `options` are its arguments. Columns come from `data.schemas` and
`sweep.schemas`. Every expectation says in `notes` what it asks for. A failure stops the run with these words, the
number of rows that fail, and some of them; an expectation of severity warning logs the same and the run continues. What
was found is written to `filepath` either way, and the reporting stage turns it into Data Docs. The calibration set
holds the bounds that it was made with (columns min_tokens and max_tokens), so the catalog needs no copy of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from realign_pipes.sweep.schemas import GENERATIONS, SWEEP_RESULTS

if TYPE_CHECKING:
    from datasets import Features
    from great_expectations.expectations import Expectation
    from great_expectations.expectations.row_conditions import AndCondition, ComparisonCondition

FINITE = 1e15
"""More than any number of tokens or seconds; a larger value is infinite."""


def samples(min_correct: float) -> list[Expectation]:
    """calibration_samples. `min_correct` is the share of completions that must be right, above 0 and at most 1.

    Nothing is right or wrong where problems have no answers.
    """
    import great_expectations.expectations as gxe

    from realign_pipes.data.schemas import SAMPLE_COLUMNS

    return [
        *_examples(SAMPLE_COLUMNS, gaps=["answer", "correct"]),
        *_graded_if_answered(),
        gxe.ExpectColumnValuesToBeInSet(
            column="correct",
            value_set=[True],
            mostly=min_correct,
            notes=f"at least {min_correct:.0%} of the completions are right",
        ),
    ]


def calibration() -> list[Expectation]:
    """calibration_set: right, finished completions that think as `data_prep.thinking` says and have a length within the
    bounds. Where problems have no answers, none is wrong."""
    import great_expectations.expectations as gxe

    from realign_pipes.data.schemas import CALIBRATION_COLUMNS

    return [
        *_examples(CALIBRATION_COLUMNS, gaps=["answer", "correct"]),
        *_graded_if_answered(),
        gxe.ExpectColumnValuesToBeInSet(column="correct", value_set=[True], notes="every completion is right"),
        gxe.ExpectColumnValuesToBeInSet(column="finished", value_set=[True], notes="no completion was cut off"),
        *_thinks_as_asked(),
        _at_least("completion_tokens", "min_tokens", "no completion is shorter than min_tokens"),
        _at_least("max_tokens", "completion_tokens", "no completion is longer than max_tokens"),
    ]


def evaluation() -> list[Expectation]:
    """evaluation_set: problems that are not among those of the calibration."""
    import great_expectations.expectations as gxe

    from realign_pipes.data.schemas import EVALUATION_COLUMNS

    return [
        *_examples(EVALUATION_COLUMNS, gaps=["answer"]),
        gxe.ExpectColumnValuesToBeBetween(column="messages", min_value=1, notes="every problem has messages"),
        gxe.ExpectColumnValuesToBeInSet(
            column="in_calibration", value_set=[False], notes="no problem is among those of the calibration"
        ),
    ]


def preference_pairs() -> list[Expectation]:
    """preference_pairs: a short, right completion is chosen over a longer or wrong one, or pairs are given.

    There may be none, as the completions of no problem may differ. A training that needs pairs refuses that.
    """
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    from realign_pipes.data.schemas import PAIR_COLUMNS

    return [
        *_examples(PAIR_COLUMNS, gaps=["rejected_correct"], least=0),
        *(
            gxe.ExpectColumnValuesToMatchRegex(column=name, regex=r"\S", notes=f"no {name} completion is empty")
            for name in ("chosen", "rejected")
        ),
        _sources(),
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
    """short_solutions: completions without thinking; where thinking was cut short, it is in the prompt.

    Or given replies, which think as `data_prep.thinking` says.
    """
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    from realign_pipes.data.schemas import SOLUTION_COLUMNS

    return [
        *_examples(SOLUTION_COLUMNS),
        gxe.ExpectColumnValuesToMatchRegex(column="completion", regex=r"\S", notes="no completion is empty"),
        gxe.ExpectColumnValuesToBeBetween(
            column="thinking_tokens", min_value=0, notes="thinking_tokens is not negative"
        ),
        _at_least("prompt_tokens", "thinking_tokens", "the prompt holds all of its thinking_tokens"),
        gxe.ExpectColumnValuesToBeBetween(
            column="think_closes", max_value=1, notes="no completion closes the thinking more than once"
        ),
        gxe.ExpectColumnValuesToNotMatchRegex(
            column="thought",
            regex=r"\S",
            row_condition=Column("source") == "samples",
            notes="no completion thinks before it closes the thinking",
        ),
        *_thinks_as_asked(Column("source") == "dataset"),
        _sources(),
    ]


def generations() -> list[Expectation]:
    """generations: graded completions of all candidates; `partition` is the name under which one is saved."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.row_conditions import Column

    return [
        *_columns(GENERATIONS, gaps=["alpha", "correct"]),
        *_candidates(),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=["candidate", "task", "problem_id", "sample"],
            notes="no candidate has a sample of a problem twice",
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="candidate", column_B="partition", notes="every candidate is saved under its own name"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="completion_tokens", min_value=1, max_value=FINITE, notes="every completion has tokens"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="seconds", min_value=0, max_value=FINITE, notes="seconds is not negative"
        ),
        gxe.ExpectColumnValuesToBeInSet(column="correct", value_set=[True, False], notes="correct is true or false"),
        gxe.ExpectColumnValuesToNotBeNull(
            column="correct",
            row_condition=Column("graded") == 1,  # True: conditions know no booleans
            notes="correct is there throughout a task, or nowhere in it",
        ),
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
    """sweep_results: one row per candidate and task, with shares and their intervals, and exactly one reference."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity
    from great_expectations.expectations.row_conditions import Column

    reference = (Column("kind") == "reference") & (Column("plausibility") == 0)
    graded = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "difference", "difference_low")
    shares = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "truncated")
    return [
        *_columns(SWEEP_RESULTS, gaps=["alpha", "seconds", "train_seconds", "bytes", *graded]),
        *(
            gxe.ExpectColumnValuesToNotBeNull(
                column=name,
                row_condition=Column("pass_at_1").is_not_null(),
                notes=f"{name} is there wherever pass_at_1 is",
            )
            for name in graded[1:]
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="pass_at_1",
            row_condition=Column("pass_at_1_low").is_not_null(),
            notes="pass_at_1 is there wherever its interval is",
        ),
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
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=cost, min_value=0, max_value=FINITE, notes=f"{cost} is not negative"
            )
            for cost in ("train_seconds", "bytes")
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="mean_tokens", min_value=1, max_value=FINITE, notes="mean_tokens is 1 or more"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="token_reduction", min_value=-FINITE, max_value=1, notes="token_reduction is at most 1"
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


def _columns(names: Iterable[str], gaps: Collection[str] = (), least: int = 1) -> list[Expectation]:
    """All columns and `least` rows are there, and only columns in `gaps` may have missing values."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(names), exact_match=False, notes="all columns are there"),
        gxe.ExpectTableRowCountToBeBetween(min_value=least, notes="there are rows"),
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=name, notes=f"{name} is never missing")
            for name in names
            if name not in gaps
        ),
    ]


def _examples(columns: Features, gaps: Collection[str] = (), least: int = 1) -> list[Expectation]:
    """What holds for every data set: ids are unique, each row has a prompt, and `x_tokens` counts `x_ids`."""
    import great_expectations.expectations as gxe
    from datasets import List

    return [
        *_columns(columns, gaps, least),
        gxe.ExpectColumnValuesToBeUnique(column="id", notes="ids are unique"),
        gxe.ExpectColumnValuesToMatchRegex(column="prompt", regex=r"\S", notes="no prompt is empty"),
        gxe.ExpectColumnValuesToBeBetween(column="prompt_tokens", min_value=1, notes="every prompt has tokens"),
        *(
            gxe.ExpectColumnPairValuesToBeEqual(column_A=tokens, column_B=ids, notes=f"{tokens} counts {ids}")
            for ids, feature in columns.items()
            if isinstance(feature, List) and ids.endswith("_ids")
            for tokens in [ids.replace("_ids", "_tokens")]
        ),
    ]


def _graded_if_answered() -> list[Expectation]:
    """`correct` is there if and only if the problem has an answer."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    return [
        gxe.ExpectColumnValuesToNotBeNull(
            column="correct",
            row_condition=Column("answer").is_not_null(),
            notes="every completion of a problem with an answer is graded",
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="correct",
            row_condition=Column("answer").is_null(),
            notes="no completion of a problem without an answer is graded",
        ),
    ]


def _thinks_as_asked(rows: ComparisonCondition | None = None) -> list[Expectation]:
    """Completions close their thinking exactly once, at most once or never, as the column `thinking` says."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    def those(thinking: str) -> ComparisonCondition | AndCondition:
        asked = Column("thinking") == thinking
        return asked if rows is None else asked & rows

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="thinking",
            value_set=["required", "optional", "none"],
            notes="thinking is required, optional or none",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="think_closes",
            value_set=[1],
            row_condition=those("required"),
            notes="every completion closes the thinking exactly once",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="think_closes",
            value_set=[0, 1],
            row_condition=those("optional"),
            notes="no completion closes the thinking twice where that is optional",
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="think_closes",
            value_set=[0],
            row_condition=those("none"),
            notes="no completion thinks where none is to",
        ),
    ]


def _sources() -> Expectation:
    """Whether examples were made from the calibration's completions, or given."""
    import great_expectations.expectations as gxe

    return gxe.ExpectColumnValuesToBeInSet(
        column="source", value_set=["samples", "dataset"], notes="every source is known"
    )


def _at_least(larger: str, smaller: str, notes: str) -> Expectation:
    """In no row is the column `larger` below the column `smaller`. Missing values are left to other expectations."""
    import great_expectations.expectations as gxe

    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=larger, column_B=smaller, or_equal=True, ignore_row_if="either_value_is_missing", notes=notes
    )


def _candidates() -> list[Expectation]:
    """Every candidate has a known kind, and an alpha if and only if its kind has one."""
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    from realign_pipes.sweep.kinds import sweep_kinds, without_alpha

    bare = without_alpha()
    return [
        gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=sweep_kinds(), notes="every kind is known"),
        gxe.ExpectColumnValuesToBeNull(
            column="alpha",
            row_condition=Column("kind").is_in(bare),
            notes=f"candidates of kind {', '.join(bare)} have no alpha",
        ),
        gxe.ExpectColumnValuesToNotBeNull(
            column="alpha",
            row_condition=Column("kind").is_not_in(bare),
            notes="candidates of all other kinds have an alpha",
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="engine", regex="^(transformers|vllm) ", notes="every row says which engine drew it"
        ),
        gxe.ExpectColumnValuesToBeBetween(
            column="plausibility",
            min_value=0,
            max_value=1,
            strict_max=True,
            notes="plausibility is at least 0 and below 1",
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
