"""How a job gets to its processes and its result back. What two processes make is seen in tests/integration."""

import subprocess
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from realign_pipes.runtime.launch import (
    AbsolutePath,
    Job,
    Launcher,
    LaunchError,
    launch,
    run_written_job,
    write_job,
)
from realign_pipes.runtime.parameters import Training

TWO = Launcher(num_processes=2, config_file=None)
TRAINING = Training(
    steps=4, batch_size=8, micro_batch_size=2, learning_rate=1e-2, warmup_ratio=0.0, weight_decay=0.0,
    max_grad_norm=1.0, gradient_checkpointing=False, save_steps=2, seed=5,
)  # fmt: skip


class Greeting(BaseModel):
    text: str
    file: Path


class Greet(Job[Greeting]):
    name: str
    work: AbsolutePath

    def run(self) -> Greeting:
        return Greeting(text=f"Hello {self.name}", file=self.work / "greeting")


@pytest.fixture
def job(tmp_path):
    return Greet(name="world", work=tmp_path / "work")


@pytest.fixture
def never_here(monkeypatch):
    monkeypatch.setattr(Greet, "run", lambda self: pytest.fail("the job runs in this process"))


def processes_that(monkeypatch, do):
    """`launch` starts no process but calls `do` with the job's folder; the commands that it would have run."""
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, do(Path(command[-1])) or 0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_one_process_runs_the_job_here(job, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("starts processes"))
    made = launch(job, Greeting, Launcher(num_processes=1, config_file=None), tmp_path / "launch", training=None)
    assert made == Greeting(text="Hello world", file=tmp_path / "work" / "greeting")


def test_the_result_that_the_processes_wrote_is_read_and_never_computed_again(job, tmp_path, monkeypatch, never_here):
    folder = tmp_path / "launch" / "greet"

    def write(found):
        assert found == folder
        assert Greet.model_validate_json((found / "job.json").read_text()) == job
        (found / "result.json").write_text('{"text": "of the processes", "file": "/there"}')

    commands = processes_that(monkeypatch, write)
    made = launch(job, Greeting, TWO, folder, training=None)
    assert made == Greeting(text="of the processes", file=Path("/there"))
    (command,) = commands
    assert command[-3:] == ["-m", Greet.__module__, str(folder)]
    assert not folder.exists()


def test_processes_without_a_result_are_an_error_also_where_an_earlier_launch_left_one(
    job, tmp_path, monkeypatch, never_here
):
    folder = tmp_path / "launch" / "greet"
    write_job(job, folder)
    (folder / "result.json").write_text('{"text": "of another launch", "file": "/there"}')
    processes_that(monkeypatch, lambda found: None)
    with pytest.raises(LaunchError, match=r"2 processes of the stage greet .* wrote no result to .*greet/result.json"):
        launch(job, Greeting, TWO, folder, training=None)


def test_processes_that_fail_name_stage_and_exit_code(job, tmp_path, monkeypatch, never_here):
    processes_that(monkeypatch, lambda found: 3)
    with pytest.raises(LaunchError, match=rf"2 processes of the stage greet ended with exit code 3.*in {tmp_path}"):
        launch(job, Greeting, TWO, tmp_path / "launch" / "greet", training=None)


@pytest.mark.parametrize("text", ["{}", '{"text": 3, "file": "x"}', "half a res"])
def test_a_result_of_another_form_is_refused(job, tmp_path, monkeypatch, never_here, text):
    processes_that(monkeypatch, lambda found: (found / "result.json").write_text(text) and None)
    with pytest.raises(ValidationError, match="Greeting"):
        launch(job, Greeting, TWO, tmp_path / "launch", training=None)


def test_a_process_writes_what_the_job_returns(job, tmp_path):
    write_job(job, tmp_path / "job")
    run_written_job(Greet, tmp_path / "job")
    written = Greeting.model_validate_json((tmp_path / "job" / "result.json").read_text())
    assert written == job.run()
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == ["job.json", "result.json"]


def test_only_the_main_process_writes(job, tmp_path, monkeypatch):
    from accelerate import PartialState

    write_job(job, tmp_path / "job")
    monkeypatch.setattr(PartialState, "is_main_process", property(lambda self: False))
    run_written_job(Greet, tmp_path / "job")
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["job.json"]


def test_a_path_of_a_job_means_the_same_in_every_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Greet(name="x", work=Path("data/work")).work == tmp_path / "data" / "work"


def test_a_job_has_the_fields_that_it_declares(tmp_path):
    with pytest.raises(ValidationError, match="nme"):
        Greet(nme="x", name="x", work=tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributed_type": "DEEPSPEED"}, "distributed_type DEEPSPEED is not supported"),
        ({"distributed_type": "FSDP"}, "fsdp_config.fsdp_version is None and must be 2"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": True}},
         "fsdp_cpu_ram_efficient_loading is True and must be False"),
        ({"num_machines": 4}, "num_processes 6 is not a multiple of the 4 machines"),
        (None, "distributed_type None is not supported"),
        ({}, "batch_size 8 is not a multiple of micro_batch_size 2 times launcher.num_processes 6"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(job, tmp_path, monkeypatch, never_here, changes, said):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("starts processes"))
    content = "" if changes is None else yaml.safe_dump({"distributed_type": "MULTI_GPU", **changes})
    (tmp_path / "accelerate.yaml").write_text(content)
    launcher = Launcher(num_processes=6, config_file=tmp_path / "accelerate.yaml")
    with pytest.raises(ValueError, match=said):
        launch(job, Greeting, launcher, tmp_path / "launch", training=TRAINING if changes == {} else None)
    assert not (tmp_path / "launch").exists()


def test_a_launcher_is_checked_with_the_parameters():
    with pytest.raises(ValueError, match=r"there is no file nothing.yaml in .*Give the path of a configuration"):
        Launcher.model_validate({"num_processes": 1, "config_file": "nothing.yaml"})
    with pytest.raises(ValueError, match="num_processes"):
        Launcher.model_validate({"num_processes": 0, "config_file": None})
