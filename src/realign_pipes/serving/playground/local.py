"""An InRa model in this process that answers on the playground's page, where there is no vLLM."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

from realign_pipes.errors import InputError
from realign_pipes.models.load import default_device, load_chat_tokenizer, render_chat
from realign_pipes.paper.expansion import CONFIG_NAME
from realign_pipes.paper.inra import Alpha, InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.serving.inra import is_inra
from realign_pipes.serving.playground.answers import Answer, Chat, read_tags


class LocalModel:
    """An InRa model in this process, by Transformers, for one question at a time.

    Raises InputError for a folder that is not an InRa model's, and what loading raises.
    """

    rungs: Sequence[float] = ()
    at_once = 1

    def __init__(self, path: Path, max_tokens: int) -> None:
        if not is_inra(path):
            raise InputError(f"{path} has no {CONFIG_NAME}, so it is not an InRa model, whose alpha can be chosen.")
        self.name, self.max_tokens = path.absolute().name, max_tokens
        self.tags, self.opened = read_tags(path)
        self.tokenizer = load_chat_tokenizer(path)
        self.model = InRaForCausalLM.from_pretrained(path).to(default_device())
        stops = self.model.generation_config.eos_token_id
        self.stops = frozenset(stops if isinstance(stops, list) else [stops])
        self._busy = threading.Lock()

    async def write(self, chat: Chat, budget: int, answers: Sequence[Answer]) -> None:
        """As `Backend.write`; the answers are rows of one batch."""
        stopped = threading.Event()
        try:
            await asyncio.to_thread(self._generate, chat, budget, answers, stopped)
        finally:
            stopped.set()  # the thread goes on to its next token

    def _generate(self, chat: Chat, budget: int, answers: Sequence[Answer], stopped: threading.Event) -> None:
        text = render_chat(self.tokenizer, chat, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        room = self.model.config.max_position_embeddings - ids.shape[1]
        if room < 1:
            for answer in answers:
                answer.trouble = (
                    f"This conversation has {ids.shape[1]} tokens, and the model has no room for more: start a new one."
                )
            return
        most = min(self.max_tokens, room)
        alpha: Alpha = [answer.alpha for answer in answers]
        if budget:
            schedules = [TokenBudget(budget, alpha=answer.alpha) for answer in answers]
            alpha = lambda step, row: schedules[row](step, row)  # noqa: E731
        rows = ids.to(self.model.device).expand(len(answers), -1)
        with self._busy:
            self.model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                alpha=alpha,
                max_new_tokens=most,
                do_sample=False,
                streamer=_Rows(self, answers, most),
                stopping_criteria=[lambda ids, scores: torch.full((len(ids),), stopped.is_set(), device=ids.device)],
            )


class _Rows(BaseStreamer):
    """Writes each row's tokens into its answer; Transformers' own streamers know one row."""

    def __init__(self, local: LocalModel, answers: Sequence[Answer], most: int) -> None:
        self.local, self.answers, self.most = local, answers, most
        self.tokens: list[list[int]] | None = None  # None: the prompt has not come, which comes first

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:
            self.tokens = [[] for _ in self.answers]
            return
        for answer, tokens, token in zip(self.answers, self.tokens, value.tolist(), strict=True):
            if tokens and tokens[-1] in self.local.stops:
                continue  # what follows is padding
            tokens.append(token)
            text = self.local.tokenizer.decode(tokens, skip_special_tokens=True)
            answer.extend(text, len(tokens), self.local.tags)
            answer.cut = len(tokens) == self.most and token not in self.local.stops

    def end(self) -> None:
        pass
