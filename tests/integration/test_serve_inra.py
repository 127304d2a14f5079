"""`realign-pipes serve` over HTTP, with the real vLLM: it takes a minute to start, so the tests share one server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = PROJECT / ".venv-serve"
pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="needs vLLM's environment: make serve-setup"),
]
PATIENCE = 1200
MAX_TOKENS, MAX_N, MAX_LENGTH = 24, 3, 256
PROMPTS = [f"{word} {number}" for number, word in enumerate(["add", "count", "say", "think", "halve", "list"] * 2)]
ALPHAS = [-0.5, 0.0, 0.3, 1.0, 1.7, 0.6] * 2


class Running:
    """The command, its address, and the model that it serves."""

    def __init__(self, model, port, process, log, tokenizer):
        self.model, self.port, self.process, self.log, self.tokenizer = model, port, process, log, tokenizer

    def wait(self, times=1):
        """Until it has said that it serves as often as that."""
        end = time.monotonic() + PATIENCE
        while (text := self.log.read_text()).count("is served at") < times:
            assert self.process.poll() is None and time.monotonic() < end, text[-5000:]
            time.sleep(0.5)

    def post(self, path, body):
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def complete(self, prompt, path="/v1/completions", **more):
        """The token ids of greedy completions."""
        asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
        body = {"model": "inra", "temperature": 0, "ignore_eos": True, "return_token_ids": True, **asked}
        status, text = self.post(path, {**body, "max_tokens": MAX_TOKENS, **more})
        assert status == 200, text
        return [choice["token_ids"] for choice in json.loads(text)["choices"]]

    def expected(self, prompt, alpha, chat=False, plausibility=0.0):
        if chat:
            prompt = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), alpha=alpha, plausibility=plausibility, do_sample=False,
            max_new_tokens=MAX_TOKENS, eos_token_id=None, pad_token_id=1,
        )  # fmt: skip
        return output[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def running(tmp_path_factory, byte_tokenizer):
    folder = tmp_path_factory.mktemp("serve")
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = Qwen2Config(**shape, vocab_size=len(byte_tokenizer), num_key_value_heads=1, max_position_embeddings=512,
                         initializer_range=0.2, eos_token_id=byte_tokenizer.eos_token_id)  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = InRaForCausalLM.from_base(Qwen2ForCausalLM(config))
        for layer in model.adapter_layers:
            for parameter in layer.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder / "inra")
    byte_tokenizer.save_pretrained(folder / "inra")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "log"
    limits = ["--max-model-len", str(MAX_LENGTH), "--max-tokens", str(MAX_TOKENS), "--max-n", str(MAX_N)]
    variables = {"PYTHONPATH": str(PROJECT / "src"), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "realign_pipes", "serve", str(folder / "inra"), "--port", str(port), *limits],
            cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
        )  # fmt: skip
    server = Running(model, port, process, log, byte_tokenizer)
    try:
        server.wait()
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_alphas_belong_to_their_requests(running, path):
    chat = "chat" in path
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(
            lambda prompt, alpha: running.complete(prompt, path, vllm_xargs={"inra_alpha": alpha}), PROMPTS, ALPHAS
        ))  # fmt: skip
    expected = [[running.expected(prompt, alpha, chat)] for prompt, alpha in zip(PROMPTS, ALPHAS, strict=True)]
    assert answers == expected
    first = [running.complete(prompt, path, vllm_xargs={"inra_alpha": ALPHAS[0]}) for prompt in PROMPTS]
    assert sum(one == other for one, other in zip(first, expected, strict=True)) == 2, "the control"


def test_budgets_plausibility_control_n_and_streams(running):
    budget = {"inra_budget": 16, "inra_ramp": 0.25, "inra_alpha": -0.5, "inra_fast": 1.5}
    assert running.complete("add", vllm_xargs=budget) == [running.expected("add", TokenBudget(16, 0.25, -0.5, 1.5))]
    masked = {"inra_alpha": 4.0, "inra_plausibility": 0.3}
    assert running.complete("add", vllm_xargs=masked) == [running.expected("add", 4.0, plausibility=0.3)]
    assert running.complete("add") == [running.expected("add", 1.0)]
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert running.complete("add", path, control=0.3) == [running.expected("add", 0.3, "chat" in path)]
    several = running.complete("add", n=3, temperature=1, top_k=1, vllm_xargs={"inra_alpha": 0.6})
    assert several == [running.expected("add", 0.6)] * 3

    status, text = running.post("/v1/completions", {
        "model": "inra", "prompt": "add", "temperature": 0, "ignore_eos": True, "return_token_ids": True,
        "max_tokens": MAX_TOKENS, "stream": True, "vllm_xargs": {"inra_alpha": 0.3},
    })  # fmt: skip
    assert status == 200
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert len(events) > 1
    assert [token for event in events for token in event["choices"][0]["token_ids"] or []] == running.expected(
        "add", 0.3
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"vllm_xargs": {"inra_alpha": float("nan")}}, "inra_alpha must be a finite number"),
        ({"vllm_xargs": {"inra_alpha": "half"}}, "inra_alpha must be a number, not 'half'"),
        ({"vllm_xargs": {"inra_alpha": [1, 2]}}, "inra_alpha must be a number, not [1, 2]"),
        ({"vllm_xargs": {"inra_alfa": 1}}, "there is no inra_alfa"),
        ({"vllm_xargs": {"inra_alpha": 101}}, "inra_alpha must be between -100 and 100, not 101"),
        ({"vllm_xargs": {"inra_plausibility": 1}}, "inra_plausibility must be at least 0 and below 1"),
        ({"control": "fast"}, "inra_alpha must be a number, not 'fast'"),
        ({"control": 1, "vllm_xargs": {"inra_alpha": 1}}, "two names of one thing"),
        ({"prompt": "a" * 300}, str(MAX_LENGTH)),
        ({"n": MAX_N + 1}, f"n must be at most {MAX_N}"),
    ],
)
def test_what_is_wrong_is_a_400_that_says_so(running, more, message):
    status, text = running.post("/v1/completions", {"model": "inra", "prompt": "add", "max_tokens": 2, **more})
    assert status == 400
    assert message in json.loads(text)["error"]["message"]
    if "prompt" not in more:
        chat = {"model": "inra", "messages": [{"role": "user", "content": "add"}], "max_tokens": 2, **more}
        status, text = running.post("/v1/chat/completions", chat)
        assert status == 400
        assert message in json.loads(text)["error"]["message"]


def test_completions_are_no_longer_than_the_limit_and_nothing_else_is_served(running):
    assert len(running.complete("add", max_tokens=MAX_TOKENS + 50)[0]) == MAX_TOKENS
    for path in ("/invocations", "/v1/load_lora_adapter", "/tokenize", "/v1/responses"):
        status, text = running.post(path, {"model": "inra", "prompt": "add"})
        assert status == 404 and "there is nothing at" in text


def test_200_seeded_requests_in_flight(running):
    def draw(seed):
        return running.complete(PROMPTS[seed % 12], seed=seed, temperature=1.0, vllm_xargs={"inra_alpha": seed / 100})

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(draw, range(200)))
    assert all(len(tokens) == MAX_TOKENS for (tokens,) in answers)
    assert [draw(seed) for seed in range(0, 200, 20)] == answers[::20]
    assert not any(prompt in running.log.read_text() for prompt in PROMPTS), "the log has no prompts"


def test_an_engine_that_dies_is_started_again_and_leaves_nothing(running):
    """The last test: it ends the server."""
    processes = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    guard = next(
        line for line in processes.splitlines() if "serving.guard" in line and str(running.process.pid) in line
    )
    children = descendants(int(guard.split()[0]))
    engine = next(pid for pid in children if "EngineCore" in name_of(pid))
    os.kill(engine, signal.SIGKILL)
    running.wait(times=2)
    assert "vLLM ended by itself" in running.log.read_text()
    assert running.complete("add", vllm_xargs={"inra_alpha": 0.3}) == [running.expected("add", 0.3)]

    children = descendants(running.process.pid)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=60) == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def descendants(pid):
    """The processes that a process started, and those that they started."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    found = [pid]
    pairs = [tuple(map(int, line.split())) for line in lines.splitlines()]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


def name_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode() + Path(f"/proc/{pid}/comm").read_text()
