"""Datasets of files in the catalog: a save that is killed half way leaves what was there."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import yaml
from fsspec.implementations.local import LocalFileOpener
from kedro.io import DataCatalog
from kedro_datasets._typing import PlotlyPreview, TablePreview

from realign_pipes.datasets.files import CSVDataset, PlotlyDataset
from realign_pipes.runtime.files import LEFTOVER

PROJECT = Path(__file__).parents[2]
CATALOG = {
    name: entry
    for env in ("base", "dialogue", "smollm2")
    for name, entry in yaml.safe_load(
        (PROJECT / "conf" / env / "catalog.yml").read_text().replace("${globals:data}", "data")
    ).items()
}
FRAME = pd.DataFrame({"candidate": ["reference", "trra-1.5"] * 300, "pass_at_1": [0.5, 0.25] * 300})
BEFORE_AND_AFTER: dict[str, tuple[Any, Any]] = {
    "recommendation": ({"candidate": "inra-1"}, {"candidate": "trra-1.5", "sentence": "Take it. " * 100}),
    "sweep_table_markdown": ("| a |\n", "| b |\n" * 1000),
    "sweep_results": (FRAME.head(1), FRAME),
    "tax_results": (FRAME.head(1), FRAME),
    "scores": (FRAME.head(1), FRAME),
    "dialogue_questions": (FRAME.head(1), FRAME),
    "pareto_figure": (go.Figure(), go.Figure(go.Scatter(x=list(range(1000)), y=list(range(1000))))),
    "generations": ({"dropped": FRAME.head(2), "kept": FRAME.head(1)}, {"kept": FRAME, "new": FRAME}),
}


def stored(name: str, tmp_path: Path) -> DataCatalog:
    """The catalog's entry `name`, below `tmp_path`."""
    entry = {key: value for key, value in CATALOG[name].items() if key != "validator"}
    key = "path" if "path" in entry else "filepath"
    entry[key] = str(tmp_path / entry[key])
    return DataCatalog.from_config({name: entry})


def files(folder: Path) -> dict[str, bytes]:
    """Content by name of all files below `folder`, less those under a temporary name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder): path for path in paths}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in names.items()
        if not any(LEFTOVER.fullmatch(part) for part in name.parts)
    }


def test_whatever_the_catalog_saves_is_of_a_class_that_saves_it_whole():
    assert {entry["type"].rpartition(".")[0] for entry in CATALOG.values()} == {
        "realign_pipes.datasets.arrow", "realign_pipes.datasets.files", "realign_pipes.datasets.folders",
    }  # fmt: skip
    types = {entry["type"] for entry in CATALOG.values() if entry["type"].startswith("realign_pipes.datasets.files")}
    assert types == {CATALOG[name]["type"] for name in BEFORE_AND_AFTER}  # all are tried below


def test_a_table_that_need_not_be_there_loads_without_rows(tmp_path):
    catalog = stored("tax_results", tmp_path)
    assert catalog.load("tax_results").empty and not catalog.exists("tax_results")
    catalog.save("tax_results", FRAME)
    pd.testing.assert_frame_equal(catalog.load("tax_results"), FRAME)


@pytest.mark.parametrize("name", BEFORE_AND_AFTER)
def test_a_save_that_is_killed_leaves_what_was_there(name, tmp_path):
    before, after = BEFORE_AND_AFTER[name]
    catalog = stored(name, tmp_path)
    catalog.save(name, before)
    was = files(tmp_path)
    child = os.fork()
    if child == 0:  # killed in the middle of its first write
        write = LocalFileOpener.write

        def write_half(self: LocalFileOpener, content: bytes | str) -> None:
            write(self, content[: len(content) // 2])
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        LocalFileOpener.write = write_half
        try:
            catalog.save(name, after)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert files(tmp_path) == was
    catalog.save(name, after)
    assert was.items().isdisjoint(files(tmp_path).items())


def test_partitions_are_replaced_as_a_whole_and_read_back(tmp_path):
    catalog = stored("generations", tmp_path)
    before, after = BEFORE_AND_AFTER["generations"]
    catalog.save("generations", before)
    assert sorted(catalog.load("generations")) == ["dropped", "kept"]
    catalog.save("generations", after)
    loaded = catalog.load("generations")
    assert sorted(loaded) == ["kept", "new"]
    pd.testing.assert_frame_equal(loaded["kept"](), FRAME)
    catalog.save("generations", {})
    assert list((tmp_path / CATALOG["generations"]["path"]).iterdir()) == []


def test_a_failed_save_names_the_file_and_not_the_temporary_one(tmp_path):
    catalog = stored("recommendation", tmp_path)
    with pytest.raises(Exception, match=r"(?s)recommendation\.json.*not JSON serializable") as error:
        catalog.save("recommendation", {"what": object()})
    assert ".tmp" not in str(error.value)
    assert not files(tmp_path)


def test_previews_are_those_of_the_classes_that_they_extend(tmp_path):
    table = CSVDataset(filepath=str(tmp_path / "table.csv"), save_args={"index": False})
    table.save(FRAME)
    assert len(TablePreview(table.preview(nrows=2))["data"]) == 2
    figure = PlotlyDataset(filepath=str(tmp_path / "figure.json"))
    figure.save(go.Figure(go.Scatter(y=[1, 2])))
    assert json.loads(json.dumps(PlotlyPreview(figure.preview())))["data"][0]["type"] == "scatter"
