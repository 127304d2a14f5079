"""parameters_turns.yml: conversations whose alpha changes by turn."""

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from realign_pipes.runtime.parameters import Parameters, Probability, Seed


class TurnsSampling(Parameters):
    temperature: PositiveFloat
    top_p: Probability
    max_new_tokens: PositiveInt
    """Of each reply."""
    seed: Seed


class Turns(Parameters):
    """parameters_turns.yml: conversations whose alpha changes by turn."""

    conversations: Path | None
    """A file with one JSON object a line: the user's `turns`, and `expected`, the instructions that the reply to each
    of them has to follow, as the grader `rules` takes them: a list, or JSON text of one."""
    alphas: Annotated[list[list[float]], Field(min_length=1)]
    """Alphas by turn, of which each is measured on all conversations."""
    sampling: TurnsSampling

    @model_validator(mode="after")
    def _by_turn(self) -> Self:
        if len({len(one) for one in self.alphas}) != 1 or not self.alphas[0]:
            raise ValueError(f"alphas has to hold lists of equal length, with an alpha for each turn: {self.alphas}")
        if not all(math.isfinite(alpha) for one in self.alphas for alpha in one):
            raise ValueError(f"every alpha has to be finite: {self.alphas}")
        if len({tuple(one) for one in self.alphas}) != len(self.alphas):
            raise ValueError(f"alphas has a list twice: {self.alphas}")
        return self
