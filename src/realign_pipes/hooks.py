"""What happens around every run."""

import logging
from collections.abc import Iterable
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.validation import DataValidationError

from realign_pipes.parameters import unknown_parameter

logger = logging.getLogger(__name__)


class MissingInputError(FileNotFoundError):
    """A run needs something that no earlier run has made."""


class MissingInputs:
    """Stops a run whose inputs are not on disk before its first node, and says which stage makes them."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        from realign_pipes.pipeline_registry import STAGES

        missing = [
            name
            for name in sorted(pipeline.inputs())
            if name != "parameters" and not name.startswith("params:") and not catalog.exists(name)
        ]
        if not missing:
            return
        env = f" --env {run_params['env']}" if run_params.get("env") else ""
        lines = []
        for name in missing:
            where = catalog[name]._describe() if name in catalog else "no entry in conf/*/catalog.yml"
            stage = next((s for s, module in STAGES.items() if name in module.create_pipeline().outputs()), None)
            makes = f"stage {stage} makes it: kedro run --pipeline {stage}{env}" if stage else "no stage makes it"
            if name in ("reference_model", "aligned_model"):
                makes += "; for a model of your own, check its path in your environment's catalog.yml"
            lines.append(f"  {name} ({where}): {makes}")
        raise MissingInputError("these inputs of the run are not there:\n" + "\n".join(lines))


class DataDocsOfFailure:
    """Builds Data Docs when a validation stops a run: the stage reporting, which else does it, is not reached."""

    @hook_impl
    def on_pipeline_error(self, error: Exception, catalog: DataCatalog) -> None:
        if not isinstance(error, DataValidationError):
            return
        from realign_pipes.reporting.data_docs import build_data_docs

        folder = catalog.load("work_dir") / "reporting" / "data_docs"
        catalog.save("data_docs", build_data_docs(catalog.load("validation_results"), folder))
        logger.error("What was found is in %s", catalog.load("data_docs") / "index.html")


class UnknownParameters:
    """Refuses parameters below a name that no stage reads; Kedro would ignore them in silence."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        check_stages(context.params)


def check_stages(names: Iterable[str]) -> None:
    """Raise ValueError unless the `names` at the top of the parameters are those of stages."""
    from realign_pipes.pipeline_registry import register_pipelines

    inputs = register_pipelines()["__default__"].inputs()
    known = {name.removeprefix("params:") for name in inputs if name.startswith("params:")}
    if unknown := [name for name in names if name not in known]:
        said = "; ".join(unknown_parameter(name, known) for name in unknown)
        raise ValueError(f"in the YAML of conf/ or in --params: {said}")
