"""Tiny random models and their tokenizer, for every test."""

import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

PROJECT = Path(__file__).parents[1]

TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
PLAIN_TEMPLATE = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING_TEMPLATE = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are faster on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables read from JSONL and Parquet are cached below the tests' folder, not in the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    """A command that a test runs in this process adds handlers to the root logger, which would print the lines of the
    next one again."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """`copy_project()` makes a copy of the project without any data, in a folder of its own. Paths in the catalog are
    relative to the project, so that a run there leaves the real data/ alone."""

    def copy() -> Path:
        root = tmp_path_factory.mktemp("project")
        for name in ("conf", "src", "notebooks"):
            ignored = shutil.ignore_patterns("local", "__pycache__", "*.egg-info", ".ipynb_checkpoints")
            shutil.copytree(PROJECT / name, root / name, ignore=ignored)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(PROJECT / name, root / name)
        (root / "conf" / "local").mkdir()
        return root

    return copy


@pytest.fixture(scope="session")
def smoke_project(copy_project: Callable[[], Path]) -> Path:
    """A copy of the project after `kedro run --env smoke`. Tests read it; one that changes data copies the data."""
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    root = copy_project()
    bootstrap_project(PROJECT)
    with KedroSession.create(root, env="smoke") as session:
        session.run()
    return root


def build_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, as byte-level BPE without merges, so that any text survives; the special ones come first."""
    tokens = ["<unk>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<answer>", "</answer>"]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*tokens, *sorted(ByteLevel.alphabet())])},
        merges=[],
        unk_token="<unk>",
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=template,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tokens[4:]])
    return tokenizer


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer of 264 bytes and tags (ids 0-7) whose template leaves `<think>` to the model."""
    return build_tokenizer(PLAIN_TEMPLATE)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """As `tiny_tokenizer`, for fixtures that several tests share."""
    return build_tokenizer(PLAIN_TEMPLATE)


@pytest.fixture
def thinking_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a template that opens `<think>` in the prompt, as DeepSeek-R1's does."""
    return build_tokenizer(THINKING_TEMPLATE)


@pytest.fixture
def make_checkpoint(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """`make_checkpoint(path, seed=0, …)` writes a checkpoint directory and returns `path`.

    A Qwen2 of two layers and width 32 with random weights from `seed`; its head has `vocab_padding` rows more than
    the tokenizer has tokens. Further arguments go to Qwen2Config. In float64 (`dtype`), completions do not depend on
    what is computed together with them: in float32 last bits do, and now and then a draw falls between.
    """

    def make(
        path: Path,
        seed: int = 0,
        vocab_padding: int = 0,
        tokenizer: PreTrainedTokenizerFast | None = None,
        dtype: str = "float32",
        **config: object,
    ) -> Path:
        import torch
        from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

        tokenizer = tokenizer or tiny_tokenizer
        shape = {
            "vocab_size": len(tokenizer) + vocab_padding,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "initializer_range": 0.2,  # far enough from uniform for models of different seeds to differ
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2ForCausalLM(Qwen2Config(**{**shape, **config}))
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.to(getattr(torch, dtype)).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def make_generation():
    """`make_generation(…)`: the parameters `generation`, Transformers' unless said otherwise."""
    from realign_pipes.generation.parameters import Generation

    def make(**changes: object) -> Generation:
        values = {
            "engine": "transformers",
            "servers": None,
            "environment": ".venv-serve",
            "data_parallel_size": 1,
            "tensor_parallel_size": 1,
            "max_in_flight": 4,
        }
        return Generation.model_validate({**values, **changes})

    return make


@pytest.fixture
def hashed(monkeypatch):
    """How often each file is read to be hashed while the test runs, by path (a Counter)."""
    import hashlib

    real, count = hashlib.file_digest, Counter()

    def counted(stream, digest):
        count[Path(stream.name)] += 1
        return real(stream, digest)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return count


class KilledError(Exception):
    """What stops a training in its sixth step."""


@pytest.fixture
def kill():
    """A callback that stops a training in its sixth step, and the exception that it raises."""
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KilledError

    return Kill(), KilledError


@pytest.fixture
def examples(tiny_tokenizer):
    """Nine calibration examples of different lengths."""
    import torch
    from datasets import Dataset

    generator = torch.Generator().manual_seed(3)

    def tokens(count):
        return torch.randint(4, len(tiny_tokenizer), (count,), generator=generator).tolist()

    return Dataset.from_list(
        [{"id": f"e{i}", "prompt_ids": tokens(2 + i % 3), "completion_ids": tokens(3 + 2 * (i % 4))} for i in range(9)]
    )


@pytest.fixture
def pair(tmp_path, make_checkpoint):
    """A reference and an aligned checkpoint, the aligned one's head padded further."""
    reference = make_checkpoint(tmp_path / "reference", seed=1, vocab_padding=3)
    aligned = make_checkpoint(tmp_path / "aligned", seed=2, vocab_padding=8)
    return reference, aligned


class ScriptedEngine:
    """Another implementation of `generation.engine.Engine`: no model, and groups in an order of its own.

    It completes a prompt in `sample` with the text `write(prompt, sample)`; one that ends in the tokenizer's eos token
    is finished. A group has two prompts, the longest first. `asked` lists the (prompt, sample) of each group that was
    drawn, `opened` counts the calls of `open`. In the group number `killed_in` it stops as if it were killed.
    """

    def __init__(self, tokenizer, write, killed_in=None):
        self.tokenizer, self.write, self.killed_in = tokenizer, write, killed_in
        self.asked, self.opened, self.closed = [], 0, 0

    def open(self):
        self.opened += 1
        return self

    def close(self):
        self.closed += 1

    def draw(self, prompts, sampling, done=()):
        from realign_pipes.generation.engine import Completion

        longest_first = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
        for start in range(0, len(prompts), 2):
            group = [
                (prompt, sample) for prompt in longest_first[start : start + 2] for sample in range(sampling.samples)
            ]
            todo = [(prompt, sample) for prompt, sample in group if (prompt.key, sample) not in done]
            if not todo:
                continue
            if len(self.asked) == self.killed_in:
                raise KeyboardInterrupt
            texts = [(self.tokenizer.decode(prompt.token_ids), sample) for prompt, sample in todo]
            self.asked.append(texts)
            completions = []
            for (prompt, sample), (text, _) in zip(todo, texts, strict=True):
                ids = self.tokenizer(self.write(text, sample), add_special_tokens=False)["input_ids"]
                finished = ids[-1] == self.tokenizer.eos_token_id
                completions.append(Completion(prompt.key, sample, ids, finished))
            yield completions[::-1]


@pytest.fixture
def scripted_engine(tiny_tokenizer):
    """`scripted_engine(write, tokenizer=…, killed_in=None)` makes a ScriptedEngine."""

    def make(write, tokenizer=tiny_tokenizer, killed_in=None):
        return ScriptedEngine(tokenizer, write, killed_in)

    return make


class FakeServer:
    """A server of the OpenAI protocol on this machine.

    `draw(body)` gives the token ids of a request's completion; `bodies` has all requests.

    `trouble(number, body)` may return what to answer instead to request number 0, 1, …: a status and a text, or a
    function that does with the handler what it likes. `most` is how many requests it had at a time.
    """

    def __init__(self, draw: Callable[[dict[str, Any]], list[int]], models: tuple[str, ...] = ("model",)) -> None:
        self.draw, self.models = draw, models
        self.bodies: list[dict[str, Any]] = []
        self.trouble: Callable[[int, dict[str, Any]], Any] = lambda number, body: None
        self.version: str | None = "0.32.0"
        self.pause = 0.0
        self.most = self.now = 0
        self.healthy = True
        self.root: str | None = None
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/v1/models":
                    root = {} if fake.root is None else {"root": fake.root}
                    self.answer(200, json.dumps({"data": [{"id": name, **root} for name in fake.models]}))
                elif self.path == "/version" and fake.version is not None:
                    self.answer(200, json.dumps({"version": fake.version}))
                elif self.path == "/health":
                    self.answer(200 if fake.healthy else 503, "")
                else:
                    self.answer(404, "{}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    number = len(fake.bodies)
                    fake.bodies.append(body)
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                try:
                    time.sleep(fake.pause)
                    trouble = fake.trouble(number, body)
                    if callable(trouble):
                        trouble(self)
                    elif trouble is not None:
                        self.answer(*trouble)
                    else:
                        self.answer(200, json.dumps(fake.completion(body)))
                finally:
                    with fake.lock:
                        fake.now -= 1

            def answer(self, status: int, text: str) -> None:
                content = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                """Clients that hang up are part of the tests."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """What vLLM answers, as far as it is read."""
        ids = self.draw(body)
        reason = "stop" if ids[-1] in body.get("stop_token_ids", ()) else "length"
        return {
            "model": body["model"],
            "choices": [{"token_ids": ids, "prompt_token_ids": body["prompt"], "finish_reason": reason, "text": "?"}],
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fake_server():
    """`fake_server(draw, **attributes)` starts a FakeServer and sets these attributes of it."""
    started = []

    def start(draw, **attributes):
        server = FakeServer(draw)
        started.append(server)
        for name, value in attributes.items():
            setattr(server, name, value)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def _mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, which takes it ten seconds to make."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # as realign_pipes.settings does
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def mlflow_runs(_mlflow_database, tmp_path, monkeypatch):
    """MLflow's default store in an empty working folder; `mlflow_runs()` gives the runs in it."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    shutil.copy(_mlflow_database, tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    experiment = mlflow.set_experiment("test")
    yield lambda: mlflow.search_runs([experiment.experiment_id], output_format="list")
    mlflow.set_tracking_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None


class ScriptedJudge(ThreadingHTTPServer):
    """A judge on this machine, for prompts that hold `A<answer>` and `B<answer>`.

    It prefers the longer answer, and of equal ones the first; of an answer with `?` it says nothing that can be read.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.breaks_after: int | None = None
        self.silent = False
        self.refuses = False
        self.too_long = "A<too long"
        super().__init__(("127.0.0.1", 0), JudgeHandler)

    def say(self, prompt: str) -> str:
        first, second = (prompt.split(f"{name}<")[1].split(">", maxsplit=1)[0] for name in "AB")
        if "?" in first + second:
            return "Both are fine. Verdict: maybe"
        return f"Because.\nVerdict: {'B' if len(second) > len(first) else 'A'}"


class JudgeHandler(BaseHTTPRequestHandler):
    server: ScriptedJudge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        while self.server.silent:
            time.sleep(0.01)
        status, answer = 200, {
            "choices": [{"message": {"role": "assistant", "content": self.server.say(body["messages"][0]["content"])}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3},
        }  # fmt: skip
        if self.server.refuses:
            status, answer = 404, {"error": "no such model"}
        elif self.server.too_long in body["messages"][0]["content"]:
            status, answer = 400, {"error": "too long"}
        elif self.server.breaks_after is not None and len(self.server.asked) > self.server.breaks_after:
            answer = {"choices": []}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted_judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
