"""Which split of made-up problems a problem belongs to: a hash decides, so no two splits share one, whatever their
seeds."""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from realign_pipes.errors import InputError

Split = Literal["training", "alignment", "calibration", "evaluation"]

SPLITS: Mapping[Split, range] = {
    "evaluation": range(0, 3),
    "calibration": range(3, 5),
    "alignment": range(5, 8),
    "training": range(8, 16),
}
"""Sixteenths of what can be drawn."""


def split_of(*parts: object) -> Split:
    """The one split that may have what these parts say, such as a template and its numbers."""
    sixteenth = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[0] % 16
    return next(split for split, sixteenths in SPLITS.items() if sixteenth in sixteenths)


TRIES = 10_000
"""Draws in which a new problem has to be found."""

K = TypeVar("K")
P = TypeVar("P")


def draw_distinct(
    kinds: Sequence[K], draw: Callable[[K], P | None], key: Callable[[P], Hashable], parameter: str, named: str
) -> Iterator[P]:
    """Problems with distinct keys, one kind after the other. `draw` gives one of a kind, or None for another split's.

    InputError where no further one is found: `parameter` asks for too many of what is `named` so.
    """
    seen = set[Hashable]()
    while True:
        for kind in kinds:
            for _ in range(TRIES):
                problem = draw(kind)
                if problem is not None and key(problem) not in seen:
                    break
            else:
                raise InputError(f"{parameter}: there are {len(seen)} {named}, and hardly any more of the kind {kind}. "
                                 "Ask for fewer.")  # fmt: skip
            seen.add(key(problem))
            yield problem
