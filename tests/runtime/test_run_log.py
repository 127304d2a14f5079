"""The log of a run where a run goes wrong. What a good and a failed one write is seen in test_run.py."""

import json
import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path
from types import SimpleNamespace

from realign_pipes.runtime.run_log import RunLog


def test_a_log_that_cannot_be_written_is_said_and_hides_nothing(caplog):
    log = RunLog()
    log.file = Path("/dev/full")  # every write fails, as on a full disk
    log.before_node_run(SimpleNamespace(name="train"))
    log.on_node_error(OSError("the disk is full"), SimpleNamespace(name="train"))
    assert "/dev/full lacks the line" in caplog.text and "'event': 'node failed'" in caplog.text
    assert "the disk is full" in caplog.text


def test_lines_are_json_of_what_happened(tmp_path):
    log = RunLog()
    log.file = tmp_path / "log.jsonl"
    log.before_node_run(SimpleNamespace(name="train"))
    log.on_node_error(OSError("the disk is full"), SimpleNamespace(name="train"))
    (line,) = (json.loads(line) for line in log.file.read_text().splitlines())
    assert (line["event"], line["node"], line["error"]) == ("node failed", "train", "OSError('the disk is full')")


def test_a_run_that_fails_says_with_the_error_where_its_traceback_is(tmp_path):
    log = RunLog()
    log._open(tmp_path / "run.log")
    error = ZeroDivisionError("division by zero")
    try:
        raise error
    except ZeroDivisionError:
        log._fail(error)
    assert error.__notes__ == [f"Full traceback: {tmp_path / 'run.log'}"]
    assert "Traceback (most recent call last)" in (tmp_path / "run.log").read_text()
    logging.getLogger("realign_pipes").error("after the run")
    assert "after the run" not in (tmp_path / "run.log").read_text()


def test_a_log_on_a_full_disk_is_silent_and_not_pointed_to(capsys):
    log = RunLog()
    log._open(Path("/dev/full"))
    error = OSError("the disk is full")
    log._fail(error)
    assert not hasattr(error, "__notes__")
    assert "Logging error" not in capsys.readouterr().err


def test_what_was_logged_before_the_run_had_a_file_is_in_it(tmp_path):
    waiting = MemoryHandler(100, flushLevel=sys.maxsize)
    logging.getLogger().addHandler(waiting)
    logging.getLogger("kedro").warning("while the command began")
    log = RunLog()
    log._open(tmp_path / "run.log")
    log._close()
    assert "WARNING kedro: while the command began" in (tmp_path / "run.log").read_text()
    assert waiting not in logging.getLogger().handlers
