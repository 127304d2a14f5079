"""Fingerprints: what tells one checkpoint, tokenizer or piece of plain data from another."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from realign_pipes.models.trust import check_checkpoint, is_adapter, read_config, read_json, reading


def fingerprint(description: Any) -> str:
    """SHA-256 (hex) of plain data, as canonical JSON."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def fingerprint_model(path: Path) -> str:
    """SHA-256 (hex) over the configuration and the bytes of all weights of a checkpoint directory.

    For an adapter of the stage trra over its own, and the fingerprint of the reference beside which it was trained.
    """
    check_checkpoint(path)
    if is_adapter(path):
        config = read_json(path / "adapter_config.json")
        with reading(path / "realignment.json"):
            config["base_model_name_or_path"] = read_json(path / "realignment.json")["reference"]["fingerprint"]
    else:
        config = read_config(path).to_dict()
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    weights = {}
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            weights[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return fingerprint({"config": json.loads(json.dumps(config, default=str)), "weights": weights})


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of the serialised tokenizer and its chat template."""
    return fingerprint({"tokenizer": tokenizer.backend_tokenizer.to_str(), "template": tokenizer.chat_template})
