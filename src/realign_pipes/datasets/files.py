"""Kedro's datasets of files and partitions, saved completely or not at all.

Those of kedro_datasets write under the final name, so a run that dies leaves half a file there. Here a save writes
under a temporary name, then renames. Everything else, Kedro-Viz's previews included, is kedro_datasets' own.
"""

from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pandas as pd
from kedro_datasets import json, pandas, partitions, plotly, text

from realign_pipes.runtime.files import atomic_path


class _SavedWhole:
    """A mixin for a dataset of one local file: its `save` writes to a temporary name first."""

    _filepath: PurePosixPath

    def save(self, data: Any) -> None:
        with atomic_path(Path(self._filepath)) as temporary:
            writer = copy(self)
            writer._filepath = PurePosixPath(temporary)
            super().save.__wrapped__(writer, data)  # type: ignore[misc]  # without Kedro's log of the temporary name


class JSONDataset(_SavedWhole, json.JSONDataset):
    """kedro_datasets.json.JSONDataset, saved completely or not at all."""


class TextDataset(_SavedWhole, text.TextDataset):
    """kedro_datasets.text.TextDataset, saved completely or not at all."""


class CSVDataset(_SavedWhole, pandas.CSVDataset):
    """kedro_datasets.pandas.CSVDataset, saved completely or not at all."""


class JSONLinesDataset(_SavedWhole, pandas.JSONDataset):
    """kedro_datasets.pandas.JSONDataset for a row a line (JSONL), saved completely or not at all."""

    DEFAULT_SAVE_ARGS: ClassVar[dict[str, Any]] = {"orient": "records", "lines": True}
    DEFAULT_LOAD_ARGS: ClassVar[dict[str, Any]] = {"lines": True, "dtype": False}


class ParquetDataset(_SavedWhole, pandas.ParquetDataset):
    """kedro_datasets.pandas.ParquetDataset, saved completely or not at all."""


class OptionalCSVDataset(CSVDataset):
    """A CSVDataset that a run can do without: where there is no file, it loads as a frame without rows or columns."""

    def load(self) -> pd.DataFrame:
        return super().load() if self._exists() else pd.DataFrame()


class PlotlyDataset(_SavedWhole, plotly.JSONDataset):
    """kedro_datasets.plotly.JSONDataset, saved completely or not at all."""


class PartitionedDataset(partitions.PartitionedDataset):
    """kedro_datasets.partitions.PartitionedDataset in a local folder, which a save replaces."""

    def save(self, data: dict[str, Any]) -> None:
        with atomic_path(Path(self._path)) as temporary:
            temporary.mkdir()  # without partitions, nothing else creates it
            writer = copy(self)
            writer._path = str(temporary)
            super().save.__wrapped__(writer, data)  # type: ignore[attr-defined]
        self._invalidate_caches()
