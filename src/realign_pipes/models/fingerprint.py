"""Fingerprints: what tells one checkpoint, tokenizer, file or piece of plain data from another."""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from realign_pipes.models.trust import check_checkpoint, is_adapter, read_config, read_json, reading


def fingerprint(description: Any) -> str:
    """SHA-256 (hex) of plain data, as canonical JSON."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


CLOCK_TICK = 0.02
"""Seconds. Changes to a file that are further apart than this get different modification times: Linux's clock for them
may stand still for 10 ms."""

_digests: dict[tuple[int, int, int, int], str] = {}
"""For files that this process has read: device, inode, size and time of last change -> SHA-256."""


def fingerprint_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, which are read once in a process as long as nobody changes the file.

    A hard link or a new name is the same file: the catalog's copies of finished work are not read again.
    """
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        if 0 <= (age := time.time() - stat.st_mtime) < CLOCK_TICK:  # so that a later change gets a different time
            time.sleep(CLOCK_TICK - age)
        with path.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]


def read_in_main_process(folders: Iterable[Path]) -> None:
    """Have the main process alone read the weights and caches (*.safetensors) in `folders` to hash them.

    All processes of a launch call this. Afterwards the others know a file by its size and time of last change, and
    `fingerprint_file` reads only what has changed since. In one process nothing happens: it reads each file once.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    if state.num_processes == 1:
        return
    if state.is_main_process:
        for folder in folders:
            for file in sorted(folder.glob("*.safetensors")):
                fingerprint_file(file)
    shared = [_digests]
    broadcast_object_list(shared)
    _digests.update(shared[0])


def fingerprint_model(path: Path) -> str:
    """SHA-256 (hex) over the configuration and the bytes of all weights of a checkpoint directory.

    For an adapter of the stage trra, over the adapter's own configuration and weights, and the fingerprint of the
    reference that it was trained on. Raises what `check_checkpoint` raises.
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
    weights = {file.name: fingerprint_file(file) for file in sorted(path.glob("*.safetensors"))}
    return fingerprint({"config": json.loads(json.dumps(config, default=str)), "weights": weights})


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hex) of the serialised tokenizer and its chat template."""
    return fingerprint({"tokenizer": tokenizer.backend_tokenizer.to_str(), "template": tokenizer.chat_template})
