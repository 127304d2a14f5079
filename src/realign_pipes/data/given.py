"""Replies and preference pairs that a dataset holds, as examples for the SFT and DPO of InRa's adapter."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from realign_pipes.data.parameters import GivenPairs, GivenReplies
from realign_pipes.data.prompts import complete_reply, encode_completion, end_of_turn_id, render_prompt
from realign_pipes.data.schemas import PAIR_COLUMNS, SOLUTION_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.tasks.chats import UnusableRowError, draw_rows, question_turn, read_usable, split_example
from realign_pipes.tasks.completion import Thinking, ThinkingTags, describe_thinking, thinks_right
from realign_pipes.tasks.dataset_task import read_rows

logger = logging.getLogger(__name__)

REPLIES, PAIRS = "data_prep.short_solutions", "data_prep.preference_pairs"
"""The parameters that messages name."""


@dataclass(frozen=True)
class Reading:
    """How a dataset's texts become the ids that a model would read and write."""

    tokenizer: PreTrainedTokenizerFast
    tags: ThinkingTags
    thinking: Thinking
    positions: int | None
    """The reference's, which no example may exceed; None: there is no limit."""
    seed: int
    """Of the rows that are drawn where a source has a `limit`."""
    instruction: str | None = None
    """Added to the end of each question."""

    @cached_property
    def end_of_turn(self) -> int:
        """The id that ends a reply."""
        return end_of_turn_id(self.tokenizer)

    def encode(self, prompt: str, reply: str, what: str) -> tuple[str, list[int]]:
        """A reply to `prompt`, and its ids. UnusableRowError if it is empty or does not think as it should."""
        if not reply.strip():
            raise UnusableRowError(f"{what} is empty")
        text = complete_reply(prompt, reply, self.tags, self.thinking)
        if not thinks_right(prompt, text, self.tags, self.thinking):
            raise UnusableRowError(f"{what} thinks otherwise than data_prep.thinking={self.thinking} asks for: that it "
                                   f"{describe_thinking(self.tags, self.thinking)}")  # fmt: skip
        return text, encode_completion(self.tokenizer, text, self.end_of_turn)

    def fits(self, tokens: int, max_tokens: int | None) -> bool:
        """Whether an example of so many tokens is kept. UnusableRowError if the reference has no room for it."""
        if max_tokens is not None and tokens > max_tokens:
            return False
        if self.positions is not None and tokens > self.positions:
            raise UnusableRowError(f"prompt and reply have {tokens:,} tokens, and the reference {self.positions:,} "
                                   "positions")  # fmt: skip
        return True

    def read(
        self,
        rows: Dataset,
        build: Callable[[dict[str, Any]], dict[str, Any] | None],
        source: GivenReplies | GivenPairs,
        key: str,
    ) -> list[dict[str, Any]]:
        """What `build` makes of the rows, without the None of those that are too long. InputError if all are."""
        built = read_usable(rows, draw_rows(len(rows), source.limit, self.seed, key), build, source, key)
        kept = [row for row in built if row is not None]
        if not kept:
            raise InputError(f"{key}.max_tokens: no example fits into {source.max_tokens} tokens, those of its prompt "
                             "included. Set it to more.")  # fmt: skip
        if len(kept) < len(built):
            logger.info("%s: %d of %d examples are longer than max_tokens and left out", key, len(built) - len(kept),
                        len(built))  # fmt: skip
        name = key.rpartition(".")[2]
        return [{"id": f"{name}-{number:06d}", "problem_id": f"{name}-{number:06d}", "source": "dataset", **row}
                for number, row in enumerate(kept)]  # fmt: skip


def read_replies(source: GivenReplies, reading: Reading) -> Dataset:
    """A dataset's replies with SOLUTION_COLUMNS, in its order. InputError as `read_rows` and `read_usable`."""
    columns = {"question": source.question_column, "completion": source.completion_column}
    if source.messages_column is not None:
        columns = {"messages": source.messages_column}
    rows = read_rows(source, columns, REPLIES, chats=["messages"])

    def build(row: dict[str, Any]) -> dict[str, Any] | None:
        if source.messages_column is not None:
            chat, reply = split_example(row["messages"])
        else:
            chat, reply = question_turn(row["question"]), row["completion"]
        prompt, prompt_ids = render_prompt(reading.tokenizer, chat, reading.instruction)
        completion, completion_ids = reading.encode(prompt, reply, "the reply")
        if not reading.fits(len(prompt_ids) + len(completion_ids), source.max_tokens):
            return None
        return {
            "prompt": prompt,
            "thinking": reading.thinking,
            "think_open": reading.tags.open,
            "think_close": reading.tags.close,
            "completion": completion,
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "prompt_tokens": len(prompt_ids),
            "completion_tokens": len(completion_ids),
            "thinking_tokens": 0,
        }

    return Dataset.from_list(reading.read(rows, build, source, REPLIES), features=SOLUTION_COLUMNS)


def read_pairs(source: GivenPairs, reading: Reading) -> Dataset:
    """A dataset's preference pairs with PAIR_COLUMNS, in its order. InputError as `read_rows` and `read_usable`."""
    columns = {"chosen": source.chosen_column, "rejected": source.rejected_column}
    if source.question_column is None:
        rows = read_rows(source, columns, PAIRS, chats=["chosen", "rejected"])
    else:
        rows = read_rows(source, {**columns, "question": source.question_column}, PAIRS)

    def build(row: dict[str, Any]) -> dict[str, Any] | None:
        if source.question_column is None:
            chat, chosen = split_example(row["chosen"])
            other, rejected = split_example(row["rejected"])
            if chat != other:
                raise UnusableRowError("chosen and rejected answer different prompts")
        else:
            chat, chosen, rejected = question_turn(row["question"]), row["chosen"], row["rejected"]
        if chosen.strip() == rejected.strip():
            raise UnusableRowError("chosen and rejected are equal")
        prompt, prompt_ids = render_prompt(reading.tokenizer, chat, reading.instruction)
        chosen, chosen_ids = reading.encode(prompt, chosen, "the chosen reply")
        rejected, rejected_ids = reading.encode(prompt, rejected, "the rejected reply")
        if not reading.fits(len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)), source.max_tokens):
            return None
        return {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "prompt_ids": prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "prompt_tokens": len(prompt_ids),
            "chosen_tokens": len(chosen_ids),
            "rejected_tokens": len(rejected_ids),
            "rejected_correct": None,
        }

    return Dataset.from_list(reading.read(rows, build, source, PAIRS), features=PAIR_COLUMNS)
