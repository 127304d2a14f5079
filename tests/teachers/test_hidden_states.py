"""The cache of hidden states: exact, resumable, and refused when it is not what a run needs."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from realign_pipes.datasets.folders import FolderDataset
from realign_pipes.models import fingerprint as fingerprints
from realign_pipes.models.load import load_model
from realign_pipes.paper.trra import collate
from realign_pipes.teachers import hidden_states
from realign_pipes.teachers.fused import CachedTeacher
from realign_pipes.teachers.hidden_states import CacheMismatchError, open_cache, write_cache
from realign_pipes.teachers.parameters import Teachers
from realign_pipes.teachers.signals import OnlineTeacher, check_examples, check_linear_head, fingerprint_examples

CPU = torch.device("cpu")
SOURCE = {"model": "m", "tokenizer": "t", "data": "d"}


def write(folder, model, examples, source=SOURCE, dtype=torch.float32, shard_tokens=12):
    done = []
    write_cache(
        folder, model, examples, source, dtype=dtype, batch_size=2, shard_tokens=shard_tokens, advance=done.append
    )
    assert sum(done) == len(examples)
    return done


def batch_of(examples, rows):
    return {**collate([examples[row] for row in rows], pad_token_id=0), "row": torch.tensor(rows)}


def test_a_cache_holds_what_the_model_computes_one_example_at_a_time(tmp_path, pair, examples):
    model = load_model(pair[0], device=CPU)
    write(tmp_path / "cache", model, examples)
    cache = open_cache(tmp_path / "cache", SOURCE, examples)
    assert len(cache.index.shards) > 2
    for row, example in enumerate(examples):
        ids = torch.tensor([example["prompt_ids"] + example["completion_ids"]])
        with torch.no_grad():
            expected = model.model(ids).last_hidden_state[0, len(example["prompt_ids"]) - 1 : -1]
        torch.testing.assert_close(cache.hidden_states([row]), expected, rtol=1e-5, atol=1e-5)
        logits = cache.hidden_states([row]) @ cache.head().T
        torch.testing.assert_close(logits, model(ids).logits[0, len(example["prompt_ids"]) - 1 : -1].detach())


def test_a_cache_without_padding_holds_the_same(tmp_path, pair, examples):
    model = load_model(pair[0], device=CPU)
    for name, padding_free in (("padded", False), ("flat", True)):
        write_cache(
            tmp_path / name, model, examples, SOURCE, dtype=torch.float32, batch_size=4, shard_tokens=12,
            advance=lambda done: None, padding_free=padding_free,
        )  # fmt: skip
    padded, flat = (open_cache(tmp_path / name, SOURCE, examples) for name in ("padded", "flat"))
    rows = list(range(len(examples)))
    torch.testing.assert_close(flat.hidden_states(rows), padded.hidden_states(rows), rtol=1e-5, atol=1e-5)


def test_cached_and_online_give_the_same_signal(tmp_path, pair, examples):
    models = [load_model(path, device=CPU) for path in pair]
    for name, model in zip(("reference", "aligned"), models, strict=True):
        write(tmp_path / name, model, examples)
    cached = CachedTeacher(
        open_cache(tmp_path / "reference", SOURCE, examples), open_cache(tmp_path / "aligned", SOURCE, examples), CPU
    )
    online = OnlineTeacher(*models)
    batch = batch_of(examples, [7, 0, 3])
    for side in ("reference_hidden", "aligned_hidden"):
        ours, theirs = getattr(cached.signal(batch), side), getattr(online.signal(batch), side)
        assert len(ours) == sum(len(examples[row]["completion_ids"]) for row in (7, 0, 3))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert torch.equal(cached.reference_head, online.reference_head)
    assert torch.equal(cached.aligned_head, online.aligned_head)


def test_an_interrupted_cache_goes_on_and_ends_up_the_same(tmp_path, pair, examples):
    model = load_model(pair[0], device=CPU)
    write(tmp_path / "whole", model, examples)

    class Killed(Exception):
        pass

    def stop_after_two_batches(_, calls=[]):  # noqa: B006  counts over calls
        calls.append(1)
        if len(calls) > 4:
            raise Killed

    with pytest.raises(Killed):
        write_cache(
            tmp_path / "cut",
            model,
            examples,
            SOURCE,
            dtype=torch.float32,
            batch_size=2,
            shard_tokens=12,
            advance=stop_after_two_batches,
        )
    with pytest.raises(CacheMismatchError, match="never finished"):
        open_cache(tmp_path / "cut", SOURCE, examples)
    finished_shards = sorted(path.name for path in (tmp_path / "cut").glob("shard-*.safetensors"))
    assert finished_shards
    times = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished_shards}
    done = write(tmp_path / "cut", model, examples)
    assert done[0] > 0, "the first advance is what was found"
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in finished_shards} == times
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_a_failing_write_leaves_earlier_shards_readable(tmp_path, pair, examples, monkeypatch):
    """A full disk while a shard is written."""
    real, calls = hidden_states.save_file, []

    def full_disk(tensors, path):
        calls.append(path)
        if len(calls) == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(hidden_states, "save_file", full_disk)
    model = load_model(pair[0], device=CPU)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "cache", model, examples)
    files = sorted(path.name for path in (tmp_path / "cache").iterdir())
    shards = [f"shard-0000{number}.{kind}" for number in (0, 1) for kind in ("json", "safetensors")]
    assert files == ["head.safetensors", "index.json", *shards]
    monkeypatch.undo()
    write(tmp_path / "cache", model, examples)
    open_cache(tmp_path / "cache", SOURCE, examples)


@pytest.mark.parametrize("what", ["model", "tokenizer", "data"])
def test_a_cache_of_something_else_is_refused_naming_what_differs(tmp_path, pair, examples, what):
    write(tmp_path / "cache", load_model(pair[0], device=CPU), examples)
    with pytest.raises(CacheMismatchError, match=f"made from another {what} than this run"):
        open_cache(tmp_path / "cache", {**SOURCE, what: "other"}, examples)


def test_damaged_shards_are_refused_by_name(tmp_path, pair, examples):
    write(tmp_path / "cache", load_model(pair[0], device=CPU), examples)
    shard = "shard-00001.safetensors"

    def damaged(name, change):
        folder = shutil.copytree(tmp_path / "cache", tmp_path / name)
        change(folder / shard)
        with pytest.raises(CacheMismatchError, match=shard):
            open_cache(folder, SOURCE, examples)

    def flip_a_bit(path):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    damaged("truncated", lambda path: path.write_bytes(path.read_bytes()[:-8]))
    damaged("flipped", flip_a_bit)
    damaged("missing", lambda path: path.unlink())


def test_writing_again_heals_a_damaged_cache(tmp_path, pair, examples):
    model = load_model(pair[0], device=CPU)
    write(tmp_path / "cache", model, examples)
    shard = tmp_path / "cache" / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    write(tmp_path / "cache", model, examples)
    assert shard.read_bytes() == whole
    open_cache(tmp_path / "cache", SOURCE, examples)
    (tmp_path / "cache" / "index.json").write_text("{")
    with pytest.raises(CacheMismatchError, match=r"index.json is damaged"):
        open_cache(tmp_path / "cache", SOURCE, examples)


def test_examples_of_another_tokenizer_are_refused(tiny_tokenizer):
    prompts = [f"3 + {number}" for number in range(3)]
    rows = [{"id": p, "prompt": p, "prompt_ids": tiny_tokenizer(p)["input_ids"]} for p in prompts]
    check_examples(Dataset.from_list(rows), tiny_tokenizer)
    rows[2]["prompt_ids"] = rows[1]["prompt_ids"]
    with pytest.raises(ValueError, match=r"made with another tokenizer .* the prompt of 3 \+ 2"):
        check_examples(Dataset.from_list(rows), tiny_tokenizer)


def test_a_cache_is_read_once_to_be_checked_however_often_it_is_opened(tmp_path, pair, examples, hashed):
    """Written, opened, found finished, and opened again where the catalog has put it."""
    teachers = Teachers(mode="cached", dtype="auto", batch_size=2, shard_tokens=12)
    for _ in range(2):
        made = hidden_states.cache_model(
            tmp_path / "work", pair[0], examples, SOURCE, teachers=teachers, description="caching"
        )
    FolderDataset(filepath=str(tmp_path / "cache")).save(tmp_path / "work")
    opened = open_cache(tmp_path / "cache", SOURCE, examples)
    assert torch.equal(opened.hidden_states(range(9)), made.hidden_states(range(9)))
    files = {path.name for path in (tmp_path / "cache").glob("*.safetensors")}
    assert len(files) > 3
    assert Counter(path.name for path in hashed.elements()) == dict.fromkeys(files, 1)


def test_the_processes_of_a_launch_read_a_cache_once_and_find_a_later_change(
    tmp_path, pair, examples, hashed, monkeypatch
):
    write(tmp_path / "cache", load_model(pair[0], device=CPU), examples)
    state = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr("accelerate.PartialState", lambda: state)
    sent = []
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda shared: sent.append(dict(shared[0])))
    monkeypatch.setattr(fingerprints, "_digests", {})
    hashed.clear()
    fingerprints.read_in_main_process([tmp_path / "cache"])  # the main process
    assert set(hashed.values()) == {1} and len(sent[0]) == len(hashed) > 3

    state.is_main_process = False
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda shared: shared.__setitem__(slice(None), sent))
    monkeypatch.setattr(fingerprints, "_digests", {})
    hashed.clear()
    fingerprints.read_in_main_process([tmp_path / "cache"])
    open_cache(tmp_path / "cache", SOURCE, examples)
    assert not hashed
    shard = tmp_path / "cache" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheMismatchError, match=r"shard-00001\.safetensors is missing, truncated or altered"):
        open_cache(tmp_path / "cache", SOURCE, examples)


def test_no_cache_at_all_is_refused(tmp_path, examples):
    with pytest.raises(CacheMismatchError, match="kedro run --pipeline teacher_logits"):
        open_cache(tmp_path, SOURCE, examples)


def test_report_counts_bytes(tmp_path, pair, examples):
    write(tmp_path / "cache", load_model(pair[0], device=CPU), examples, dtype=torch.bfloat16)
    cache = open_cache(tmp_path / "cache", SOURCE, examples)
    report = cache.report(vocab_size=320)
    width = cache.index.hidden_size
    assert report["tokens"] == sum(len(row["completion_ids"]) for row in examples)
    assert report["bytes_per_token"] == 2 * width
    assert report["times_smaller"] == 320 / width
    headers = report["bytes"] - report["tokens"] * 2 * width
    assert 0 < headers < 200 * len(cache.index.shards)


def test_the_order_of_examples_is_part_of_their_fingerprint(examples):
    assert fingerprint_examples(examples) == fingerprint_examples(examples.add_column("more", list(range(9))))
    assert fingerprint_examples(examples) != fingerprint_examples(examples.select(range(8, -1, -1)))


def test_a_head_that_is_not_linear_is_refused(pair):
    model = load_model(pair[0], device=CPU)
    check_linear_head(model, "reference")
    model.lm_head.register_forward_hook(lambda module, inputs, output: torch.tanh(output))
    with pytest.raises(ValueError, match=r"the reference .* does more than a matrix product"):
        check_linear_head(model, "reference")


def test_index_is_plain_json(tmp_path, pair, examples):
    write(tmp_path / "cache", load_model(pair[0], device=CPU), examples)
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert index["lengths"] == [len(row["completion_ids"]) for row in examples]
    assert index["shards"][0]["start"] == 0
    assert index["shards"][-1]["stop"] == 9
