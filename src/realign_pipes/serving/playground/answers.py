"""A question to the playground, and its answers as they are written.

answers = [Answer(alpha=0.0), Answer(alpha=1.0)]
async for _ in follow(backend, [{"role": "user", "content": "2 + 3 ="}], 0, answers):
    print(answers)  # longer each time
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from realign_pipes.errors import InputError
from realign_pipes.models.load import load_chat_tokenizer, render_chat
from realign_pipes.tasks.completion import THINK, ThinkingTags, opens_thinking, tags_named_in

LOWEST, HIGHEST = -1.0, 3.0
"""The alphas that the page offers; of a ladder, its rungs."""
CHARACTERS = 8_000
"""Of a message, at most."""
INTERVAL = 0.05
"""Seconds between two looks at answers that are being written."""

Chat = list[dict[str, str]]


class Question(BaseModel):
    """What the page asks for, which is not trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    message: Annotated[str, Field(max_length=CHARACTERS)]
    alphas: Annotated[list[float], Field(min_length=1, max_length=3)]
    budget: Annotated[int, Field(ge=0)]
    """Tokens for the whole answer; 0 for none."""


@dataclass
class Answer:
    """An answer, as far as it is written."""

    alpha: float
    text: str = ""
    tokens: int = 0
    thinking: int | None = None
    """How many of the tokens came before thinking was closed; None: it has not been."""
    cut: bool = False
    """Whether it has as many tokens as an answer may have, without an end."""
    trouble: str = ""
    """Why it is not complete, in words."""

    def extend(self, text: str, tokens: int, tags: ThinkingTags) -> None:
        """The whole `text` and the number of all its `tokens`, at most as many as it has now."""
        if self.thinking is None and tags.close in text:
            self.thinking = tokens
        self.text, self.tokens = text, tokens


class Backend(Protocol):
    """Who answers."""

    @property
    def name(self) -> str: ...

    @property
    def tags(self) -> ThinkingTags: ...

    @property
    def opened(self) -> bool:
        """Whether the prompt opens the thinking, because the chat template does."""

    @property
    def max_tokens(self) -> int:
        """Of an answer, at most."""

    @property
    def rungs(self) -> Sequence[float]:
        """The alphas that there are, ascending; none of them: any alpha, and budgets."""

    @property
    def at_once(self) -> int:
        """How many questions are answered at a time."""

    async def write(self, chat: Chat, budget: int, answers: Sequence[Answer]) -> None:
        """Write each answer's text as it comes, and what went wrong."""


async def follow(backend: Backend, chat: Chat, budget: int, answers: list[Answer]) -> AsyncGenerator[None]:
    """Let `answers` be written; says when they have changed, and once at the start. Closing it stops the writing."""
    writing = asyncio.create_task(backend.write(chat, budget, answers))
    try:
        said = None
        while not writing.done():
            now = [(answer.tokens, answer.text) for answer in answers]
            if now != said:
                said = now
                yield
            await asyncio.wait([writing], timeout=INTERVAL)
        writing.result()
        yield
    finally:
        writing.cancel()


def read_question(backend: Backend, asked: Any) -> Question:
    """What was asked. InputError, in words for the page, for what is not a question or what `backend` cannot do."""
    try:
        question = Question.model_validate(asked)
    except ValidationError as error:
        first = error.errors()[0]
        names = {"message": "the message", "alphas": "alpha", "budget": "the budget"}
        place = names.get(str(first["loc"][0]), "the question") if first["loc"] else "the question"
        raise InputError(f"Something is wrong with {place}: {first['msg']}.") from error
    if not question.message.strip():
        raise InputError("There is nothing to answer: write a message first.")
    if question.budget > (0 if backend.rungs else backend.max_tokens):
        raise InputError(f"A budget of {question.budget} tokens cannot be had here.")
    for alpha in question.alphas:
        if backend.rungs and alpha not in backend.rungs:
            rungs = ", ".join(f"{rung:g}" for rung in backend.rungs)
            raise InputError(f"The ladder has no rung at {alpha:g}. Its rungs are {rungs}.")
        if not backend.rungs and not LOWEST <= alpha <= HIGHEST:
            raise InputError(f"Alpha {alpha:g} cannot be had here: it goes from {LOWEST:g} to {HIGHEST:g}.")
    return question


def fold(text: str, tags: ThinkingTags, *, opened: bool) -> tuple[str, str | None]:
    """What was thought, and what was answered: None while the thinking is open. Its tags belong to neither."""
    thinking, closed, answer = text.rpartition(tags.close)
    if closed:
        return thinking.replace(tags.open, "", 1).strip(), answer.strip()
    if opened or tags.open in text:
        return text.replace(tags.open, "", 1).strip(), None
    return "", text.strip()


def read_tags(model: Path | None) -> tuple[ThinkingTags, bool]:
    """The thinking tags of a model's chat template, and whether it opens them in the prompt."""
    if model is None:
        return THINK, False
    tokenizer = load_chat_tokenizer(model)
    tags = tags_named_in(tokenizer.get_chat_template()) or THINK
    prompt = render_chat(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
    return tags, opens_thinking(prompt, tags)
