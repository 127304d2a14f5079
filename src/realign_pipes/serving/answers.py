"""Who answers on the playground's page: an OpenAI-compatible server, or an InRa model in this process.

backend = LocalModel(Path("data/06_models/inra"), max_tokens=1024)
answers = [Answer(alpha=0.0), Answer(alpha=1.0)]
async for _ in follow(backend, [{"role": "user", "content": "2 + 3 ="}], 0, answers):
    print(answers)  # longer each time
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import httpx2
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers.generation.streamers import BaseStreamer

from realign_pipes.errors import InputError
from realign_pipes.models.load import default_device, load_chat_tokenizer, render_chat
from realign_pipes.paper.expansion import CONFIG_NAME
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.serving.inra import is_inra
from realign_pipes.tasks.completion import THINK, ThinkingTags, opens_thinking, tags_named_in

LOWEST, HIGHEST = -1.0, 3.0
"""The alphas that the page offers."""
CHARACTERS = 8_000
"""Of a message, at most."""
INTERVAL = 0.05
"""Seconds between two looks at answers that are being written."""
CONNECTING, WAITING = 10.0, 300.0
"""Seconds for a server to accept a connection, and to send the next token."""
RUNG = re.compile(r"alpha-(-?\d+(?:\.\d+)?)")
"""The name of a model of the ladder: `alpha-0.5`, `alpha--0.5`."""

Chat = list[dict[str, str]]


class Question(BaseModel):
    """What the page asks for, which is not trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    message: Annotated[str, Field(max_length=CHARACTERS)]
    alphas: Annotated[list[Annotated[float, Field(ge=LOWEST, le=HIGHEST)]], Field(min_length=1, max_length=3)]
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

    name: str
    tags: ThinkingTags
    opened: bool
    """Whether the prompt opens the thinking, because the chat template does."""
    max_tokens: int
    """Of an answer, at most."""
    rungs: Sequence[float]
    """The alphas that there are, ascending; none of them: any alpha, and budgets."""
    at_once: int
    """How many questions are answered at a time."""

    async def write(self, chat: Chat, budget: int, answers: Sequence[Answer]) -> None:
        """Write each answer's text as it comes, and what went wrong."""


async def follow(backend: Backend, chat: Chat, budget: int, answers: list[Answer]) -> AsyncGenerator[None]:
    """Let `answers` be written, and say so every INTERVAL. Closing the generator stops it."""
    writing = asyncio.create_task(backend.write(chat, budget, answers))
    try:
        while not writing.done():
            await asyncio.wait([writing], timeout=INTERVAL)
            yield
        writing.result()
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
    if backend.rungs and (missing := [alpha for alpha in question.alphas if alpha not in backend.rungs]):
        rungs = ", ".join(f"{rung:g}" for rung in backend.rungs)
        raise InputError(f"The ladder has no rung at {missing[0]:g}. Its rungs are {rungs}.")
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


# -- a server ----------------------------------------------------------------------------------------------------------
class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(BaseModel):
    completion_tokens: int


class _Error(BaseModel):
    message: str


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: Annotated[list[_Model], Field(min_length=1)]


@dataclass(frozen=True)
class ServerBackend:
    """A server: of an InRa model, by vLLM's plug-in for it, or of a ladder of adapters."""

    url: str
    """Without a slash at its end and without /v1."""
    name: str
    max_tokens: int
    models: Mapping[float, str] = field(default_factory=dict)
    """The ladder: each alpha's model. Empty: one InRa model, `name`."""
    key: str | None = None
    tags: ThinkingTags = THINK
    opened: bool = False
    at_once: int = 16

    @property
    def rungs(self) -> Sequence[float]:
        return sorted(self.models)

    def body(self, chat: Chat, alpha: float, budget: int) -> dict[str, Any]:
        """What the server is asked."""
        body = {
            "model": self.models.get(alpha, self.name),
            "messages": chat,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if not self.models:
            body["vllm_xargs"] = {"inra_alpha": alpha, **({"inra_budget": budget} if budget else {})}
        return body

    async def write(self, chat: Chat, budget: int, answers: Sequence[Answer]) -> None:
        """As `Backend.write`; each answer is a request."""
        async with _client(self.key) as client:
            await asyncio.gather(*(self._write(client, chat, budget, answer) for answer in answers))

    async def _write(self, client: httpx2.AsyncClient, chat: Chat, budget: int, answer: Answer) -> None:
        body = self.body(chat, answer.alpha, budget)
        try:
            async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    answer.trouble = refusal(response.status_code, await response.aread())
                    return
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        self._read(line.removeprefix("data: "), answer)
        except httpx2.ConnectError:
            answer.trouble = f"The server at {self.url} does not answer. Is it running?"
        except httpx2.TimeoutException:
            answer.trouble = f"The server at {self.url} has not sent anything for {WAITING:.0f} seconds."
        except httpx2.TransportError:
            answer.trouble = f"The server at {self.url} ended in the middle of this answer."
        else:
            answer.trouble = answer.trouble or f"The server at {self.url} ended in the middle of this answer."

    def _read(self, line: str, answer: Answer) -> None:
        try:
            chunk = _Chunk.model_validate_json(line)
        except ValidationError:
            answer.trouble = f"The server at {self.url} sent what cannot be read."
            return
        if chunk.error is not None:
            answer.trouble = f"The server says: {chunk.error.message}"
        text = "".join(choice.delta.content or "" for choice in chunk.choices)
        answer.cut = answer.cut or any(choice.finish_reason == "length" for choice in chunk.choices)
        tokens = chunk.usage.completion_tokens if chunk.usage else answer.tokens
        answer.extend(answer.text + text, tokens, self.tags)


def refusal(status: int, content: bytes) -> str:
    """What a server's refusal says, in words."""
    try:
        message = json.loads(content)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = content.decode(errors="replace")
    return f"The server refuses this (status {status}): {str(message)[:300]}"


def find_server(url: str, max_tokens: int, model: Path | None, key: str | None) -> ServerBackend:
    """The models of a server, which has to be running. `model` is the folder that the thinking tags are read from.

    InputError if it does not answer, or if it has neither a ladder nor an InRa model: then alpha would do nothing.
    """
    url = url.rstrip("/").removesuffix("/v1")
    tags, opened = read_tags(model)
    start = "`realign-pipes serve MODEL` starts one"
    with httpx2.Client(timeout=CONNECTING, trust_env=False, headers=_headers(key)) as client:
        try:
            answer = client.get(f"{url}/v1/models")
            if answer.status_code != 200:
                raise InputError(f"{url}: {refusal(answer.status_code, answer.content)}")
            models = _Models.model_validate_json(answer.content).data
            names = [one.id for one in models]
            rungs = {float(found[1]): name for name in names if (found := RUNG.fullmatch(name))}
            if not rungs:
                absurd = {"vllm_xargs": {"inra_alpha": 1e6}, "max_tokens": 1, "model": names[0]}
                probe = client.post(f"{url}/v1/completions", json={"prompt": "?", **absurd})
                if probe.status_code != 400 or "inra_alpha" not in probe.text:
                    raise InputError(f"{url} serves {', '.join(names)}, and does not know alpha: neither an InRa model "
                                     f"nor a ladder, whose names are alpha-0.5 and the like. {start}.")  # fmt: skip
        except (httpx2.TransportError, httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise InputError(f"no server answers at {url} ({type(error).__name__}): {start}.") from error
        except ValidationError as error:
            raise InputError(
                f"{url}/v1/models is not a list of models: is this an OpenAI-compatible server?"
            ) from error
    if positions := models[0].max_model_len:
        max_tokens = min(max_tokens, positions // 2)  # the other half is for the conversation
    return ServerBackend(url, names[0], max_tokens, rungs, key, tags, opened)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _client(key: str | None) -> httpx2.AsyncClient:
    timeout = httpx2.Timeout(WAITING, connect=CONNECTING)
    return httpx2.AsyncClient(timeout=timeout, trust_env=False, headers=_headers(key))


# -- in this process ---------------------------------------------------------------------------------------------------
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
        schedules = [TokenBudget(budget, alpha=answer.alpha) for answer in answers] if budget else []
        rows = ids.to(self.model.device).expand(len(answers), -1)
        with self._busy:
            self.model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                alpha=(lambda step, row: schedules[row](step, row)) if budget else [one.alpha for one in answers],
                max_new_tokens=most,
                do_sample=False,
                streamer=_Rows(self, answers, most),
                stopping_criteria=[lambda ids, scores: torch.full((len(ids),), stopped.is_set(), device=ids.device)],
            )


class _Rows(BaseStreamer):  # type: ignore[misc]
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
