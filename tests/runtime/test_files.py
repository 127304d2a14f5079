"""Lines that are appended whole or not at all."""

import resource
import signal

import pytest

from realign_pipes.runtime.files import DiskFullError, append_line


def test_lines_are_appended(tmp_path):
    file = tmp_path / "lines.jsonl"
    for line in ("one", "two"):
        append_line(file, line)
    assert file.read_text() == "one\ntwo\n"


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path):
    """With a limit on the size of files, as a disk that fills in the middle of the line."""
    file = tmp_path / "lines.jsonl"
    append_line(file, "whole")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(DiskFullError):
            append_line(file, "x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "whole\n"
