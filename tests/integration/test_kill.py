"""Runs that end badly: killed at random moments, on a full disk, or started twice. Real `kedro run`s in a project copy.

`pytest tests/integration/test_kill.py` kills once, in trra; with `-m "not slow"` once in each kind of work; with
`-m ""` five times in each too. A failure prints the seed of the random moments; KILL_SEED=<seed> draws them again.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise, product
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME

from realign_pipes.runtime.files import LEFTOVER
from realign_pipes.runtime.training import last_complete_checkpoint

ENV = "kill"
SUMS = {"min_terms": 2, "max_terms": 2}
TASK = {"problems": 10, "options": SUMS}
TRAINING = {"steps": 8, "save_steps": 2}
# Hardly anything is learnt: a handful of right answers is enough for every kind of data to be made from them.
PARAMETERS = {
    "demo_models": {
        "problems": SUMS,
        "traces": {"check_share": 0.0, "max_checks": 1, "slip_rate": 0.0, "cut_share": 0.0},
        "architecture": {"layers": 2},
        "reference": {"steps": 240, "learning_rate": 0.004, "save_steps": 60},
        "aligned": {
            "problems": 40,
            "batch_size": 8,
            **TRAINING,
            "sampling": {"samples": 2, "max_new_tokens": 40},
        },
    },
    "data_prep": {
        "calibration": {
            "task": {"problems": 60, "options": SUMS},
            "sampling": {"samples": 2, "max_new_tokens": 40, "batch_size": 20},
            "min_tokens": 4,
            "max_tokens": 40,
        },
        "tasks": {"sums_short": TASK, "sums_long": TASK},
    },
    "teachers": {"shard_tokens": 30, "batch_size": 2},
    "trra": {"alphas": [0.5, 1.5], **TRAINING},
    "inra": TRAINING,
    "alpha_sweep": {
        "dera_alphas": [1.5],
        "inra_alphas": [0.0, 0.5],
        "merge_alphas": [0.5],
        "ties": {"alphas": []},
        "svd": None,
        "budgets": {"tokens": [24]},
        "sampling": {"samples": 2, "max_new_tokens": 40},
        "bootstrap_samples": 100,
    },
}

WORK = {
    "demo_models": (r"training the (reference|aligned) model: \d+ to do", "Saving data to aligned_model"),
    "data_prep": (r"sampling the calibration's completions: 120 to do", "calibration samples: 120 completions"),
    "teacher_logits": (r"caching the reference's hidden states: \d+ to do", "Saving data to teacher_cache_report"),
    "inra": (r"training the adapter", "Saving data to inra_checkpoint"),
    "trra": (r"(training|caching) trra-", "Saving data to trra_checkpoints"),
    "alpha_sweep": (r"evaluating ", "Saving data to generations"),
    "scores": (r"Running node: score: ", "Saving data to judge_results"),
    "reporting": (r"Running node: recommend_candidate", "Completed node: reporting.print_summary"),
}
"""Each stage, in the order in which Kedro runs them, and what its output says when its work begins and is done. Nodes
of reporting that need no scores run before them, so it begins with the first that does."""

STAGES = list(WORK)
BEGIN = {stage: re.compile(begin) for stage, (begin, _) in WORK.items()}
TIME_LIMIT = 300


class Run:
    """`kedro run` in a process group of its own, with the lines that it writes and when it wrote them."""

    def __init__(self, root: Path, stages: list[str] = STAGES, *options: str) -> None:
        command = [sys.executable, "-m", "kedro", "run", "--verbose", "--env", ENV, "--pipelines", ",".join(stages)]
        command += options
        environment = {**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "1000", "OMP_NUM_THREADS": "1"}
        self.lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    @property
    def output(self) -> str:
        return "".join(line for _, line in self.lines)

    def began(self, stage: str) -> float | None:
        """When the stage's work began, None if it has not."""
        return next((when for when, line in self.lines if BEGIN[stage].search(line)), None)

    def seconds(self, stage: str) -> float:
        """How long the stage's work took."""
        return next(when for when, line in self.lines if WORK[stage][1] in line) - self.began(stage)

    def wait_for(self, stages: list[str], seconds: float = TIME_LIMIT) -> bool:
        """Until the work of one of the stages begins: whether it did in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.reader.is_alive():
            if any(self.began(stage) for stage in stages):
                return True
            time.sleep(0.002)
        return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.end() == -signal.SIGKILL, self.output

    def end(self) -> int:
        code = self.process.wait(TIME_LIMIT)
        self.reader.join(TIME_LIMIT)
        return code

    def succeed(self) -> "Run":
        assert self.end() == 0, self.output
        return self


def configure(root: Path, data: str = f"data/{ENV}") -> Path:
    """Give the project in `root` the environment of these tests; its data folder."""
    conf = root / "conf" / ENV
    conf.mkdir(exist_ok=True)
    entry = yaml.safe_load((root / "conf" / "base" / "catalog.yml").read_text())["calibration_samples"]
    entry["validator"]["options"]["min_correct"] = 0.01
    for name, content in (
        ("parameters", PARAMETERS),
        ("globals", {"data": data}),
        ("catalog", {"calibration_samples": entry}),
    ):
        (conf / f"{name}.yml").write_text(yaml.safe_dump(content))
    return root / data


@pytest.fixture(scope="module")
def uninterrupted(copy_project):
    """A run of all stages, and its data folder."""
    root = copy_project()
    data = configure(root)
    return Run(root).succeed(), data


# -- what must hold after a kill --------------------------------------------------------------------------------------
def is_final(file: Path) -> bool:
    """Whether a file is under its final name: no temporary, nothing that a training needs to go on (the last file of a
    state says that it is complete; curves are written again), no log for people, and no file that is only locked."""
    unfinished = any(LEFTOVER.fullmatch(part) or part in ("trainer", "curves", "run.lock") for part in file.parts)
    return not unfinished and file.suffix != ".log"


def assert_nothing_is_half_written(data: Path, whole: Path) -> None:
    """Every file under its final name opens; texts are as long as in the data folder `whole` of another run."""
    for file in filter(is_final, (path for path in data.rglob("*") if path.is_file())):
        other = whole / file.relative_to(data)
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            if file.name == "index.json" and "shards" in content:
                for shard in content["shards"]:
                    digest = hashlib.sha256((file.parent / shard["file"]).read_bytes()).hexdigest()
                    assert digest == shard["sha256"], file
        elif file.suffix == ".jsonl":
            assert all(json.loads(line) for line in file.read_text().splitlines()), file
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="np") as tensors:
                assert all(tensors.get_tensor(name) is not None for name in tensors.keys()), file  # noqa: SIM118  it is no dictionary
        elif file.suffix == ".parquet":
            assert len(pd.read_parquet(file)) == len(pd.read_parquet(other)), file
        elif file.suffix == ".arrow":
            with pa.memory_map(str(file)) as stream:
                assert pa.ipc.open_stream(stream).read_all().num_rows > 0, file
        else:  # text, of which some has times or random names in it
            lines = file.read_text().splitlines()
            expected = other.read_text().splitlines()
            assert len(lines) == len(expected), file
            assert len(lines[-1].split(",")) == len(expected[-1].split(",")), file
            assert file.suffix != ".html" or lines[-1].strip() == expected[-1].strip(), file


def finished_pieces(data: Path) -> dict[Path, tuple[int, int]]:
    """Files that a stage need not make again, each with what would change if it did."""
    work = data / "work"
    patterns = ("**/checkpoint/model.safetensors", "*/chosen.json", "data_prep/batch-*.json", "alpha_sweep/*/*.parquet")
    files = [file for pattern in patterns for file in work.glob(pattern)]
    for entries in work.glob("**/*.json"):  # of a cache: its index, or a shard's entry that will go into it
        if entries.name == "index.json" or entries.name.startswith("shard-"):
            content = json.loads(entries.read_text())
            files += [entries.parent / shard["file"] for shard in content.get("shards", [content])]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.exists()}


def steps_done(data: Path) -> dict[str, int]:
    """The last step of each unfinished training with a complete state, by the name of its bar."""
    done = {}
    for trainer in (data / "work").rglob("trainer"):
        last = last_complete_checkpoint(trainer)
        if last is not None and not trainer.with_name("checkpoint").exists():
            title = {"inra": "the adapter (SFT)", "reference": "the reference model", "aligned": "the aligned model"}
            name = trainer.parent.name
            steps = json.loads((last / TRAINER_STATE_NAME).read_text())["global_step"]
            done[f"training {title.get(name, name)}"] = steps
    return done


def assert_it_went_on(run: Run, before: dict[Path, tuple[int, int]], done: dict[str, int]) -> None:
    """`run` redid nothing that was already there, and trained from the last saved step."""
    for file, state in before.items():
        if file.exists():  # a cache of a later round is removed when that round's student is finished
            assert (file.stat().st_ino, file.stat().st_mtime_ns) == state, f"{file} was made again:\n{run.output}"
    for name, steps in done.items():
        first = re.search(rf"{re.escape(name)}: (\d+)/", run.output)
        assert first is None or int(first[1]) >= steps, f"{name} began again before step {steps}:\n{run.output}"


def assert_same_results(data: Path, expected: Path) -> None:
    """The same files as in the data folder `expected`, with the same bits but for times and random names of HTML."""
    folders = ("03_primary", "05_model_input", "06_models", "07_model_output", "08_reporting")
    files, others = (
        {file.relative_to(root) for name in folders for file in (root / name).rglob("*") if file.is_file()}
        for root in (data, expected)
    )
    assert files == others
    timed = ("tokens_per_second.tsv", "memory_mib.tsv", "metrics.json", "training_figure.json", "candidate_costs.json")
    for name in sorted(files):
        file, other = data / name, expected / name
        if file.suffix == ".parquet":
            found, wanted = (pd.read_parquet(one).drop(columns="seconds", errors="ignore") for one in (file, other))
            pd.testing.assert_frame_equal(found, wanted, check_exact=True)
        elif file.suffix == ".csv":
            found, wanted = (
                pd.read_csv(one, dtype=str).drop(columns=["seconds", "train_seconds"], errors="ignore")
                for one in (file, other)
            )
            pd.testing.assert_frame_equal(found, wanted)
        elif file.name == "sweep_table.md":
            assert without_time(file) == without_time(other)
        elif file.suffix != ".html" and file.name not in timed and not file.name.startswith("train_"):
            assert file.read_bytes() == other.read_bytes(), file


def without_time(table: Path) -> str:
    """A table in Markdown less its last two columns."""
    return re.sub(r"\|[^|]*\|[^|]*\|$", "|", table.read_text(), flags=re.MULTILINE)


# -- killed -----------------------------------------------------------------------------------------------------------
MADE = {
    "demo_models": ["work/demo_models", "06_models/reference", "06_models/aligned"],
    "data_prep": ["work/data_prep", "03_primary", "05_model_input"],
    "teacher_logits": ["work/teacher_logits", "05_model_input/teacher_cache"],
    "inra": ["work/inra", "06_models/inra"],
    "trra": ["work/trra", "06_models/trra"],
    "alpha_sweep": ["work/alpha_sweep", "07_model_output"],
    "scores": ["work/scores", *(f"07_model_output/{name}" for name in (
        "scores.parquet", "metric_results.csv", "judge_verdicts.parquet", "judge_results.csv",
    ))],
    "reporting": ["work/reporting", *(f"08_reporting/{name}" for name in (
        "data_docs", "alpha_figure.json", "budget_figure.json", "budget_table.md", "headline.json",
        "pareto_figure.json", "recommendation.json", "report.html", "sweep_metrics.json", "sweep_table.csv",
        "sweep_table.md", "training_figure.json",
    ))],
}  # fmt: skip
"""What a stage leaves, which a later one may have below it."""


def forget(data: Path, stages: list[str]) -> None:
    """Remove what the stages made."""
    for path in (data / name for stage in stages for name in MADE[stage]):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("stages", "kills"),
    [
        pytest.param(["trra"], 1, id="in_trra"),
        pytest.param(STAGES, 1, id="once", marks=pytest.mark.slow),
        pytest.param(STAGES, 5, id="five_times", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, copy_project, stages, kills):
    """Kills in the work of each of `stages`. After each the next run takes over, which may be killed in its turn."""
    whole, expected = uninterrupted
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    root = copy_project()
    data = configure(root)
    begins = [whole.began(stage) for stage in STAGES] + [whole.lines[-1][0]]
    until_next = dict(zip(STAGES, (b - a for a, b in pairwise(begins)), strict=True))
    pieces: dict[Path, tuple[int, int]] = {}
    steps: dict[str, int] = {}
    unfinished = STAGES[STAGES.index(stages[0]) :]  # what runs next: the stage that was killed, and all that follow it
    if unfinished != STAGES:
        shutil.copytree(expected, data)
        forget(data, unfinished)
    for stage, number in product(stages, range(kills)):
        run = Run(root, unfinished)
        following = STAGES[STAGES.index(stage) :]
        assert run.wait_for(following), f"it did not come to {stage}:\n{run.output}"
        # Every other kill may come after the work, while it is saved; a stage that has less left to do ends sooner.
        run.wait_for(following[1:], rng.uniform(0, until_next[stage] if number % 2 else whole.seconds(stage)))
        run.kill()
        print(f"killed in {stage} after: {run.lines[-1][1].strip()[:100]}")
        assert_nothing_is_half_written(data, expected)
        assert_it_went_on(run, pieces, steps)
        pieces, steps = finished_pieces(data), steps_done(data)
        unfinished = following
    run = Run(root, unfinished).succeed()
    assert_it_went_on(run, pieces, steps)
    assert_nothing_is_half_written(data, expected)
    assert_same_results(data, expected)
    left = [path for path in data.rglob(".*") if LEFTOVER.fullmatch(path.name)]
    assert not [path for path in left if path.is_relative_to(data / "work")], left


# -- on a full disk ---------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"mounting a small file system needs root: {mount.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "full",
    [
        pytest.param(["trra"], id="trra", marks=pytest.mark.full),
        pytest.param(STAGES, id="every_stage", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_named_and_the_next_run_goes_on_to_the_same_bits(uninterrupted, copy_project, small_disk, full):
    """In each stage of `full`, the disk fills somewhere on its way."""
    _, expected = uninterrupted
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    data = small_disk / "data"
    root = copy_project()
    configure(root, str(data))
    shutil.copytree(expected, data)
    todo = STAGES[STAGES.index(full[0]) :]
    forget(data, todo)
    for stage in full:
        needed = sum(size(expected / name) for name in MADE[stage])
        room = rng.uniform(0.02, 0.6) * needed
        ballast = small_disk / "ballast"
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, int(shutil.disk_usage(small_disk).free - room))
        run = Run(root, [stage])
        assert run.end() == 1, run.output
        print(f"full in {stage} with room for {room:.0f} bytes: {run.lines[-1][1].strip()}")
        assert re.search(rf"No space left to write {re.escape(str(data))}/\S+ .*start the same run again", run.output)
        assert_nothing_is_half_written(data, expected)
        pieces, steps = finished_pieces(data), steps_done(data)
        ballast.unlink()
        run = Run(root, [stage] if stage != full[-1] else STAGES[STAGES.index(stage) :]).succeed()
        assert_it_went_on(run, pieces, steps)
        assert_nothing_is_half_written(data, expected)
    assert_same_results(data, expected)


def size(path: Path) -> int:
    """Bytes of a file, or of all below a folder."""
    return path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in path.rglob("*"))


# -- begun twice ------------------------------------------------------------------------------------------------------
def test_the_second_of_two_runs_is_refused_and_names_the_first(copy_project):
    root = copy_project()
    data = configure(root)
    first = Run(root, ["demo_models"])
    assert first.wait_for(["demo_models"]), first.output
    logs = sorted((data / "logs").glob("*.jsonl"))
    second = Run(root, ["reporting"])
    assert second.end() == 1
    said = " ".join(second.output.split())
    assert "AnotherRunError: another run works in" in said
    assert f"process {first.process.pid} on {socket.gethostname()}, started 20" in said
    assert f"kedro run --pipelines demo_models --env {ENV}" in said
    assert sorted((data / "logs").glob("*.jsonl")) == logs
    configure(root, "data/elsewhere")
    assert_another_reason(Run(root, ["reporting"]))
    configure(root)
    first.kill()
    assert_another_reason(Run(root, ["reporting"]))
    assert sorted((data / "logs").glob("*.jsonl")) == logs  # a run that is refused leaves no file


def assert_another_reason(run: Run) -> None:
    """That `run` took the lock: it fails, but for want of models."""
    assert run.end() == 1
    assert "MissingInputError" in run.output and "AnotherRunError" not in run.output, run.output
