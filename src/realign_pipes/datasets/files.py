"""Kedro's datasets of files and partitions, saved whole.

Those of kedro_datasets write straight under the final name, so that a run which dies leaves half a file there. Here a
save writes under a temporary name and renames. The rest, Kedro-Viz's previews too, is kedro_datasets' own.
"""

from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any

from kedro_datasets import json, pandas, partitions, plotly, text

from realign_pipes.runtime.files import atomic_path


class _SavedWhole:
    """Goes before a dataset of one local file, whose `save` it hands another name."""

    _filepath: PurePosixPath

    def save(self, data: Any) -> None:
        with atomic_path(Path(self._filepath)) as temporary:
            writer = copy(self)
            writer._filepath = PurePosixPath(temporary)
            super().save.__wrapped__(writer, data)  # type: ignore[misc]  # less Kedro's words on the temporary name


class JSONDataset(_SavedWhole, json.JSONDataset):
    """kedro_datasets.json.JSONDataset, saved whole."""


class TextDataset(_SavedWhole, text.TextDataset):
    """kedro_datasets.text.TextDataset, saved whole."""


class CSVDataset(_SavedWhole, pandas.CSVDataset):
    """kedro_datasets.pandas.CSVDataset, saved whole."""


class PlotlyDataset(_SavedWhole, plotly.JSONDataset):
    """kedro_datasets.plotly.JSONDataset, saved whole."""


class PartitionedDataset(partitions.PartitionedDataset):
    """kedro_datasets.partitions.PartitionedDataset in a local folder, which a save replaces as a whole."""

    def save(self, data: dict[str, Any]) -> None:
        with atomic_path(Path(self._path)) as temporary:
            temporary.mkdir()  # there is a folder of no partitions too
            writer = copy(self)
            writer._path = str(temporary)
            super().save.__wrapped__(writer, data)  # type: ignore[attr-defined]
        self._invalidate_caches()
