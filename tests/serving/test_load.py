"""`realign-pipes serve` under load, on loopback: mixed alphas, aborts, and an engine that is killed in the middle.

Its figures are printed: `pytest -m serve -s tests/serving/test_load.py`.
"""

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = PROJECT / ".venv-serve"
pytestmark = [
    pytest.mark.serve,
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="needs vLLM's environment: make serve-setup"),
]
REQUESTS, IN_FLIGHT, MAX_TOKENS = 2000, 64, 16
ABORTED, STREAMED = 20, 4
"""One request in so many."""
PROMPTS = 24
PATIENCE = 2400
"""Seconds for the whole of it, and for each answer: a request that hangs fails the test."""
GROWTH_MIB = 32
"""How much the server's memory may grow in the second half of a life, over some 400 requests: 80 KiB a request, which
is about what one holds (its prompt's and completion's ids as Python's integers, its text, the hashes of its blocks)."""
KERNELS = "16"
"""How many of its kernels oneDNN keeps. It makes one for each number of tokens that a step has and keeps 1,024, some
half a GiB in all, which would hide what the server itself holds on to."""
BUDGET = {"inra_budget": 10, "inra_ramp": 0.25, "inra_alpha": -0.5, "inra_fast": 1.5}
ASKED = [*({"inra_alpha": alpha} for alpha in (-0.5, 0.0, 0.3, 0.6, 1.0, 1.7)), {}, BUDGET]
"""What requests say in `vllm_xargs`: the two alphas that need one stream, others, the default, and a schedule."""


@dataclass(frozen=True)
class Failed(Exception):
    """A request that got an error, or whose connection broke."""

    reason: str


class Load:
    """The command, its clients, and what they saw."""

    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log
        self.outcomes, self.failures = Counter(), Counter()
        self.life = 1
        """Which server runs; 0: none that is ready."""
        self.memory = []
        """Of each sample: the life, how many requests had ended, and MiB."""
        self.lock = threading.Lock()
        self.done = threading.Event()

    def starts(self):
        return self.log.read_text().count("is served at")

    def wait(self, times):
        end = time.monotonic() + PATIENCE
        while self.starts() < times:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-5000:]
            time.sleep(0.5)

    def get(self, path):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name):
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def wait_for_health(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(OSError, HTTPException):
                if self.get("/health")[0] == 200:
                    return
            time.sleep(0.5)
        raise AssertionError("the server did not come back")

    def watch_memory(self):
        while not self.done.wait(1.0):
            mib = resident_mib(self.process.pid)
            with self.lock:
                self.memory.append((self.life, sum(self.outcomes.values()), mib))

    def ask(self, number, ids, arguments, expected):
        """One request until it is answered, counting its errors; or given up after its first token or before."""
        body = {"model": "inra", "prompt": ids, "max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True,
                "return_token_ids": True, "vllm_xargs": arguments}  # fmt: skip
        aborted = number % ABORTED == 7
        while True:
            try:
                if aborted:
                    self.abort(body, events=number // ABORTED % 2)
                    outcome = "aborted"
                else:
                    tokens = self.stream(body) if number % STREAMED == 0 else self.complete(body)
                    outcome = "right" if tokens == expected else "wrong"
                break
            except (Failed, OSError, HTTPException) as error:
                with self.lock:
                    self.failures[str(error.reason if isinstance(error, Failed) else type(error).__name__)] += 1
                self.wait_for_health()
        with self.lock:
            self.outcomes[outcome] += 1

    def complete(self, body):
        with self.posted(body) as response:
            return json.loads(response.read())["choices"][0]["token_ids"]

    def stream(self, body):
        """ValueError for a stream that ends without an error and without its end mark: it would pass for whole."""
        tokens = []
        with self.posted({**body, "stream": True}) as response:
            for event in events_of(response):
                if event == "[DONE]":
                    return tokens
                answer = json.loads(event)
                if "error" in answer:
                    raise Failed(f"an error in the stream: {answer['error']['code']}")
                tokens += answer["choices"][0]["token_ids"] or []
        raise Failed("a stream without its end")

    def abort(self, body, events):
        with self.posted({**body, "stream": True}, read=bool(events)) as response:
            for _ in zip(range(events), events_of(response), strict=False):
                pass

    def posted(self, body, read=True):
        return _Posted(self.port, body, read)


class _Posted:
    """A POST whose connection is closed at the end of the block, whatever has been read."""

    def __init__(self, port, body, read):
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.body, self.read = body, read

    def __enter__(self):
        try:
            self.connection.request("POST", "/v1/completions", json.dumps(self.body),
                                    {"Content-Type": "application/json"})  # fmt: skip
            if not self.read:
                return ()
            response = self.connection.getresponse()
            if response.status != 200:
                raise Failed(f"status {response.status}")
            return response
        except BaseException:
            self.connection.close()
            raise

    def __exit__(self, *error):
        self.connection.close()


def events_of(response):
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].strip().decode()


def resident_mib(pid):
    """Of a process and all that it started; pages that they share count in each."""
    total, root = 0, psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


def make_model(folder, tokenizer):
    """A block of its KV cache takes 3.25 MiB: all 315 of a GiB are written, and some evicted, before half a life."""
    shape = {"hidden_size": 256, "intermediate_size": 192, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = Qwen2Config(**shape, vocab_size=len(tokenizer), num_key_value_heads=8, max_position_embeddings=512,
                         initializer_range=0.2, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = InRaForCausalLM.from_base(Qwen2ForCausalLM(config))
        for layer in model.adapter_layers:
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def draw_prompts(vocabulary):
    """Each longer than a block of the cache (128 tokens); half of them begin with the same block. No token of their
    greedy completions is closer than 0.001 to the next best logit: last bits do not decide."""
    generator = random.Random(1)
    shared = [generator.randrange(8, vocabulary) for _ in range(128)]
    return [
        (shared if index % 2 else [generator.randrange(8, vocabulary) for _ in range(128)])
        + [generator.randrange(8, vocabulary) for _ in range(5 + 2 * index)]
        for index in range(PROMPTS)
    ]


def expected_of(model, prompt):
    """The greedy completions of one prompt at each of ASKED."""
    schedule = TokenBudget(10, 0.25, -0.5, 1.5)

    def alpha(step, row):
        return schedule(step, row) if "inra_budget" in ASKED[row] else ASKED[row].get("inra_alpha", 1.0)

    ids = torch.tensor([prompt] * len(ASKED))
    output = model.generate(ids, attention_mask=torch.ones_like(ids), alpha=alpha, do_sample=False,
                            max_new_tokens=MAX_TOKENS, eos_token_id=None, pad_token_id=1)  # fmt: skip
    return output[:, ids.shape[1] :].tolist()


@pytest.fixture
def served(tmp_path, byte_tokenizer):
    """`Load` of a server that is ready, and its model."""
    model = make_model(tmp_path / "inra", byte_tokenizer)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"PYTHONPATH": str(PROJECT / "src"), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
                 "ONEDNN_PRIMITIVE_CACHE_CAPACITY": KERNELS}  # fmt: skip
    with (tmp_path / "log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "realign_pipes", "serve", str(tmp_path / "inra"), "--port", str(port)],
            cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables},
        )  # fmt: skip
    load = Load(process, port, tmp_path / "log")
    try:
        load.wait(times=1)
        yield load, model
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_2000_requests_of_mixed_alphas_and_an_engine_that_is_killed(served):
    load, model = served
    prompts = draw_prompts(model.config.vocab_size)
    expected = [expected_of(model, prompt) for prompt in prompts]
    different = [one for completions in expected for one in {tuple(tokens) for tokens in completions}]
    # the default is alpha 1, so each prompt has one completion fewer than ways to ask
    assert len({*different}) == PROMPTS * (len(ASKED) - 1), "a completion must tell its alpha and its prompt"
    draw = random.Random(2)
    requests = [(draw.randrange(PROMPTS), draw.randrange(len(ASKED))) for _ in range(REQUESTS)]

    watching = threading.Thread(target=load.watch_memory)
    watching.start()
    started = time.monotonic()
    try:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            futures = [
                pool.submit(load.ask, number, prompts[prompt], ASKED[asked], expected[prompt][asked])
                for number, (prompt, asked) in enumerate(requests)
            ]
            while sum(load.outcomes.values()) < REQUESTS // 2:
                assert load.process.poll() is None, load.log.read_text()[-5000:]
                time.sleep(0.05)
            load.life, killed = 0, time.monotonic()
            os.kill(engine_of(load.process.pid), signal.SIGKILL)
            load.wait(times=2)
            load.life, back = 2, time.monotonic() - killed
            for future in futures:
                future.result()
    finally:
        load.done.set()
        watching.join()
    seconds = time.monotonic() - started

    growth = {}
    for life in (1, 2):
        samples = [(ended, mib) for its_life, ended, mib in load.memory if its_life == life]
        first, last = samples[0][0], samples[-1][0]
        middle, end = (
            statistics.median(mib for ended, mib in samples if low <= (ended - first) / (last - first) <= high)
            for low, high in ((0.5, 0.65), (0.85, 1.0))
        )
        growth[life] = end - middle
        print(f"server {life}: {middle:.0f} MiB in the middle of its {last - first} requests, {end:.0f} MiB at the end")
    print(f"{REQUESTS} requests in {seconds:.0f} s, of which {back:.0f} s to start again: {dict(load.outcomes)}")
    print(f"errors: {dict(load.failures)}")

    assert load.outcomes == {"right": REQUESTS - REQUESTS // ABORTED, "aborted": REQUESTS // ABORTED}
    assert 0 < sum(load.failures.values()) <= 2 * IN_FLIGHT, "only what was in flight, or came while none listened"
    assert max(growth.values()) < GROWTH_MIB
    end = time.monotonic() + 60
    while load.metric("vllm:num_requests_running") + load.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < end, "requests are left that nobody waits for"
        time.sleep(0.5)
    assert load.metric("vllm:kv_cache_usage_perc") == 0, "every block was given back"
    said = load.log.read_text()
    assert not any(str(prompt[-8:])[1:-1] in said for prompt in prompts), "the log has no prompts, a dead engine's too"


def engine_of(pid):
    """The process of vLLM's engine, among those that a process started."""
    return next(one.pid for one in psutil.Process(pid).children(recursive=True) if "EngineCore" in one.name())
