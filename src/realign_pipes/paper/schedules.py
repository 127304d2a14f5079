"""InRa of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704):
alphas that change while a completion is generated: any `f(step, row) -> alpha` will do; here is the one we offer."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int, int], float]
"""f(step, row) -> alpha: `step` counts a completion's tokens from 0, `row` the rows of the batch."""


@dataclass(frozen=True)
class TokenBudget:
    """Thinking inside a budget: alpha stays at `alpha` and then rises towards `fast`, so that an answer still comes.

    `budget` is the number of tokens of a whole completion. Up to the share `ramp` of it alpha stays; from there it
    rises linearly to `fast`, which it reaches half-way to the end: the rest of the budget is for the answer.
    """

    budget: int
    ramp: float = 0.5
    alpha: float = 0.0
    fast: float = 1.0

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"a budget is at least one token, not {self.budget}")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is a share of the budget between 0 and 1, not {self.ramp}")

    def __call__(self, step: int, row: int) -> float:
        """Alpha for the token number `step`, counted from 0, of any row."""
        start = self.ramp * self.budget
        risen = (step - start) / max((self.budget - start) / 2, 1)
        return self.alpha + min(max(risen, 0.0), 1.0) * (self.fast - self.alpha)
