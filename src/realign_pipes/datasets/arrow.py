"""A Kedro dataset for a `datasets.Dataset` in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import TablePreview

from realign_pipes.runtime.files import atomic_path

if TYPE_CHECKING:
    from datasets import Dataset


class ArrowDataset(AbstractDataset):
    """A `datasets.Dataset` in the folder `filepath`, which a save replaces.

    kedro_datasets.huggingface has one too, but importing it takes eight seconds (it imports torch and transformers),
    and a save into an existing folder leaves old files behind.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> Dataset:
        import datasets

        return datasets.Dataset.load_from_disk(str(self._filepath))

    def save(self, data: Dataset) -> None:
        with atomic_path(self._filepath) as temporary:
            # Without rows it would write no file at all, and then could not load what it wrote.
            data.save_to_disk(str(temporary), num_shards=None if len(data) else 1)

    def _exists(self) -> bool:
        return (self._filepath / "dataset_info.json").exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def preview(self, nrows: int = 5) -> TablePreview:
        """The first rows as a table for Kedro-Viz, lists of ids as text."""
        data = self.load()
        return data.select(range(min(nrows, len(data)))).to_pandas().astype(str).to_dict(orient="split")


def folder_of(data: Dataset) -> Path:
    """The folder from which a data set was loaded. ValueError for one that was made in memory."""
    files = {Path(file["filename"]).parent for file in data.cache_files}
    if len(files) != 1:
        raise ValueError("a data set in memory has no folder: save it and load it again")
    return files.pop()
