"""Folder datasets put finished folders in place at once, and say what is missing."""

import json

import pytest
from kedro.io import DatasetError

from realign_pipes.datasets.folders import (
    CheckpointDataset,
    CheckpointsDataset,
    FolderDataset,
    TeacherCacheDataset,
)


def make_folder(path, **files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / f"{name}.txt").write_text(content)
    return path


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    dataset = FolderDataset(filepath=str(tmp_path / "out"))
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="does not exist"):
        dataset.load()
    dataset.save(make_folder(tmp_path / "a", old="1", both="1"))
    dataset.save(make_folder(tmp_path / "b", both="2"))
    assert {path.name: path.read_text() for path in dataset.load().iterdir()} == {"both.txt": "2"}
    assert (tmp_path / "b" / "both.txt").read_text() == "2", "what the node made stays, for a run that goes on"


def test_a_checkpoint_goes_in_and_out(tmp_path, make_checkpoint):
    made = make_checkpoint(tmp_path / "made")
    dataset = CheckpointDataset(filepath=str(tmp_path / "models" / "reference"))
    assert not dataset.exists()
    dataset.save(made)
    weights = (dataset.load() / "model.safetensors").read_bytes()
    assert weights == (made / "model.safetensors").read_bytes()


def test_a_checkpoint_without_safetensors_is_refused(tmp_path, make_checkpoint):
    made = make_checkpoint(tmp_path / "made")
    (made / "model.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"made has no \*.safetensors"):
        CheckpointDataset(filepath=str(made)).load()


def test_a_checkpoint_is_a_path_or_a_repository(tmp_path):
    for arguments in ({}, {"filepath": "x", "repo_id": "a/b"}):
        with pytest.raises(DatasetError, match="either `filepath` or `repo_id`"):
            CheckpointDataset(**arguments)
    assert CheckpointDataset(repo_id="a/b", revision="main").exists()


def test_checkpoints_are_found_below_their_folder_and_leave_each_other_in_place(tmp_path, make_checkpoint):
    dataset = CheckpointsDataset(filepath=str(tmp_path / "trra"))
    assert not dataset.exists()
    first, second = make_checkpoint(tmp_path / "1", seed=1), make_checkpoint(tmp_path / "2", seed=2)
    dataset.save({"0.5/trra-0.5": first})
    dataset.save({"1.5/trra-1.5": second, "1.5/trra-iter1-1.5": first})
    names = ["0.5/trra-0.5", "1.5/trra-1.5", "1.5/trra-iter1-1.5"]
    assert dataset.load() == {name: tmp_path / "trra" / name for name in names}
    dataset.save({"1.5/trra-1.5": first})
    assert list(dataset.load()) == names
    weights = (dataset.load()["1.5/trra-1.5"] / "model.safetensors").read_bytes()
    assert weights == (first / "model.safetensors").read_bytes()


def test_a_copy_that_was_killed_is_no_checkpoint(tmp_path, make_checkpoint):
    dataset = CheckpointsDataset(filepath=str(tmp_path / "trra"))
    dataset.save({"0.5/trra-0.5": make_checkpoint(tmp_path / "1")})
    make_checkpoint(tmp_path / "trra" / "0.5" / ".trra-iter1-0.5.123.tmp")
    assert list(dataset.load()) == ["0.5/trra-0.5"]


def test_the_preview_of_a_checkpoint_is_what_its_json_files_say(tmp_path, make_checkpoint):
    made = make_checkpoint(tmp_path / "made")
    dataset = CheckpointDataset(filepath=str(made))
    config = json.loads((made / "config.json").read_text())
    assert json.loads(dataset.preview()) == {"config.json": config}
    (made / "realignment.json").write_text('{"alpha": 1.5}')
    assert json.loads(dataset.preview()) == {"realignment.json": {"alpha": 1.5}, "config.json": config}


def test_the_preview_of_a_repository_downloads_nothing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("downloads"))
    preview = CheckpointDataset(repo_id="a/b", revision="main").preview()
    assert json.loads(preview) == {"repo_id": "a/b", "revision": "main"}


def test_the_preview_of_checkpoints_says_how_each_was_made(tmp_path, make_checkpoint):
    dataset = CheckpointsDataset(filepath=str(tmp_path / "trra"))
    made = {}
    for alpha in (0.5, 1.5):
        made[f"{alpha}/trra-{alpha}"] = make_checkpoint(tmp_path / str(alpha))
        (tmp_path / str(alpha) / "realignment.json").write_text(json.dumps({"alpha": alpha}))
    dataset.save(made)
    assert json.loads(dataset.preview()) == {
        "0.5/trra-0.5": {"alpha": 0.5},
        "1.5/trra-1.5": {"alpha": 1.5},
    }


def test_the_preview_of_a_teacher_cache_is_short(tmp_path):
    folder = tmp_path / "cache"
    (folder / "reference").mkdir(parents=True)
    index = {"model": "abc", "lengths": [3, 4, 5], "shards": [{"file": "shard-00000.safetensors"}], "complete": True}
    (folder / "reference" / "index.json").write_text(json.dumps(index))
    assert json.loads(TeacherCacheDataset(filepath=str(folder)).preview()) == {
        "reference": {"model": "abc", "complete": True, "examples": 3, "tokens": 12, "shards": 1}
    }
