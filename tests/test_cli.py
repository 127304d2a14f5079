"""Which errors are explained in few lines, and what stays a traceback; integration/test_console.py has the commands."""

import pytest
from kedro.io import DatasetError
from kedro.pipeline import Pipeline

from realign_pipes.__main__ import main
from realign_pipes.cli import MAX_LINES, explain, report
from realign_pipes.errors import InputError, MissingFileError, UserError
from realign_pipes.models.trust import CheckpointError
from realign_pipes.paper.trra import TrainingDivergedError
from realign_pipes.runtime.files import DiskFullError
from realign_pipes.runtime.launch import LaunchError
from realign_pipes.runtime.lock import AnotherRunError
from realign_pipes.runtime.work import OccupiedFolderError
from realign_pipes.teachers.hidden_states import CacheMismatchError


def raised(error, cause=None):
    try:
        raise error from cause
    except Exception as found:
        return found


def raised_while_handling(error, first):
    try:
        try:
            raise first
        except Exception:
            raise error  # noqa: B904  without a cause
    except Exception as found:
        return found


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InputError, ValueError),
        (MissingFileError, FileNotFoundError),
        (CheckpointError, ValueError),
        (CacheMismatchError, ValueError),
        (DiskFullError, OSError),
        (AnotherRunError, RuntimeError),
        (LaunchError, RuntimeError),
        (OccupiedFolderError, FileExistsError),
        (TrainingDivergedError, ArithmeticError),
    ],
)
def test_errors_of_users_are_what_they_were_to_those_who_catch_them(kind, builtin):
    error = raised(kind("what, where, what to do"))
    assert isinstance(error, UserError) and isinstance(error, builtin)
    assert str(error) == explain(error) == "what, where, what to do"


def test_what_the_user_can_mend_is_found_wherever_it_is_wrapped():
    error = raised(InputError("mend this"))
    assert explain(raised(DatasetError("Failed while saving"), error)) == "mend this"
    assert explain(raised(KeyError("x"), raised(DatasetError("Failed"), error))) == "mend this"
    assert explain(raised_while_handling(KeyError("x"), InputError("mend this"))) == "mend this"


@pytest.mark.parametrize(
    "error",
    [
        raised(ValueError("of the library")),
        raised(KeyError("x")),
        raised(DatasetError("Failed while saving data"), raised(TypeError("not JSON"))),
        ValueError("never raised"),
    ],
    ids=repr,
)
def test_anything_else_is_unexpected(error):
    assert explain(error) is None


def test_what_kedro_says_of_its_options_and_of_data_is_enough():
    with pytest.raises(ValueError) as error:
        Pipeline([]).only_nodes("train")
    assert explain(error.value) == str(error.value)
    unreadable = DatasetError("Failed while loading data from dataset x: no such file")
    assert explain(raised(unreadable, raised(OSError("no such file")))) == str(unreadable)
    assert explain(raised(DatasetError("Class 'x' not found, is this a typo?"))).startswith("Class 'x'")


def test_a_long_explanation_is_cut_and_says_so(capsys):
    report(raised(InputError("\n".join(f"line {number}" for number in range(50)))), verbose=False)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == ["Error: line 0", *(f"line {number}" for number in range(1, 8)), "… and 42 more lines"]
    assert last == "Full traceback: the same command with --verbose."
    error = raised(InputError("\n".join(f"line {number}" for number in range(50))))
    error.add_note("What was found: data_docs/index.html")
    error.add_note("Full traceback: logs/now.log")
    report(error, verbose=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[7:] == ["… and 43 more lines", *error.__notes__]
    assert len(lines) == MAX_LINES


def test_where_the_traceback_is_comes_last_or_the_traceback_itself_first(capsys):
    error = raised(InputError("mend this"))
    error.add_note("Full traceback: logs/now.log")
    report(error, verbose=False)
    assert capsys.readouterr().err == "Error: mend this\nFull traceback: logs/now.log\n"
    report(error, verbose=True)
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):") and "Error: mend this\n" in said
    report(raised(KeyError("x")), verbose=False)
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):") and said.endswith("KeyError: 'x'\n")


def test_without_the_pipelines_the_program_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("realign_pipes.__main__.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        main()
    assert str(error.value).endswith("pip install 'realign_pipes[pipeline]'") and "\n" not in str(error.value)
