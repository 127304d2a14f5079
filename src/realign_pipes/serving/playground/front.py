"""What stands before Gradio on the playground's page."""

import base64
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from realign_pipes.serving.foreground import LOOPBACK

PASSWORD = "PLAYGROUND_PASSWORD"  # noqa: S105  the name of the variable
BYTES = 1_000_000
"""Of a request, at most."""
SERVED = ("/", "/favicon.ico", "/config", "/theme.css", "/gradio_api/startup-events", "/gradio_api/queue/join",
          "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset")  # fmt: skip
SERVED_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
"""All that is served. Gradio has more: files, uploads, a proxy."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Front:
    """Stands before Gradio: serves only `SERVED` and `SERVED_BELOW`, to who knows the password if there is one.

    Without a password the page is this machine's own: a request with another name of it, as from a page elsewhere whose
    name is made to lead here, is refused.
    """

    def __init__(self, app: App, password: str | None) -> None:
        self.app, self.password = app, password

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if refused := self._refuse(scope):
            await _refuse(send, *refused)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _refuse(self, scope: Message) -> tuple[int, str] | None:
        """The status and the reason, if it is refused."""
        headers = dict(scope["headers"])
        if self.password is None:
            name = re.sub(r":\d*\Z", "", headers.get(b"host", b"").decode("latin-1")).strip("[]")
            if name not in LOOPBACK:
                return 400, f"this page is at {LOOPBACK[0]} only"
        else:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"basic" or not _is_password(given, self.password):
                return 401, f"the password is the one in {PASSWORD}; any user name will do"
        if scope["path"] not in SERVED and not scope["path"].startswith(SERVED_BELOW):
            return 404, "there is nothing here"
        length = headers.get(b"content-length", b"0")
        if scope["method"] == "POST" and (
            not length.isdigit() or int(length) > BYTES or b"content-length" not in headers
        ):
            return 413, f"a request may have {BYTES} bytes"
        return None


def _is_password(given: bytes, password: str) -> bool:
    """Whether the credentials of HTTP's Basic scheme have this password."""
    try:
        _, _, found = base64.b64decode(given, validate=True).partition(b":")
    except ValueError:
        return False
    return secrets.compare_digest(found, password.encode())


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(b"www-authenticate", b'Basic realm="realign_pipes"')] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
