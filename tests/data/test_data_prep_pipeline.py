"""The stage on a catalog with its validators: from a checkpoint to two validated sets."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from kedro.validation import DataValidationError
from kedro.validation.type_extractor import TypeExtractor

from realign_pipes.data.parameters import Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.pipelines.data_prep.pipeline import create_pipeline
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep


def make_catalog(tmp_path, parameters, reference, sweep, generation) -> DataCatalog:
    suites = {
        "calibration_samples": {"suite": "samples", "min_correct": 0.1},
        "calibration_set": {"suite": "calibration"},
        "short_solutions": {"suite": "short_solutions"},
        "preference_pairs": {"suite": "preference_pairs"},
        "evaluation_set": {"suite": "evaluation"},
    }
    catalog = DataCatalog.from_config(
        {
            name: {
                "type": "realign_pipes.datasets.arrow.ArrowDataset",
                "filepath": str(tmp_path / "data" / name),
                "validator": {
                    "class": "realign_pipes.validation.validator.GreatExpectations",
                    "on": "save",
                    "options": {**options, "filepath": str(tmp_path / "validation" / f"{name}.json")},
                },
            }
            for name, options in suites.items()
        }
    )
    catalog["params:data_prep"] = parameters
    catalog["params:alpha_sweep"] = sweep
    catalog["reference_model"] = catalog["aligned_model"] = reference
    catalog["params:models"] = Models(chat_template=None, thinking=None)
    catalog["params:generation"] = generation
    catalog["params:folders"] = Folders(work=tmp_path / "work", logs=tmp_path, validation=tmp_path / "validation")
    return catalog


def test_sampled_calibration(
    make_checkpoint, short_sweep, make_generation, script, tmp_path, sampled, four_kinds
) -> None:
    script(four_kinds)
    catalog = make_catalog(tmp_path, sampled(), make_checkpoint(tmp_path / "reference"), short_sweep, make_generation())
    SequentialRunner().run(create_pipeline(), catalog)
    samples, chosen, evaluation = (
        catalog.load(name) for name in ("calibration_samples", "calibration_set", "evaluation_set")
    )
    assert len(samples) == 24 and len(chosen) == 6 and len(evaluation) == 9
    assert set(chosen["sample"]) == {1}  # the longer of the right ones
    assert all(chosen["correct"])
    assert not set(samples["question"]) & set(evaluation["question"])
    assert (tmp_path / "work" / "data_prep").is_dir()


def test_calibration_from_a_dataset(
    make_checkpoint, short_sweep, make_generation, tmp_path, from_dataset, write_jsonl
) -> None:
    reference = make_checkpoint(tmp_path / "reference")
    rows = [
        {"question": f"{n} + 1 =", "completion": f"<think>{'a' * n}</think>{n + 1}", "answer": n + 1} for n in range(9)
    ]
    parameters = from_dataset(write_jsonl(tmp_path / "d.jsonl", rows), min_tokens=6, max_tokens=10)
    catalog = make_catalog(tmp_path, parameters, reference, short_sweep, make_generation())
    SequentialRunner().run(create_pipeline(), catalog)
    assert catalog.load("calibration_set")["question"][:] == [f"{n} + 1 =" for n in range(2, 7)]
    assert catalog.load("calibration_set")["completion_tokens"][:] == [6, 7, 8, 9, 10]


def test_failed_suite_stops_the_run_and_saves_nothing(
    make_checkpoint, short_sweep, make_generation, script, tmp_path, sampled, four_kinds
) -> None:
    # One right completion in 24: fewer than a tenth.
    wanted: list[int] = []

    def one_right(result: int, sample: int) -> str:
        wanted.append(result)
        return four_kinds(result, 0 if len(wanted) == 1 else 2)

    script(one_right)
    catalog = make_catalog(tmp_path, sampled(), make_checkpoint(tmp_path / "reference"), short_sweep, make_generation())
    with pytest.raises(DataValidationError) as failure:
        SequentialRunner().run(create_pipeline(), catalog)
    message = str(failure.value)
    assert "'calibration_samples' on save" in message
    assert "at least 10% of the completions are right: does not hold in 23 of 24 rows (95.8 %)" in message
    assert "calibration-00000-" in message
    assert not catalog.exists("calibration_samples") and not catalog.exists("evaluation_set")


def test_nodes_import_nothing_heavy() -> None:
    heavy = {"datasets", "torch", "transformers", "pandas", "great_expectations", "reasoning_gym", "math_verify"}
    code = f"import sys, realign_pipes.pipelines.data_prep; print(sorted({heavy!r} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_kedro_finds_the_types_of_the_parameters() -> None:
    types = {
        "data_prep": DataPrep,
        "alpha_sweep": AlphaSweep,
        "models": Models,
        "generation": Generation,
        "folders": Folders,
    }
    for node in create_pipeline().nodes:
        wanted = {name: kind for name, kind in types.items() if f"params:{name}" in node.inputs}
        assert wanted and TypeExtractor({"one": Pipeline([node])}).extract_types_from_pipelines() == wanted


@pytest.mark.parametrize(("name", "kind"), [("data_prep", DataPrep), ("models", Models), ("generation", Generation)])
def test_default_parameters_are_valid(name, kind) -> None:
    conf = Path(__file__).parents[2] / "conf" / "base" / f"parameters_{name}.yml"
    raw = yaml.safe_load(conf.read_text())
    assert list(raw) == [name]
    kind.model_validate(raw[name])
