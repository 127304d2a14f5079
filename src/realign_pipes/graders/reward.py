"""A reward model: a sequence classifier of Hugging Face with one label, whose logit is the score."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.parameters import Reward
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model
from realign_pipes.models.hub import find_checkpoint
from realign_pipes.models.load import default_device, load_classifier, load_tokenizer, max_positions, render_chat
from realign_pipes.runtime.files import append_line, whole_lines
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import do_once

Row = dict[str, list[int]]
"""What the model reads of question and answer: `input_ids`, `attention_mask` and, where it has them, segments
(`token_type_ids`)."""


class RewardModel:
    """A reward model in memory, and how it reads."""

    def __init__(self, name: str, grader: Reward) -> None:
        """InputError for a checkpoint that is missing, has not one label, or has no chat template though it is to read
        chats; and for more tokens than it has positions."""
        path = find_checkpoint(grader.model)
        self.name, self.grader, self.fingerprint = name, grader, fingerprint_model(path)
        positions = max_positions(path)
        if positions is not None and grader.tokens > positions:
            raise InputError(f"scores.graders.{name}.tokens is {grader.tokens}, but {path} has {positions} positions.")
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(path)
        if grader.input == "chat" and self.tokenizer.chat_template is None:
            raise InputError(f"the tokenizer of {path} has no chat template. If the model reads a pair of texts, set "
                             f"scores.graders.{name}.input to pair.")  # fmt: skip
        self.model: PreTrainedModel = load_classifier(path, device=default_device())
        if self.model.config.num_labels != 1:
            raise InputError(f"{path} has {self.model.config.num_labels} labels; a reward model has one.")
        config = self.model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id
        self.pad = config.pad_token_id  # where a row ends: the pooled token precedes it, whatever the tokenizer's is
        # BERT and its like tell the two texts of a pair by their segments; others have one segment or none.
        self.has_segments = getattr(config, "type_vocab_size", 0) > 1

    def score(self, candidate: str, answers: Sequence[Answered], folder: Path) -> list[float]:
        """The logit of each answer, in order; what an interrupted run scored in `folder` is kept.

        InputError, before any is scored, for one that is longer than `tokens`.
        """
        rows = [self._read(one) for one in answers]
        lengths = [len(row["input_ids"]) for row in rows]
        longest = max(range(len(rows)), key=lengths.__getitem__)
        if lengths[longest] > self.grader.tokens:
            raise InputError(f"scores.graders.{self.name}.tokens is {self.grader.tokens}, but question and answer of "
                             f"{answers[longest].problem_id} (candidate {candidate}) have {lengths[longest]} tokens."
                             )  # fmt: skip
        description = {"model": self.fingerprint, "batch": self.grader.batch_size, "rows": fingerprint(rows)}

        def do(work: Path) -> Callable[[Path], None]:
            scores = self._score_all(candidate, rows, work / "scores.jsonl")

            def write(path: Path) -> None:
                path.write_text(json.dumps(scores))

            return write

        file = do_once(folder, "scores.json", description, do)
        scores: list[float] = json.loads(file.read_text())
        return scores

    def _score_all(self, candidate: str, rows: Sequence[Row], file: Path) -> list[float]:
        # so that rows of a batch have about one length
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
        found = {int(place): score for line in whole_lines(file) for place, score in json.loads(line).items()}
        with progress_bar(f"scoring {candidate}", len(rows)) as advance:
            advance(len(found))
            todo = [place for place in order if place not in found]
            for start in range(0, len(todo), self.grader.batch_size):
                places = todo[start : start + self.grader.batch_size]
                scores = self._logits([rows[place] for place in places])
                made = dict(zip(places, scores, strict=True))
                append_line(file, json.dumps(made))
                found |= made
                advance(len(places))
        return [found[place] for place in range(len(rows))]

    def _read(self, one: Answered) -> Row:
        is_pair = self.grader.input == "pair"
        if is_pair:
            texts = [one.question, one.answer]
        else:
            chat = [*one.messages, {"role": "assistant", "content": one.answer}]
            texts = [render_chat(self.tokenizer, chat, add_generation_prompt=False)]
        return dict(
            self.tokenizer(
                *texts,
                add_special_tokens=is_pair,
                return_attention_mask=True,
                return_token_type_ids=self.has_segments,
            )
        )

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Row]) -> list[float]:
        """The logits of some rows, padded to the longest."""
        padding = {"input_ids": self.pad}
        inputs = {
            name: pad_sequence(
                [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=padding.get(name, 0)
            )
            for name in rows[0]
        }
        logits = self.model(**{name: values.to(self.model.device) for name, values in inputs.items()}).logits
        scores: list[float] = logits[:, 0].float().tolist()
        return scores
