"""Parameters that name where problems come from."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from realign_pipes.runtime.parameters import Parameters

Verifier = Literal["math", "exact"]

UNSAFE_VERIFIERS = frozenset(
    (
        "binary_matrix",
        "composite",  # of any others
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    )
)
"""Datasets of reasoning-gym whose verifier passes the answer to eval() or sympy's parse_expr(), which evaluates it."""


class ReasoningGymTask(Parameters):
    """Problems made by a dataset of reasoning-gym, checked by its own verifier."""

    kind: Literal["reasoning_gym"]
    dataset: str
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("dataset")
    @classmethod
    def _safe_verifier(cls, dataset: str) -> str:
        if dataset in UNSAFE_VERIFIERS:
            raise ValueError(f"reasoning-gym checks answers to {dataset} by evaluating them as Python, and nothing "
                             "that a model wrote is executed here. Choose another dataset.")  # fmt: skip
        return dataset

    @field_validator("options")
    @classmethod
    def _no_reserved_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted({"seed", "size"} & options.keys()):
            raise ValueError(f"{reserved} cannot be given here: the stage chooses them")
        return options


class DatasetTask(Parameters):
    """Problems from a .jsonl or .parquet file or a saved `datasets` folder."""

    kind: Literal["dataset"]
    path: str
    question_column: str = "question"
    answer_column: str = "answer"
    verifier: Verifier = "math"


Task = Annotated[ReasoningGymTask | DatasetTask, Field(discriminator="kind")]


class ReasoningGymProblems(ReasoningGymTask):
    """A task and how many of its problems."""

    problems: PositiveInt


class DatasetProblems(DatasetTask):
    """A task and how many of its problems."""

    problems: PositiveInt | None = None
    """How many are drawn with the seed; all if not given."""


Problems = Annotated[ReasoningGymProblems | DatasetProblems, Field(discriminator="kind")]
