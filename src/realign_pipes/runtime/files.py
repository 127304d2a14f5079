"""Files and folders that are put in place completely or not at all, and the error for a full disk."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from realign_pipes.errors import UserError

LEFTOVER = re.compile(r"\.(.+)\.\d+\.(tmp|old)")
"""What `atomic_path` puts beside a path: its name, the process, and whether it is new (tmp) or moved aside (old)."""

PROBE_BYTES = 2**20


class DiskFullError(UserError, OSError):
    """Something could not be written because the disk, a quota or a limit on files is full."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for a file or folder, renamed to `path` if the block succeeds.

    If the block fails, whatever was at `path` is untouched, and nothing is left beside it; DiskFullError if the disk is
    full. After a kill, `recover` cleans up.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explain_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)
            yield temporary
            if temporary.is_dir():
                _replace_folder(temporary, path)
            else:
                os.replace(temporary, path)
    finally:
        _remove(temporary)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is made if need be: all of it, or on a full disk nothing (DiskFullError)."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with explain_full_disk(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    except OSError:
        if path.exists():
            os.truncate(path, before)
        raise


def whole_lines(path: Path) -> list[bytes]:
    """The lines that `append_line` wrote, none if there is no file. What a kill left of a last one is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return whole.splitlines()


def recover(path: Path) -> None:
    """Clean up what killed processes left at `path` and below it.

    A folder moved aside for a new version that never came is put back; anything else that is temporary is removed. Call
    it only while no other process writes there.
    """
    beside = path.parent.glob(".*") if path.parent.is_dir() else ()
    left = [one for one in beside if (match := LEFTOVER.fullmatch(one.name)) and match[1] == path.name]
    for one in [*left, *(path.rglob(".*") if path.is_dir() else ())]:
        match = LEFTOVER.fullmatch(one.name)
        if match is None or not one.exists():  # gone with the folder that it was in
            continue
        if match[2] == "old" and not one.with_name(match[1]).exists():
            os.rename(one, one.with_name(match[1]))
        else:
            _remove(one)


@contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """While the block writes `path`, turn the many errors that libraries raise on a full disk into a DiskFullError."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not _is_disk_full(error, path):
            raise
        free = shutil.disk_usage(_existing(path)).free / 2**20
        raise DiskFullError(
            f"No space left to write {path.absolute()} ({free:.1f} MiB free on its disk). Everything finished before "
            "that is intact. Make room there, or raise the quota, and start the same run again: it resumes from there."
        ) from error


def _is_disk_full(error: BaseException, path: Path) -> bool:
    """From the error's number or, if a library hides it (torch, safetensors, shutil), by trying to write a little."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        cause = cause.__cause__ or cause.__context__
    probe = _existing(path) / f".{path.name}.probe.{os.getpid()}.tmp"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as found:
        return found.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    finally:
        probe.unlink(missing_ok=True)
    return False


def from_here(path: Path) -> Path:
    """The path for display: relative to the working folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _existing(path: Path) -> Path:
    """The nearest folder around `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _replace_folder(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; a folder already there is moved aside first, as a rename onto it would fail."""
    if not path.exists():
        os.rename(new, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(old)
    os.rename(path, old)
    os.rename(new, path)
    os.rename(old, new)  # a .tmp name again, so that `recover` does not put back a half-removed folder


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
