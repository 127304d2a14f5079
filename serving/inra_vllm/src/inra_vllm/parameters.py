"""What a request may say of InRa, in `vllm_xargs`, and what it is told when that is wrong."""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from realign_pipes.paper.objective import check_plausibility
from realign_pipes.paper.schedules import Schedule, TokenBudget

LIMIT = 100.0
"""Of an alpha, both ways: some ten times what has been found useful, and float32 can still mix there."""

NAMES = ("inra_alpha", "inra_budget", "inra_ramp", "inra_fast", "inra_begun", "inra_plausibility")


@dataclass(frozen=True)
class Realignment:
    """How one request's streams are mixed."""

    alpha: float | Schedule
    plausibility: float = 0.0
    begun: int = 0
    """Tokens of the completion that are at the end of the prompt already: the schedule counts them too."""

    @property
    def needs_aligned(self) -> bool:
        """Whether stream A shows in any of its tokens."""
        return self.alpha != 0

    @property
    def needs_reference(self) -> bool:
        """Whether stream R shows in any of its tokens."""
        return self.alpha != 1


def read_realignment(arguments: Mapping[str, Any] | None, default_alpha: float = 1.0) -> Realignment:
    """What a request's `vllm_xargs` ask for. Names that do not start with `inra_` are others' business.

    ValueError, with a message for the client, for an unknown name, a value that is not a number or out of bounds, and
    `inra_ramp`, `inra_fast` or `inra_begun` without an `inra_budget`.
    """
    given = {name: value for name, value in (arguments or {}).items() if name.startswith("inra_")}
    if unknown := sorted(given.keys() - set(NAMES)):
        raise ValueError(f"there is no {', '.join(unknown)}: InRa knows {', '.join(NAMES)}.")
    numbers = {name: _number(name, value) for name, value in given.items()}
    for name in ("inra_alpha", "inra_fast"):
        if abs(numbers.get(name, 0.0)) > LIMIT:
            raise ValueError(f"{name} must be between {-LIMIT:g} and {LIMIT:g}, not {numbers[name]:g}.")
    plausibility = numbers.get("inra_plausibility", 0.0)
    try:
        check_plausibility(plausibility)
    except ValueError as error:
        raise ValueError(f"inra_{error}") from error
    if "inra_budget" not in numbers:
        if without := [name for name in ("inra_ramp", "inra_fast", "inra_begun") if name in numbers]:
            raise ValueError(f"{' and '.join(without)} belong to an inra_budget, which is missing.")
        return Realignment(numbers.get("inra_alpha", default_alpha), plausibility)
    begun = numbers.get("inra_begun", 0.0)
    for name, number in (("inra_budget", numbers["inra_budget"]), ("inra_begun", begun)):
        if not number.is_integer() or number < 0:
            raise ValueError(f"{name} must be a whole number of tokens, not {number:g}.")
    of_schedule = {name: numbers[f"inra_{name}"] for name in ("ramp", "alpha", "fast") if f"inra_{name}" in numbers}
    try:
        return Realignment(TokenBudget(int(numbers["inra_budget"]), **of_schedule), plausibility, int(begun))
    except ValueError as error:
        raise ValueError(f"inra_budget: {error}") from error


def _number(name: str, value: Any) -> float:
    """`value` as the float32 that it will be in the mixture; ValueError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}.")
    try:
        (number,) = struct.unpack("f", struct.pack("f", value))
    except (OverflowError, struct.error):  # beyond float32, and an integer beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number.")
    return float(number)
