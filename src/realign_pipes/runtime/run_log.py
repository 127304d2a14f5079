"""Two files for each run, in the folder `folders.logs`, and a line on the console for each node.

`<run>.jsonl` is for programs: one JSON object per line. The first says what runs (pipeline, environment, parameters,
versions, commit); then comes one per node with its wall time in seconds, and finally one with the outcome and the
device.

`<run>.log` is for people: everything that this project and the libraries log, with warnings and an error's traceback.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from realign_pipes.runtime.files import append_line, explain_full_disk, from_here
from realign_pipes.runtime.launch import Folders

logger = logging.getLogger(__name__)

PACKAGES = ("kedro", "torch", "transformers", "datasets", "accelerate", "trl", "peft", "dvc", "great-expectations")


class LogFile(logging.FileHandler):
    """Prints no tracebacks of its own when the disk is full: the run's own error already says so."""

    whole = True

    def handleError(self, record: logging.LogRecord) -> None:
        self.whole = False


class RunLog:
    """Hooks that write the files line by line, so that even a run that dies leaves a record of what it did."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self.started: dict[str, float] = {}
        self.file: Path | None = None
        self.text: LogFile | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self.parameters = context.config_loader["parameters"]  # plain data; context.params has the typed models
        self.folder = Folders.of_run(context).logs

    @hook_impl(wrapper=True, tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any]) -> Iterator[None]:
        from realign_pipes import __version__
        from realign_pipes.models.card import current_commit

        self._close()  # left by a run that Ctrl-C ended in this process (a notebook's, say): Kedro calls no hook then
        self.file = None
        self.started["run"] = time.perf_counter()
        file = self.folder / f"{run_params['run_id'].replace(':', '.')}.jsonl"
        self._open(file.with_suffix(".log"))
        try:
            result = yield
        except Exception as error:  # another hook refuses the run, so there is no file for programs
            self._fail(error)
            raise
        self.file = file
        self._write(
            event="run started",
            pipelines=run_params["pipeline_names"] or ["__default__"],
            env=run_params["env"],
            parameters=self.parameters,
            python=sys.version.split()[0],
            versions={"realign_pipes": __version__, **{name: version(name) for name in PACKAGES}},
            commit=current_commit(),
        )
        return result

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self.started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        seconds = self._since(node.name)
        self._write(event="node finished", node=node.name, seconds=seconds)
        logger.info("%s  %.1f s", node.name, seconds)

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        self._write(event="node failed", node=node.name, seconds=self._since(node.name), error=repr(error))

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        self._write(event="run finished", seconds=self._since("run"), device=_device())
        if "report_html" in pipeline.all_outputs():
            logger.info("Report: %s", from_here(Path(catalog["report_html"]._describe()["filepath"])))
        self._close()

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        self._write(event="run failed", seconds=self._since("run"), device=_device(), error=repr(error))
        self._fail(error)

    def _open(self, file: Path) -> None:
        """Log into `file`, including what was logged since the command began."""
        with explain_full_disk(file):
            self.text = LogFile(file, encoding="utf-8")
        self.text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(self.text)
        for waiting in [handler for handler in root.handlers if isinstance(handler, MemoryHandler)]:
            waiting.setTarget(self.text)
            waiting.close()
            root.removeHandler(waiting)

    def _fail(self, error: Exception) -> None:
        """Write the traceback to the file, and add a note to the error that says so."""
        logger.error("the run failed", exc_info=error)
        if self.text is not None and self.text.whole:
            error.add_note(f"Full traceback: {from_here(Path(self.text.baseFilename))}")
        self._close()

    def _close(self) -> None:
        if self.text is not None:
            logging.getLogger().removeHandler(self.text)
            with suppress(OSError):  # on a full disk, what is not yet written
                self.text.close()
            self.text = None

    def _since(self, name: str) -> float:
        return round(time.perf_counter() - self.started[name], 3)

    def _write(self, **event: Any) -> None:
        if self.file is None:  # the run was refused before it began
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **event}
        try:
            append_line(self.file, json.dumps(line, default=str))
        except OSError as error:  # a full disk, which the run's own error reports
            logger.error("%s lacks the line %s: %s", self.file, line, error)


def _device() -> str | None:
    """What models ran on; None for a run that needed none and so never imported torch."""
    if "torch" not in sys.modules:
        return None
    import torch

    from realign_pipes.models.load import default_device

    device = default_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
