"""Who serves a checkpoint to `VLLMEngine`: the user's own servers, or vLLM that is started for it."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Protocol

import httpx2
from pydantic import BaseModel, ValidationError

from realign_pipes.errors import InputError
from realign_pipes.generation.engine import Description, Engine
from realign_pipes.generation.parameters import Generation
from realign_pipes.generation.transformers_engine import TransformersEngine, describe
from realign_pipes.generation.vllm_engine import CONNECTING, Endpoint, ServerError, VLLMEngine
from realign_pipes.models.card import checkpoint_name
from realign_pipes.models.load import read_dtype, read_stops
from realign_pipes.runtime.files import atomic_path
from realign_pipes.serving.inra import PLUGIN, has_plugin, inra_options
from realign_pipes.serving.server import ServedModel, find_vllm, start_server

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What a server loads to draw for one candidate or more."""

    model: ServedModel
    like: Path
    """The checkpoint that has its dtype and the tokens that end its completions."""
    write: Callable[[Path], None] | None = None
    """Writes the checkpoint, or the adapter, that `model` names; None: it is there."""
    takes_alpha: bool = False
    """It needs the plug-in, as requests say the alpha."""
    min_p: float = 0.0
    """As `VLLMEngine.min_p`."""
    plausibility: float = 0.0
    """As `VLLMEngine.plausibility`."""

    @property
    def name(self) -> str:
        """The name to look for on a server."""
        return self.path.name

    @property
    def path(self) -> Path:
        """What distinguishes it: the adapter, or the checkpoint."""
        return (self.model.lora or self.model.checkpoint).absolute()


class Servers(Protocol):
    """Serves checkpoints."""

    def serves(self, served: Served) -> bool:
        """Whether it does. InputError if it should, and does not; nothing is started for this."""
        ...

    def describe(self, served: Served) -> Description:
        """What draws for it."""
        ...

    def open(self, served: Served) -> VLLMEngine:
        """The engine. It is the caller's to close; then what was started for it is stopped."""
        ...


def make_servers(parameters: Generation, work: Path) -> Servers | None:
    """What serves with these parameters; None if Transformers draws everything.

    Checkpoints that are written to be served, and vLLM's logs, are in the folder `work`. MissingFileError if there is
    no environment with vLLM, ServerError for a server that does not answer.
    """
    if parameters.engine == "transformers":
        return None
    return ManagedServers(parameters, work) if parameters.servers is None else OwnServers(parameters)


def engine_of_checkpoint(
    checkpoint: Path, parameters: Generation, work: Path, attn_implementation: str | None = None
) -> tuple[Description, Callable[[], Engine]]:
    """What draws for one ordinary checkpoint, and how it is opened. Raises what `make_servers` and `serves` raise.

    `attn_implementation` is for Transformers.
    """
    servers = make_servers(parameters, work)
    if servers is None:
        opens = partial(TransformersEngine.of_checkpoint, checkpoint, attn_implementation=attn_implementation)
        return describe(read_dtype(checkpoint)), opens
    served = Served(ServedModel(checkpoint), like=checkpoint)
    servers.serves(served)  # an InputError, if not
    return servers.describe(served), partial(servers.open, served)


class ManagedServers:
    """Starts vLLM for each checkpoint, and stops it when its engine is closed."""

    def __init__(self, parameters: Generation, work: Path) -> None:
        self.parameters, self.work = parameters, work
        self.installed = find_vllm(parameters.environment)
        self.has_plugin = has_plugin(self.installed.python)

    def serves(self, served: Served) -> bool:
        """All but InRa without the plug-in. InputError for InRa that vLLM would refuse when its turn comes."""
        if not served.takes_alpha:
            return True
        if self.has_plugin:
            inra_options(served.model.checkpoint)  # an InputError of its own
            if self.parameters.tensor_parallel_size > 1:
                raise InputError(
                    f"generation.tensor_parallel_size is {self.parameters.tensor_parallel_size}, and the plug-in does "
                    f"not divide a model of InRa, such as {served.path}, among GPUs. Set it to 1, and "
                    "generation.data_parallel_size to the number of GPUs; or choose generation.engine: transformers."
                )
        return self.has_plugin

    def describe(self, served: Served) -> Description:
        """The version in the environment, and the checkpoint's dtype."""
        return Description("vllm", self.installed.version, read_dtype(served.like))

    def open(self, served: Served) -> VLLMEngine:
        """Raises what `start_server` raises."""
        with ExitStack() as stack:
            if served.write is not None:
                with atomic_path(served.path) as temporary:
                    served.write(temporary)
                stack.callback(rmtree, served.path)
            log = self.work / f"{served.name}.log"
            server = stack.enter_context(start_server(served.model, self.parameters, log))
            endpoint = Endpoint(server.url, server.model)
            if served.takes_alpha:
                check_takes_alpha(endpoint)
            return VLLMEngine(
                (endpoint,),
                read_stops(served.like),
                self.parameters.max_in_flight,
                Description("vllm", server.version, server.dtype),
                min_p=served.min_p,
                plausibility=served.plausibility,
                server=stack.pop_all(),
                log=log,
            )


class _Listed(BaseModel):
    id: str
    root: str | None = None


class _Models(BaseModel):
    data: list[_Listed]


class OwnServers:
    """Servers that the user has started, each with one model or more."""

    def __init__(self, parameters: Generation) -> None:
        """ServerError for a server that does not say what it serves."""
        self.parameters = parameters
        urls = parameters.servers or []
        self.listed = {url: _models_of(url) for url in urls}
        self.versions = {url: _version_of(url) for url in urls}
        self.take_alpha: set[Endpoint] = set()  # those that were asked, and do

    def serves(self, served: Served) -> bool:
        """Whether a server lists it by its name or path.

        A checkpoint that has yet to be written is only looked for. InputError if none lists one that is there, or if
        one serves InRa without the plug-in.
        """
        endpoints = self._endpoints(served)
        if endpoints and served.takes_alpha:
            for endpoint in set(endpoints) - self.take_alpha:
                check_takes_alpha(endpoint)
                self.take_alpha.add(endpoint)
        if not endpoints and served.write is None:
            listed = "; ".join(f"{url}: {', '.join(one.id for one in models)}" for url, models in self.listed.items())
            raise InputError(
                f"no server in generation.servers serves {served.path}. Their /v1/models list {listed}. Serve it "
                f"under this path, or with --served-model-name {served.name}; or set generation.servers to null, and "
                "the stage starts vLLM itself."
            )
        return bool(endpoints)

    def describe(self, served: Served) -> Description:
        """The versions that the servers say; the dtype is theirs to know."""
        versions = sorted({self.versions[endpoint.url] for endpoint in self._endpoints(served)})
        return Description("vllm", " and ".join(versions), "of the server's choice")

    def open(self, served: Served) -> VLLMEngine:
        """Nothing is started, and closing it stops nothing."""
        return VLLMEngine(
            tuple(self._endpoints(served)),
            read_stops(served.like),
            self.parameters.max_in_flight,
            self.describe(served),
            min_p=served.min_p,
            plausibility=served.plausibility,
        )

    def _endpoints(self, served: Served) -> list[Endpoint]:
        repository = checkpoint_name(served.path).partition("@")[0]  # of the hub, as it is given to vLLM
        names = {served.name, repository}
        found: dict[str, Endpoint] = {}
        for url, models in self.listed.items():
            for one in models:
                if one.id in names or served.path in (Path(one.id).absolute(), Path(one.root or "/").absolute()):
                    found.setdefault(url, Endpoint(url, one.id))  # it may have several names
        return list(found.values())


def check_takes_alpha(endpoint: Endpoint) -> None:
    """Raise InputError unless the server reads the alpha of a request: any other draws with what it has loaded.

    It is asked for an alpha that the plug-in refuses, as vLLM itself ignores arguments that nothing reads.
    """
    wrong = {"vllm_xargs": {"inra_alpha": "refuse this"}}
    body = {"model": endpoint.model, "prompt": [0], "max_tokens": 1, **wrong}
    try:
        status = httpx2.post(
            f"{endpoint.url}/v1/completions", json=body, timeout=CONNECTING, trust_env=False
        ).status_code
    except httpx2.TransportError as error:
        raise ServerError(f"{endpoint.url} does not answer: {error}") from error
    if status != 400:
        raise InputError(
            f"{endpoint.url} serves {endpoint.model} without the alpha of a request: it accepts one that is no number. "
            f"InRa needs the plug-in {PLUGIN} in the environment of vLLM."
        )


def _models_of(url: str) -> list[_Listed]:
    try:
        answer = httpx2.get(f"{url}/v1/models", timeout=CONNECTING, trust_env=False)
        answer.raise_for_status()
        return _Models.model_validate_json(answer.content).data
    except (httpx2.HTTPError, ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ServerError(f"generation.servers: {url}/v1/models does not list what is served ({reason}). Start the "
                          "server, or correct its address.") from error  # fmt: skip


def _version_of(url: str) -> str:
    """vLLM's own answer; other servers of the protocol have none."""
    try:
        answer = httpx2.get(f"{url}/version", timeout=CONNECTING, trust_env=False)
        return str(answer.json()["version"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return "of unknown version"
