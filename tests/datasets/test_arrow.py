"""The Arrow dataset of the catalog: round trip, atomic replacement, preview."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from kedro.io import DatasetError

from realign_pipes.datasets.arrow import ArrowDataset, folder_of

DATA = datasets.Dataset.from_dict({"id": ["a", "b", "c"], "ids": [[1, 2], [], [3]], "correct": [True, False, True]})


def test_round_trip(tmp_path: Path) -> None:
    stored = ArrowDataset(filepath=str(tmp_path / "deep" / "set"))
    assert not stored.exists()
    stored.save(DATA)
    assert stored.exists()
    assert stored.load().to_dict() == DATA.to_dict()
    assert stored.load().features == DATA.features


def test_saving_selected_rows_saves_only_these(tmp_path: Path) -> None:
    stored = ArrowDataset(filepath=str(tmp_path / "set"))
    stored.save(DATA.select([2, 0]))
    assert stored.load()["id"][:] == ["c", "a"]
    assert stored.load().data.num_rows == 2


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    stored = ArrowDataset(filepath=str(tmp_path / "set"))
    stored.save(DATA)
    (tmp_path / "set" / "data-00007-of-00009.arrow").touch()  # as of an earlier save in more shards
    stored.save(stored.load().select([1]))  # read from the folder that it replaces
    assert stored.load()["id"][:] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert not (tmp_path / "set" / "data-00007-of-00009.arrow").exists()


def test_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ArrowDataset(filepath=str(tmp_path / "set"))
    stored.save(DATA)

    def full(self: datasets.Dataset, path: str, **options: object) -> None:
        Path(path).mkdir()
        (Path(path) / "data.arrow").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", full)
    with pytest.raises(DatasetError, match="No space left"):
        stored.save(DATA.select([0]))
    assert stored.load().to_dict() == DATA.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """So that DVC sees no change where there is none."""
    folders = []
    for name in ("first", "second"):
        ArrowDataset(filepath=str(tmp_path / name)).save(datasets.Dataset.from_dict(DATA.to_dict()))
        folders.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert folders[0] == folders[1]


def test_preview(tmp_path: Path) -> None:
    stored = ArrowDataset(filepath=str(tmp_path / "set"))
    stored.save(DATA)
    assert stored.preview(nrows=2) == {
        "index": [0, 1],
        "columns": ["id", "ids", "correct"],
        "data": [["a", "[1 2]", "True"], ["b", "[]", "False"]],
    }
    assert stored.preview.__annotations__["return"] in (
        "TablePreview",
        __import__("kedro_datasets")._typing.TablePreview,
    )


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = {"datasets", "torch", "transformers", "pandas"}
    code = f"import sys, realign_pipes.datasets.arrow; print(sorted({heavy!r} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_data_set_without_rows_keeps_its_columns_and_its_folder(tmp_path) -> None:
    dataset = ArrowDataset(filepath=str(tmp_path / "none"))
    dataset.save(DATA.select([]))
    loaded = dataset.load()
    assert (len(loaded), loaded.column_names) == (0, DATA.column_names) and folder_of(loaded) == tmp_path / "none"
