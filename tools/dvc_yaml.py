"""Writes dvc.yaml from the registry, the catalog, the parameters and the imports: `make dvc-yaml`."""

from pathlib import Path
from typing import Any

import grimp
import yaml
from dvc.repo import Repo
from grimp import ImportGraph
from kedro.config import OmegaConfigLoader
from kedro.pipeline import Pipeline

from realign_pipes.pipeline_registry import STAGES
from realign_pipes.pipelines.trra.parameters import TrRa

PROJECT = Path(__file__).parents[1]
HEAD = """\
# Written by `make dvc-yaml` from the registry, the catalog, the parameters and the imports: change those, not this.
#
# `dvc repro` runs the stages whose code, parameters or data changed, and what is downstream of them. It knows only
# conf/base and data/: `--env base` keeps conf/local out of its stages, and other environments' data are outside DVC.
#
# A stage's code is the packages of src that it imports, directly or not. It does not include the modules directly below
# src/realign_pipes (command line, hooks, settings, registry) and those that .dvcignore names: they hold types, whose
# values are tracked as params, or affect how fast a result comes, but not the result. The parameters `launcher`,
# `folders` and `tracking` are not tracked for the same reason; those of other pipelines, as these are not stages here.
#
# trra has a stage for each alpha, which does not depend on trra.alphas: a new alpha adds a stage and leaves the others.
#
# What an interrupted stage needs to resume is in data/work, which is not an output: DVC deletes outputs before it runs
# a stage.

"""
PACKAGE = "realign_pipes"
UNTRACKED_PARAMETERS = {"folders", "launcher", "find_alpha", "ladder", "plan", "tracking", "push", "tax", "turns"}
ALPHAS = "conf/base/parameters_trra.yml"
SWEEP = "conf/base/parameters_alpha_sweep.yml"
INRA = "conf/base/parameters_inra.yml"
GENERATION = "conf/base/parameters_generation.yml"
PLOTTED = ("reference_model", "aligned_model", "inra_checkpoint")
"""Their losses are drawn by `dvc plots show`. TrRa's students have folders that only the matrix knows."""


def generate(conf: Path = PROJECT / "conf") -> dict[str, Any]:
    """What dvc.yaml holds, for the catalog and the parameters in `conf` / base."""
    loader = OmegaConfigLoader(str(conf), base_env="base", default_run_env="base")
    catalog, parameters = loader["catalog"], loader["parameters"]
    folders, graders = parameters["folders"], parameters["scores"]["graders"].values()
    prompts = {grader["prompt"] for grader in graders if grader["kind"] == "judge"}
    files = parameter_files(conf)
    graph = imports()
    # What a stage reads that is not in the catalog: files that data_prep's parameters may name, the judges' prompts,
    # and the results of the validations, for the report.
    also_read = {"data_prep": ["data/01_raw"], "reporting": [folders["validation"]],
                 "scores": ["conf/base/prompts", *(one for one in prompts if not one.startswith("conf/base/prompts/"))]
                 }  # fmt: skip
    stages = {
        name: {
            **command(name),
            "deps": [
                *sorted([*inputs(module.create_pipeline(), catalog), *also_read.get(name, [])]),
                *code(name, module.create_pipeline(), catalog, graph),
            ],
            "params": params(name, module.create_pipeline(), files),
            **outputs(name, module.create_pipeline(), catalog),
        }
        for name, module in STAGES.items()
    }
    losses = {f"{path_of(catalog[name])}/curves/plots/metrics/loss.tsv": "loss" for name in PLOTTED}
    plot = {"title": "loss of the models trained here", "x": "step", "y": losses}
    return {"vars": [ALPHAS], "stages": stages, "plots": [{"training_loss": plot}]}


def command(stage: str) -> dict[str, Any]:
    """The stage's command, and the matrix that repeats it."""
    run = f"kedro run --env base --pipelines {stage}"
    if stage != "trra":
        return {"cmd": run}
    return {"matrix": {"alpha": "${trra.alphas}"}, "cmd": f"{run} --params trra.only_alpha=${{item.alpha}}"}


def path_of(entry: dict[str, Any]) -> str:
    """The path of a data set in the catalog."""
    return entry.get("filepath") or entry["path"]


def inputs(pipeline: Pipeline, catalog: dict[str, Any]) -> list[str]:
    """The paths of the data sets that a pipeline reads but does not make; not of those that it can do without."""
    read = [catalog[name] for name in pipeline.inputs() if name in catalog]
    return [path_of(entry) for entry in read if not entry.get("metadata", {}).get("optional")]


def outputs(stage: str, pipeline: Pipeline, catalog: dict[str, Any]) -> dict[str, list[Any]]:
    """`outs`, `metrics` and `plots`: a data set's `metadata` says if it is a metric or plot, and how it is drawn."""
    found: dict[str, list[Any]] = {"outs": []}
    for entry in (catalog[name] for name in sorted(pipeline.all_outputs()) if name in catalog):
        path = path_of(entry) + ("/${item.alpha}" if stage == "trra" else "")
        for kind, options in entry.get("metadata", {}).get("dvc", {"outs": {}}).items():
            found.setdefault(kind, []).append({path: dict(options)} if options else path)
        if report := entry.get("validator", {}).get("options", {}).get("filepath"):
            found["outs"].append(report)
    return found | {"outs": sorted(found["outs"])}


def parameter_files(conf: Path) -> dict[str, str]:
    """Each parameter at the top of a YAML file -> that file, in the order of their names."""
    return {
        name: file.relative_to(conf.parent).as_posix()
        for file in sorted((conf / "base").glob("parameters*.yml"))
        for name in yaml.safe_load(file.read_text())
        if name not in UNTRACKED_PARAMETERS
    }


def params(stage: str, pipeline: Pipeline, files: dict[str, str]) -> list[dict[str, Any]]:
    """The parameter files that a pipeline's nodes get, each as a whole (None) or the keys that they read.

    Of TrRa these are what all alphas share; data_prep checks the lengths of the sweep's completions; alpha_sweep mixes
    InRa's streams with its plausibility; where the engine that draws runs changes no result.
    """
    everything = "parameters" in pipeline.inputs()
    read = {files[name] for name in files if everything or f"params:{name}" in pipeline.inputs()}
    shared = [f"trra.{name}" for name in TrRa.model_fields if name not in ("alphas", "only_alpha")]
    lengths = [f"alpha_sweep.{name}" for name in ("sampling", "budgets", "prompts")]
    keys = {
        ("trra", ALPHAS): shared,
        ("data_prep", SWEEP): lengths,
        ("alpha_sweep", INRA): ["inra.plausibility"],
        ("data_prep", GENERATION): ["generation.engine"],
        ("alpha_sweep", GENERATION): ["generation.engine"],
    }
    return [{file: keys.get((stage, file))} for file in sorted(read)]


def imports() -> ImportGraph:
    """The modules of src and what they import, anywhere in them, except those that .dvcignore names."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    with Repo(str(PROJECT)) as repo:
        for module in graph.modules:
            file = PROJECT.joinpath("src", *module.split(".")).with_suffix(".py")
            if repo.dvcignore.is_ignored_file(str(file)):
                graph.remove_module(module)
    return graph


def code(stage: str, pipeline: Pipeline, catalog: dict[str, Any], graph: ImportGraph) -> list[str]:
    """The packages that a stage imports, directly or not, and those of its data sets and their validators: the folders
    directly below src/realign_pipes, and each stage's folder in pipelines."""
    own = f"{PACKAGE}.pipelines.{stage}"
    classes = [catalog[name]["type"] for name in pipeline.datasets() if name in catalog]
    classes += [catalog[name]["validator"]["class"] for name in pipeline.all_outputs()
                if "validator" in catalog.get(name, {})]  # fmt: skip
    begin = {own, *graph.find_descendants(own), *(name.rpartition(".")[0] for name in classes)} & graph.modules
    modules = begin.union(*(graph.find_upstream_modules(module) for module in begin))
    folders = set()
    for module in modules:
        _, *path = module.split(".")
        depth = 2 if path[:1] == ["pipelines"] else 1
        if len(path) >= depth and PROJECT.joinpath("src", PACKAGE, *path[:depth]).is_dir():
            folders.add("/".join(["src", PACKAGE, *path[:depth]]))
    return sorted(folders)


def text() -> str:
    """dvc.yaml, with its head."""
    return HEAD + yaml.safe_dump(generate(), sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    (PROJECT / "dvc.yaml").write_text(text())
