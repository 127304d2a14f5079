"""An InRa model served in the foreground, by vLLM and the plug-in of `serving/inra_vllm`.

realign-pipes serve data/06_models/inra
"""

import json
import logging
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from realign_pipes.errors import InputError
from realign_pipes.models.load import read_dtype
from realign_pipes.paper.expansion import CONFIG_NAME
from realign_pipes.serving import server
from realign_pipes.serving.inra import check_plugin, is_inra

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "VLLM_API_KEY"
"""The variable that vLLM reads its API key from: on the command line every user of the machine would see it."""
FRONT = ["--middleware", "inra_vllm.front.Front", "--additional-config", '{"inra_salted": true}']
"""What stands before vLLM's HTTP server, and that it does: requests at alpha 0 or 1 then run through one stream."""
PAUSE = 1.0
"""Seconds between the end of a server and the start of the next."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    max_model_len: int | None = None
    """Tokens of a prompt and its completion together; None: as many as the model has positions, or on the CPU as the KV
    cache has room for."""
    max_tokens: int | None = None
    """Tokens of a completion; a request for more gets as many. None: up to `max_model_len`."""
    max_n: int = 16
    """Completions of one prompt."""


@dataclass(frozen=True)
class _OneReplica:
    """What InRa is served with: vLLM shares no model of it among GPUs."""

    environment: Path
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1


def serve_inra(model: Path, environment: Path, address: Address, limits: Limits, *, log_requests: bool = False) -> None:
    """Serve an InRa model until this process is asked to end; a server that dies is started again.

    vLLM's output goes where ours goes. `log_requests` has it show each request with its prompt. An API key in the
    environment variable VLLM_API_KEY is asked of every client.

    Raises, before anything starts, InputError for a folder that is not an InRa model's, and for an address that others
    reach without an API key; MissingFileError without vLLM or the plug-in; ServerError if vLLM ends before it is ready.
    """
    if address.host not in LOOPBACK and not os.environ.get(KEY):
        raise InputError(f"{address.host} is reached from elsewhere: set an API key in the variable {KEY}, or listen "
                         f"on {LOOPBACK[0]}.")  # fmt: skip
    if not is_inra(model):
        raise InputError(f"{model} has no {CONFIG_NAME}, so it is not known which of its layers are InRa's adapter. If "
                         "it is the lowest one, as in the models that the paper's authors published, write one that "
                         'says {"num_adapter_layers": 1}.')  # fmt: skip
    installed = server.find_vllm(environment)
    check_plugin(installed.python)
    served = server.ServedModel(model)
    command = server.serve_command(served, _OneReplica(environment), installed, read_dtype(model), limits.max_model_len)
    if installed.cpu and limits.max_model_len is None:
        command += server.CPU_LENGTH
    command += ["--host", address.host, "--port", str(address.port), *FRONT]
    if limits.max_tokens is not None:
        command += ["--override-generation-config", json.dumps({"max_new_tokens": limits.max_tokens})]
    if log_requests:
        command += ["--enable-log-requests"]
    variables = server.server_environment(installed, served) | {"VLLM_MAX_N_SEQUENCES": str(limits.max_n)}
    check_port(address)
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background processes ignore it
        signal.signal(number, _end)
    try:
        while True:
            _run_once(served, command, variables, address)
            logger.warning("vLLM ended by itself; it is started again.")
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        logger.info("The server is stopped.")


def check_port(address: Address) -> None:
    """InputError unless one can listen there: another server that answered for ours would pass for it."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise InputError(f"cannot listen on {address.host}:{address.port}: {error.strerror}.") from error


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends us as Ctrl-C does, and SIGINT where Python left it ignored."""
    raise KeyboardInterrupt


def _run_once(served: server.ServedModel, command: list[str], variables: dict[str, str], address: Address) -> None:
    """Run a server until it ends. ServerError if it ends before it was ready."""
    guard = server.start_guard(command, variables, None)
    try:
        while guard.poll() is None and not server.is_ready(address.port, address.host):
            time.sleep(server.INTERVAL)
        if guard.poll() is not None:
            raise server.ServerError(f"vLLM ended before it was ready to serve {served.checkpoint}; see above for why.")
        logger.info(
            "%s is served at http://%s:%d/v1 as model %r. Ctrl-C stops it.",
            served.checkpoint, address.host, address.port, server.served_name(served),
        )  # fmt: skip
        guard.wait()
    finally:
        guard.terminate()
        guard.wait()
