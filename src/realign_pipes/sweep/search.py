"""Searching the alpha that fulfils a wish: bisection on a function that was measured, not calculated.

Nothing here draws completions. `measure` does, for whoever calls; all measurements share problems and random numbers,
so it is a function of alpha in spite of the noise: the same alpha gives the same figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict


class Measured(BaseModel):
    """A candidate against the reference: shares in [0, 1], means over the tasks."""

    # Where no task has answers, pass@1 is NaN. As null it could not be read back from a launch's processes.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    kind: str
    alpha: float
    saved: float
    """Share of the reference's tokens; negative if it writes more."""
    saved_low: float
    """95 % interval: percentile bootstrap over problems, paired (`metrics.saved_interval`)."""
    saved_high: float
    pass_at_1: float
    difference: float
    """pass@1 less the reference's."""
    difference_low: float
    """Its one-sided lower bound at 95 % confidence: `bounds.lower_bound`."""


class UnreachableError(Exception):
    """The ends of a range of alphas are on the same side of the wish."""


@dataclass(frozen=True)
class Save:
    """The wish to save a share of the reference's tokens; a negative one is the wish to write more."""

    share: float

    def excess(self, measured: Measured) -> float:
        """How much further than wished the alpha goes: negative if a larger alpha is needed."""
        return measured.saved - self.share

    def missed_by(self, measured: Measured) -> float:
        """How far it is from the wish, on either side."""
        return abs(self.excess(measured))

    def best(self, measured: Sequence[Measured]) -> Measured:
        """The one that is nearest to the wish."""
        return min(measured, key=self.missed_by)

    def is_settled(self, low: Measured, high: Measured, tolerance: float) -> bool:
        """Whether one of the two is near enough."""
        return self.missed_by(self.best([low, high])) <= tolerance

    def text(self) -> str:
        return f"the wish to save {100 * self.share:g} % of the tokens"


@dataclass(frozen=True)
class LoseAtMost:
    """The wish to save as much as possible and to lose at most this much pass@1 against the reference.

    The loss is the point estimate, and it is assumed to grow with alpha. With few problems neither is quite true: an
    alpha whose loss came out small by chance may be taken. That is why what was found is measured again on problems
    that had no part in the search; that figure and its lower bound are the ones to quote.
    """

    loss: float

    def excess(self, measured: Measured) -> float:
        """How much more than allowed the alpha loses; a larger alpha is tried as long as this is not positive."""
        return round(-measured.difference - self.loss, 9)  # 0.98 - 0.97 is a little more than 0.01

    def missed_by(self, measured: Measured) -> float:
        """How much more than allowed it loses; 0 if it does not."""
        return max(self.excess(measured), 0.0)

    def best(self, measured: Sequence[Measured]) -> Measured:
        """Of those that lose no more than allowed, the one that saves the most; else the one that loses least."""
        allowed = [one for one in measured if self.excess(one) <= 0]
        return max(allowed, key=lambda one: one.saved) if allowed else max(measured, key=lambda one: one.difference)

    def is_settled(self, low: Measured, high: Measured, tolerance: float) -> bool:
        """Whether no more than the tolerance can still be saved between the two."""
        return high.saved - low.saved <= tolerance

    def text(self) -> str:
        return f"the wish to lose at most {100 * self.loss:g} points of pass@1"


Wish = Save | LoseAtMost


def bisect(
    measure: Callable[[float], Measured], low: Measured, high: Measured, wish: Wish, *, tolerance: float, steps: int
) -> Measured:
    """The alpha between `low` and `high` that fulfils the wish best, after at most `steps` measurements.

    Tokens saved, and correctness lost, are assumed to grow with alpha. It ends early when the wish is settled to within
    `tolerance`, a share of the tokens. UnreachableError if the wish is beyond either end.
    """
    if wish.excess(low) > 0 or wish.excess(high) < 0:
        raise UnreachableError
    for _ in range(steps):
        if wish.is_settled(low, high, tolerance):
            break
        middle = measure(short(0.5 * (low.alpha + high.alpha)))
        if wish.excess(middle) <= 0:
            low = middle
        else:
            high = middle
    return wish.best([low, high])


def corrected(knob: Sequence[Measured], at: Measured, student: Measured, wish: Wish) -> float:
    """The alpha for a second student, after the first one at `at.alpha` missed the wish.

    `knob` has all that was measured on the knob, `at` among them. A student is taken to differ from the knob by as much
    at the new alpha as at the old one; between two measurements the knob is taken to be linear. An alpha at the end of
    what was measured, if not even that suffices.
    """
    target = wish.excess(at) - wish.excess(student)
    points = sorted(knob, key=lambda one: one.alpha)
    for left, right in reversed(list(pairwise(points))):
        before, after = wish.excess(left), wish.excess(right)
        if before <= target < after:
            return short(left.alpha + (target - before) / (after - before) * (right.alpha - left.alpha))
    inner = [one.alpha for one in points if one.alpha != 0]  # alpha 0 is the reference itself
    return inner[-1] if target >= wish.excess(points[-1]) else inner[0]


def short(alpha: float) -> float:
    """The alpha to four decimals: it names a checkpoint."""
    return round(alpha, 4)


def describe(measured: Measured) -> str:
    """A line on a measurement, for the log and for messages."""
    return (
        f"{measured.kind} at alpha {measured.alpha:g} saves {100 * measured.saved:.1f} % of the tokens at a pass@1 of "
        f"{100 * measured.pass_at_1:.1f} % ({100 * measured.difference:+.1f} points)"
    )
