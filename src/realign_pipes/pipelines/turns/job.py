"""The job of the pipeline turns: conversations with InRa at several alphas by turn."""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from realign_pipes.data.parameters import Models
from realign_pipes.data.prompts import render_prompt, thinking_tags
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.generation.transformers_engine import stop_token_ids
from realign_pipes.graders import rules
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.parameters import Rules
from realign_pipes.graders.text import words_of
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model, fingerprint_tokenizer
from realign_pipes.models.load import default_device, load_chat_tokenizer, read_stops
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.turns import converse
from realign_pipes.pipelines.turns.parameters import Turns
from realign_pipes.runtime.files import append_line, whole_lines
from realign_pipes.runtime.progress import Advance, progress_bar
from realign_pipes.runtime.work import do_once
from realign_pipes.sweep.metrics import bootstrap_means
from realign_pipes.sweep.schemas import TURNS_RESULTS, conform
from realign_pipes.tasks.completion import answer_part

RESAMPLES, RESAMPLES_SEED = 10_000, 60
GRADER = Rules(kind="rules", field="expected")


@dataclass(frozen=True)
class Conversation:
    """The user's turns, and the instructions that the reply to each of them has to follow."""

    turns: list[str]
    expected: list[Any]


class MeasureTurns:
    """Hold each conversation at each list of alphas, or find it in the folder `work`."""

    def __init__(self, parameters: Turns, inra: Path, plausibility: float, models: Models, work: Path):
        self.parameters, self.inra, self.plausibility = parameters, inra, plausibility
        self.models, self.work = models, work

    def run(self) -> pd.DataFrame:
        """One row for each list of alphas and turn, and one for all turns: TURNS_RESULTS.

        InputError or MissingFileError, before the model is loaded, for conversations that cannot be used.
        """
        conversations = read_conversations(self.parameters.conversations, len(self.parameters.alphas[0]))
        silence = [[""] * len(one.turns) for one in conversations]
        rules.read_instructions("turns", GRADER, _answered(conversations, silence))  # wrong ones fail before any reply
        tokenizer = load_chat_tokenizer(self.inra, self.models.chat_template)
        with progress_bar("conversations", len(conversations) * len(self.parameters.alphas)) as advance:
            replies = [self._replies(alphas, conversations, tokenizer, advance) for alphas in self.parameters.alphas]
        prompt, tags = render_prompt(tokenizer, "?")[0], self.models.thinking or thinking_tags(tokenizer)
        answers = [[[answer_part(prompt, text, tags) or "" for text in texts] for texts in one] for one in replies]
        followed = np.stack([_followed(conversations, one) for one in answers])  # [alphas, conversations, turns]
        words = np.array([[[len(words_of(text)) for text in texts] for texts in one] for one in answers])
        together = np.asarray(followed.all(2, keepdims=True))
        return conform(
            pd.DataFrame(
                [
                    *_rows(self.parameters.alphas, followed, words),
                    *_rows(self.parameters.alphas, together, words.sum(2, keepdims=True), turn=0),
                ]
            ),
            TURNS_RESULTS,
        )

    def _replies(
        self,
        alphas: list[float],
        conversations: list[Conversation],
        tokenizer: PreTrainedTokenizerFast,
        advance: Advance,
    ) -> list[list[str]]:
        """The replies of each conversation, kept as they come. Its draws are the same at all alphas."""
        sampling = self.parameters.sampling
        description = {
            "inra": fingerprint_model(self.inra),
            "tokenizer": fingerprint_tokenizer(tokenizer),
            "stops": read_stops(self.inra),
            "conversations": fingerprint(json.dumps([one.turns for one in conversations])),
            "alphas": alphas,
            "plausibility": self.plausibility,
            "sampling": sampling.model_dump(),
            "attn_implementation": self.models.attn_implementation,
        }

        def do(folder: Path) -> Any:
            kept = folder / "replies.jsonl"  # a conversation a line, in their order
            replies = [json.loads(line) for line in whole_lines(kept)]
            advance(len(replies))
            for number in range(len(replies), len(conversations)):
                torch.manual_seed(sampling.seed + number)
                replies.append(
                    converse(
                        self._model,
                        tokenizer,
                        conversations[number].turns,
                        alphas,
                        plausibility=self.plausibility,
                        do_sample=True,
                        temperature=sampling.temperature,
                        top_p=sampling.top_p,
                        top_k=0,
                        max_new_tokens=sampling.max_new_tokens,
                    )
                )
                append_line(kept, json.dumps(replies[-1]))
                advance()
            return lambda path: path.write_text(json.dumps(replies, indent=1), encoding="utf-8")

        name = "_".join(f"{alpha:g}" for alpha in alphas)
        kept: list[list[str]] = json.loads(do_once(self.work / name, "replies.json", description, do).read_text())
        return kept

    @cached_property
    def _model(self) -> InRaForCausalLM:
        model = InRaForCausalLM.from_pretrained(self.inra, attn_implementation=self.models.attn_implementation)
        model.to(default_device())
        stops = stop_token_ids(model)  # all that is taken from its generation config, as in the sweep
        model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=stops[0])
        return model


def read_conversations(path: Path | None, turns: int) -> list[Conversation]:
    """The conversations of a file. MissingFileError without one, InputError for a line that has not so many `turns`,
    or not as many `expected`, and for an empty file."""
    if path is None or not path.is_file():
        raise MissingFileError(f"turns.conversations: there is no file {path} in {Path.cwd()}. Give one with a JSON "
                               "object a line, with `turns` and `expected`.")  # fmt: skip
    conversations = []
    for number, line in enumerate(io.StringIO(path.read_text(encoding="utf-8")), start=1):  # splits at "\n" alone
        try:
            row = json.loads(line)
            one = Conversation([str(turn) for turn in row["turns"]], list(row["expected"]))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"turns.conversations: line {number} of {path} is no conversation: {error!r}") from None
        if not (len(one.turns) == len(one.expected) == turns and all(turn.strip() for turn in one.turns)):
            raise InputError(f"turns.conversations: line {number} of {path} has {len(one.turns)} turns and "
                             f"{len(one.expected)} expected, and turns.alphas {turns}. None may be empty.")  # fmt: skip
        conversations.append(one)
    if not conversations:
        raise InputError(f"turns.conversations: {path} has no lines.")
    return conversations


def _answered(conversations: list[Conversation], answers: list[list[str]]) -> list[Answered]:
    """Each answer, without its thinking, with what is expected of it, one conversation after the other."""
    return [
        Answered("turns", f"conversation {place + 1}, turn {turn + 1}", 0, said, {"expected": expected}, answer,
                 answer, [])
        for place, (conversation, texts) in enumerate(zip(conversations, answers, strict=True))
        for turn, (said, expected, answer) in enumerate(
            zip(conversation.turns, conversation.expected, texts, strict=True)
        )
    ]  # fmt: skip


def _followed(conversations: list[Conversation], answers: list[list[str]]) -> np.ndarray:
    """Whether each answer follows its instructions, [conversations, turns]."""
    found = [one["turns"] == 1.0 for one in rules.score("turns", GRADER, _answered(conversations, answers))]
    return np.array(found).reshape(len(conversations), -1)


def _rows(alphas: list[list[float]], followed: np.ndarray, words: np.ndarray, turn: int = 1) -> list[dict[str, Any]]:
    """Rows of TURNS_RESULTS from [alphas, conversations, turns]; the first turn is number `turn`."""
    rows = []
    for place, one in enumerate(alphas):
        for column in range(followed.shape[2]):
            paired = np.stack([followed[0, :, column], followed[place, :, column]]).astype(float)
            resampled = bootstrap_means(paired, RESAMPLES, RESAMPLES_SEED)
            low, high = np.quantile(resampled[1], [0.025, 0.975])
            less_low, less_high = np.quantile(resampled[1] - resampled[0], [0.025, 0.975])
            rows.append(
                {
                    "alphas": ", ".join(f"{alpha:g}" for alpha in one),
                    "turn": turn + column,
                    "conversations": paired.shape[1],
                    "followed": paired[1].mean(),
                    "low": low,
                    "high": high,
                    "difference": paired[1].mean() - paired[0].mean(),
                    "difference_low": less_low,
                    "difference_high": less_high,
                    "words": words[place, :, column].mean(),
                }
            )
    return rows
