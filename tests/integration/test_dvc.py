"""DVC on a copy of the project with small parameters: what reruns and what does not, experiments, push and pull.

The tests share one project, and each leaves it as its first commit has it.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from realign_pipes.runtime.files import LEFTOVER

PROJECT = Path(__file__).parents[2]
PROBLEM = "State the final answer to the following arithmetic problem: {} + {} ="
SMALL = {
    "demo_models": {
        "problems": {"min_terms": 2, "max_terms": 2},
        "traces": {"check_share": 0.0, "max_checks": 1, "slip_rate": 0.0, "cut_share": 0.0},
        "architecture": {"layers": 2},
        "reference": {"steps": 250, "learning_rate": 0.004, "save_steps": 250},  # it solves a quarter
        "aligned": {
            "problems": 40,
            "steps": 4,
            "save_steps": 4,
            "sampling": {"samples": 2, "max_new_tokens": 40},
        },
    },
    "data_prep": {
        "calibration": {
            "task": {"problems": 60, "options": {"min_terms": 2, "max_terms": 2}},
            "sampling": {"samples": 2, "max_new_tokens": 40},
            "min_tokens": 1,
            "max_tokens": 40,
        },
        "tasks": {
            "sums_short": {"problems": 4, "options": {"min_terms": 2, "max_terms": 2}},
            "sums_long": None,
            "sums_of_mine": {"kind": "dataset", "path": "data/01_raw/problems.jsonl", "verifier": "exact"},
        },
    },
    "trra": {
        "alphas": [0.5],
        "iterations": 0,
        "iteration_alphas": [],
        "ablation_alphas": [],
        "steps": 4,
        "save_steps": 2,
    },
    "inra": {"steps": 2, "save_steps": 2},
    "alpha_sweep": {
        "dera_alphas": [],
        "inra_alphas": [0.5],
        "merge_alphas": [],
        "ties": {"alphas": []},
        "svd": None,
        "budgets": {"tokens": [24]},
        "sampling": {"samples": 2, "max_new_tokens": 40},
        "bootstrap_samples": 100,
    },
}
TRRA = "conf/base/parameters_trra.yml"
HEADLINE = "data/08_reporting/headline.json"
WITNESS = """\
import atexit, json, os, sys
from pathlib import Path

if "--pipelines" in sys.argv:
    root, opened = Path.cwd(), set()

    def see(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            opened.add((os.path.abspath(arguments[0]), bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))))

    def tell():
        modules = [getattr(module, "__file__", None) for name, module in sys.modules.items()]
        said = {"modules": modules, "opened": list(opened)}
        (Path(os.environ["WITNESS"]) / sys.argv[sys.argv.index("--pipelines") + 1]).write_text(json.dumps(said))

    sys.addaudithook(see)
    atexit.register(tell)
"""
"""sitecustomize.py of the stages' processes: writes down which files each opened and which modules it imported."""


def paths(entries: list) -> set[str]:
    """What outs, metrics or plots name; the folder of all alphas for that of one."""
    names = {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}
    return {name.removesuffix("/${item.alpha}") for name in names}


def merge(values: dict, changes: dict) -> dict:
    return values | {
        name: merge(values[name], change) if isinstance(change, dict) and name in values else change
        for name, change in changes.items()
    }


class Project:
    """A git repository with a copy of this project's code and small parameters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("src", "conf", "dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore",
                     ".telemetry", "pyproject.toml"):  # fmt: skip
            source, target = PROJECT / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("local", "__pycache__", "*.egg-info"))
            else:
                shutil.copy(source, target)
        for folder in ("conf/local", "data/01_raw"):
            (root / folder).mkdir(parents=True)
            (root / folder / ".gitkeep").touch()
        for file in (root / "conf" / "base").glob("parameters_*.yml"):
            values = yaml.safe_load(file.read_text())
            small = {name: merge(values[name], SMALL[name]) for name in values if name in SMALL}
            file.write_text(yaml.safe_dump(values | small, sort_keys=False))
        catalog = root / "conf" / "base" / "catalog.yml"
        entries = yaml.safe_load(catalog.read_text())
        entries["calibration_samples"]["validator"]["options"]["min_correct"] = 0.01
        catalog.write_text(yaml.safe_dump(entries))
        problems = [{"question": PROBLEM.format(a, b), "answer": str(a + b)} for a, b in ((2, 3), (4, 1), (3, 3))]
        self.problems = root / "data" / "01_raw" / "problems.jsonl"
        self.problems.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
        self.witness = root.parent / "witness"
        self.witness.mkdir()
        (self.witness / "sitecustomize.py").write_text(WITNESS)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{root / 'src'}{os.pathsep}{self.witness}",
            "WITNESS": str(self.witness),
            "DVC_SITE_CACHE_DIR": str(root.parent / "dvc_site_cache"),
            "OMP_NUM_THREADS": "1",  # faster for models this small
            **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self("git", "init", "--quiet")
        self("git", "add", "--force", "data/01_raw")
        self.commit("Small parameters")

    def __call__(self, *command: str) -> str:
        """What a command prints; a failure fails the test with it."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, check=False, stdout=-1, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def ran(self, *command: str) -> set[str]:
        """The stages that a command ran."""
        return set(re.findall(r"^Running stage '(.*)':", self(*command), re.MULTILINE))

    def commit(self, message: str) -> None:
        self("git", "add", "--all")
        self("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def restore(self) -> None:
        """Files and data of the last commit; `dvc checkout` leaves folders of stages that no longer exist."""
        self("git", "checkout", "--quiet", ".")
        shutil.rmtree(self.root / "data" / "06_models" / "trra")
        self("dvc", "checkout", "--quiet")

    def contents(self) -> dict[str, bytes]:
        """Every file of data/ that belongs to DVC or git."""
        data = self.root / "data"
        files = [file for file in data.rglob("*") if file.is_file()]
        return {
            str(file.relative_to(data)): file.read_bytes()
            for file in files
            if file.relative_to(data).parts[0] not in ("work", "logs")
        }

    def read(self, path: str) -> dict:
        return json.loads((self.root / path).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project after `dvc repro` and a commit of what that made."""
    project = Project(tmp_path_factory.mktemp("dvc") / "project")
    stages = {"demo_models", "data_prep", "teacher_logits", "trra@0.5", "inra", "alpha_sweep", "scores", "reporting"}
    assert project.ran("dvc", "repro") == stages
    project.commit("First results")
    return project


@pytest.fixture
def changing(project) -> Iterator[Project]:
    """The same for a test that changes it; all that is undone."""
    yield project
    project.restore()


def test_a_second_repro_does_nothing_and_a_run_leaves_git_alone(project):
    assert "Data and pipelines are up to date." in project("dvc", "repro")
    assert project("git", "status", "--porcelain") == ""
    raw = "data/01_raw"
    assert set(project("git", "ls-files", "data").split()) == {f"{raw}/.gitkeep", f"{raw}/problems.jsonl"}
    (project.root / "dvc.lock").rename(project.root / "lock")  # what a clone has before its first run
    everything = project("dvc", "repro", "--dry")
    (project.root / "lock").rename(project.root / "dvc.lock")
    assert everything.count("Running stage ") == 8


def test_a_stage_depends_on_what_its_process_opens_and_imports(project):
    """What Python itself opens: of Arrow's and safetensors' files those that describe them."""
    root = project.root
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    ignored = set(project("dvc", "check-ignore", *map(str, (root / "src").rglob("*.py"))).split())
    # What Kedro's start imports for every stage: it says nothing of one of them.
    start = (
        "import sys, realign_pipes.cli, realign_pipes.settings, realign_pipes.pipeline_registry;"
        "print(*(getattr(module, '__file__', None) for module in sys.modules.values()), sep='\\n')"
    )
    ignored |= set(project(sys.executable, "-c", start).splitlines())
    for name, stage in stages.items():
        said = json.loads((project.witness / name).read_text())
        outs = paths([*stage["outs"], *stage.get("metrics", []), *stage.get("plots", [])])
        opened = [(Path(file), written) for file, written in said["opened"]]
        data = {(file.relative_to(root / "data"), written) for file, written in opened
                if file.is_relative_to(root / "data")}  # fmt: skip
        for file, written in data:
            if file.parts[0] in ("work", "logs"):
                continue
            final = Path("data", *(LEFTOVER.sub(r"\1", part) for part in file.parts))  # temporaries are renamed to it
            known = outs if written else {*outs, *stage["deps"]}
            assert known & {str(path) for path in (final, *final.parents)}, (name, file, written)
        assert {"work", "logs"} < {file.parts[0] for file, _ in data}
        modules = {Path(file).relative_to(root) for file in set(filter(None, said["modules"])) - ignored
                   if Path(file).is_relative_to(root / "src")}  # fmt: skip
        assert len(modules) > 10
        for file in modules:
            assert set(stage["deps"]) & {str(path) for path in file.parents}, (name, file)


def test_metrics_fit_on_a_line(project):
    """A path and seven figures."""
    header, _ = project("dvc", "metrics", "show").strip().splitlines()
    assert len(re.split(r"\s{2,}", header.strip())) == 8
    shown = json.loads(project("dvc", "metrics", "show", "--json"))[""]["data"]
    assert shown == {HEADLINE: {"data": project.read(HEADLINE)}}
    plots = json.loads(project("dvc", "plots", "show", "--json"))["data"]
    assert set(plots) == {
        "data/07_model_output/budget_results.csv",
        "data/08_reporting/sweep_table.csv",
        "training_loss",
    }


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("reporting/figures.py", {"reporting"}),
        ("reporting/report.html.jinja", {"reporting"}),
        ("teachers/fused.py", {"teacher_logits", "trra@0.5", "inra"}),
        # The report takes its labels from the table of kinds, which also opens what draws their completions.
        # On-policy students draw through the same seam, and the adapter's stage reads their parameters.
        (
            "generation/graded.py",
            {"demo_models", "data_prep", "trra@0.5", "inra", "alpha_sweep", "scores", "reporting"},
        ),
        ("demo/traces.py", {"demo_models"}),
        ("pipelines/alpha_sweep/job.py", {"alpha_sweep"}),
        ("pipelines/trra/parameters.py", set()),
        ("runtime/launch.py", set()),
        ("settings.py", set()),
    ],
)
def test_a_module_that_changes_concerns_the_stages_that_use_it(project, module, stages):
    file = project.root / "src" / "realign_pipes" / module
    text = file.read_text()
    file.write_text(text + "\n")
    changed = set(json.loads(project("dvc", "status", "--json")))
    file.write_text(text)
    assert changed == stages


@pytest.mark.full
def test_a_module_that_changes_reruns_what_is_downstream(changing):
    with (changing.root / "src" / "realign_pipes" / "reporting" / "figures.py").open("a") as stream:
        stream.write("\n")
    assert changing.ran("dvc", "repro") == {"reporting"}


@pytest.mark.slow
def test_an_experiment_with_another_alpha_trains_and_measures_that_one(changing):
    before = changing.read("data/08_reporting/sweep_metrics.json")
    headline = changing.read(HEADLINE)
    said = changing("dvc", "exp", "run", "--name", "further", "--set-param", f"{TRRA}:trra.alphas=[0.5,2.0]")
    assert set(re.findall(r"^Running stage '(.*)':", said, re.MULTILINE)) == {
        "trra@2.0",
        "alpha_sweep",
        "scores",
        "reporting",
    }
    assert set(re.findall(r"^(?:training|evaluating) [^:]*", said, re.MULTILINE)) == {
        "training trra-2",
        "evaluating trra-2",
    }
    after = changing.read("data/08_reporting/sweep_metrics.json")
    assert {name: after.pop(name) for name in before} == before
    assert set(after) == {"trra-2"}
    [changed] = json.loads(changing("dvc", "params", "diff", "--json"))[TRRA].items()
    assert changed == ("trra.alphas", {"old": "[0.5]", "new": "[0.5, 2.0]"})
    differences = json.loads(changing("dvc", "metrics", "diff", "--all", "--json"))[HEADLINE]
    assert {name: values["old"] for name, values in differences.items()} == headline
    assert {name: values["new"] for name, values in differences.items()} == changing.read(HEADLINE)


def test_experiments_with_another_divergence_and_learning_rate_are_shown_side_by_side(changing):
    changes = [f"{TRRA}:trra.divergence=jsd", f"{TRRA}:trra.learning_rate=0.003"]
    set_params = [f"--set-param={change}" for change in changes]
    # One stage of it: what is downstream runs in the other tests.
    assert changing.ran("dvc", "exp", "run", "--name", "jsd", *set_params, "trra@0.5") == {"trra@0.5"}
    made = changing.read("data/06_models/trra/0.5/trra-0.5/realignment.json")["parameters"]
    assert (made["divergence"], made["learning_rate"]) == ("jsd", 0.003)
    rows = csv.DictReader(io.StringIO(changing("dvc", "exp", "show", "--csv")))
    shown = {row["Experiment"] or row["rev"]: row for row in rows}
    assert shown["jsd"]["trra.divergence"] == "jsd"
    assert float(shown["jsd"]["trra.learning_rate"]) == 0.003
    main = shown[changing("git", "branch", "--show-current").strip()]
    assert main["trra.divergence"] == "forward_kl"
    for name, figure in changing.read(HEADLINE).items():
        for row in (main, shown["jsd"]):
            assert row[name] == figure if name == "candidate" else float(row[name]) == pytest.approx(figure, abs=1e-4)


@pytest.mark.slow
def test_a_data_file_that_changes_reruns_what_is_downstream(changing):
    with changing.problems.open("a") as stream:
        stream.write(json.dumps({"question": PROBLEM.format(1, 1), "answer": "2"}) + "\n")
    assert changing.ran("dvc", "repro") == {"data_prep", "alpha_sweep", "scores", "reporting"}


@pytest.mark.full
def test_a_stage_that_was_killed_resumes(changing):
    file = changing.root / TRRA
    values = yaml.safe_load(file.read_text())
    values["trra"].update(steps=150, save_steps=5)
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    trainer = changing.root / "data" / "work" / "trra" / "trra-0.5" / "trainer"
    with (changing.root.parent / "killed.log").open("w") as log:
        running = subprocess.Popen(["dvc", "repro", "trra@0.5"], cwd=changing.root, env=changing.environment,
                                   start_new_session=True, stdout=log, stderr=log)  # fmt: skip
        while not any(trainer.glob("checkpoint-*/trainer_state.json")):
            assert running.poll() is None, (changing.root.parent / "killed.log").read_text()
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    states = trainer.glob("checkpoint-*/trainer_state.json")
    first, *_ = max((json.loads(state.read_text())["log_history"] for state in states), key=len)
    finished = changing.root / "data" / "06_models" / "trra" / "0.5" / "trra-0.5"
    assert not finished.exists()
    assert changing.ran("dvc", "repro", "trra@0.5") == {"trra@0.5"}
    with (finished / "curves" / "plots" / "metrics" / "tokens_per_second.tsv").open() as stream:
        speeds = list(csv.DictReader(stream, delimiter="\t"))
    assert len(speeds) == 150
    assert float(speeds[0]["tokens_per_second"]) == pytest.approx(first["tokens_per_second"])  # no two runs share it


def test_push_and_pull_bring_everything_back_byte_for_byte(project, tmp_path):
    before = project.contents()
    project("dvc", "push")
    assert (project.root.parent / "realign_pipes_dvc_remote" / "files").is_dir()
    project("dvc", "remote", "modify", "--local", "local", "url", str(tmp_path / "elsewhere"))
    project("dvc", "push")
    assert (tmp_path / "elsewhere" / "files").is_dir()
    shutil.rmtree(project.root / "data")
    shutil.rmtree(project.root / ".dvc" / "cache")
    project("git", "checkout", "data")
    project("dvc", "pull")
    assert project.contents() == before
    assert "Data and pipelines are up to date." in project("dvc", "repro")
    (project.root / ".dvc" / "config.local").unlink()


def test_models_deleted_between_stages_come_back_from_the_cache(project):
    before = project.contents()
    shutil.rmtree(project.root / "data" / "06_models")
    assert project.ran("dvc", "repro") == set()
    assert project.contents() == before
