"""The log of a run where a run goes wrong. What a good and a failed one write is seen in test_run.py."""

import json
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
