"""dvc.yaml is what `make dvc-yaml` writes, and that has everything a stage reads and writes.

tests/integration/test_dvc.py compares it with what the stages' processes open and import.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc_yaml import UNTRACKED_PARAMETERS, generate, text
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from realign_pipes.generation.parameters import Generation
from realign_pipes.pipeline_registry import STAGES, register_pipelines
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.inra.parameters import InRa

PROJECT = Path(__file__).parents[1]
DVC = yaml.safe_load((PROJECT / "dvc.yaml").read_text())

PROMPTS = {"kind": "conf/base/prompts", "strict": "conf/local/prompts"}

UNREAD = {
    ("trra", "trra"): {"alphas", "only_alpha"},
    ("data_prep", "alpha_sweep"): set(AlphaSweep.model_fields) - {"sampling", "budgets", "prompts"},
    ("alpha_sweep", "inra"): set(InRa.model_fields) - {"plausibility"},
    ("data_prep", "generation"): set(Generation.model_fields) - {"engine"},
    ("alpha_sweep", "generation"): set(Generation.model_fields) - {"engine"},
}
"""What a stage does not read of a parameter that its nodes get."""


def paths(entries: list) -> set[str]:
    """What a list of outs, metrics, plots or params names; the folder of all alphas for that of one."""
    names = {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}
    return {name.removesuffix("/${item.alpha}") for name in names}


def outputs(stage: dict) -> set[str]:
    return paths([*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])])


def test_the_committed_file_is_the_generated_one():
    assert (PROJECT / "dvc.yaml").read_text() == text(), "run `make dvc-yaml`"


def test_the_stages_are_those_of_the_default_run():
    assert list(DVC["stages"]) == list(STAGES)
    assert set(register_pipelines()["__default__"].nodes) == {
        node for name in DVC["stages"] for node in register_pipelines()[name].nodes
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_all_that_its_nodes_read_and_write(name):
    stage, nodes = DVC["stages"][name], register_pipelines()[name].nodes
    conf = OmegaConfigLoader(str(PROJECT / "conf"), base_env="base", default_run_env="base")
    catalog = DataCatalog.from_config(conf["catalog"])
    described = {one: catalog[one]._describe() for node in nodes for one in {*node.inputs, *node.outputs} & {*catalog}}
    where = {one: str(found.get("filepath") or found["path"]) for one, found in described.items()}
    made = {one for node in nodes for one in node.outputs if one in where}
    checked = [conf["catalog"][one]["validator"]["options"] for one in made if "validator" in conf["catalog"][one]]
    assert outputs(stage) == {where[one] for one in made} | {options["filepath"] for options in checked}
    optional = {one for one in where if conf["catalog"][one]["metadata"].get("optional")}
    assert optional == ({"tax_results"} if name == "reporting" else set())
    assert {where[one] for one in where.keys() - made - optional} <= set(stage["deps"])
    assert not {where[one] for one in optional} & set(stage["deps"])

    tracked = {next(iter(entry)): next(iter(entry.values())) for entry in stage["params"]}
    for file in sorted((PROJECT / "conf" / "base").glob("parameters*.yml")):
        for parameter, values in yaml.safe_load(file.read_text()).items():
            read = any({f"params:{parameter}", "parameters"} & {*node.inputs} for node in nodes)
            if not read or parameter in UNTRACKED_PARAMETERS:
                continue
            keys = tracked[file.relative_to(PROJECT).as_posix()]  # None: all of them
            left_out = set() if keys is None else set(values) - {key.removeprefix(f"{parameter}.") for key in keys}
            assert left_out == UNREAD.get((name, parameter), set())


def test_paths_follow_the_catalog(tmp_path):
    conf = shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    (conf / "base" / "globals.yml").write_text("data: elsewhere")
    judges = {name: {"kind": "judge", "prompt": f"{folder}/{name}.txt"} for name, folder in PROMPTS.items()}
    (conf / "base" / "parameters_scores.yml").write_text(yaml.safe_dump({"scores": {"graders": judges}}))
    stages = generate(conf)["stages"]
    assert all(path.startswith("elsewhere/") for stage in stages.values() for path in outputs(stage))
    assert "elsewhere/06_models/inra" in outputs(stages["inra"]) & set(stages["alpha_sweep"]["deps"])
    prompts = [path for path in stages["scores"]["deps"] if "prompts" in path]
    assert prompts == ["conf/base/prompts", "conf/local/prompts/strict.txt"]
    assert "elsewhere/08_reporting/validation" in stages["reporting"]["deps"]


def test_git_has_nothing_that_a_run_writes():
    made = set().union(*(outputs(stage) for stage in DVC["stages"].values())) | {"data/work/x", "data/logs/x"}
    ignored = subprocess.run(["git", "check-ignore", *made], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert set(ignored.stdout.split()) == made
    tracked = subprocess.run(["git", "ls-files", "data"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert all(re.fullmatch(r"data/\w+/\.gitkeep", file) for file in tracked.stdout.split())
