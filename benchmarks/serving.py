"""What alpha costs at the server: InRa with mixed alphas, at 0 and at 1, and a ladder of adapters, beside the base.

    OMP_NUM_THREADS=1 python benchmarks/serving.py
    OMP_NUM_THREADS=1 python benchmarks/serving.py --size 135m --requests 64 --tokens 128 --dtype bfloat16

Needs `make serve-setup`. Three servers run beside each other: vLLM with a random Llama, vLLM with LoRA adapters of it
(a rung of the ladder each, random too), and `realign-pipes serve`'s with an InRa model of it. Each repetition has
prompts of its own, so that no cached prefix helps, and asks one server after the other for the same: many prompts at
once whose completions are short (bound by prefill), or short prompts with long completions (bound by decoding).

The machine is shared, so what counts is tokens a second of a processor: of all processes of the one server, from before
the first request to after the last. A prompt's tokens count where prefill binds, a completion's where decoding does.
Time to first token is the server's own, in the mean over the requests, and has their waiting in it. Bytes of the KV
cache are the cache's size by the tokens that vLLM finds room for. A ratio is the median over repetitions of two
variants' figures in the same repetition.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Results, arguments
from models import random_model

# isort: split
import httpx2
import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.serving.foreground import FRONT
from realign_pipes.serving.server import (
    HOST,
    ServedModel,
    end_of_log,
    find_vllm,
    free_port,
    is_ready,
    serve_command,
    server_environment,
    start_guard,
)

MIXED = (-0.5, 0.3, 0.5, 1.5)
RUNGS = ("alpha-0.5", "alpha-1", "alpha-1.5")
RANK = 16
PATIENCE = 1800
"""Seconds for an answer."""
SHORT = 4
"""Tokens of a completion where prefill binds, and in a prompt's place where decoding does: four times as many."""
TARGETS = {"InRa, mixed alphas": 0.55, "InRa, alpha 0": 0.95, "InRa, alpha 1": 0.95, "ladder": 0.9}
"""Of the base's tokens a second of a processor."""


@dataclass(frozen=True)
class OneReplica:
    """How each model is served."""

    environment: Path
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1


@dataclass(frozen=True)
class Measured:
    """One round of requests to one server."""

    per_processor: float
    """Tokens a second of a processor."""
    per_second: float
    first_token: float
    """Seconds, the mean over the requests."""


@dataclass(frozen=True)
class Running:
    """A server, with what it has used so far."""

    url: str
    port: int
    log: Path
    guard: psutil.Process

    def wait(self) -> None:
        """Until it is ready."""
        while not is_ready(self.port):
            if not self.guard.is_running() or self.guard.status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError(end_of_log(self.log))
            time.sleep(0.5)

    def processor_seconds(self) -> float:
        """Of all its processes that still run."""
        times = [process.cpu_times() for process in self.guard.children(recursive=True)]
        return sum(one.user + one.system for one in times)

    def metrics(self) -> list[str]:
        return httpx2.get(f"{self.url}/metrics", timeout=PATIENCE, trust_env=False).text.splitlines()

    def first_tokens(self) -> float:
        """Seconds to first token, summed over its requests."""
        name = "vllm:time_to_first_token_seconds_sum"
        return sum(float(line.split()[-1]) for line in self.metrics() if line.startswith(name))

    def cache_bytes(self, cache_gib: int) -> float:
        """Of the KV cache, a token."""
        line = next(line for line in self.metrics() if line.startswith("vllm:cache_config_info"))
        labels = dict(pair.split("=", 1) for pair in line[line.index("{") + 1 : line.index("}")].split(","))
        tokens = int(labels["num_gpu_blocks"].strip('"')) * int(labels["block_size"].strip('"'))
        return cache_gib * 2**30 / tokens

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int, changes: Sequence[dict[str, Any]]) -> None:
        """All at once: request i is changed by the entry of `changes` whose turn it is."""

        def complete(number: int) -> None:
            body = {"prompt": prompts[number], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            body |= changes[number % len(changes)]
            answer = httpx2.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE, trust_env=False)
            answer.raise_for_status()
            if answer.json()["usage"]["completion_tokens"] != tokens:
                raise RuntimeError(f"a completion of {tokens} tokens was asked for: {answer.text[:300]}")

        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(complete, range(len(prompts))))


def save_models(folder: Path, size: str, dtype: str) -> None:
    """The base, its InRa model, and the ladder's adapters."""
    model = random_model(size, 0, getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    InRaForCausalLM.from_base(model).save_pretrained(folder / "inra")
    for name in ("base", "inra"):
        build_tokenizer(60).save_pretrained(folder / name)
    for seed, rung in enumerate(RUNGS):
        save_adapter(model, folder / rung, seed)


def save_adapter(model: PreTrainedModel, folder: Path, seed: int) -> None:
    """A random one on every projection of the layers. It leaves the model as it was."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder)
    adapted.unload()


@contextmanager
def serve(command: list[str], variables: dict[str, str], log: Path) -> Iterator[Running]:
    """Run a server's command as long as the block runs; it may not be ready yet."""
    port = free_port()
    with log.open("w") as output:
        guard = start_guard([*command, "--host", HOST, "--port", str(port)], variables, output)
    try:
        yield Running(f"http://{HOST}:{port}", port, log, psutil.Process(guard.pid))
    finally:
        guard.terminate()
        guard.wait()


def start_all(stack: ExitStack, folder: Path, environment: Path, dtype: str, cache_gib: int) -> dict[str, Running]:
    """The three servers, when they are ready."""
    cache = {"VLLM_CPU_KVCACHE_SPACE": str(cache_gib)}
    installed = find_vllm(environment)
    base, inra = ServedModel(folder / "base"), ServedModel(folder / "inra")
    stock = serve_command(base, OneReplica(environment), installed, dtype)
    lora = ["--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", str(len(RUNGS)), "--lora-modules"]
    commands = {
        "base": (stock, base),
        "ladder": ([*stock, *lora, *(f"{rung}={folder / rung}" for rung in RUNGS)], base),
        "inra": ([*serve_command(inra, OneReplica(environment), installed, dtype), *FRONT], inra),
    }
    servers = {
        name: stack.enter_context(serve(command, server_environment(installed, model) | cache, folder / f"{name}.log"))
        for name, (command, model) in commands.items()
    }
    for server in servers.values():
        server.wait()
    return servers


def variants(servers: dict[str, Running]) -> dict[str, tuple[Running, list[dict[str, Any]]]]:
    """Each with its server, and what its requests say in turn."""

    def at(*alphas: float) -> list[dict[str, Any]]:
        return [{"model": "inra", "vllm_xargs": {"inra_alpha": alpha}} for alpha in alphas]

    return {
        "base": (servers["base"], [{"model": "base"}]),
        "InRa, mixed alphas": (servers["inra"], at(*MIXED)),
        "InRa, alpha 0": (servers["inra"], at(0.0)),
        "InRa, alpha 1": (servers["inra"], at(1.0)),
        "ladder": (servers["ladder"], [{"model": rung} for rung in RUNGS]),
    }


def measure(server: Running, prompts: Sequence[Sequence[int]], tokens: int, changes: Any, counted: int) -> Measured:
    used, first, started = server.processor_seconds(), server.first_tokens(), time.perf_counter()
    server.ask(prompts, tokens, changes)
    seconds, used = time.perf_counter() - started, server.processor_seconds() - used
    return Measured(counted / used, counted / seconds, (server.first_tokens() - first) / len(prompts))


def main() -> None:
    given = arguments(
        __doc__, size="22m", dtype="float32", requests=32, tokens=32, prompts=12, prompt_tokens=160, repetitions=3,
        environment=".venv-serve", cache_gib=2,
    )  # fmt: skip
    results = Results("serving", "What alpha costs at the server", given)
    cases = {
        f"prefill, {given.prompts} prompts of {given.prompt_tokens} tokens": (
            given.prompts, given.prompt_tokens, SHORT, given.prompts * given.prompt_tokens,
        ),
        f"decoding, {given.requests} completions of {given.tokens} tokens": (
            given.requests, 4 * SHORT, given.tokens, given.requests * given.tokens,
        ),
    }  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_models(folder, given.size, given.dtype)
        servers = start_all(stack, folder, Path(given.environment), given.dtype, given.cache_gib)
        shown = f"{given.size}, {given.dtype}"
        for case, (count, length, tokens, counted) in cases.items():
            found: dict[str, list[Measured]] = {name: [] for name in variants(servers)}
            for repetition in range(given.repetitions + 1):
                generator = torch.Generator().manual_seed(repetition)
                number = count if repetition else len(MIXED)  # a few warm it up
                prompts = torch.randint(1000, 8000, (number, length), generator=generator).tolist()
                for name, (server, changes) in variants(servers).items():
                    one = measure(server, prompts, tokens, changes, counted)
                    if repetition:
                        found[name].append(one)
                        results.console.print(f"{case} · {name}: {one}")
            for unit, field in (
                ("tokens per second of a processor", "per_processor"),
                ("tokens per second", "per_second"),
                ("seconds to first token", "first_token"),
            ):
                values = {name: [getattr(one, field) for one in measured] for name, measured in found.items()}
                for name, several in values.items():
                    results.figure(f"{shown}, {case}", f"{name}: {unit}", statistics.median(several))
                for name, target in TARGETS.items():
                    ratio = statistics.median(a / b for a, b in zip(values[name], values["base"], strict=True))
                    counts = field == "per_processor"
                    results.figure(f"{shown}, {case}", f"{name} / base, {unit}", ratio,
                                   *((">=", target) if counts else ()))  # fmt: skip
        cache = {name: server.cache_bytes(given.cache_gib) for name, server in servers.items()}
        for name, size in cache.items():
            results.figure(f"{shown}, KV cache", f"{name}: bytes a token", size)
        for name in ("inra", "ladder"):
            results.figure(f"{shown}, KV cache", f"{name} / base", cache[name] / cache["base"])
        layers = json.loads((folder / "base" / "config.json").read_text())["num_hidden_layers"]
        results.figure(f"{shown}, KV cache", "(2L + n) / L", (2 * layers + 1) / layers)
    results.save()


if __name__ == "__main__":
    main()
