"""Parameters that name where problems come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from realign_pipes.runtime.parameters import Parameters

Verifier = Literal["math", "exact", "none"]
"""How completions are graded; `none`: not at all, as there are no answers."""

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


class DatasetSource(Parameters):
    """A dataset on disk (`path`), or one of the Hugging Face hub (`hub`)."""

    path: str | None = None
    """A .jsonl or .parquet file, or a folder saved by `datasets`."""
    hub: str | None = None
    """`org/name`, as `datasets.load_dataset` takes it: the hub's, or a folder of that path in the working folder."""
    subset: str | None = None
    """The hub's configuration of that name; null: its default."""
    split: str = "train"
    revision: str | None = None
    """Of the hub: a commit or tag; null: the newest."""
    skip_unusable: bool = False
    """Leave out rows that would be refused, such as a chat that ends with the user, and log how many."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (a file or folder) or hub (a dataset's name there)")
        # Not `model_fields_set`: a job that a launch's processes read back has every field set.
        defaults = {name: DatasetSource.model_fields[name].default for name in ("revision", "split", "subset")}
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.path is not None and given:
            raise ValueError(f"{', '.join(given)}: these are for a dataset of the hub, and path is given")
        return self

    def named(self) -> str:
        """What a message calls it."""
        return str(self.path or f"{self.hub} (split {self.split})")


class ChatSource(DatasetSource):
    """A dataset of questions, or of chats of several turns."""

    question_column: str = "question"
    messages_column: str | None = None
    """A column of chats, lists of `role` and `content` as on the hub, in place of the question's. The prompt is what
    comes before the assistant's last reply. Of preference pairs that are whole chats: their chosen column."""


class DatasetTask(ChatSource):
    """Problems from a dataset, graded as mathematics or text, or prompts that have no answers."""

    kind: Literal["dataset"]
    answer_column: str = "answer"
    """Not read where the verifier is none."""
    verifier: Verifier = "math"
    metadata_columns: list[str] = Field(default_factory=list)
    """Columns of texts that graders read, such as the class of a prompt or its instructions."""


Task = Annotated[ReasoningGymTask | DatasetTask, Field(discriminator="kind")]


class ReasoningGymProblems(ReasoningGymTask):
    """A task and how many of its problems."""

    problems: PositiveInt
    samples: PositiveInt | None = None
    """Completions of each in the sweep, in place of alpha_sweep.sampling.samples."""


class DatasetProblems(DatasetTask):
    """A task and how many of its problems."""

    problems: PositiveInt | None = None
    """How many are drawn with the seed; all if not given."""
    samples: PositiveInt | None = None
    """Completions of each in the sweep, in place of alpha_sweep.sampling.samples."""


Problems = Annotated[ReasoningGymProblems | DatasetProblems, Field(discriminator="kind")]
