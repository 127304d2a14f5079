"""One run at a time in a data folder. That real runs take the lock is seen in test_kill.py."""

import os
import re
import select
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from pluggy import PluginManager

from realign_pipes.datasets.folders import FolderDataset
from realign_pipes.hooks import MissingInputError, MissingInputs
from realign_pipes.pipelines.plan.pipeline import create_pipeline as create_plan
from realign_pipes.runtime.lock import AnotherRunError, OneRunAtATime, take_lock

HOLDER = """
import os, signal, subprocess, sys
from pathlib import Path
from realign_pipes.runtime.lock import take_lock
take_lock(Path(sys.argv[1]), "kedro run --pipelines trra")
rank = subprocess.Popen(["sleep", "100"], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(rank.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_lock_is_free_again_when_its_holder_and_all_that_it_started_are_gone(tmp_path):
    lock = tmp_path / "run.lock"
    holder = subprocess.run([sys.executable, "-c", HOLDER, lock], capture_output=True, text=True, check=False)
    assert holder.returncode == -signal.SIGKILL, holder.stderr
    rank = os.pidfd_open(int(holder.stdout.split()[-1]))  # after what Kedro says of its logging
    try:
        with pytest.raises(AnotherRunError, match=r"process \d+ on .*, started 20.*kedro run --pipelines trra"):
            take_lock(lock, "kedro run")
    finally:
        signal.pidfd_send_signal(rank, signal.SIGKILL)
        ended = select.poll()  # select() takes no descriptor above 1,023
        ended.register(rank, select.POLLIN)
        ended.poll()
        os.close(rank)
    os.close(take_lock(lock, "kedro run"))


def test_other_folders_have_locks_of_their_own(tmp_path):
    one, other = take_lock(tmp_path / "one", "a"), take_lock(tmp_path / "other", "b")
    with pytest.raises(AnotherRunError, match=re.escape(f"process {os.getpid()} on ")):
        take_lock(tmp_path / "one", "c")
    os.close(one)
    os.close(take_lock(tmp_path / "one", "c"))
    os.close(other)


@pytest.fixture
def hooks(tmp_path):
    """Of a run whose places are below tmp_path."""
    from kedro.framework.hooks.manager import _create_hook_manager

    manager: PluginManager = _create_hook_manager()
    manager.register(OneRunAtATime())
    manager.register(MissingInputs())
    folders = {name: str(tmp_path / name) for name in ("work", "logs", "validation")}
    manager.hook.after_context_created(context=SimpleNamespace(config_loader={"parameters": {"folders": folders}}))
    return manager.hook


def run_of(tmp_path):
    """What Kedro hands to the hooks of a run that reads `model`."""
    return {
        "run_params": {"pipeline_names": ["trra"], "env": "mine"},
        "pipeline": Pipeline([Node(lambda model: model, "model", "out", name="node")]),
        "catalog": DataCatalog({"model": FolderDataset(filepath=str(tmp_path / "model"))}),
    }


def is_taken(tmp_path):
    try:
        os.close(take_lock(tmp_path / "work" / "run.lock", "a test"))
    except AnotherRunError:
        return True
    return False


def test_a_run_holds_the_lock_from_its_begin_to_its_end(tmp_path, hooks):
    (tmp_path / "model").mkdir()
    run = run_of(tmp_path)
    for end in (
        lambda: hooks.after_pipeline_run(run_result={}, **run),
        lambda: hooks.on_pipeline_error(error=SimpleNamespace(), **run),
    ):
        hooks.before_pipeline_run(**run)
        assert is_taken(tmp_path)
        assert "kedro run --pipelines trra --env mine" in (tmp_path / "work" / "run.lock").read_text()
        end()
        assert not is_taken(tmp_path)


def test_a_plan_may_be_made_beside_a_run(tmp_path, hooks):
    half = tmp_path / "work" / "trra" / ".cache.123.tmp"
    half.mkdir(parents=True)
    lock = take_lock(tmp_path / "work" / "run.lock", "kedro run")
    hooks.before_pipeline_run(**run_of(tmp_path) | {"pipeline": create_plan(), "catalog": DataCatalog()})
    hooks.after_pipeline_run(run_result={}, **run_of(tmp_path))
    assert half.exists() and is_taken(tmp_path)
    with pytest.raises(AnotherRunError):
        hooks.before_pipeline_run(**run_of(tmp_path) | {"pipeline": create_plan() + run_of(tmp_path)["pipeline"]})
    os.close(lock)


def test_a_run_that_another_hook_refuses_does_not_keep_it(tmp_path, hooks):
    with pytest.raises(MissingInputError):
        hooks.before_pipeline_run(**run_of(tmp_path))
    assert not is_taken(tmp_path)


def test_after_an_interrupt_in_a_notebook_the_next_run_begins(tmp_path, hooks):
    (tmp_path / "model").mkdir()
    hooks.before_pipeline_run(**run_of(tmp_path))
    hooks.before_pipeline_run(**run_of(tmp_path))
    assert is_taken(tmp_path)


def test_a_run_puts_right_what_a_killed_one_left_before_it_looks_for_its_inputs(tmp_path, hooks):
    aside = tmp_path / ".model.123.old"
    aside.mkdir()
    (aside / "weights").write_text("whole")
    half = tmp_path / "work" / "trra" / ".cache.123.tmp"
    half.mkdir(parents=True)
    hooks.before_pipeline_run(**run_of(tmp_path))
    assert (tmp_path / "model" / "weights").read_text() == "whole"
    assert not aside.exists() and not half.exists()
