"""What stands before vLLM's HTTP server: `--middleware inra_vllm.front.Front`."""

import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from inra_vllm.parameters import read_realignment

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
SERVED = (*COMPLETIONS, "/v1/models", "/health", "/metrics", "/version")
"""All that is served. vLLM has more, some of it outside the protection of its API key, such as /invocations."""
LARGEST = 2**24
"""Bytes of a request: room for a million tokens. It is held in memory before vLLM asks for its API key."""


class Front:
    """Serves only `SERVED`, and prepares what is asked for a completion (`translate`)."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or scope["path"] not in SERVED:
            return await _answer(send, 404, f"there is nothing at {scope['path']}. Served are {', '.join(SERVED)}.")
        if scope["method"] != "POST" or scope["path"] not in COMPLETIONS:
            return await self.app(scope, receive, send)
        try:
            body = await _read(receive)
            if body is None:
                return None
            body = translate(body)
        except ValueError as error:
            return await _answer(send, 400, str(error))
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        return await self.app(scope, replay, send)


async def _read(receive: Receive) -> bytes | None:
    """A request's body; None if the client has hung up. ValueError if it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > LARGEST:
            raise ValueError(f"a request has {LARGEST} bytes at most.")
        if not message.get("more_body", False):
            return body


def translate(body: bytes) -> bytes:
    """A request's JSON with `control`, the field of the paper's authors' clients, as `vllm_xargs.inra_alpha`, and with
    the `cache_salt` of what it needs. vLLM refuses what is wrong otherwise.

    ValueError if it has both names of alpha, or what `read_realignment` refuses: vLLM would take true for an alpha of
    1, under another salt than that. And for beam search, in which vLLM 0.32 drops `vllm_xargs`: whatever alpha it
    names, it would run at the default, and be cached as if it had not.

    A request that stays at alpha 0 or 1 runs through one stream alone (`models`), and its cached prefixes lack the
    other one: the salt keeps them from the requests that need it. Those that name no alpha share one, whatever the
    default is. A client's own salt is in it as its SHA-256, so that it fits into the 128 characters that vLLM takes.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return body
    if not isinstance(request, dict):
        return body
    arguments = request.get("vllm_xargs") or {}
    if not isinstance(arguments, dict):
        return body
    if request.get("use_beam_search", False) is not False:
        raise ValueError("use_beam_search: InRa generates by sampling or greedily, as vLLM's beam search has no alpha.")
    if "control" in request:
        if "inra_alpha" in arguments:
            raise ValueError("control and inra_alpha are two names of one thing: give one of them.")
        arguments = {**arguments, "inra_alpha": request.pop("control")}
        request["vllm_xargs"] = arguments
    realignment = read_realignment(arguments)
    if not arguments.keys() & {"inra_alpha", "inra_budget"}:
        streams = "default"
    else:
        streams = "A" * realignment.needs_aligned + "R" * realignment.needs_reference
    salt = request.get("cache_salt")
    if salt is None and streams != "AR":
        request["cache_salt"] = f"{streams} "
    elif isinstance(salt, str) and salt:
        request["cache_salt"] = f"{streams} {hashlib.sha256(salt.encode()).hexdigest()}"
    return json.dumps(request).encode()


async def _answer(send: Send, status: int, message: str) -> None:
    """An error in the form that vLLM's have."""
    kind = "BadRequestError" if status == 400 else "NotFoundError"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
