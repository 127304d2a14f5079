"""Work that survives being interrupted: a folder for each piece of it, valid for one description of what it is.

Kedro runs a node from its beginning, and DVC deletes a stage's outputs before it runs. What makes a stage resumable
(training state, batches of samples, finished candidates) therefore lives in a work folder outside the outputs, with
the description of the work beside it. The same description finds its work again; any other starts afresh.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DESCRIPTION = "work.json"


def fingerprint(description: Any) -> str:
    """SHA-256 (hex) of plain data, as canonical JSON."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def open_work(folder: Path, description: dict[str, Any]) -> Path:
    """`folder`, with what an interrupted run of the same `description` (JSON-able) left there, or empty.

    Raises FileExistsError for a folder that holds something else than such work: it is not ours to empty.
    """
    marker = folder / DESCRIPTION
    wanted = json.dumps(description, sort_keys=True, indent=1)
    if marker.exists() and marker.read_text() == wanted:
        return folder
    if not marker.exists() and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is needed as a work folder, but holds something else. Move or remove it.")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / DESCRIPTION).write_text(wanted)
    return folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` for a file or folder, renamed to `path` if the block succeeds.

    A block that fails (a full disk, say) leaves what was at `path` untouched and nothing beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        _remove(temporary)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; a folder already there steps aside first, as a rename onto it would fail."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(old)
    if path.exists():
        os.rename(path, old)
    os.rename(new, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
