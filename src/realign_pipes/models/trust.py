"""How far a checkpoint directory is trusted: nothing in it is executed, and what does not fit is refused by name.

Reads configurations and the headers of weights, but no weights.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from realign_pipes.errors import InputError, MissingFileError

WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SIZES = ("hidden_size", "intermediate_size", "vocab_size", "head_dim")
IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


class CheckpointError(InputError):
    """A checkpoint directory has a file that is damaged, does not fit the others, or asks for what is not allowed."""


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Name the file that a library fails on: library errors come in all types and rarely name it."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{what} is damaged or not supported: {type(error).__name__}: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a JSON object is expected, and this is a {type(content).__name__}")
    return content


def is_adapter(path: Path) -> bool:
    """Whether `path` is a PEFT adapter: weights beside those of another checkpoint, its base."""
    return (path / "adapter_config.json").exists()


def check_checkpoint(path: Path) -> None:
    """Raise FileNotFoundError unless `path` is a checkpoint directory with a config and safetensors weights.

    It may be a PEFT adapter, whose base then has to be there.

    Raises CheckpointError for weights that are not whole, or that the config does not fit, and for a config that asks
    to load files from elsewhere or to run code from the hub. Reads the headers of the weights, not the weights.
    """
    if not path.is_dir():
        raise MissingFileError(f"{path} is not a folder. Give a checkpoint directory as written by save_pretrained.")
    if is_adapter(path):
        base, revision = base_of_adapter(path)
        if revision is None and not Path(base).is_dir():
            raise MissingFileError(
                f"{path} is an adapter for the checkpoint {base}, which is not a folder in {Path.cwd()}. Put it there, "
                "or correct base_model_name_or_path in adapter_config.json."
            )
    elif not (path / "config.json").exists():
        raise MissingFileError(f"{path} has no config.json, so it is not a Hugging Face checkpoint directory.")
    if not any(path.glob("*.safetensors")):
        raise MissingFileError(f"{path} has no *.safetensors. Weights in other formats are not loaded: convert them "
                                "with model.save_pretrained of a recent Transformers.")  # fmt: skip
    if is_adapter(path):
        if not (path / ADAPTER_WEIGHTS).exists():  # PEFT would take a .bin in its place
            raise MissingFileError(f"{path} is an adapter and has no {ADAPTER_WEIGHTS}.")
        return
    _check_config(path)
    if (path / WEIGHTS_INDEX).exists():
        with reading(path / WEIGHTS_INDEX):
            named = set(read_json(path / WEIGHTS_INDEX)["weight_map"].values())
            for strange in sorted(map(str, named - {file.name for file in path.glob("*.safetensors")})):
                raise CheckpointError(
                    f"{path / WEIGHTS_INDEX} names {strange!r}, which is not a *.safetensors in the folder."
                )


def _check_config(path: Path) -> None:
    """Refuse a config.json that would load files from elsewhere, run code, or build an absurdly large model."""
    tensors, largest = 0, 0
    for file in path.glob("*.safetensors"):
        with reading(file), safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no dictionary
                tensors += 1
                largest = max(largest, torch.Size(weights.get_slice(name).get_shape()).numel())
    bounds = {"num_hidden_layers": tensors, **dict.fromkeys(SIZES, largest)}
    todo: list[Any] = [read_json(path / "config.json")]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        if not isinstance(part, dict):
            continue
        todo += part.values()
        for name, bound in bounds.items():
            value = part.get(name)
            if isinstance(value, int) and not 0 <= value <= bound:
                raise CheckpointError(f"{path / 'config.json'} has {name} {value}, which does not fit the weights.")
        for name in IMPLEMENTATIONS:
            if "/" in json.dumps(part.get(name)):
                raise CheckpointError(f"{path / 'config.json'} asks for {name} {part[name]!r}: code from the hub, "
                                      "which is not run. Remove it from there.")  # fmt: skip
        weights_file = part.get("transformers_weights")
        if weights_file is not None and not str(weights_file).endswith((".safetensors", WEIGHTS_INDEX)):
            raise CheckpointError(
                f"{path / 'config.json'} names the weights {weights_file!r}, which are not safetensors."
            )


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint directory; CheckpointError if it is damaged or its architecture is unknown.

    Code that came with a checkpoint (`auto_map`) is never run.
    """
    with reading(path / "config.json"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def base_of_adapter(adapter: Path) -> tuple[str, str | None]:
    """The base of a PEFT adapter: a folder, or a repository of the hub and its revision."""
    config = read_json(adapter / "adapter_config.json")
    base, revision = (config.get(name) for name in ("base_model_name_or_path", "revision"))
    if not isinstance(base, str) or not isinstance(revision, str | None):
        raise CheckpointError(f"{adapter / 'adapter_config.json'} does not say what the adapter is for: "
                              f"base_model_name_or_path {base!r}, revision {revision!r}")  # fmt: skip
    return base, revision
