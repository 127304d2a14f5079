"""A broken cache is refused as such or read right: no wrong numbers, no other error, nothing outside its folder."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from realign_pipes.models.load import load_model
from realign_pipes.teachers.hidden_states import CacheMismatchError, open_cache, write_cache

SOURCE = {"model": "m", "tokenizer": "t", "data": "d"}


@pytest.fixture
def cache(tmp_path, make_checkpoint, examples):
    """A good cache of four shards, and what it holds."""
    folder = tmp_path / "cache"
    write(folder, load_model(make_checkpoint(tmp_path / "model"), device=torch.device("cpu")), examples)
    opened = open_cache(folder, SOURCE, examples)
    return folder, opened.hidden_states(range(len(examples))), opened.head()


def write(folder, model, examples):
    options = {"dtype": torch.float32, "batch_size": 4, "shard_tokens": 12, "advance": lambda _: None}
    write_cache(folder, model, examples, SOURCE, **options)


def read_or_refused(folder, examples, hidden, head) -> bool:
    """Whether the cache could be opened; then it gives the right numbers."""
    try:
        opened = open_cache(folder, SOURCE, examples)
    except CacheMismatchError as error:
        assert str(folder) in str(error) and "kedro run --pipeline teacher_logits" in str(error)
        return False
    assert torch.equal(opened.hidden_states(range(len(examples))), hidden)
    assert torch.equal(opened.hidden_states([4, 0]), torch.cat([hidden[a:b] for a, b in places(examples, [4, 0])]))
    assert torch.equal(opened.head(), head)
    return True


def places(examples, rows):
    lengths = [len(ids) for ids in examples["completion_ids"]]
    return [(sum(lengths[:row]), sum(lengths[: row + 1])) for row in rows]


@given(data=st.data())
def test_broken_index(data, cache, examples, broken_json, broken_bytes):
    folder, hidden, head = cache
    index = folder / "index.json"
    good = index.read_bytes()
    index.write_bytes(data.draw(broken_json(json.loads(good)) | broken_bytes(good)))
    try:
        read_or_refused(folder, examples, hidden, head)
    finally:
        index.write_bytes(good)


@given(data=st.data())
def test_broken_shard_or_head(data, cache, examples, broken_bytes):
    """Also where whoever broke it noted the new checksum, as far as what is in the file can be told to be wrong."""
    folder, hidden, head = cache
    index = folder / "index.json"
    good_index = index.read_bytes()
    entries = json.loads(good_index)
    entry = data.draw(st.sampled_from([entries["head"], *entries["shards"]]))
    file = folder / entry["file"]
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    broken = data.draw(broken_bytes(good[:header]).map(lambda head: head + good[header:]) | broken_bytes(good))
    file.write_bytes(broken)
    try:
        if broken != good:
            assert not read_or_refused(folder, examples, hidden, head)
        entry["sha256"] = hashlib.sha256(broken).hexdigest()
        index.write_text(json.dumps(entries))
        try:
            opened = open_cache(folder, SOURCE, examples)
            assert opened.hidden_states(range(len(examples))).shape == hidden.shape
            assert opened.head().shape[1] == hidden.shape[1]
        except CacheMismatchError:
            pass
    finally:
        file.write_bytes(good)
        index.write_bytes(good_index)


def refused(folder, examples) -> str:
    with pytest.raises(CacheMismatchError) as refusal:
        open_cache(folder, SOURCE, examples)
    return str(refusal.value)


def change_index(folder, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


# -- what was found ---------------------------------------------------------------------------------------------------
def test_two_lengths_in_each_others_place(cache, examples):
    """Their sum is right: before, rows of one example were read as another's."""
    lengths = [len(ids) for ids in examples["completion_ids"]]
    assert lengths[0] != lengths[1]
    change_index(cache[0], lambda index: index["lengths"].__setitem__(slice(0, 2), [lengths[1], lengths[0]]))
    assert "its lengths are not those of the completions" in refused(cache[0], examples)


def test_shards_in_each_others_place(cache, examples):
    change_index(cache[0], lambda index: index["shards"].reverse())
    assert "damaged" in refused(cache[0], examples)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "head.safetensors"])
def test_a_file_elsewhere_is_not_read(cache, examples, name, tmp_path, monkeypatch):
    folder = cache[0]
    shutil.copy(folder / "shard-00000.safetensors", tmp_path / "outside.safetensors")
    name = str(tmp_path / name[1:]) if name.startswith("/") else name
    change_index(folder, lambda index: index["shards"][0].update(file=name))
    assert f"it has {name!r} where shard-00000.safetensors belongs" in refused(folder, examples)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "[" * 100_000, '{"complete": true}', "\ufeff{}"])
def test_json_that_is_no_index(cache, examples, text):
    """TypeError, KeyError and RecursionError, before."""
    (cache[0] / "index.json").write_text(text)
    assert "index.json is damaged" in refused(cache[0], examples)


def test_a_shard_of_another_shape_or_type(cache, examples):
    folder, hidden, _ = cache
    lengths = [len(ids) for ids in examples["completion_ids"]]
    stop = json.loads((folder / "index.json").read_text())["shards"][0]["stop"]
    rows, width = sum(lengths[:stop]), hidden.shape[1]
    for tensors in (
        {"hidden": torch.zeros(rows - 1, width)},
        {"hidden": torch.zeros(rows, width - 1)},
        {"hidden": torch.zeros(rows, width, 1)},
        {"hidden": torch.zeros(rows, width, dtype=torch.float16)},
        {"other": torch.zeros(rows, width)},
        {},
    ):
        content = save(tensors)
        (folder / "shard-00000.safetensors").write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        change_index(folder, lambda index: index["shards"][0].update(sha256=checksum))  # noqa: B023  called at once
        assert "shard-00000.safetensors holds" in refused(folder, examples)


def test_a_folder_in_the_place_of_a_shard(cache, examples):
    os.remove(cache[0] / "shard-00001.safetensors")
    (cache[0] / "shard-00001.safetensors").mkdir()
    assert "shard-00001.safetensors is missing" in refused(cache[0], examples)


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000])
def test_a_broken_index_is_written_anew(cache, examples, tmp_path, text):
    """As the message says: before, making the cache again failed too."""
    (cache[0] / "index.json").write_text(text)
    write(cache[0], load_model(tmp_path / "model", device=torch.device("cpu")), examples)
    assert torch.equal(open_cache(cache[0], SOURCE, examples).hidden_states(range(9)), cache[1])
