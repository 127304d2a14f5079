"""The calibration set: which of the graded completions TrRa learns from."""

import logging
import statistics
from typing import Literal

from datasets import Dataset

from realign_pipes.data.schemas import CALIBRATION_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.tasks.completion import Thinking, ThinkingTags, describe_thinking, thinks_right

logger = logging.getLogger(__name__)


def is_usable(
    correct: bool | None, finished: bool, prompt: str, completion: str, tags: ThinkingTags, thinking: Thinking
) -> bool:
    """Whether a completion can be used for training: it is not wrong, finished, and thinks as it should.

    `correct` is None where nothing was graded.
    """
    return correct is not False and finished and thinks_right(prompt, completion, tags, thinking)


def usable_rows(samples: Dataset) -> list[int]:
    """Numbers of the rows that are usable. InputError, with an example, if there is none."""
    first = samples[0]
    tags, thinking = ThinkingTags(open=first["think_open"], close=first["think_close"]), first["thinking"]
    correct, finished, prompts, completions = (
        samples[name][:] for name in ("correct", "finished", "prompt", "completion")
    )
    usable = [
        number
        for number, (right, ended, prompt, text) in enumerate(zip(correct, finished, prompts, completions, strict=True))
        if is_usable(right, ended, prompt, text, tags, thinking)
    ]
    if not usable:
        graded = f"{sum(map(bool, correct))} of {len(samples)} completions are right, but none of them"
        if first["answer"] is None:
            graded = f"none of the {len(samples)} completions"
        example = next((text for text, right in zip(completions, correct, strict=True) if right), completions[0])
        raise InputError(
            f"data_prep.calibration: {graded} is finished and {describe_thinking(tags, thinking)}, so none can be "
            "learned from.\n"
            f"  the first {'completion' if first['answer'] is None else 'right completion'}: {shortened(example)!r}\n"
            "If the models think between other tags, name them in models.thinking; data_prep.thinking says whether "
            "they have to think."
        )
    return usable


def shortened(text: str, most: int = 400) -> str:
    """The beginning of a text and, twice as long, its end, where the answer is."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-2 * most // 3 :]}"


def select_calibration(
    samples: Dataset, *, keep: Literal["longest", "all"], min_tokens: int, max_tokens: int
) -> Dataset:
    """The rows of `samples` that are usable (`is_usable`), and have a length within the bounds.

    With CALIBRATION_COLUMNS, which include the bounds: the set itself says how long its completions have to be.
    InputError, with the actual lengths, if nothing is left.
    """
    problems, lengths_of = samples["problem_id"], samples["completion_tokens"]
    usable = [(index, problems[index], lengths_of[index]) for index in usable_rows(samples)]
    fitting = [row for row in usable if min_tokens <= row[2] <= max_tokens]
    lengths = [tokens for _, _, tokens in usable]
    seen = f"{min(lengths)} to {max(lengths)} tokens long, {statistics.median(lengths):.0f} in the median"
    if not fitting:
        raise InputError(f"data_prep.calibration: none of the {len(usable)} usable completions has min_tokens "
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
