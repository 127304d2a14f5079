"""What tells one file, checkpoint or piece of plain data from another, and that files are read once for it."""

import hashlib
import os
import shutil

import torch
from transformers import AutoModelForCausalLM

from realign_pipes.models.fingerprint import fingerprint, fingerprint_file, fingerprint_model


def test_a_file_is_read_once_until_it_changes(tmp_path, hashed):
    file = tmp_path / "file"
    file.write_bytes(b"one")
    for _ in range(3):
        assert fingerprint_file(file) == hashlib.sha256(b"one").hexdigest()
    assert hashed[file] == 1
    stat = file.stat()
    file.write_bytes(b"two")  # of the same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint_file(file) == hashlib.sha256(b"two").hexdigest()
    assert hashed[file] == 2
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint_file(other) == hashlib.sha256(b"six").hexdigest(), "same size and time, another file"


def test_another_name_of_a_file_is_not_read_again(tmp_path, hashed):
    (tmp_path / "file").write_bytes(b"one")
    found = fingerprint_file(tmp_path / "file")
    os.link(tmp_path / "file", tmp_path / "link")
    os.rename(tmp_path / "file", tmp_path / "renamed")
    assert fingerprint_file(tmp_path / "link") == fingerprint_file(tmp_path / "renamed") == found
    assert sum(hashed.values()) == 1


def test_a_checkpoint_is_read_once(pair, hashed):
    assert len({fingerprint_model(pair[0]) for _ in range(3)}) == 1
    assert hashed == {pair[0] / "model.safetensors": 1}


def test_a_fingerprint_is_of_the_weights_and_not_of_the_folder(tmp_path, pair):
    copied = shutil.copytree(pair[0], tmp_path / "copy")
    assert fingerprint_model(copied) == fingerprint_model(pair[0])
    model = AutoModelForCausalLM.from_pretrained(copied)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(copied)
    assert fingerprint_model(copied) != fingerprint_model(pair[0])


def test_plain_data_is_told_apart_by_its_content():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
