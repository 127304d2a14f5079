"""dvc.yaml says what the registry, the catalog, the parameters and the imports say."""

import ast
import copy
import re
from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader

from realign_pipes.pipeline_registry import STAGES

PROJECT = Path(__file__).parents[1]
SRC = PROJECT / "src"
UNTRACKED = {"work_dir", "log_dir"}
"""Datasets of which no stage's result depends."""
TYPES_ONLY = {"src/realign_pipes/parameters.py", "src/realign_pipes/__init__.py", "src/realign_pipes/launcher.py"}
"""Modules that are no dependency, though stages import them: the head of dvc.yaml says why."""
UNTRACKED_PARAMETERS = {"launcher"}
"""What a stage's result does not depend on, though its nodes get it."""
RESOURCES = {".jinja", ".css"}
RAW_FILES = {"data_prep": {"data/01_raw"}}
"""What a stage reads that is no dataset of the catalog."""
UNREAD = {
    ("trra", "trra"): {"alphas", "only_alpha"},
    ("alpha_sweep", "data_prep"): {"seed", "calibration", "short_solutions"},
    ("alpha_sweep", "trra"): {
        *("only_alpha", "divergence", "temperature", "chunk_tokens", "steps", "batch_size", "micro_batch_size"),
        *("learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "gradient_checkpointing", "save_steps"),
        *("seed", "adapter", "lora"),
    },
}
"""Keys of a parameter that a stage's nodes get and do not read; their result shows in the stage's data."""

CONF = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="base")
CATALOG = {name: entry for name, entry in CONF["catalog"].items() if name not in UNTRACKED}
PARAMETER_FILES = {
    name: (file.relative_to(PROJECT).as_posix(), values)
    for file in sorted((PROJECT / "conf" / "base").glob("parameters*.yml"))
    for name, values in yaml.safe_load(file.read_text()).items()
}


# -- what a stage is made of ------------------------------------------------------------------------------------------
def path_of(dataset: str) -> str:
    entry = CATALOG[dataset]
    return entry.get("filepath") or entry["path"]


def report_of(dataset: str) -> set[str]:
    """The file into which a dataset's validator writes what it found, if it writes one."""
    options = CATALOG[dataset].get("validator", {}).get("options", {})
    return {options["filepath"]} if "filepath" in options else set()


def imports(file: Path) -> set[str]:
    """Names that a module imports, anywhere in it: modules, and what is taken from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_docstring_alone(file: Path) -> bool:
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def modules_of(stage: str) -> set[str]:
    """Files of our modules that a stage imports, directly or not, those of its datasets and of the validators that
    run when it saves them, and templates beside them."""
    pipeline = STAGES[stage].create_pipeline()
    classes = {CATALOG[name]["type"] for name in pipeline.datasets() if name in CATALOG}
    classes |= {CATALOG[name].get("validator", {}).get("class", "") for name in pipeline.all_outputs() & CATALOG.keys()}
    todo = {f"realign_pipes.pipelines.{stage}", *(name.rpartition(".")[0] for name in classes)}
    files: set[Path] = set()
    while todo:
        name = todo.pop()
        if name.split(".")[0] != "realign_pipes":
            continue
        path = SRC.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.exists() and file not in files:
            files.add(file)
            todo |= {*imports(file), name.rpartition(".")[0]}  # importing a module runs its package's __init__
    resources = {file for module in files for file in module.parent.iterdir() if file.suffix in RESOURCES}
    modules = {file for file in files if not is_docstring_alone(file)}
    return {file.relative_to(PROJECT).as_posix() for file in modules | resources} - TYPES_ONLY


def files_below(dep: str) -> set[str]:
    """A dependency's files: itself, or all below it, but for modules that hold only a docstring and so do nothing."""
    path = PROJECT / dep
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in {".py", *RESOURCES}]
    return {
        file.relative_to(PROJECT).as_posix() for file in files if file.suffix != ".py" or not is_docstring_alone(file)
    }


# -- what dvc.yaml says of it -----------------------------------------------------------------------------------------
def paths(entries: list) -> set[str]:
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def tracked_keys(stage: dict, parameter: str, file: str) -> set[str]:
    """The keys below `parameter` that `stage` tracks."""
    entries = [entry[file] for entry in stage["params"] if isinstance(entry, dict) and file in entry]
    if None in entries:
        return set(PARAMETER_FILES[parameter][1])
    return {key.split(".")[1] for keys in entries for key in keys if key.split(".")[0] == parameter}


def compare(what: str, said: set[str], true: set[str]) -> list[str]:
    return [f"{what}: lacks {name}" for name in sorted(true - said)] + [
        f"{what}: {name} is too much" for name in sorted(said - true)
    ]


def mistakes(dvc: dict) -> list[str]:
    """Where dvc.yaml and the project differ."""
    found = compare("stages", set(dvc["stages"]), set(STAGES))
    for name in STAGES.keys() & dvc["stages"].keys():
        stage, pipeline = dvc["stages"][name], STAGES[name].create_pipeline()
        if stage["cmd"].split(" --params")[0] != f"kedro run --pipelines {name}":
            found.append(f"{name}.cmd: {stage['cmd']}")

        persisted = [dataset for dataset in pipeline.all_outputs() if dataset in CATALOG]
        made = {path_of(dataset) for dataset in persisted}.union(*map(report_of, persisted))
        outs = paths([*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])])
        # DVC has one stage for each alpha, of one folder each.
        found += compare(f"{name}.outs", {out.removesuffix("/${item.alpha}") for out in outs}, made)
        for entry in [*stage.get("metrics", []), *stage.get("plots", [])]:
            if not isinstance(entry, dict) or next(iter(entry.values())).get("cache") is not False:
                found.append(f"{name}: {entry} is cached")

        read = {path_of(dataset) for dataset in pipeline.inputs() if dataset in CATALOG} | RAW_FILES.get(name, set())
        data = {dep for dep in stage["deps"] if not dep.startswith("src/")}
        found += compare(f"{name}.deps", data, read)
        code = set().union(*(files_below(dep) for dep in stage["deps"] if dep.startswith("src/")))
        found += compare(f"{name}.deps", code, modules_of(name))

        given = {one.removeprefix("params:") for one in pipeline.inputs() if one.startswith("params:")}
        if "parameters" in pipeline.inputs():
            given = set(PARAMETER_FILES)
        given -= UNTRACKED_PARAMETERS
        for parameter in given:
            file, values = PARAMETER_FILES[parameter]
            keys = set(values) - UNREAD.get((name, parameter), set())
            found += compare(f"{name}.params of {file}", tracked_keys(stage, parameter, file), keys)
        files = {PARAMETER_FILES[parameter][0] for parameter in given}
        found += compare(f"{name}.params", paths(stage["params"]), files)
    if dvc["stages"]["trra"].get("matrix") != {"alpha": "${trra.alphas}"}:
        found.append("trra.matrix is not over the list in conf")
    return found


DVC = yaml.safe_load((PROJECT / "dvc.yaml").read_text())


def test_dvc_yaml_says_what_the_project_does():
    assert mistakes(DVC) == []


def drop(*path: str):
    """Take an entry out of dvc.yaml: a key, or the entry of a list."""

    def change(dvc: dict) -> None:
        for key in path[:-1]:
            dvc = dvc[key]
        if isinstance(dvc, dict):
            del dvc[path[-1]]
        else:
            [entry] = [entry for entry in dvc if path[-1] in paths([entry])]
            dvc.remove(entry)

    return change


def add(entry: str, *path: str):
    def change(dvc: dict) -> None:
        for key in path:
            dvc = dvc[key]
        dvc.append(entry)

    return change


def put(value: object, *path: str):
    def change(dvc: dict) -> None:
        for key in path[:-1]:
            dvc = dvc[key]
        dvc[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("stages", "inra"), "stages: lacks inra"),
        (put({}, "stages", "more"), "stages: more is too much"),
        (put("kedro run", "stages", "inra", "cmd"), "inra.cmd: kedro run"),
        (drop("stages", "data_prep", "outs", "data/05_model_input/preference_pairs"), "data_prep.outs: lacks data/05"),
        (drop("stages", "reporting", "metrics", "data/08_reporting/sweep_metrics.json"), "reporting.outs: lacks"),
        (drop("stages", "reporting", "plots", "data/08_reporting/sweep_table.csv"), "reporting.outs: lacks"),
        (add("data/x", "stages", "inra", "outs"), "inra.outs: data/x is too much"),
        (put(["data/08_reporting/teacher_cache.json"], "stages", "teacher_logits", "metrics"), "is cached"),
        (drop("stages", "trra", "deps", "data/05_model_input/teacher_cache"), "trra.deps: lacks data/05_model_input"),
        (drop("stages", "data_prep", "deps", "data/01_raw"), "data_prep.deps: lacks data/01_raw"),
        (drop("stages", "trra", "deps", "src/realign_pipes/realignment/fusion.py"), "trra.deps: lacks src/realign"),
        (drop("stages", "data_prep", "deps", "src/realign_pipes/validation.py"), "data_prep.deps: lacks src/realign"),
        (
            drop("stages", "inra", "deps", "src/realign_pipes/datasets/arrow.py"),
            "inra.deps: lacks src/realign_pipes/datasets/arrow.py",
        ),
        (add("src/realign_pipes/reporting", "stages", "trra", "deps"), "src/realign_pipes/reporting/report.py is too"),
        (drop("stages", "inra", "params", "conf/base/parameters_inra.yml"), "inra.params: lacks conf/base/parameters"),
        (put(None, "stages", "trra", "matrix"), "trra.matrix"),
    ],
)
def test_a_break_is_found(change, said):
    dvc = copy.deepcopy(DVC)
    change(dvc)
    assert any(said in mistake for mistake in mistakes(dvc)), mistakes(dvc)


def test_a_parameter_that_no_stage_tracks_is_found():
    dvc = copy.deepcopy(DVC)
    [entry] = [entry for entry in dvc["stages"]["trra"]["params"] if "conf/base/parameters_trra.yml" in entry]
    entry["conf/base/parameters_trra.yml"].remove("trra.learning_rate")
    assert mistakes(dvc) == ["trra.params of conf/base/parameters_trra.yml: lacks learning_rate"]


def test_git_ignores_what_dvc_caches_and_keeps_what_it_does_not():
    """Otherwise DVC stops a run: the output is tracked by git."""
    kept = set(re.findall(r"^!(data/\S+\.\w+)$", (PROJECT / ".gitignore").read_text(), re.MULTILINE))
    uncached = set()
    for stage in DVC["stages"].values():
        uncached |= paths([*stage.get("metrics", []), *stage.get("plots", [])])
    assert {path for path in kept if "*" not in path} == uncached
