"""A page on which anybody can move alpha: a chat, and two or three alphas side by side on one prompt.

realign-pipes playground data/06_models/inra
realign-pipes playground data/06_models/inra --server http://127.0.0.1:8000
"""

import importlib.util
import logging
import os
from pathlib import Path

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.serving.foreground import KEY, LOOPBACK, Address, check_port
from realign_pipes.serving.playground.answers import Backend
from realign_pipes.serving.playground.front import PASSWORD

logger = logging.getLogger(__name__)

GRACE = 3
"""Seconds that answers may still take when the page is stopped."""


def serve_playground(model: Path | None, server: str | None, address: Address, max_tokens: int) -> None:
    """Serve the page until this process is asked to end.

    With `server` that answers, and `model` is where the thinking tags are read from; else the InRa model in the folder
    `model` does, in this process. A key for the server is taken from VLLM_API_KEY, and what is asked of visitors from
    PLAYGROUND_PASSWORD.

    Raises, before a model is loaded, MissingFileError without Gradio, and InputError for an address that others reach
    without a password, one that is taken, and a server that does not answer or does not know alpha.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingFileError("the page needs Gradio: pip install 'realign_pipes[playground]'")
    password = os.environ.get(PASSWORD) or None
    if address.host not in LOOPBACK and password is None:
        raise InputError(f"{address.host} is reached from elsewhere: set a password in the variable {PASSWORD}, "
                         f"or listen on {LOOPBACK[0]}.")  # fmt: skip
    check_port(address)
    from realign_pipes.serving.playground.local import LocalModel
    from realign_pipes.serving.playground.server import find_server

    backend: Backend
    if server is not None:
        backend = find_server(server, max_tokens, model, os.environ.get(KEY) or None)
    elif model is not None:
        backend = LocalModel(model, max_tokens)
    else:
        raise InputError("whom to ask? Name an InRa model's folder, or a server with --server.")

    import uvicorn

    from realign_pipes.serving.playground.page import build_app

    logger.info("The page is at http://%s:%d. Ctrl-C stops it.", address.host, address.port)
    app = build_app(backend, password)
    uvicorn.run(app, host=address.host, port=address.port, log_level="warning", access_log=False,
                ws="none", timeout_graceful_shutdown=GRACE)  # fmt: skip
