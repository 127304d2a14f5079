"""parameters_tax.yml: what realignment is measured to cost on tasks that it was not made for."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from realign_pipes.runtime.parameters import Parameters, Seed


class Tax(Parameters):
    """parameters_tax.yml: what realignment is measured to cost on tasks that it was not made for."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Tasks, groups or tags of lm-evaluation-harness by their names, or of the YAML files in `include_path`."""
    include_path: Path | None
    """A folder with tasks in the harness's YAML (*.yaml), relative to the working folder."""
    candidates: Annotated[list[str], Field(min_length=1)] | None
    """Rows of the sweep by their names, such as trra-1.5; null: all. The reference is measured in any case."""
    num_fewshot: NonNegativeInt | None
    """Examples before each problem; null: what each task says. A task that says 0 keeps it."""
    limit: PositiveInt | None
    """Of each task, the first so many problems; null: all."""
    kl_completions: PositiveInt | None
    """Of each task of the sweep, so many of a candidate's own completions, on which its KL from the reference is
    measured; null: it is not."""
    apply_chat_template: bool
    """Ask in the models' chat template, with the examples as turns of their own."""
    batch_size: PositiveInt
    seed: Seed
    """Of the draw of the examples."""

    @field_validator("tasks", "candidates")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"{names} has a name twice")
        return names
