"""parameters_data_prep.yml: what the models are calibrated and evaluated on."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, field_validator, model_validator

from realign_pipes.data.parameters import GivenPairs, GivenReplies, Replies
from realign_pipes.generation.parameters import Sampling
from realign_pipes.runtime.parameters import Parameters, Seed
from realign_pipes.tasks.completion import Thinking
from realign_pipes.tasks.parameters import Problems, Verifier


class Calibration(Parameters):
    """Which completions become the calibration set, of those that are not wrong and think as `thinking` says."""

    keep: Literal["longest", "all"]
    """Which completions of a problem: the longest, or all."""
    min_tokens: NonNegativeInt
    """Shortest completion, its end-of-turn token included (the paper: 4,000)."""
    max_tokens: PositiveInt
    """Longest completion (the paper: 8,000)."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is larger than max_tokens {self.max_tokens}")
        return self


class SampledCalibration(Calibration):
    """Completions that one of the two models draws itself."""

    source: Literal["sampled"]
    drawn_by: Literal["reference", "aligned"] = "reference"
    task: Problems
    sampling: Sampling

    @field_validator("task")
    @classmethod
    def _samples_of_the_sampling(cls, task: Problems) -> Problems:
        if task.samples is not None:
            raise ValueError("samples are given in data_prep.calibration.sampling; those of a task are the sweep's")
        return task


class DatasetCalibration(Calibration, Replies):
    """Completions that a dataset holds. A row may hold a list of completions of its question, each a sample."""

    source: Literal["dataset"]
    answer_column: str = "answer"
    """Not read where the verifier is none."""
    verifier: Verifier = "math"


class SamplePairs(Parameters):
    """Preference pairs of the calibration's completions: short and right ones over longer or wrong ones."""

    source: Literal["samples"]


class ShortSolutions(Parameters):
    """What InRa's adapter learns by SFT: the solutions that follow the thinking in correct completions."""

    source: Literal["samples"]
    cut_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the examples whose prompt holds the thinking up to a random token (the paper: none)."""
    max_tokens: PositiveInt | None
    """Longest example, its prompt included; longer ones are left out (the paper cuts them: 4,096)."""


class DataPrep(Parameters):
    """parameters_data_prep.yml: what the models are calibrated and evaluated on."""

    @model_validator(mode="before")
    @classmethod
    def _without_tasks_set_to_null(cls, values: Any) -> Any:
        """An environment's tasks are merged with base's; null removes one of them."""
        if isinstance(values, dict) and isinstance(tasks := values.get("tasks"), dict):
            values = {**values, "tasks": {name: task for name, task in tasks.items() if task is not None}}
        return values

    seed: Seed
    """Seed of the problems; completions have their own."""
    instruction: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None
    """Added to the end of each question, of the calibration and of the tasks, such as where to put the answer."""
    thinking: Thinking
    """Whether completions that are learned from have to close their thinking exactly once, may think, or must not.
    Drawn and read completions that do not are left out; given replies and pairs are refused."""
    calibration: Annotated[SampledCalibration | DatasetCalibration, Field(discriminator="source")]
    short_solutions: Annotated[ShortSolutions | GivenReplies, Field(discriminator="source")]
    """For the SFT of InRa's adapter."""
    preference_pairs: Annotated[SamplePairs | GivenPairs, Field(discriminator="source")]
    """For its DPO."""
    tasks: Annotated[dict[str, Problems], Field(min_length=1)]
    """The evaluation set: its tasks by name."""
