"""Work that is done once, and atomic writes: nothing is lost, nothing is half-written under its final name."""

import os
import resource
import shutil
import signal
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from realign_pipes.runtime.files import DiskFullError, atomic_path, explain_full_disk, recover
from realign_pipes.runtime.work import DESCRIPTION, do_once, open_work


def test_work_of_the_same_description_is_found_again(tmp_path):
    folder = open_work(tmp_path / "work", {"steps": 3, "alpha": 0.5})
    (folder / "done").write_text("1")
    assert (open_work(tmp_path / "work", {"alpha": 0.5, "steps": 3}) / "done").exists()
    assert not (open_work(tmp_path / "work", {"alpha": 0.5, "steps": 4}) / "done").exists()


def test_a_folder_that_is_no_work_is_not_emptied(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("1")
    with pytest.raises(FileExistsError, match="mine is needed as a work folder, but holds something else"):
        open_work(tmp_path / "mine", {"steps": 3})
    assert (tmp_path / "mine" / "thesis").exists()


RECIPE = {"steps": 3}


class Counting:
    """Work of three steps, each noted in the file `state`; the result is their sum, in a file or in a folder's two."""

    def __init__(self, kind="file", stop_at=None, fail=None):
        self.kind, self.stop_at, self.fail = kind, stop_at, fail
        self.began_at = None

    def __call__(self, folder):
        state = folder / "state"
        done = int(state.read_text()) if state.exists() else 0
        self.began_at = done
        for step in range(done, 3):
            if step == self.stop_at:
                raise KeyboardInterrupt
            with atomic_path(state) as temporary:
                temporary.write_text(str(step + 1))
        (folder / "notes").mkdir(exist_ok=True)
        (folder / "notes" / "more").write_text("state too")
        return partial(self.write, state)

    def write(self, state, path):
        total = str(sum(range(1, 1 + int(state.read_text()))))
        if self.kind == "folder":
            path.mkdir()
            (path / "first").write_text(total)
            if self.fail:
                raise self.fail
            (path / "second").write_text(total)
        else:
            path.write_text(total)
            if self.fail:
                raise self.fail


def result_of(path):
    return [file.read_text() for file in ([path / "first", path / "second"] if path.is_dir() else [path])]


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_finished_work_is_found_again_and_its_state_is_removed(tmp_path, kind):
    made = do_once(tmp_path / "work", "sum", RECIPE, Counting(kind))
    assert made == tmp_path / "work" / "sum"
    assert set(result_of(made)) == {"6"}
    assert names(tmp_path / "work") == ["sum", DESCRIPTION]
    before = made.stat().st_ino
    (tmp_path / "work" / "state").write_text("3")  # as if it was killed before it removed its state
    assert do_once(tmp_path / "work", "sum", dict(RECIPE), lambda folder: pytest.fail("done again")) == made
    assert made.stat().st_ino == before
    assert names(tmp_path / "work") == ["sum", DESCRIPTION]


def test_interrupted_work_resumes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        do_once(tmp_path / "work", "sum", RECIPE, Counting(stop_at=2))
    assert names(tmp_path / "work") == ["state", DESCRIPTION]
    again = Counting()
    assert result_of(do_once(tmp_path / "work", "sum", RECIPE, again)) == ["6"]
    assert again.began_at == 2


@pytest.mark.parametrize("finished", [True, False])
def test_work_of_another_description_starts_afresh(tmp_path, finished):
    if finished:
        do_once(tmp_path / "work", "sum", RECIPE, Counting())
    else:
        with pytest.raises(KeyboardInterrupt):
            do_once(tmp_path / "work", "sum", RECIPE, Counting(stop_at=2))
    again = Counting(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        do_once(tmp_path / "work", "sum", {"steps": 4}, again)
    assert again.began_at == 0
    assert names(tmp_path / "work") == ["state", DESCRIPTION], "the result of the other is gone"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("fail", "error"), [(OSError(28, "No space left on device"), DiskFullError), (RuntimeError("odd"), RuntimeError)]
)
def test_a_result_that_cannot_be_written_leaves_its_state_for_the_next_run(tmp_path, kind, fail, error):
    with pytest.raises(error):
        do_once(tmp_path / "work", "sum", RECIPE, Counting(kind, fail=fail))
    assert names(tmp_path / "work") == ["notes", "state", DESCRIPTION]
    again = Counting(kind)
    assert set(result_of(do_once(tmp_path / "work", "sum", RECIPE, again))) == {"6"}
    assert again.began_at == 3


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_work_killed_at_any_moment_is_done_once_in_the_end(tmp_path, kind):
    event, came_to = 0, set()
    while killed_at(event, partial(do_once, tmp_path / str(event), "sum", RECIPE, Counting(kind))):
        folder = tmp_path / str(event)
        found = folder / "sum"
        assert not found.exists() or set(result_of(found)) == {"6"}, "half a result"
        recover(folder)
        again = Counting(kind)
        assert set(result_of(do_once(folder, "sum", RECIPE, again))) == {"6"}
        assert names(folder) == ["sum", DESCRIPTION]
        came_to.add(again.began_at)
        event += 1
    assert came_to == {0, 1, 2, 3, None}  # steps that were done before the kill; None: it was finished


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_write_keeps_what_was_there(tmp_path, kind):
    target = tmp_path / "target"

    def write(content, fail):
        with atomic_path(target) as temporary:
            if kind == "folder":
                temporary.mkdir()
                (temporary / "file").write_text(content)
            else:
                temporary.write_text(content)
            if fail:
                raise OSError(28, "No space left on device")

    def read():
        return (target / "file" if kind == "folder" else target).read_text()

    write("old", fail=False)
    with pytest.raises(OSError, match="No space"):
        write("new", fail=True)
    assert read() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    write("new", fail=False)
    assert read() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def killed_at(event, action):
    """Run `action` in a child that is killed at its `event`-th access to the file system: whether it came that far."""
    child = os.fork()
    if child == 0:
        left = event

        def count(name, _):
            nonlocal left
            if name == "open" or name.partition(".")[0] in ("os", "shutil"):
                left -= 1
                if left == -1:
                    os.kill(os.getpid(), signal.SIGKILL)  # an event too

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_any_moment_it_is_the_old_or_the_new_after_recovery(tmp_path, kind):
    target = tmp_path / "deep" / "target"

    def write(content):
        with atomic_path(target) as temporary:
            if kind == "folder":
                (temporary / "below").mkdir(parents=True)
                (temporary / "first").write_text(content)
                (temporary / "below" / "second").write_text(content)
            else:
                temporary.write_text(content)

    def read():
        files = [target / "first", target / "below" / "second"] if kind == "folder" else [target]
        return {file.read_text() for file in files}

    event, seen = 0, set()
    write("0")
    while killed_at(event, partial(write, str(event + 1))):
        if target.exists():  # a moment without it there may be, one of half of it never
            assert read() < {str(event), str(event + 1)}
        for aside in target.parent.glob(".*.old"):  # never half removed: it may be put back
            assert {(aside / "first").read_text(), (aside / "below" / "second").read_text()} == {str(event)}
        recover(target)
        seen.add(read() == {str(event)})
        assert read() < {str(event), str(event + 1)}
        assert os.listdir(target.parent) == ["target"]
        event += 1
        write(str(event))
    assert seen == {True, False}  # it was killed before and after the last rename
    assert event >= (6 if kind == "folder" else 3)


def test_recovery_goes_below_a_folder_and_leaves_alone_what_is_not_of_its_kind(tmp_path):
    work = tmp_path / "work"
    (work / "trra" / ".model.12.old").mkdir(parents=True)
    (work / "trra" / ".model.12.old" / "weights").write_text("whole")
    (work / "trra" / ".cache.7.tmp").mkdir()
    (work / "trra" / ".cache.7.tmp" / ".inner.7.tmp").write_text("half")
    (work / ".hidden").write_text("mine")
    (tmp_path / ".work.9.tmp").write_text("half")
    (tmp_path / ".other.9.tmp").write_text("of a run in another folder")
    recover(work)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"work/trra/model/weights", "work/.hidden", ".other.9.tmp"}
    recover(tmp_path / "never" / "made")


@pytest.mark.parametrize("number", [28, 122, 27])  # no space, quota, size of a file
def test_a_full_disk_is_named_with_the_file_and_what_to_do(tmp_path, number):
    with (
        pytest.raises(DiskFullError, match=r"No space left to write .*inner .*start the same run again"),
        atomic_path(tmp_path / "outer"),
        atomic_path(tmp_path / "inner"),
    ):
        try:
            raise OSError(number, "as the system says it")
        except OSError as cause:
            raise RuntimeError("as a library says it") from cause


NUMBERS = np.random.default_rng(0).random(50_000)  # 400 kB, which no format makes much smaller
WRITERS = {
    "torch": lambda path, _: torch.save(torch.from_numpy(NUMBERS), path),
    "safetensors": lambda path, _: save_file({"numbers": torch.from_numpy(NUMBERS)}, path),
    "parquet": lambda path, _: pd.DataFrame({"numbers": NUMBERS}).to_parquet(path),
    "arrow": lambda path, _: Dataset.from_dict({"numbers": NUMBERS}).save_to_disk(path),
    "text": lambda path, _: path.write_text(str(NUMBERS.tolist())),
    "a copy of a folder": lambda path, other: shutil.copytree(other, path),
}


@pytest.mark.parametrize("what", WRITERS)
def test_whatever_a_library_makes_of_a_full_disk_is_one_error(tmp_path, what):
    """A limit on the size of files, which needs no root as a small file system does."""
    other = tmp_path / "other"
    other.mkdir()
    np.save(other / "numbers.npy", NUMBERS)
    target = tmp_path / "target"
    target.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"No space left to write .*target "), atomic_path(target) as temporary:
            WRITERS[what](temporary, other)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["other", "target"]


def test_other_errors_are_left_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), explain_full_disk(tmp_path / "target"):
        raise ZeroDivisionError
    with pytest.raises(PermissionError), explain_full_disk(tmp_path / "target"):
        raise PermissionError(13, "not yours")
    assert list(tmp_path.iterdir()) == []
