"""A server that answers on the playground's page: of an InRa model or of a ladder, by the OpenAI protocol."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from realign_pipes.errors import InputError
from realign_pipes.serving.ladder import BASE
from realign_pipes.serving.playground.answers import Answer, Chat, read_tags
from realign_pipes.tasks.completion import THINK, ThinkingTags

CONNECTING, WAITING = 10.0, 300.0
"""Seconds for a server to accept a connection, and to send the next token."""
RUNG = re.compile(r"alpha-(-?\d+(?:\.\d+)?)")
"""The name of a model of the ladder: `alpha-0.5`, `alpha--0.5`."""


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
    """The ladder: each alpha's model, at 0 the base itself if it is served. Empty: one InRa model, `name`."""
    key: str | None = None
    tags: ThinkingTags = THINK
    opened: bool = False
    at_once: int = 16

    @property
    def rungs(self) -> Sequence[float]:
        return sorted(self.models)

    def body(self, chat: Chat, alpha: float, budget: int) -> dict[str, Any]:
        """What the server is asked."""
        body: dict[str, Any] = {
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
            if rungs and BASE in names:
                rungs.setdefault(0.0, BASE)
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
