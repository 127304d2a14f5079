"""The engine on vLLM: a client of the OpenAI protocol, for one server or several that share the work.

    engine = VLLMEngine((Endpoint("http://localhost:8000", "reference"),), stops=read_stops(path), max_in_flight=64, …)
    for completions in engine.draw(prompts, sampling):
        ...

Prompts and completions are token ids, so any server serves that takes ids as a prompt and returns those that it drew
(`return_token_ids`, an extension of vLLM's): no text is tokenised on the way. A server that does not is refused.

Random numbers are the server's: each request has a seed of its own, `seed_of`, which all candidates share.
"""

import asyncio
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from realign_pipes.errors import UserError
from realign_pipes.generation.closing import count_begun, thinking_open
from realign_pipes.generation.engine import Closing, Completion, Description, Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.serving.server import end_of_log

logger = logging.getLogger(__name__)

CONNECTING = 30.0
"""Seconds for a server to accept a connection, and to answer whether it is alive."""
WATCHING = 30.0
"""Seconds between two questions whether a server is alive: what tells whether to go on waiting for a completion, which
comes when it is whole."""
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait before a request is sent once more. A server that has then still not answered it is lost."""
AGAIN = frozenset((429, 500, 502, 503, 504))
"""Answers after which a request is sent once more: too many requests, or the server's own trouble."""

NEUTRAL = {"top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Of the sampling, what does nothing. A server takes what a request does not say from the checkpoint's
generation_config.json, unless it was started with `--generation-config vllm`."""

SPACING = 0x13C6EE_9E3779B1
"""Between the seeds of two samples. Its 53 bits and its lowest 32 are the golden ratio's share of their ranges: no
choice keeps multiples further apart. Torch's generator on the CPU reads no more than the 32."""


class ServerError(UserError, RuntimeError):
    """A server is lost, refuses a request, or answers what cannot be used."""


class LostError(ServerError):
    """A server does not answer any more."""

    def __init__(self, lost: str) -> None:
        super().__init__(f"the server is lost: {lost}. Start it again, and then the run, which resumes.")
        self.lost = lost


class RefusedError(ServerError):
    """A server refuses a request."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass(frozen=True)
class Endpoint:
    """A model on a server."""

    url: str
    """Without a slash at its end and without /v1."""
    model: str
    """The name that the server knows it by."""


def seed_of(seed: int, key: str, sample: int, begun: int = 0) -> int:
    """The seed, in [0, 2^53), of the request that draws sample number `sample` for the prompt `key`.

    `begun` counts the tokens that the completion has already. The seed is

        (h + sample * SPACING) mod 2^53,  h = the first 8 bytes of SHA-256 of "<seed>/<begun>/<key>", big endian.

    vLLM draws `n` samples of a seed s with s, s + 1, …, and other programs count their seeds alike: so those of one
    prompt are spread over the whole range. JSON carries 53 bits everywhere.
    """
    hashed = hashlib.sha256(f"{seed}/{begun}/{key}".encode()).digest()
    return (int.from_bytes(hashed[:8], "big") + sample * SPACING) % 2**53


def served_min_p(min_p: float, temperature: float) -> float:
    """The min-p that means to vLLM, which applies it after the temperature, what `min_p` means before it.

    Ours keeps a token of probability p (at temperature 1) if p >= min_p * max p. At temperature T probabilities are
    proportional to p^(1/T), so the same tokens fulfil p^(1/T) >= min_p^(1/T) * max p^(1/T).
    """
    served: float = min_p ** (1 / temperature)
    return served


class _Choice(BaseModel):
    prompt_token_ids: list[NonNegativeInt] | None = None
    token_ids: list[NonNegativeInt] | None = None
    finish_reason: str | None = None


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]


@dataclass(frozen=True)
class VLLMEngine:
    """Draws with a model that servers have in memory; each completion is a request.

    `draw` raises ServerError for a server that is lost (DELAYS say when), that refuses a request, or whose answer does
    not hold the prompt's and the completion's token ids; ValueError for a prompt that cannot be asked for: with a bias
    on its closing tag, or with an alpha that follows another schedule than TokenBudget.
    """

    endpoints: Sequence[Endpoint]
    """Each with the same model."""
    stops: Collection[int]
    """The ids that end a completion."""
    max_in_flight: int
    """Requests that each endpoint has at a time."""
    description: Description
    min_p: float = 0.0
    """Tokens whose probability at temperature 1 is below min_p times the likeliest token's are never drawn."""
    plausibility: float = 0.0
    """Beta of InRa's mask, for prompts with an alpha."""
    server: ExitStack = field(default_factory=ExitStack)
    """Stops the servers, where it was started for this engine."""
    log: Path | None = None
    """That server's."""

    def close(self) -> None:
        """Stop the servers, if they were started for this engine."""
        self.server.close()

    def draw(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: Collection[tuple[str, int]] = ()
    ) -> Generator[list[Completion], None, None]:
        """As `Engine.draw`; a group has the completions that have come since the last one was taken."""
        for prompt in prompts:
            _check_servable(prompt)
        todo = [
            (prompt, sample)
            for prompt in prompts
            for sample in range(sampling.samples)
            if (prompt.key, sample) not in done
        ]
        came: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
        asking = InAnotherThread(partial(self._ask_for_all, todo, sampling, came.put), came.put)
        left = len(todo)
        try:
            while left:
                group = [came.get()]
                while not came.empty():
                    group.append(came.get())
                drawn = [one for one in group if isinstance(one, Completion)]
                left -= len(drawn)
                if drawn:  # also those that came before an error
                    yield drawn
                for one in group:
                    if isinstance(one, LostError) and self.log is not None:
                        raise ServerError(f"the server is lost: {one.lost}. Start the run again, which resumes. "
                                          f"{end_of_log(self.log)}")  # fmt: skip
                    if isinstance(one, BaseException):
                        raise one
        finally:
            asking.stop()

    async def _ask_for_all(
        self, todo: Sequence[tuple[Prompt, int]], sampling: Sampling, put: Callable[[Completion], None]
    ) -> None:
        """Ask for every completion and `put` them as they come, `max_in_flight` at a time from each endpoint."""
        waiting = iter(todo)  # each endpoint takes the next one when it has room: the faster one takes more

        async def work(client: httpx2.AsyncClient, endpoint: Endpoint) -> None:
            for prompt, sample in waiting:
                put(await self._complete(client, endpoint, prompt, sample, sampling))

        async with make_client() as client:
            watching = [asyncio.create_task(_watch(client, url)) for url in {one.url for one in self.endpoints}]
            working = [
                asyncio.create_task(work(client, endpoint))
                for _ in range(min(self.max_in_flight, len(todo)))
                for endpoint in self.endpoints  # inside, so that all have work where there is little
            ]
            try:
                unfinished: set[asyncio.Task[None]] = set(working)
                while unfinished:
                    ended, _ = await asyncio.wait([*unfinished, *watching], return_when=asyncio.FIRST_COMPLETED)
                    for task in ended:
                        task.result()  # raises what it raised; a watcher ends only so
                    unfinished -= ended
            finally:
                for task in (*watching, *working):
                    task.cancel()
                await asyncio.gather(*watching, *working, return_exceptions=True)

    async def _complete(
        self, client: httpx2.AsyncClient, endpoint: Endpoint, prompt: Prompt, sample: int, sampling: Sampling
    ) -> Completion:
        """One completion: a request, or several if its thinking may have to be closed by force."""
        tokens: list[int] = []
        closing, most = prompt.closing, sampling.max_new_tokens
        at = most if closing is None or closing.at is None else min(closing.at, most)
        while len(tokens) < most:
            if closing and len(tokens) >= at and thinking_open(closing, tokens)[-1]:
                tokens += closing.close_ids[count_begun(closing.close_ids, tokens) :]
                del tokens[most:]
                continue
            until = at if len(tokens) < at else most
            first = max(at, len(tokens) + 1)
            tokens += await self._draw_tokens(client, endpoint, prompt, sample, tokens, until, sampling)
            if closing and (reopened := _reopened(closing, tokens, first)):
                del tokens[reopened:]
            elif tokens[-1] in self.stops:
                break
        return Completion.of_tokens(prompt.key, sample, tokens, self.stops)

    async def _draw_tokens(
        self,
        client: httpx2.AsyncClient,
        endpoint: Endpoint,
        prompt: Prompt,
        sample: int,
        tokens: Sequence[int],
        until: int,
        sampling: Sampling,
    ) -> list[int]:
        """The tokens that follow `tokens`: up to one that ends the completion, or until it has `until` of them."""
        asked, most = [*prompt.token_ids, *tokens], until - len(tokens)
        body: dict[str, Any] = {
            "model": endpoint.model,
            "prompt": asked,
            "max_tokens": most,
            "n": 1,
            "seed": seed_of(sampling.seed, prompt.key, sample, len(tokens)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": served_min_p(self.min_p, sampling.temperature),
            **NEUTRAL,
            "stop_token_ids": sorted(self.stops),
            "ignore_eos": True,  # only these stop it, and not what the server holds for the end
            "return_token_ids": True,
        }
        if arguments := _inra_arguments(prompt, self.plausibility, len(tokens)):
            body["vllm_xargs"] = arguments
        answer = await post(client, f"{endpoint.url}/v1/completions", body)
        return _read_tokens(answer, endpoint.url, asked, most, self.stops)


def make_client(answering: float | None = None, *, proxies: bool = False) -> httpx2.AsyncClient:
    """A client that waits `answering` seconds for an answer (None: without end).

    `proxies`: through those of the environment. The servers that draw are near.
    """
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(answering, connect=CONNECTING, pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=proxies,
    )


def _check_servable(prompt: Prompt) -> None:
    if prompt.closing is not None and prompt.closing.bias:
        raise ValueError(f"{prompt.key}: a server cannot be asked for a bias on the closing tag.")
    if callable(prompt.alpha) and not isinstance(prompt.alpha, TokenBudget):
        raise ValueError(f"{prompt.key}: a server cannot be asked for an alpha that follows {prompt.alpha}.")


def _inra_arguments(prompt: Prompt, plausibility: float, begun: int) -> dict[str, float]:
    """What InRa's plug-in for vLLM reads in `vllm_xargs`; nothing for a prompt without an alpha."""
    if prompt.alpha is None:
        return {}
    masked = {"inra_plausibility": plausibility} if plausibility > 0 else {}
    if not isinstance(prompt.alpha, TokenBudget):
        assert not callable(prompt.alpha)  # noqa: S101  `_check_servable` refuses other schedules
        return {"inra_alpha": prompt.alpha, **masked}
    begun_before = {"inra_begun": begun} if begun else {}  # the schedule counts them too
    return {**{f"inra_{name}": value for name, value in asdict(prompt.alpha).items()}, **masked, **begun_before}


def _reopened(closing: Closing, tokens: Sequence[int], first: int) -> int | None:
    """After how many tokens, `first` or more, thinking that has to be closed by force is open; None if it is not."""
    if closing.at is None:
        return None
    opened = thinking_open(closing, tokens)
    return next((count for count in range(first, len(tokens)) if opened[count]), None)


ROOM = "Serve this model with room for the prompts and max_new_tokens, and with what its kind needs."


async def post(
    client: httpx2.AsyncClient, url: str, body: dict[str, Any], *, advice: str = ROOM, key: str | None = None
) -> httpx2.Response:
    """The server's answer to a request for `body["model"]`, with the server's `key` if it wants one.

    RefusedError with `advice`; LostError if it does not answer in spite of DELAYS; httpx2.ReadTimeout once the
    client has waited for an answer, as a further one would take as long.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for delay in (*DELAYS, None):
        try:
            answer = await client.post(url, json=body, headers=headers)
        except httpx2.ReadTimeout:
            raise
        except httpx2.TransportError as error:
            trouble = f"{type(error).__name__}: {error}".rstrip(": ")
        else:
            if answer.status_code == 200:
                return answer
            trouble = f"status {answer.status_code}: {shortened(answer.text)}"
            if answer.status_code not in AGAIN:
                message = f"{url} refused the request for {body['model']!r} ({trouble}). {advice}"
                raise RefusedError(message, answer.status_code, trouble)
        logger.info("%s: %s", url, trouble)
        if delay is not None:
            await asyncio.sleep(delay)
    raise LostError(f"{url} failed {len(DELAYS) + 1} times, the last time with {trouble}")


async def _watch(client: httpx2.AsyncClient, url: str) -> None:
    """Raise LostError once a server has not said that it is alive as often as a request would be sent."""
    failed = 0
    while True:
        await asyncio.sleep(WATCHING)
        try:
            answer = await client.get(f"{url}/health", timeout=CONNECTING)
            failed = failed + 1 if answer.status_code in AGAIN else 0
        except httpx2.TransportError:
            failed += 1
        if failed > len(DELAYS):
            raise LostError(f"{url}/health did not answer {failed} times")


def _read_tokens(
    answer: httpx2.Response, url: str, prompt: Sequence[int], most: int, stops: Collection[int]
) -> list[int]:
    """The token ids of an answer, which is not trusted."""
    try:
        choice = _Answer.model_validate_json(answer.content).choices[0]
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))
        raise ServerError(f"{url} answered what is no completion ({place}: {found['msg']}): "
                          f"{shortened(answer.text)}") from error  # fmt: skip
    if choice.token_ids is None or choice.prompt_token_ids is None:
        raise ServerError(f"{url} does not return token ids, which return_token_ids asks for. Completions can only be "
                          "drawn on servers that do: vLLM does since 0.10.2.")  # fmt: skip
    if choice.prompt_token_ids != list(prompt):
        raise ServerError(f"{url} answered another prompt than it was given: {len(choice.prompt_token_ids)} tokens "
                          f"instead of {len(prompt)}, or other ones. It may add or cut tokens.")  # fmt: skip
    tokens = choice.token_ids
    if not tokens or len(tokens) > most or (len(tokens) < most and tokens[-1] not in stops):
        raise ServerError(f"{url} ended a completion after {len(tokens)} tokens ({choice.finish_reason}), "
                          f"though none of {sorted(stops)} ends them and {most} were asked for.")  # fmt: skip
    return tokens


def shortened(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


class InAnotherThread:
    """A coroutine that runs in a thread with a loop of its own, as a notebook has one running in this thread.

    Its exception goes to `fail`.
    """

    def __init__(self, make: Callable[[], Any], fail: Callable[[BaseException], None]) -> None:
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] = self._loop.create_task(make())
        self._fail = fail
        self._thread = threading.Thread(target=self._run, daemon=True, name="asking servers")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whatever it is, the other thread waits for it
            self._fail(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        """Cancel it, which closes its connections, and wait until it has ended."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
