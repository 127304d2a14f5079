"""One run at a time in a data folder: the stages write into its work folder, and two would spoil each other's work.

The lock is the operating system's own (`flock` on a file in the work folder), so it is released however its holder
ends: nobody has to clean up after a killed run. Processes that inherit the lock from a run (as a file descriptor,
`close_fds=False`) hold it too, until the last of them has ended.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from realign_pipes.errors import UserError
from realign_pipes.runtime.files import explain_full_disk, recover
from realign_pipes.runtime.launch import Folders

LOCK = "run.lock"


class AnotherRunError(UserError, RuntimeError):
    """Another run works in the same data folder."""


class OneRunAtATime:
    """Takes the lock before anything else happens in a run, and then cleans up what a killed run left behind."""

    def __init__(self) -> None:
        self.lock: int | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self.folders = Folders.of_run(context)

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> Iterator[None]:
        self._release()  # left by a run that Ctrl-C ended in this process (a notebook's, say): Kedro calls no hook then
        if pipeline.nodes and all("plan" in node.tags for node in pipeline.nodes):
            return (yield)  # it reads parameters alone and leaves the work folder as it is: it may run beside another
        names = ",".join(run_params["pipeline_names"] or ["__default__"])
        self.lock = take_lock(
            self.folders.work / LOCK, f"kedro run --pipelines {names} --env {run_params['env'] or 'local'}"
        )
        try:
            for folder in (self.folders.work, self.folders.validation):
                recover(folder)
            for name in sorted(pipeline.datasets()):
                if name in catalog:
                    where = catalog[name]._describe()
                    if path := where.get("filepath") or where.get("path"):
                        recover(Path(path))
            return (yield)
        except BaseException:
            self._release()
            raise

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        self._release()

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        self._release()

    def _release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def take_lock(path: Path, what: str) -> int:
    """Lock the file `path` for this process: a file descriptor that holds the lock until it is closed.

    Children that inherit the descriptor hold the lock as well. AnotherRunError, with what is known about the holder, if
    it is taken.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(lock, 4096).decode() or "one that has just begun"
        os.close(lock)
        raise AnotherRunError(
            f"another run works in {path.parent.absolute()}: {holder}. Wait until it ends, or stop it and all that "
            "it started; or give this run a data folder of its own (`data` in an environment's globals.yml)."
        ) from error
    os.set_inheritable(lock, True)
    started = time.strftime("%Y-%m-%d %H:%M:%S%z")
    holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}, {what}"
    try:
        with explain_full_disk(path):
            os.truncate(lock, 0)
            os.write(lock, holder.encode())
    except BaseException:
        os.close(lock)
        raise
    return lock
