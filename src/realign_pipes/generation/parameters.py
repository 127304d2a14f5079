"""Parameters of drawing completions."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from realign_pipes.runtime.parameters import Parameters, Probability, Seed


class Sampling(Parameters):
    """How completions are drawn."""

    samples: PositiveInt
    """Completions per problem (the paper: 8)."""
    temperature: PositiveFloat
    top_p: Probability
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    """Completions that Transformers decodes together. vLLM forms its batches itself (`generation.max_in_flight`)."""
    seed: Seed


def _server(url: str) -> str:
    """`url` without the slash at its end and without the /v1 of the OpenAI protocol. ValueError unless http(s)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not the address of a server, such as http://localhost:8000")
    return url.rstrip("/").removesuffix("/v1")


class Generation(Parameters):
    """parameters_generation.yml: what draws the completions of data_prep, alpha_sweep and find_alpha."""

    engine: Literal["transformers", "vllm"]
    """`vllm`: what vLLM cannot serve (DeRa, a closing bias) is still drawn with Transformers, in the same run."""
    servers: Annotated[list[Annotated[str, AfterValidator(_server)]], Field(min_length=1)] | None
    """Your own servers of the OpenAI protocol, which share the work: `http://host:port`, with or without /v1. A server
    draws for the checkpoints that its /v1/models lists, by the path of the checkpoint. null: the stage starts vLLM
    itself, for one checkpoint after the other."""
    environment: Path
    """The virtual environment with vLLM, which `make serve-setup` makes, for servers that the stage starts."""
    data_parallel_size: PositiveInt
    """vLLM's own: replicas of the model, each on its own GPU, in a server that the stage starts."""
    tensor_parallel_size: PositiveInt
    """vLLM's own: GPUs that share one replica of the model, in a server that the stage starts."""
    max_in_flight: PositiveInt
    """Requests that one server has at a time. They are what an interrupted run draws again."""

    @model_validator(mode="after")
    def _servers_are_vllms(self) -> Self:
        if self.servers is not None and self.engine != "vllm":
            raise ValueError(f"servers are given, but engine is {self.engine}. Set engine to vllm, or servers to null")
        if self.servers is not None and len(set(self.servers)) != len(self.servers):
            raise ValueError(f"servers {self.servers} name one server twice")
        return self
