"""Which split of made-up problems a problem belongs to: a hash decides, so no two splits share one, whatever their
seeds."""

import hashlib
from collections.abc import Mapping
from typing import Literal

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
