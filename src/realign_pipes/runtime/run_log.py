"""One log file for each run, in the folder `folders.logs`: a JSON object a line, for programs to read.

The first line says what runs (pipeline, environment, parameters, versions, commit), then one line a node with its wall
time in seconds, and a last one with the outcome and the device.
"""

import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline.node import Node

from realign_pipes.runtime.launch import Folders

logger = logging.getLogger(__name__)

PACKAGES = ("kedro", "torch", "transformers", "datasets", "accelerate", "trl", "peft", "dvc", "great-expectations")


class RunLog:
    """Hooks that write the file, line by line, so that a run that dies leaves what it did."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self.started: dict[str, float] = {}
        self.file: Path | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self.parameters = context.config_loader["parameters"]  # plain data; context.params has the typed models
        self.folder = Folders.of_run(context).logs

    @hook_impl(trylast=True)  # a run that is refused leaves no file
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: DataCatalog) -> None:
        from realign_pipes import __version__
        from realign_pipes.models.card import current_commit

        self.file = self.folder / f"{run_params['run_id'].replace(':', '.')}.jsonl"
        self.started["run"] = time.perf_counter()
        self._write(
            event="run started",
            pipelines=run_params["pipeline_names"] or ["__default__"],
            env=run_params["env"],
            parameters=self.parameters,
            python=sys.version.split()[0],
            versions={"realign_pipes": __version__, **{name: version(name) for name in PACKAGES}},
            commit=current_commit(),
        )

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self.started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        self._write(event="node finished", node=node.name, seconds=self._since(node.name))

    @hook_impl
    def on_node_error(self, error: Exception, node: Node) -> None:
        self._write(event="node failed", node=node.name, seconds=self._since(node.name), error=repr(error))

    @hook_impl
    def after_pipeline_run(self) -> None:
        self._write(event="run finished", seconds=self._since("run"), device=_device())

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        self._write(event="run failed", seconds=self._since("run"), device=_device(), error=repr(error))

    def _since(self, name: str) -> float:
        return round(time.perf_counter() - self.started[name], 3)

    def _write(self, **event: Any) -> None:
        if self.file is None:  # the run was refused before it began
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **event}
        try:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, default=str) + "\n")
        except OSError as error:  # a full disk, which the run's own error is about
            logger.error("%s lacks the line %s: %s", self.file, line, error)


def _device() -> str | None:
    """What models ran on; None for a run that needed none and so never imported torch."""
    if "torch" not in sys.modules:
        return None
    import torch

    from realign_pipes.models.load import default_device

    device = default_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
