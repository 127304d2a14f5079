"""What a person sees of a run and of its errors, by the commands themselves, on two-layer models of random weights.

Most runs are in this process, which spares each the seconds that importing takes.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import datasets
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from kedro.framework.startup import bootstrap_project

from realign_pipes.cli import MAX_LINES, run
from realign_pipes.runtime.lock import take_lock

PROJECT = Path(__file__).parents[2]
SCRIPT = "import sys; from realign_pipes.__main__ import main; sys.argv[0] = 'realign-pipes'; main()"

PARAMETERS = {
    "data_prep": {
        "calibration": {
            "source": "dataset",
            "path": "traces.jsonl",
            "verifier": "exact",
            "keep": "all",
            "min_tokens": 1,
            "max_tokens": 100,
        },
        "tasks": {
            "sums_short": None,
            "sums_long": None,
            "sums": {"kind": "dataset", "path": "problems.jsonl", "verifier": "exact"},
        },
    },
    "trra": {"alphas": [1.5], "iteration_alphas": None, "steps": 3, "save_steps": 3},
}


@pytest.fixture
def project(copy_project, make_checkpoint, monkeypatch):
    """A copy of the project with the environment `mine` for two checkpoints, in which the test now is."""
    root = copy_project()
    make_checkpoint(root / "models" / "reference", seed=1)
    make_checkpoint(root / "models" / "aligned", seed=2)
    mine = root / "conf" / "mine"
    mine.mkdir()
    checkpoint = {"type": "realign_pipes.datasets.folders.CheckpointDataset"}
    names = ("reference", "aligned")
    catalog = {f"{name}_model": {**checkpoint, "filepath": f"models/{name}"} for name in names}
    for file, content in {"catalog": catalog, "globals": {"data": "data/mine"}, "parameters": PARAMETERS}.items():
        (mine / f"{file}.yml").write_text(yaml.safe_dump(content))
    sums = [
        {"question": f"{a} + {b}?", "completion": f"<think>{a}, {b}</think>{a + b}", "answer": f"{a + b}"}
        for a in range(8)
        for b in range(8)
    ]
    pd.DataFrame(sums[:40]).to_json(root / "traces.jsonl", orient="records", lines=True)
    pd.DataFrame(sums[40:]).to_json(root / "problems.jsonl", orient="records", lines=True)
    monkeypatch.chdir(root)
    bootstrap_project(PROJECT)
    return root


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own():
    """The settings come before `datasets` is imported."""
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def ran(*options):
    return CliRunner().invoke(run, ["--env", "mine", *options])


def failed(*options):
    """The lines of a run that ended with exit code 1, after checking that they are few."""
    result = ran(*options)
    return few_lines(result.exit_code, result.output)


def failed_in_processes(*options):
    """The same of a run of its own, whose processes write to the same standard error."""
    command = [sys.executable, "-m", "kedro", "run", "--env", "mine", *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return few_lines(result.returncode, result.stdout)


def few_lines(exit_code, output):
    assert exit_code == 1, output
    bar = re.compile(r"[\w .'-]+: (\d+ to do|\d+/\d+ after \d+ s)")  # is a line each, where there is no terminal
    lines = [line for line in output.splitlines() if not bar.fullmatch(line)]
    assert len(lines) <= 10, output
    assert "Traceback (" not in output
    return lines


def log_of(lines):
    """The log file that the last line names."""
    said, file = lines[-1].split(": ")
    assert said == "Full traceback"
    return Path(file).read_text()


def test_a_run_says_a_line_for_each_node_and_keeps_the_rest_for_its_log(project):
    result = ran("--pipeline", "data_prep")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if not line.startswith(("reading ", "grading "))]
    nodes = [line.split() for line in lines if line.startswith("data_prep.")]
    assert [node[0].partition(".")[2] for node in nodes] == [
        "collect_samples",
        "make_evaluation_set",
        "make_preference_pairs",
        "make_short_solutions",
        "select_calibration",
    ]
    assert all(float(seconds) < 1000 and unit == "s" for _, seconds, unit in nodes)
    assert [line.partition(":")[0] for line in lines if not line.startswith("data_prep.")] == [
        "calibration samples",
        "calibration set",
    ]
    (log,) = (project / "data" / "mine" / "logs").glob("*.log")
    text = log.read_text()
    assert "Kedro project" in text and "Saving data to calibration_set" in text and "Completed 5 out of 5" in text
    assert all(line in text for line in lines)  # the console's own lines too
    assert "deprecated" not in text
    assert log.with_suffix(".jsonl").exists()


def test_verbose_shows_what_kedro_says_too(project):
    output = ran("--pipeline", "data_prep", "--nodes", "data_prep.collect_samples", "--verbose").output
    assert "INFO kedro.io.data_catalog: Saving data to calibration_samples" in output


def test_pipeline_is_pipelines(project):
    nodes = ("--nodes", "data_prep.collect_samples")
    for option in ("--pipeline", "-p", "--pipelines"):
        result = ran(option, "data_prep", *nodes)
        assert result.exit_code == 0 and "eprecat" not in result.output
    assert ran("--pipeline", "data_prep", "--pipelines", "trra").exit_code == 2


# -- errors that the user can fix -------------------------------------------------------------------------------------
def test_a_mistyped_parameter(project):
    lines = failed("--pipeline", "trra", "--params", "trra.stepps=3,inra.lora.rank=-1,data_prep.calibration.task=x")
    text = "\n".join(lines)
    assert "trra: there is no parameter 'stepps': did you mean 'steps'?" in text
    assert "inra.lora.rank: Input should be greater than 0" in text
    assert "data_prep.calibration: there is no parameter 'task': there are" in text
    assert "--verbose" in lines[-1]


def test_a_wrong_value_deep_in_a_task_is_named_as_the_yaml_has_it(project):
    text = "\n".join(failed("--params", "data_prep.tasks.sums.problems=many"))
    assert "data_prep.tasks.sums.problems: Input should be a valid integer" in text


def test_a_name_that_no_stage_reads(project):
    assert "there is no parameter 'tra': did you mean 'trra'?" in "\n".join(failed("--params", "tra.steps=3"))


def test_a_mistyped_pipeline(project):
    assert (
        failed("--pipeline", "data_prepp")[0] == "Error: there is no pipeline 'data_prepp': did you mean 'data_prep'?"
    )


def test_a_mistyped_node(project):
    assert "nodes named ['collect']" in failed("--pipeline", "data_prep", "--nodes", "collect")[0]


def test_an_environment_that_does_not_exist(project):
    result = CliRunner().invoke(run, ["--env", "mien"])
    assert (result.exit_code, len(result.output.splitlines())) == (1, 2)
    assert (
        "there is no environment 'mien'" in result.output
        and "base, dialogue, dler, mine, paper_dialogue, paper_inra" in result.output
    )


def test_yaml_that_cannot_be_read(project):
    with (project / "conf" / "mine" / "parameters.yml").open("a") as file:
        file.write("trra: a: b\n")
    text = "\n".join(failed())
    assert "mine/parameters.yml" in text and "line" in text


def test_a_catalog_that_makes_no_dataset(project):
    catalog = project / "conf" / "mine" / "catalog.yml"
    catalog.write_text(catalog.read_text().replace("folders.CheckpointDataset", "folders.ChekpointDataset"))
    text = "\n".join(failed("--pipeline", "data_prep"))
    assert "'aligned_model'" in text and "'ChekpointDataset' not found" in text


def test_a_missing_path_in_the_catalog(project):
    shutil.move(project / "models" / "reference", project / "models" / "away")
    lines = failed("--pipeline", "data_prep")
    assert (
        f"({project}/models/reference)" in "\n".join(lines)
        and "check its path in your environment's catalog.yml" in lines[-2]
    )
    assert "MissingInputError" in log_of(lines)


def test_a_stage_whose_input_no_earlier_run_has_made(project):
    lines = failed("--pipeline", "trra")
    assert "stage data_prep makes it: kedro run --pipeline data_prep --env mine" in "\n".join(lines)


def test_a_damaged_checkpoint(project):
    file = project / "models" / "reference" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    lines = failed("--pipeline", "data_prep")
    assert str(file) in lines[0] and "damaged" in lines[0]
    assert "CheckpointError" in log_of(lines)


def test_a_wrong_column_of_a_dataset(project):
    lines = failed("--pipeline", "data_prep", "--params", "data_prep.calibration.question_column=problem")
    assert "traces.jsonl has no column problem" in "\n".join(lines)
    assert "It has: question, completion, answer" in "\n".join(lines)
    assert "read_rows" in log_of(lines)


def test_data_that_do_not_pass_their_validation(project):
    rows = [json.loads(line) for line in (project / "traces.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        row["answer"] = "none of these"
    pd.DataFrame(rows).to_json(project / "traces.jsonl", orient="records", lines=True)
    lines = failed("--pipeline", "data_prep")
    text = "\n".join(lines)
    assert "'calibration_samples'" in text and "at least 10% of the completions are right" in text
    (pages,) = [line for line in lines if line.startswith("What was found: ")]
    assert Path(pages.partition(": ")[2]).is_file()


def test_a_second_run(project):
    (project / "data" / "mine" / "work").mkdir(parents=True)
    take_lock(project / "data" / "mine" / "work" / "run.lock", "kedro run --pipelines inra")
    lines = failed("--pipeline", "data_prep")
    assert "another run works in" in lines[0] and "kedro run --pipelines inra" in lines[0]
    assert "AnotherRunError" in log_of(lines)


def test_a_full_disk(project):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7_000, hard))  # for any one file, which reads as a full disk
    try:
        lines = failed("--pipeline", "data_prep")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "No space left to write" in "\n".join(lines) and "Make room" in "\n".join(lines)


@pytest.mark.parametrize(
    ("how", "processes"),
    [(failed, 1), pytest.param(failed_in_processes, 2, marks=pytest.mark.full)],
    ids=["one", "several"],
)
def test_a_training_that_diverges(project, how, processes):
    for stage in ("data_prep", "teacher_logits"):
        result = ran("--pipeline", stage)
        assert result.exit_code == 0, result.output
    parameters = f"trra.learning_rate=1e30,trra.micro_batch_size=8,launcher.num_processes={processes}"
    lines = how("--pipeline", "trra", "--params", parameters)
    text = "\n".join(lines)
    assert "not finite" in text or "the loss is nan" in text
    assert "Traceback (most recent call last)" in log_of(lines) and "TrainingDivergedError" in log_of(lines)


# -- anything else ----------------------------------------------------------------------------------------------------
def test_an_unexpected_error_keeps_its_traceback_and_prints_it_once(project, monkeypatch):
    monkeypatch.setattr("realign_pipes.data.samples.read_samples", lambda *_, **__: {}["an unforeseen key"])
    result = ran("--pipeline", "data_prep")
    assert result.exit_code == 1
    assert result.output.count("Traceback (most recent call last)") == 1
    assert "KeyError: 'an unforeseen key'" in result.output
    assert "│" not in result.output  # rich's boxes


# -- every spelling ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "command",
    [["kedro"], pytest.param(["realign_pipes"], marks=pytest.mark.full), pytest.param(SCRIPT, marks=pytest.mark.full)],
    ids=["kedro", "module", "script"],
)
def test_an_error_is_short_however_the_run_is_started(project, command):
    options = ["run", "--env", "mine", "--pipeline", "trra", "--params", "trra.stepps=3"]
    python = [sys.executable, "-c", command] if command == SCRIPT else [sys.executable, "-m", *command]
    result = subprocess.run([*python, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= MAX_LINES
    assert "did you mean 'steps'?" in result.stderr


def test_a_run_imports_no_torch_before_a_node_needs_it(project):
    command = [sys.executable, "-X", "importtime", "-m", "kedro", "run", "--env", "mine", "--pipeline", "trra"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "stage data_prep makes it" in result.stderr  # it came as far as the inputs of the first node
    imported = set(re.findall(r"\| +(\w+)$", result.stderr, re.MULTILINE))
    assert "kedro" in imported
    assert not imported & {"torch", "transformers", "datasets", "great_expectations"}


def test_the_console_script_is_the_program():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"realign-pipes": "realign_pipes.__main__:main"}
