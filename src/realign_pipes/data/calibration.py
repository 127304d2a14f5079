"""The calibration set: which of the graded completions TrRa learns from."""

import logging
import statistics
from typing import Literal

from datasets import Dataset

from realign_pipes.data.schemas import CALIBRATION_COLUMNS
from realign_pipes.errors import InputError

logger = logging.getLogger(__name__)


def is_usable(correct: bool, finished: bool, completion: str, think_close: str) -> bool:
    """Whether a completion can be used for training: it is right, finished, and closes its thinking once."""
    return correct and finished and completion.count(think_close) == 1


def usable_rows(samples: Dataset) -> list[int]:
    """Numbers of the rows that are usable. InputError, with an example, if there is none."""
    columns = [samples[name][:] for name in ("correct", "finished", "completion", "think_close")]
    usable = [number for number, values in enumerate(zip(*columns, strict=True)) if is_usable(*values)]
    if not usable:
        correct, _, completions, (think_close, *_) = columns
        example = next((text for text, right in zip(completions, correct, strict=True) if right), completions[0])
        raise InputError(
            f"data_prep.calibration: {sum(correct)} of {len(samples)} completions are right, but none of them is "
            f"finished and has {think_close} exactly once, so none can be learned from.\n"
            f"  the first right completion: {shortened(example)!r}\n"
            "If the models think between other tags, name them in models.thinking."
        )
    return usable


def shortened(text: str, most: int = 400) -> str:
    """The beginning of a text and, twice as long, its end, where the answer is."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-2 * most // 3 :]}"


def select_calibration(
    samples: Dataset, *, keep: Literal["longest", "all"], min_tokens: int, max_tokens: int
) -> Dataset:
    """The rows of `samples` that are right, finished, think once, and have a length within the bounds.

    With CALIBRATION_COLUMNS, which include the bounds: the set itself says how long its completions have to be.
    InputError, with the actual lengths, if nothing is left.
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
