"""What the nodes of the trainings hand over to their jobs."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset

from realign_pipes.data.parameters import Models
from realign_pipes.pipelines.inra import nodes as inra
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra import nodes as trra
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Folders, Launcher
from realign_pipes.runtime.tracking import NOT_TRACKED
from realign_pipes.teachers.parameters import Teachers

BASE = Path(__file__).parents[2] / "conf" / "base"


def base_parameters(stage):
    """Those of conf/base."""
    values = yaml.safe_load((BASE / f"parameters_{stage}.yml").read_text())[stage]
    return {"trra": TrRa, "inra": InRa}[stage].model_validate(values)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("stage", ["trra", "inra"])
def test_the_chat_template_of_the_models_goes_to_the_job(tmp_path, monkeypatch, stage, given):
    """As a path that means the same in every process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given.jinja").touch()
    Dataset.from_list([{"id": "x"}]).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(str(tmp_path / "rows"))
    arguments = {
        "parameters": base_parameters(stage),
        "teachers": Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12),
        "models": Models(chat_template="given.jinja" if given else None, thinking=None),
        "launcher": Launcher(num_processes=1, config_file=None),
        "folders": Folders(work="work", logs="logs", validation="validation"),
        "tracking": NOT_TRACKED,
        "reference_model": tmp_path / "reference",
        "aligned_model": tmp_path / "aligned",
        "calibration_set": rows,
        "teacher_cache": tmp_path / "cache",
    }
    jobs, made = [], SimpleNamespace(checkpoints={}, checkpoint=tmp_path)
    for module in (trra, inra):
        monkeypatch.setattr(module, "launch", lambda job, *rest, **named: jobs.append(job) or made)
    if stage == "trra":
        trra.train_students(**arguments)
    else:
        inra.train_adapter(**arguments, short_solutions=rows, preference_pairs=rows)
    assert jobs[0].chat_template == (tmp_path / "given.jinja" if given else None)
