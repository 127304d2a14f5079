"""What InRa's adapter learns from: short solutions or given replies for SFT, and preference pairs for DPO."""

import logging
import random
from collections import defaultdict
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.calibration import usable_rows
from realign_pipes.data.prompts import encode_completion, end_of_turn_id
from realign_pipes.data.schemas import PAIR_COLUMNS, SOLUTION_COLUMNS
from realign_pipes.errors import InputError

logger = logging.getLogger(__name__)


def make_short_solutions(
    tokenizer: PreTrainedTokenizerFast, samples: Dataset, *, cut_share: float, seed: int, max_tokens: int | None = None
) -> Dataset:
    """What follows the thinking in every right completion, with SOLUTION_COLUMNS.

    A share `cut_share` of the prompts contains the thinking up to a random token. From these the adapter learns to stop
    thinking at any time: mixed with the reference, it has to deal with thinking that is under way. Examples of more
    than `max_tokens` tokens, those of the prompt included, are left out; InputError if none is left.
    """
    end_of_turn = end_of_turn_id(tokenizer)
    draws = random.Random(f"{seed}/short_solutions")
    rows = []
    for row in samples.select(usable_rows(samples)):
        before, close, _ = row["completion"].partition(row["think_close"])
        thinking = tokenizer(before if close else "", add_special_tokens=False)["input_ids"]
        cut = draws.random() < cut_share and len(thinking) > 0
        kept = thinking[: draws.randint(1, len(thinking))] if cut else []
        completion, completion_ids = _short_solution(tokenizer, row, end_of_turn, thinks=bool(kept))
        if max_tokens is not None and row["prompt_tokens"] + len(kept) + len(completion_ids) > max_tokens:
            continue
        rows.append(
            {
                "id": row["id"],
                "problem_id": row["problem_id"],
                "prompt": row["prompt"] + tokenizer.decode(kept),
                "thinking": row["thinking"],
                "think_open": row["think_open"],
                "think_close": row["think_close"],
                "completion": completion,
                "prompt_ids": row["prompt_ids"] + kept,
                "completion_ids": completion_ids,
                "prompt_tokens": row["prompt_tokens"] + len(kept),
                "completion_tokens": len(completion_ids),
                "thinking_tokens": len(kept),
                "source": "samples",
            }
        )
    if not rows:
        raise InputError(f"data_prep.short_solutions.max_tokens: no solution fits into {max_tokens} tokens, those of "
                         "its prompt included. Set it to more.")  # fmt: skip
    return Dataset.from_list(rows, features=SOLUTION_COLUMNS)


def make_preference_pairs(tokenizer: PreTrainedTokenizerFast, samples: Dataset) -> Dataset:
    """Short and right against long or wrong, with PAIR_COLUMNS.

    For each problem, the shortest right solution, without its thinking, is the chosen completion. Each wrong completion
    is the rejected one in a pair of its own, and so is the longest right one. Where nothing is graded, no completion is
    wrong. There may be no pair at all, which is logged.
    """
    end_of_turn = end_of_turn_id(tokenizer)
    usable = set(usable_rows(samples))
    problems = defaultdict(list)
    for index, row in enumerate(samples):
        problems[row["problem_id"]].append((index in usable, row))
    rows = []
    for completions in problems.values():
        right = [row for is_usable, row in completions if is_usable]
        if not right:
            continue
        chosen, chosen_ids = min(
            (_short_solution(tokenizer, row, end_of_turn, thinks=False) for row in right), key=lambda one: len(one[1])
        )
        longest = max(right, key=lambda row: row["completion_tokens"])
        wrong = [row for _, row in completions if row["correct"] is False]
        # One that does not think may be longer by its leading newlines alone.
        differs = longest["completion_tokens"] > len(chosen_ids) and longest["completion"].strip() != chosen.strip()
        rejected = [*wrong, longest] if differs else wrong
        rows += [
            {
                "id": row["id"],
                "problem_id": row["problem_id"],
                "prompt": row["prompt"],
                "chosen": chosen,
                "rejected": row["completion"],
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": chosen_ids,
                "rejected_ids": row["completion_ids"],
                "prompt_tokens": row["prompt_tokens"],
                "chosen_tokens": len(chosen_ids),
                "rejected_tokens": row["completion_tokens"],
                "rejected_correct": row["correct"],
                "source": "samples",
            }
            for row in rejected
        ]
    if not rows:
        logger.warning("preference_pairs is empty: the completions of no problem differ in correctness or length")
        return Dataset.from_dict({name: [] for name in PAIR_COLUMNS}, features=PAIR_COLUMNS)
    return Dataset.from_list(rows, features=PAIR_COLUMNS)


def _short_solution(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], end_of_turn: int, *, thinks: bool
) -> tuple[str, list[int]]:
    """The solution of a completion, and its ids. It closes the thinking first if the prompt (or `thinks`) opened it."""
    before, close, solution = row["completion"].partition(row["think_close"])
    if not close:  # it does not think
        close, solution = row["think_close"], before
    opened = thinks or row["prompt"].rstrip().endswith(row["think_open"])
    text = close + solution if opened else solution.lstrip()
    return text, encode_completion(tokenizer, text, end_of_turn)
