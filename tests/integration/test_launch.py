"""Several processes: what two make is what one makes, and what stops one of them stops all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from accelerate.utils.other import get_free_port
from datasets import Dataset
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from realign_pipes.evaluation.sweep import measure
from realign_pipes.launcher import run_job
from realign_pipes.realignment.inra.training import make_adapter
from realign_pipes.realignment.teachers import make_caches
from realign_pipes.realignment.trra import make_students
from safetensors.torch import load_file

from realign_pipes import launcher as launchers
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Launcher, LaunchError, write_job
from realign_pipes.tasks.parameters import ReasoningGymProblems
from realign_pipes.teachers.parameters import Teachers

PROJECT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
DDP, FSDP2 = (["--config_file", str(PROJECT / "conf" / "accelerate" / name)] for name in ("ddp.yaml", "fsdp2.yaml"))
TRAINING = {
    "steps": 4,
    "batch_size": 8,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.0,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "save_steps": 2,
    "seed": 5,
}
DIVERGENCE = {"divergence": "forward_kl", "temperature": 1.0, "chunk_tokens": 7}
STUDENT = {
    **TRAINING,
    **DIVERGENCE,
    "alphas": [1.5],
    "only_alpha": None,
    "iterations": 0,
    "iteration_alphas": [1.5],
    "adapter": "full",
    "lora": {"rank": 4, "alpha": 8, "merge": False},
}
ADAPTER = {
    **TRAINING,
    "num_adapter_layers": 1,
    "init": "identity",
    "placement": "bottom",
    "adapter": "full",
    "lora": {"rank": 2, "alpha": 4},
    "dpo": {"beta": 0.3},
    "trra": {**DIVERGENCE, "alpha": 1.5},
}
ONLINE = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12)
CACHED = ONLINE.model_copy(update={"mode": "cached"})
SWEEP = AlphaSweep.model_validate(
    {
        "dera_alphas": [0.5],
        "inra_alphas": [0.0, 0.5],
        "budgets": {"tokens": [6], "ramp": 0.5},
        "sampling": {
            "samples": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 4, "seed": 1,
        },
        "bootstrap_samples": 10,
        "bootstrap_seed": 1,
    }
)  # fmt: skip


@pytest.fixture
def models(tmp_path, make_checkpoint):
    return {
        "reference": make_checkpoint(tmp_path / "reference", seed=1, vocab_padding=3),
        "aligned": make_checkpoint(tmp_path / "aligned", seed=2, vocab_padding=8),
    }


@pytest.fixture
def examples(tiny_tokenizer):
    generator = torch.Generator().manual_seed(3)

    def tokens(count):
        return torch.randint(4, len(tiny_tokenizer), (count,), generator=generator).tolist()

    rows = []
    for number in range(9):
        prompt = f"3 + {number}"
        rows.append({"id": f"e{number}", "prompt": prompt, "prompt_ids": tiny_tokenizer(prompt).input_ids,
                     "completion_ids": tokens(3 + 2 * (number % 4)), "chosen_ids": tokens(2 + number % 3),
                     "rejected_ids": tokens(4)})  # fmt: skip
    return Dataset.from_list(rows)


@pytest.fixture
def of_students(models, examples, tmp_path):
    """`of_students(**parameters)`: the arguments of `make_students` but for its work folder."""

    def arguments(teachers=ONLINE, reference=None, **changes):
        return {
            **models,
            **({"reference": reference} if reference else {}),
            "examples": examples,
            "parameters": TrRa.model_validate({**STUDENT, **changes}),
            "teachers": teachers,
            "teacher_cache": tmp_path / "one" / "caches" / "teacher_logits",
        }

    return arguments


@pytest.fixture
def of_adapter(models, examples, tmp_path):
    def arguments(**changes):
        return {
            **models,
            "parameters": InRa.model_validate({**ADAPTER, **changes}),
            "teachers": ONLINE,
            "short_solutions": examples.select_columns(["id", "prompt_ids", "completion_ids"]),
            "preference_pairs": examples.select_columns(["id", "prompt_ids", "chosen_ids", "rejected_ids"]),
            "calibration_set": examples,
            "teacher_cache": tmp_path / "none",
        }

    return arguments


def in_one_process(jobs, tmp_path):
    return {name: job(**arguments, work=tmp_path / "one" / name) for name, (job, arguments) in jobs.items()}


def in_two_processes(jobs, options, tmp_path, **env):
    """The exit code of one launch that does all jobs, in the folder `two`, and what was said."""
    files = [
        str(write_job(job, tmp_path / "jobs" / name, {**arguments, "work": tmp_path / "two" / name}))
        for name, (job, arguments) in jobs.items()
    ]
    path = os.pathsep.join([str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*LAUNCH, *options, str(PROJECT / "tests" / "launch_on_cpu.py"), *files],
        env={**os.environ, "PYTHONPATH": path, **env},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr


def fail_then_finish(jobs, options, tmp_path):
    """What was said by two launches: a loss that is no number ends the first, in its first job."""
    code, said = in_two_processes(jobs, options, tmp_path, FAIL_AT="4")
    assert code != 0
    assert "TrainingDivergedError: the loss is nan at step 4, on examples ['e" in said
    assert not list((tmp_path / "two").rglob("checkpoint"))
    code, said = in_two_processes(jobs, options, tmp_path)
    assert code == 0, said
    resumed = said.split("training trra-1.5: 4 to do")[1]
    assert "trra-1.5: 2/4" in resumed
    assert "trra-1.5: 1/4" not in resumed
    return said


def check_same_checkpoints(tmp_path, name):
    """Files, loss curves, the first gradient's norm, and the keys, shapes and dtypes of weights.

    The weights themselves are compared as a whole, in norm: the two ways sum a gradient in another order, and Adam
    divides by its size, so that a single weight whose gradient is nearly zero may take a step in either direction.
    """
    found = sorted((tmp_path / "one" / name).rglob("checkpoint"))
    assert found
    for one in found:
        two = tmp_path / "two" / one.relative_to(tmp_path / "one")
        assert sorted(p.name for p in two.parent.iterdir()) == sorted(p.name for p in one.parent.iterdir())
        assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
        curves, norms = (
            [pd.read_csv(path / f"curves/plots/metrics/{curve}.tsv", sep="\t") for path in (one, two)]
            for curve in ("loss", "grad_norm")
        )
        assert curves[0]["step"].tolist() == [1, 2, 3, 4]
        pd.testing.assert_frame_equal(*curves, rtol=0, atol=1e-4)
        assert norms[1]["grad_norm"][0] == pytest.approx(norms[0]["grad_norm"][0], rel=1e-4)
        (file,) = one.glob("*.safetensors")
        ours, theirs = load_file(file), load_file(two / file.name)
        assert ours.keys() == theirs.keys()
        for key, weight in ours.items():
            assert weight.dtype == theirs[key].dtype
            assert weight.shape == theirs[key].shape
            assert (weight - theirs[key]).norm() <= 0.02 * max(weight.norm(), 1e-3), f"{name}: {key}"


def test_data_parallel_makes_what_one_process_makes(models, examples, of_students, of_adapter, tmp_path):
    caches = {"caches": (make_caches, {**models, "examples": examples, "teachers": CACHED})}
    jobs = {
        "students": (make_students, of_students(CACHED, iterations=1)),
        "lora": (make_students, of_students(adapter="lora")),
        "checkpointing": (make_students, of_students(gradient_checkpointing=True)),
        **{method: (make_adapter, of_adapter(method=method)) for method in ("sft", "dpo", "trra")},
    }
    made = in_one_process(caches | jobs, tmp_path)
    problems = examples.select_columns(["id", "prompt", "prompt_ids"]).add_column("task", ["sums"] * 9)
    sweep = {
        **models,
        "parameters": SWEEP,
        "tasks": {"sums": ReasoningGymProblems(kind="reasoning_gym", dataset="chain_sum", problems=9)},
        "trra": TrRa.model_validate(STUDENT),
        "trra_checkpoints": made["lora"],
        "inra_checkpoint": made["sft"],
        "problems": problems.add_column("answer", ["7"] * 9).add_column("metadata", ["{}"] * 9),
    }
    expected = in_one_process({"sweep": (measure, sweep)}, tmp_path)["sweep"]
    said = fail_then_finish({**jobs, **caches, "sweep": (measure, sweep)}, DDP, tmp_path)
    assert said.count("training the adapter (SFT): 4/4") == 1, "one process shows bars"
    for name in jobs:
        check_same_checkpoints(tmp_path, name)

    caches = [tmp_path / folder / "caches" / "teacher_logits" for folder in ("one", "two")]
    for cache in ("reference", "aligned"):
        files = sorted(path.name for path in (caches[0] / cache).iterdir())
        assert len(files) > 4
        assert sorted(path.name for path in (caches[1] / cache).iterdir()) == files
        indices = [json.loads((folder / cache / "index.json").read_text()) for folder in caches]
        assert [shard["stop"] for shard in indices[0]["shards"]] == [shard["stop"] for shard in indices[1]["shards"]]
        for name in files[1:]:
            assert (caches[0] / cache / name).read_bytes() == (caches[1] / cache / name).read_bytes()

    found = measure(**sweep, work=tmp_path / "two" / "sweep")
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.keys() == theirs.keys()
        for name, frame in ours.items():
            pd.testing.assert_frame_equal(theirs[name].drop(columns="seconds"), frame.drop(columns="seconds"))
    assert not list((tmp_path / "two" / "sweep").rglob("part-*"))


def test_fsdp_makes_what_one_process_makes(of_students, of_adapter, make_checkpoint, tmp_path):
    tied = make_checkpoint(tmp_path / "tied", seed=3, tie_word_embeddings=True)
    jobs = {
        "full": (make_students, of_students()),
        "tied": (make_students, of_students(reference=tied)),
        "lora": (make_students, of_students(adapter="lora")),
        "merged": (make_students, of_students(adapter="lora", lora={"rank": 4, "alpha": 8, "merge": True})),
        "checkpointing": (make_students, of_students(gradient_checkpointing=True)),
        **{method: (make_adapter, of_adapter(method=method)) for method in ("sft", "dpo", "trra")},
        "adapter_lora": (make_adapter, of_adapter(method="sft", adapter="lora")),
    }
    in_one_process(jobs, tmp_path)
    fail_then_finish(jobs, FSDP2, tmp_path)
    for name in jobs:
        check_same_checkpoints(tmp_path, name)


def test_two_machines_write_one_cache(models, examples, tmp_path, caplog):
    arguments = {**models, "examples": examples, "teachers": CACHED}
    settings = yaml.safe_load((PROJECT / "conf" / "accelerate" / "ddp.yaml").read_text())
    settings |= {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": get_free_port()}
    (tmp_path / "machines.yaml").write_text(yaml.safe_dump(settings))
    launcher = Launcher(num_processes=2, config_file=tmp_path / "machines.yaml")
    job = write_job(make_caches, tmp_path / "launch", {**arguments, "work": tmp_path / "two"})
    options = [
        "--config_file",
        str(launcher.config_file),
        "--machine_rank",
        "1",
        "-m",
        "realign_pipes.launch",
        str(job),
    ]
    path = os.pathsep.join([str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")])
    other = subprocess.Popen([*LAUNCH, *options], env={**os.environ, "PYTHONPATH": path})
    try:
        with caplog.at_level("INFO", "realign_pipes"):
            launchers._launch(launcher, settings, job)
        assert other.wait(60) == 0
    finally:
        other.kill()
    command = f"accelerate launch --machine_rank 1 --num_processes 2 --config_file {launcher.config_file} "
    assert command + f"-m realign_pipes.launch {job}" in caplog.text
    one, _ = make_caches(**arguments, work=tmp_path / "one")
    for shard in one.rglob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "two" / shard.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes may outlive the one that started them")
def test_processes_end_with_the_run_that_started_them(of_students, tmp_path):
    file = write_job(make_students, tmp_path / "job", {**of_students(steps=100_000), "work": tmp_path / "work"})
    script = (
        "import sys; from pathlib import Path; from realign_pipes.launcher import _launch, Launcher;"
        "_launch(Launcher(num_processes=2, config_file=None), {}, Path(sys.argv[1]))"
    )
    path = os.pathsep.join([str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen([sys.executable, "-c", script, str(file)], env={**os.environ, "PYTHONPATH": path})
    try:
        while not list((tmp_path / "work").glob("*/curves/plots/metrics/loss.tsv")):
            assert run.poll() is None
            time.sleep(0.2)
        started = psutil.Process(run.pid).children(recursive=True)
        assert len(started) >= 3  # accelerate and two ranks
    finally:
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


def test_a_kedro_stage_in_two_processes_gives_the_table_of_one(smoke_project, copy_project):
    root = copy_project()
    shutil.copytree(smoke_project / "data" / "smoke", root / "data" / "smoke")
    shutil.rmtree(root / "data" / "smoke" / "work" / "alpha_sweep")
    table = root / "data" / "smoke" / "07_model_output" / "sweep_results.csv"
    before = pd.read_csv(table).drop(columns="seconds")
    table.unlink()
    bootstrap_project(PROJECT)
    with KedroSession.create(root, env="smoke", runtime_params={"launcher": {"num_processes": 2}}) as session:
        session.run(pipeline_names=["alpha_sweep"])
    pd.testing.assert_frame_equal(pd.read_csv(table).drop(columns="seconds"), before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributed_type": "DEEPSPEED"}, "distributed_type DEEPSPEED is not supported"),
        ({"distributed_type": "FSDP"}, "fsdp_config.fsdp_version is None and must be 2"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": True}},
         "fsdp_cpu_ram_efficient_loading is True and must be False"),
        ({"num_machines": 4}, "num_processes 6 is no multiple of the 4 machines"),
        ({}, "batch_size 8 is no multiple of micro_batch_size 2 times launcher.num_processes 6"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(changes, said, of_students, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("starts processes"))
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", **changes}))
    launcher = Launcher(num_processes=6, config_file=tmp_path / "accelerate.yaml")
    arguments = of_students()
    training = None if changes else arguments["parameters"]
    with pytest.raises(ValueError, match=said):
        run_job(make_students, launcher, tmp_path / "launch", training=training, **arguments, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_launcher_is_checked_with_the_parameters(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.yaml is no file in .*Give the path of a configuration"):
        Launcher.model_validate({"num_processes": 1, "config_file": "nothing.yaml"})
    with pytest.raises(ValueError, match="num_processes"):
        Launcher.model_validate({"num_processes": 0, "config_file": None})


def test_a_launch_that_fails_names_stage_and_exit_code(models, examples, tmp_path, monkeypatch):
    started = []

    def run(command, **kwargs):
        started.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = {**models, "examples": examples, "teachers": CACHED, "work": tmp_path / "work"}
    with pytest.raises(LaunchError, match=r"the 2 processes of the stage teacher_logits ended with exit code 3"):
        run_job(make_caches, Launcher(num_processes=2, config_file=None), tmp_path / "launch" / "teacher_logits",
                **arguments)  # fmt: skip
    assert not (tmp_path / "work").exists(), "nothing is done in one process instead"
    (command,) = started
    assert command[-3:] == ["-m", "realign_pipes.launch", str(tmp_path / "launch" / "teacher_logits" / "job.json")]


def test_one_process_runs_in_the_node(models, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("starts processes"))
    arguments = {**models, "examples": examples, "teachers": CACHED, "work": tmp_path / "work"}
    folder, report = run_job(make_caches, Launcher(num_processes=1, config_file=None), tmp_path / "launch", **arguments)
    assert folder.is_dir()
    assert report["reference"]["examples"] == 9
