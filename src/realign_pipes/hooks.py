"""What happens around every run."""

from typing import Any, cast

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.validation import DataValidationError
from kedro.validation.type_extractor import TypeExtractor
from pydantic import TypeAdapter, ValidationError

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.runtime.files import from_here
from realign_pipes.runtime.launch import Folders
from realign_pipes.runtime.parameters import unknown


class MissingInputError(MissingFileError):
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
        if missing:
            from realign_pipes.datasets.files import OptionalCSVDataset

            missing = [name for name in missing if not isinstance(catalog.get(name), OptionalCSVDataset)]
        if not missing:
            return
        env = f" --env {run_params['env']}" if run_params.get("env") else ""
        lines = []
        for name in missing:
            entry = catalog[name]._describe() if name in catalog else {}
            where = entry.get("filepath") or entry.get("path") or "no entry in conf/*/catalog.yml"
            stage = next((s for s, module in STAGES.items() if name in module.create_pipeline().all_outputs()), None)
            makes = f"stage {stage} makes it: kedro run --pipeline {stage}{env}" if stage else "no stage makes it"
            if name in ("reference_model", "aligned_model"):
                makes += "; for a model of your own, check its path in your environment's catalog.yml"
            lines.append(f"  {name} ({where}): {makes}")
        raise MissingInputError("these inputs of the run are missing:\n" + "\n".join(lines))


RENAMED = {"work_dir": "work", "log_dir": "logs", "validation_results": "validation"}
"""Entries that catalogs had, and the parameter of `folders` that each became."""


class RenamedDatasets:
    """Stops a run whose catalog has an entry that is a parameter now, where it would change nothing."""

    @hook_impl
    def after_catalog_created(self, conf_catalog: dict[str, Any]) -> None:
        if renamed := [name for name in RENAMED if name in conf_catalog]:
            said = ", ".join(f"{name} is the parameter folders.{RENAMED[name]} now" for name in renamed)
            raise InputError(f"catalog.yml in conf/: {said}. Move its path to parameters.yml.")


class DataDocsOfFailure:
    """Builds Data Docs when a validation stops a run: the reporting stage, which usually does it, is not reached."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self.folders = Folders.of_run(context)

    @hook_impl
    def on_pipeline_error(self, error: Exception, catalog: DataCatalog) -> None:
        if not isinstance(error, DataValidationError) or not error.failures:
            return
        from realign_pipes.reporting.data_docs import build_data_docs

        folder = self.folders.work / "reporting" / "data_docs"
        catalog.save("data_docs", build_data_docs(self.folders.validation, folder))
        error.add_note(f"What was found: {from_here(catalog.load('data_docs') / 'index.html')}")


class FoldersOfTheProject:
    """Makes the paths in `folders` those of the project, as Kedro does with the catalog's: runs may start anywhere."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        parameters = context.config_loader["parameters"]
        folders = {name: str(context.project_path / path) for name, path in parameters["folders"].items()}
        context.config_loader["parameters"] = {**parameters, "folders": folders}


class WrongParameters:
    """Stops a run whose parameters are wrong, with a line for each of them; Kedro would show Pydantic's own text."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        check_parameters(context.config_loader["parameters"])

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Stops a run that would miss a judge's key, or the tax's harness, only after its sweep. Others need none."""
        if "scores" in pipeline.all_outputs():
            catalog.load("params:scores").check_keys()
        if "tax_results" in pipeline.all_outputs():
            from realign_pipes.pipelines.tax.nodes import check_harness

            check_harness()


def check_parameters(parameters: dict[str, Any]) -> None:
    """InputError, naming each place as in the YAML, unless the stages accept the `parameters`.

    It also names those that no stage reads, which Kedro would silently ignore.
    """
    from realign_pipes.pipeline_registry import register_pipelines

    models = TypeExtractor(register_pipelines()).extract_types_from_pipelines()
    wrong = [unknown("parameter", name, models) for name in parameters if name not in models]
    accepted: dict[str, Any] = {}
    for stage, model in models.items():
        try:
            accepted[stage] = TypeAdapter(model).validate_python(parameters.get(stage))
        except ValidationError as error:
            for one in error.errors():
                where, what = one["loc"], one["msg"].removeprefix("Value error, ")
                if one["type"] == "missing":
                    where, what = where[:-1], f"the parameter {where[-1]!r} is missing"
                wrong.append(f"{_place(stage, where, parameters)}: {what}")
    if wrong:
        raise InputError("wrong parameters, in the YAML of conf/ or in --params:\n" + "\n".join(wrong))
    accepted["scores"].check_tasks(accepted["data_prep"].tasks)
    accepted["reporting"].check_metrics(accepted["scores"])
    accepted["trra"].check_on_policy(accepted["teachers"].mode, accepted["launcher"].num_processes)


def _place(stage: str, location: tuple[int | str, ...], parameters: dict[str, Any]) -> str:
    """A Pydantic location as in the YAML, without the kind that Pydantic adds for a mapping of one of several kinds."""
    names, values = [stage], cast(Any, parameters.get(stage))
    for part in location:
        if isinstance(part, int) or (isinstance(values, dict) and part in values):
            names.append(str(part))
            values = values[part]
    return ".".join(names)
