"""Work that is done only once: it is described, resumed after an interruption, found again when it is finished.

Kedro runs a node from its beginning, and DVC deletes a stage's outputs before it runs. What makes a stage resumable
(training state, batches of completions, finished checkpoints) therefore lives in a work folder outside the outputs,
with the description of the work beside it. The same description finds its work again; a different one starts over.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from realign_pipes.errors import UserError
from realign_pipes.runtime.files import atomic_path

DESCRIPTION = "work.json"


class OccupiedFolderError(UserError, FileExistsError):
    """The folder for some work holds something else, which must not be deleted."""


def open_work(folder: Path, description: dict[str, Any]) -> Path:
    """`folder`, with what an interrupted run of the same `description` (JSON-able) left there, or empty.

    Raises OccupiedFolderError for a folder that holds anything but such work.
    """
    marker = folder / DESCRIPTION
    wanted = json.dumps(description, sort_keys=True, indent=1)
    if marker.exists() and marker.read_text() == wanted:
        return folder
    if not marker.exists() and folder.exists() and any(folder.iterdir()):
        raise OccupiedFolderError(f"{folder} is needed as a work folder, but holds something else. Move or remove it.")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / DESCRIPTION).write_text(wanted)
    return folder


def do_once(
    folder: Path, result: str, description: dict[str, Any], do: Callable[[Path], Callable[[Path], None]]
) -> Path:
    """The path `folder / result`, made now or found finished there from an earlier run of the same `description`.

    All processes of a launch call this. `do(folder)` does the work, resuming from what an interrupted run left in
    `folder`; it returns the function with which the main process then writes the result to a temporary path, which is
    put in place at once. Everything else in the folder is then state of the work, and is removed.
    """
    from accelerate import PartialState

    state = PartialState()
    with state.main_process_first():
        open_work(folder, description)
    finished = folder / result
    found = finished.exists()
    state.wait_for_everyone()  # before one of them creates what another checks for
    if not found:
        write = do(folder)
        if state.is_main_process:
            with atomic_path(finished) as temporary:
                write(temporary)
        state.wait_for_everyone()
    if state.is_main_process:
        for path in folder.iterdir():
            if path.name not in (DESCRIPTION, result):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return finished
