"""Alphas that change while InRa generates, beyond "Flexible Realignment of Language Models"
(https://arxiv.org/abs/2506.12704), whose alpha is one number for a whole completion.

Any function `f(step, row) -> alpha` will do; `TokenBudget` is the one provided here. This module needs no packages.
"""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int, int], float]
"""f(step, row) -> alpha: `step` counts a completion's tokens from 0, and `row` counts the rows of the batch."""


@dataclass(frozen=True)
class TokenBudget:
    """A budget of tokens for a whole completion: late in it, alpha rises so that the model stops thinking and answers.

    For the first `ramp * budget` tokens alpha is `alpha`. It then rises linearly, reaches `fast` half-way to the end of
    the budget, and stays there: the rest is for the answer. Nothing is forced: that is for
    `generation.closing.CloseThinking`. ValueError for a `budget` below 1, or a `ramp` outside [0, 1].
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
        """Alpha for token number `step`, counted from 0; the same for every row."""
        start = self.ramp * self.budget
        risen = (step - start) / max((self.budget - start) / 2, 1)
        return self.alpha + min(max(risen, 0.0), 1.0) * (self.fast - self.alpha)
