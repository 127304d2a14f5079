"""Folders as Kedro datasets. Nodes hand over paths, never live models; these datasets check them and copy them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError
from kedro_datasets._typing import JSONPreview

from realign_pipes.runtime.files import atomic_path


def _place(source: Path, target: Path) -> None:
    """Make `target` a copy of folder `source`, in one rename. Files are hard links where the file system allows."""

    def link_or_copy(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(file, to)

    with atomic_path(target) as temporary:
        shutil.copytree(source, temporary, copy_function=link_or_copy)


class FolderDataset(AbstractDataset[Path, Path]):
    """A folder that a node made elsewhere. `save(path)` puts a copy in place in one step; `load()` returns its path."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Path:
        if not self._filepath.is_dir():
            raise DatasetError(f"{self._filepath} does not exist.")
        return self._filepath

    def save(self, data: Path) -> None:
        _place(data, self._filepath)

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class PathDataset(FolderDataset):
    """The path of a folder that another pipeline makes, and that may be missing: the node looks for itself."""

    def load(self) -> Path:
        return self._filepath

    def save(self, data: Path) -> None:
        raise DatasetError(f"{self._filepath} is made by another pipeline.")

    def _exists(self) -> bool:
        return True


class TeacherCacheDataset(FolderDataset):
    """The folder of the stage teacher_logits: a cache of hidden states per model, or none with online teachers."""

    def preview(self) -> JSONPreview:
        """What each cache was made from and how large it is, for Kedro-Viz, without its lists of lengths and shards."""
        caches = {}
        for file in sorted(self.load().glob("*/index.json")):
            index = json.loads(file.read_text())
            shards, lengths = index.pop("shards"), index.pop("lengths")
            caches[file.parent.name] = {
                **index,
                "examples": len(lengths),
                "tokens": sum(lengths),
                "shards": len(shards),
            }
        return JSONPreview(json.dumps(caches))


class CheckpointDataset(AbstractDataset[Path, Path]):
    """A Hugging Face checkpoint: a directory (`filepath`), or a repository of the hub (`repo_id`, `revision`).

    `load()` returns the path of a local directory with a config and safetensors; a hub repository is downloaded into
    the Hugging Face cache first. `save(path)` puts a copy of a finished checkpoint directory in place in one step.
    """

    def __init__(
        self,
        *,
        filepath: str | None = None,
        repo_id: str | None = None,
        revision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if (filepath is None) == (repo_id is None):
            raise DatasetError("a checkpoint needs either `filepath` or `repo_id` (with `revision`).")
        self._filepath = None if filepath is None else Path(filepath)
        self._repo_id = repo_id
        self._revision = revision
        self.metadata = metadata

    def load(self) -> Path:
        from realign_pipes.models.trust import check_checkpoint

        if self._filepath is None:
            from realign_pipes.models.hub import download

            path = download(str(self._repo_id), self._revision)
        else:
            path = self._filepath
        check_checkpoint(path)
        return path

    def save(self, data: Path) -> None:
        if self._filepath is None:
            raise DatasetError(f"{self._repo_id} is a repository of the hub; checkpoints are saved to a `filepath`.")
        _place(data, self._filepath)

    def _exists(self) -> bool:
        return self._filepath is None or self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "repo_id": self._repo_id, "revision": self._revision}

    def preview(self) -> JSONPreview:
        """The JSON files that describe the checkpoint, for Kedro-Viz. It downloads nothing."""
        if self._filepath is None:
            return JSONPreview(json.dumps({"repo_id": self._repo_id, "revision": self._revision}))
        files = [self._filepath / name for name in ("realignment.json", "inra_config.json", "config.json")]
        return JSONPreview(json.dumps({file.name: json.loads(file.read_text()) for file in files if file.exists()}))


class CheckpointsDataset(AbstractDataset[dict[str, Path], dict[str, Path]]):
    """Checkpoints by their path below `filepath`, such as `1.5/trra-1.5`.

    Saving leaves other checkpoints in place, because a run may make only one of many; loading returns all of them.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> dict[str, Path]:
        files = [file for name in ("config.json", "adapter_config.json") for file in self._filepath.rglob(name)]
        folders = {file.parent.relative_to(self._filepath): file.parent for file in files}
        # A leading dot marks a copy that was interrupted.
        names = sorted(name for name in folders if not any(part.startswith(".") for part in name.parts))
        return {name.as_posix(): folders[name] for name in names}

    def save(self, data: dict[str, Path]) -> None:
        self._filepath.mkdir(parents=True, exist_ok=True)  # without checkpoints too: there are none then
        for name, source in data.items():
            _place(source, self._filepath / name)

    def _exists(self) -> bool:
        return self._filepath.is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def preview(self) -> JSONPreview:
        """How each checkpoint was made, by name, for Kedro-Viz."""
        made = {name: json.loads((path / "realignment.json").read_text()) for name, path in self.load().items()}
        return JSONPreview(json.dumps(made))
