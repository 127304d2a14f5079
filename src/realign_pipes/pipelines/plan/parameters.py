"""parameters_plan.yml: what the plan of a run reckons with."""

from pathlib import Path
from typing import Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from realign_pipes.runtime.parameters import Parameters


class PromptTokens(Parameters):
    """Tokens of the prompts, the chat template's included."""

    mean: PositiveFloat
    longest: PositiveInt


class CalibrationSize(Parameters):
    """What data_prep makes of the calibration's completions."""

    completions: PositiveInt
    """All of them, right and wrong."""
    examples: PositiveInt
    """Those in the calibration set."""
    tokens: PositiveFloat
    """Their mean length."""

    @model_validator(mode="after")
    def _some_of_them(self) -> Self:
        if self.examples > self.completions:
            raise ValueError(f"of {self.completions} completions, {self.examples} cannot be in the calibration set")
        return self


class Speeds(Parameters):
    """Tokens a second on all devices together, given or from an earlier run's log."""

    decode: PositiveFloat
    """Generated tokens of the reference, by the engine of `generation`, with full batches."""
    train: PositiveFloat
    """Tokens of prompts and completions in a training of all weights: `tokens_per_second` of a checkpoint's curves."""
    forward: PositiveFloat
    """Tokens of prompts and completions through the reference without gradients, as the stage teacher_logits does."""


class Plan(Parameters):
    """parameters_plan.yml: what the plan of a run reckons with."""

    reference: Path
    """The reference's config.json, relative to the working folder."""
    aligned: Path
    device_memory: PositiveFloat
    """GiB of one accelerator; without one, of the machine."""
    prompt_tokens: PromptTokens
    completion_tokens: PositiveFloat
    """Mean of the reference's completions, over the tasks. All candidates are taken to write that much."""
    calibration: CalibrationSize
    solution_tokens: NonNegativeFloat
    """Mean length of what follows the thinking, which InRa's adapter learns by SFT."""
    problems: dict[str, PositiveInt]
    """How many problems the tasks have that do not say it: those with a data set that is read whole."""
    tokens_per_second: Speeds
