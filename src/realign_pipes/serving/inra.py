"""What vLLM has to be told to serve InRa: the plug-in of `serving/inra_vllm` does the rest."""

import json
import subprocess
from pathlib import Path

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.trust import read_json
from realign_pipes.paper.expansion import CONFIG_NAME, InRaConfig

PLUGIN = "inra-vllm"
"""The distribution that serves InRa in vLLM."""
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def is_inra(checkpoint: Path) -> bool:
    """Whether a checkpoint folder says that it has an adapter of InRa."""
    return (checkpoint / CONFIG_NAME).exists()


def inra_options(checkpoint: Path) -> list[str]:
    """vLLM's options for an expanded checkpoint. InputError for an architecture that the plug-in does not have."""
    InRaConfig.load(checkpoint)  # an error of its own if it is damaged
    architecture = (read_json(checkpoint / "config.json").get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(f"{checkpoint} is a {architecture}. vLLM serves InRa for {', '.join(ARCHITECTURES)} "
                         "alone. In a sweep, choose generation.engine: transformers.")  # fmt: skip
    overrides = {"architectures": [f"InRa{architecture}"]}
    return ["--hf-overrides", json.dumps(overrides), "--enforce-eager"]


def inra_environment() -> dict[str, str]:
    """The variables that an InRa model needs in vLLM's process: the model runner that knows logits processors."""
    return {"VLLM_USE_V2_MODEL_RUNNER": "0"}


def has_plugin(python: Path) -> bool:
    """Whether the environment of `python` has the plug-in for InRa."""
    find = [str(python), "-c", f"import importlib.metadata; importlib.metadata.version({PLUGIN!r})"]
    return subprocess.run(find, capture_output=True, check=False).returncode == 0


def check_plugin(python: Path) -> None:
    """MissingFileError if the environment of `python` has no plug-in for InRa."""
    if not has_plugin(python):
        raise MissingFileError(
            f"the environment {python.parents[1]} has no plug-in for InRa: `make serve-setup` installs it."
        )
