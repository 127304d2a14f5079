"""The calibration set: which of the graded completions TrRa learns from."""

import logging
import statistics
from typing import Literal

from datasets import Dataset

from realign_pipes.data.schemas import CALIBRATION_COLUMNS
from realign_pipes.errors import InputError

logger = logging.getLogger(__name__)


def usable_rows(samples: Dataset) -> list[int]:
    """Numbers of the rows that are right, finished, and close their thinking once. ValueError if there is none."""
    columns = zip(samples["correct"], samples["finished"], samples["completion"], samples["think_close"], strict=True)
    usable = [
        index
        for index, (correct, finished, completion, think_close) in enumerate(columns)
        if correct and finished and completion.count(think_close) == 1
    ]
    if not usable:
        raise InputError(f"data_prep.calibration: {sum(samples['correct'])} of {len(samples)} completions are right, "
                         f"but none of them is finished and has {samples['think_close'][0]} exactly once. If the "
                         "models think between other tags, name them in models.thinking.")  # fmt: skip
    return usable


def select_calibration(
    samples: Dataset, *, keep: Literal["longest", "all"], min_tokens: int, max_tokens: int
) -> Dataset:
    """The rows of `samples` that are right, finished, think once, and have a length within the bounds.

    With CALIBRATION_COLUMNS: the bounds are in the set, so that it says by itself what its lengths have to be.
    ValueError, with the lengths that there are, if nothing is left.
    """
    problems, lengths_of = samples["problem_id"], samples["completion_tokens"]
    usable = [(index, problems[index], lengths_of[index]) for index in usable_rows(samples)]
    fitting = [row for row in usable if min_tokens <= row[2] <= max_tokens]
    lengths = [tokens for _, _, tokens in usable]
    seen = f"{min(lengths)} to {max(lengths)} tokens long, {statistics.median(lengths):.0f} in the median"
    if not fitting:
        raise InputError(f"data_prep.calibration: none of the {len(usable)} right completions has min_tokens "
                         f"{min_tokens} to max_tokens {max_tokens}. They are {seen}. "
                         "Change the bounds.")  # fmt: skip
    if keep == "longest":
        longest: dict[str, tuple[int, str, int]] = {}
        for row in fitting:
            if row[1] not in longest or row[2] > longest[row[1]][2]:
                longest[row[1]] = row
        fitting = list(longest.values())
    logger.info("calibration set: %d completions kept of %d usable ones, which are %s", len(fitting), len(usable), seen)
    chosen = samples.select([index for index, _, _ in fitting])
    for name, bound in (("min_tokens", min_tokens), ("max_tokens", max_tokens)):
        chosen = chosen.add_column(name, [bound] * len(chosen), feature=CALIBRATION_COLUMNS[name])
    return chosen
