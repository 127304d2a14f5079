"""Parameters of the demo: the embedded slow thinker and its aligned model."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from realign_pipes.generation.parameters import Sampling
from realign_pipes.runtime.parameters import FineTuning, Parameters, Seed


class ChainSum(Parameters):
    """reasoning-gym's chain_sum: how hard the demo's training problems are."""

    min_terms: Annotated[int, Field(ge=2)]
    max_terms: Annotated[int, Field(ge=2)]
    min_digits: PositiveInt
    max_digits: PositiveInt

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_terms > self.max_terms or self.min_digits > self.max_digits:
            raise ValueError(f"a minimum is larger than its maximum: {self}")
        return self


class DemoTraces(Parameters):
    """What a slow trace looks like."""

    check_share: Annotated[float, Field(ge=0, le=1)]
    """Share of the traces that check the first pass."""
    max_checks: PositiveInt
    """They check it between once and this many times, and at least twice if it was wrong."""
    slip_rate: Annotated[float, Field(ge=0, lt=1)]
    """Share of the first pass's subtractions that are taken for additions; its first step is never wrong."""
    cut_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the reference's training examples whose prompt already holds the thinking, cut short and closed."""


class DemoArchitecture(Parameters):
    """A Qwen2 of this size."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    mlp_width: PositiveInt


class DemoTraining(FineTuning):
    problem_seed: Seed
    """reasoning-gym's problem i of seed s is problem 0 of seed s + i: keep seeds further apart than sizes."""


class DemoAlignedTraining(DemoTraining):
    problems: PositiveInt
    """Problems whose completions the reference draws; the shortest one of each is kept."""
    verified_share: Annotated[float, Field(gt=0, le=1)]
    """Share of the problems whose answer is known: of these the shortest correct completion is kept. If all were
    verified, the model would learn to slip less rather than to check less."""
    sampling: Sampling


class DemoModels(Parameters):
    """parameters_demo_models.yml: the embedded slow thinker and its aligned model."""

    problems: ChainSum
    traces: DemoTraces
    architecture: DemoArchitecture
    reference: DemoTraining
    aligned: DemoAlignedTraining
