"""Several processes: two make the same as one, and an error in one of them stops all."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice
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
from safetensors.torch import load_file

from realign_pipes.pipelines.alpha_sweep.job import Generations, MeasureCandidates
from realign_pipes.pipelines.inra.job import Adapter, TrainAdapter
from realign_pipes.pipelines.inra.parameters import InRa
from realign_pipes.pipelines.teacher_logits.job import Caches, WriteCaches
from realign_pipes.pipelines.trra.job import Students, TrainStudents
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Launcher, launch, start_processes, write_job
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.tasks.parameters import ReasoningGymProblems
from realign_pipes.teachers.parameters import Teachers

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",  # as in this process: another number of threads sums in another order
}
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
    "plausibility": 0.1,
    "ablation_alphas": [],
    "scaled_lora": False,
    "adapter": "full",
    "lora": {"rank": 4, "alpha": 8, "merge": False},
    "on_policy": 0,
    "on_policy_sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8},
}
ADAPTER = {
    **TRAINING,
    "num_adapter_layers": 1,
    "init": "identity",
    "placement": "bottom",
    "adapter": "full",
    "lora": {"rank": 2, "alpha": 4},
    "dpo": {"beta": 0.3, "loss_type": ["sigmoid"], "loss_weights": None, "steps": None, "learning_rate": None},
    "trra": {**DIVERGENCE, "alpha": 1.5},
    "plausibility": 0.1,
}
ONLINE = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12)
CACHED = ONLINE.model_copy(update={"mode": "cached"})
SWEEP = AlphaSweep.model_validate(
    {
        "dera_alphas": [0.5],
        "inra_alphas": [0.0, 0.5],
        "merge_alphas": [],
        "ties": {"alphas": [], "density": 0.5},
        "svd": None,
        "lora_scale_alphas": [],
        "plausibility": 0.1,
        "close_biases": [2.0],
        "others": {},
        "prompts": {"brief": "Be brief."},
        "budgets": {"tokens": [6], "ramp": 0.5, "answer_tokens": 2},
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
def examples(tiny_tokenizer, tmp_path):
    """The folder of a data set that has the columns of every kind of training."""
    generator = torch.Generator().manual_seed(3)

    def tokens(count):
        return torch.randint(4, len(tiny_tokenizer), (count,), generator=generator).tolist()

    rows = []
    for number in range(9):
        prompt = f"3 + {number}"
        rows.append({"id": f"e{number}", "prompt": prompt, "prompt_ids": tiny_tokenizer(prompt).input_ids,
                     "completion_ids": tokens(3 + 2 * (number % 4)), "chosen_ids": tokens(2 + number % 3),
                     "rejected_ids": tokens(4)})  # fmt: skip
    return saved(Dataset.from_list(rows), tmp_path / "examples")


def saved(data, folder):
    data.save_to_disk(folder)
    return folder


@pytest.fixture
def students(models, examples, tmp_path):
    """`students(work, **parameters)`: the job; cached teachers are those that `caches` wrote in one process."""

    def job(work, teachers=ONLINE, reference=None, **changes):
        return TrainStudents(
            **{**models, **({"reference": reference} if reference else {})},
            parameters=TrRa.model_validate({**STUDENT, **changes}),
            teachers=teachers,
            examples=examples,
            teacher_cache=tmp_path / "one" / "caches" / "teacher_logits",
            work=work,
        )

    return job


@pytest.fixture
def adapter(models, examples, tmp_path):
    """`adapter(work, **parameters)`: the job."""

    def job(work, **changes):
        data = Dataset.load_from_disk(examples)
        solutions = data.select_columns(["id", "prompt_ids", "completion_ids"])
        pairs = data.select_columns(["id", "prompt_ids", "chosen_ids", "rejected_ids"])
        return TrainAdapter(
            **models,
            parameters=InRa.model_validate({**ADAPTER, **changes}),
            teachers=ONLINE,
            short_solutions=saved(solutions, tmp_path / "solutions"),
            preference_pairs=saved(pairs, tmp_path / "pairs"),
            calibration_set=examples,
            teacher_cache=tmp_path / "none",
            work=work,
        )

    return job


@pytest.fixture
def caches(models, examples):
    """`caches(work)`: the job."""
    return partial(WriteCaches, **models, examples=examples, teachers=CACHED)


def in_one_process(jobs, tmp_path):
    """The result of each job, done in the folder `one`."""
    return {name: job(work=tmp_path / "one" / name).run() for name, job in jobs.items()}


def in_two_processes(jobs, options, tmp_path, **env):
    """The exit code of one launch that does all jobs, in the folder `two`, and what was said."""
    arguments = []
    for name, make in jobs.items():
        job = make(work=tmp_path / "two" / name)
        write_job(job, tmp_path / "jobs" / name)
        arguments.append(f"{type(job).__name__}:{tmp_path / 'jobs' / name}")
    done = subprocess.run(
        [*LAUNCH, *options, str(Path(__file__).with_name("launch_on_cpu.py")), *arguments],
        env={**ENVIRONMENT, **env},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr


def result_of(result, name, tmp_path):
    """What the two processes wrote as the result of the job `name`."""
    return result.model_validate_json((tmp_path / "jobs" / name / "result.json").read_text())


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


def check_same_completions(ours, theirs):
    """Of the same questions, in the same order, and hardly one with another text in these Parquet files.

    The last bits of logits depend on what else is in a batch, and two processes have other batches: now and then a draw
    falls between, on another processor at another place. Other random numbers would change nearly all.
    """
    ours, theirs = (pd.concat(map(pd.read_parquet, files), ignore_index=True) for files in (ours, theirs))
    drawn = ["completion", "completion_tokens", "finished", "correct", "seconds"]
    pd.testing.assert_frame_equal(ours.drop(columns=drawn), theirs.drop(columns=drawn))
    same = (ours[drawn[:-1]] == theirs[drawn[:-1]]).all(axis=1)
    assert same.mean() > 0.95


@pytest.mark.slow
def test_data_parallel_makes_what_one_process_makes(
    make_generation, models, examples, students, adapter, caches, tmp_path
):
    jobs = {
        "students": partial(students, teachers=CACHED, iterations=1),
        "lora": partial(students, adapter="lora"),
        "checkpointing": partial(students, gradient_checkpointing=True),
        **{method: partial(adapter, method=method) for method in ("sft", "dpo", "trra")},
    }
    made = in_one_process({"caches": caches, **jobs}, tmp_path)
    problems = Dataset.load_from_disk(examples).select_columns(["id", "prompt", "prompt_ids"])
    columns = {"task": "sums", "question": "?", "messages": [{"role": "user", "content": "?"}],
                "answer": "7", "metadata": "{}", "think_open": "<think>",
               "think_close": "</think>"}  # fmt: skip
    for column, value in columns.items():
        problems = problems.add_column(column, [value] * 9)
    sweep = partial(
        MeasureCandidates,
        **models,
        parameters=SWEEP,
        generation=make_generation(),
        tasks={"sums": ReasoningGymProblems(kind="reasoning_gym", dataset="chain_sum", problems=9)},
        trra=TrRa.model_validate(STUDENT),
        inra_plausibility=0.1,
        trra_checkpoints=made["lora"].checkpoints,
        inra_checkpoint=made["sft"].checkpoint,
        problems=saved(problems, tmp_path / "problems"),
    )
    expected = in_one_process({"sweep": sweep}, tmp_path)["sweep"]
    said = fail_then_finish({**jobs, "caches": caches, "sweep": sweep}, DDP, tmp_path)
    assert said.count("training the adapter (SFT): 4/4") == 1, "one process shows bars"
    for name in jobs:
        check_same_checkpoints(tmp_path, name)
    assert result_of(Students, "students", tmp_path).checkpoints == {
        name: tmp_path / "two" / path.relative_to(tmp_path / "one")
        for name, path in made["students"].checkpoints.items()
    }
    assert result_of(Adapter, "dpo", tmp_path).checkpoint == tmp_path / "two" / "dpo" / "checkpoint"

    written = result_of(Caches, "caches", tmp_path)
    assert written.folder == tmp_path / "two" / "caches" / "teacher_logits"
    assert written.report == made["caches"].report
    folders = [made["caches"].folder, written.folder]
    for cache in ("reference", "aligned"):
        files = sorted(path.name for path in (folders[0] / cache).iterdir())
        assert len(files) > 4
        assert sorted(path.name for path in (folders[1] / cache).iterdir()) == files
        indices = [json.loads((folder / cache / "index.json").read_text()) for folder in folders]
        assert [shard["stop"] for shard in indices[0]["shards"]] == [shard["stop"] for shard in indices[1]["shards"]]
        for name in files[1:]:
            assert (folders[0] / cache / name).read_bytes() == (folders[1] / cache / name).read_bytes()

    found = result_of(Generations, "sweep", tmp_path)
    for ours, theirs in ((expected.sweep, found.sweep), (expected.budgets, found.budgets)):
        assert theirs == {name: tmp_path / "two" / file.relative_to(tmp_path / "one") for name, file in ours.items()}
        check_same_completions(ours.values(), theirs.values())
    assert not list((tmp_path / "two" / "sweep").rglob("completions-*"))


@pytest.mark.parametrize("number", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_fsdp_makes_what_one_process_makes(students, adapter, make_checkpoint, tmp_path, number):
    """The first of the jobs, or all."""
    tied = make_checkpoint(tmp_path / "tied", seed=3, tie_word_embeddings=True)
    jobs = {
        "full": students,
        "tied": partial(students, reference=tied),
        "lora": partial(students, adapter="lora"),
        "merged": partial(students, adapter="lora", lora={"rank": 4, "alpha": 8, "merge": True}),
        "checkpointing": partial(students, gradient_checkpointing=True),
        **{method: partial(adapter, method=method) for method in ("sft", "dpo", "trra")},
        "adapter_lora": partial(adapter, method="sft", adapter="lora"),
    }
    assert len(jobs) == 9
    jobs = dict(islice(jobs.items(), number))
    in_one_process(jobs, tmp_path)
    fail_then_finish(jobs, FSDP2, tmp_path)
    for name in jobs:
        check_same_checkpoints(tmp_path, name)


def test_the_result_of_two_processes_is_read(adapter, tmp_path, monkeypatch):
    """By a launch of the stage's own module, as a run starts it."""
    job = adapter(tmp_path / "work", method="sft")
    monkeypatch.setattr(TrainAdapter, "run", lambda self: pytest.fail("the job runs in this process"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = launch(job, Adapter, Launcher(num_processes=2, config_file=None), tmp_path / "launch", job.parameters)
    assert made == Adapter(checkpoint=tmp_path / "work" / "checkpoint")
    assert len(load_file(made.checkpoint / "model.safetensors")) > 10
    assert not (tmp_path / "launch").exists()


@pytest.mark.full
def test_two_machines_write_one_cache(caches, tmp_path, caplog):
    settings = yaml.safe_load((PROJECT / "conf" / "accelerate" / "ddp.yaml").read_text())
    settings |= {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": get_free_port()}
    (tmp_path / "machines.yaml").write_text(yaml.safe_dump(settings))
    launcher = Launcher(num_processes=2, config_file=tmp_path / "machines.yaml")
    folder = tmp_path / "launch"
    write_job(caches(work=tmp_path / "two"), folder)
    program = ["-m", WriteCaches.__module__, str(folder)]
    options = ["--config_file", str(launcher.config_file), "--machine_rank", "1"]
    other = subprocess.Popen([*LAUNCH, *options, *program], env=ENVIRONMENT)
    try:
        with caplog.at_level("INFO", "realign_pipes"):
            start_processes(launcher, settings, WriteCaches.__module__, folder)
        assert other.wait(60) == 0
    finally:
        other.kill()
    command = f"accelerate launch --machine_rank 1 --num_processes 2 --config_file {launcher.config_file} "
    assert command + shlex.join(program) in caplog.text
    one = caches(work=tmp_path / "one").run().folder
    for shard in one.rglob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "two" / shard.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes may outlive the one that started them")
def test_processes_end_with_the_run_that_started_them(students, tmp_path):
    write_job(students(tmp_path / "work", steps=100_000), tmp_path / "launch" / "trra")
    script = (
        "import sys; from pathlib import Path; from realign_pipes.runtime.launch import Launcher, start_processes;"
        "start_processes(Launcher(num_processes=2, config_file=None), {}, sys.argv[1], Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, TrainStudents.__module__, str(tmp_path / "launch" / "trra")]
    run = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        while not list((tmp_path / "work").glob("*/trainer/checkpoint-*")):
            assert run.poll() is None
            time.sleep(0.2)
        started = psutil.Process(run.pid).children(recursive=True)
        assert len(started) >= 3  # accelerate and two ranks
    finally:
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive


def test_a_kedro_stage_in_two_processes_gives_the_table_of_one(smoke_project, copy_project, monkeypatch):
    root = copy_project()
    before, data = smoke_project / "data" / "smoke", root / "data" / "smoke"
    shutil.copytree(before, data)
    shutil.rmtree(data / "work" / "alpha_sweep")
    made = data / "07_model_output"
    (made / "sweep_results.csv").unlink()
    shutil.rmtree(made / "generations")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bootstrap_project(PROJECT)
    with KedroSession.create(root, env="smoke", runtime_params={"launcher": {"num_processes": 2}}) as session:
        session.run(pipeline_names=["alpha_sweep"])
    names = sorted(path.name for path in (made / "generations").iterdir())
    assert len(names) == 21
    folders = [folder / "07_model_output" for folder in (before, data)]
    check_same_completions(*([folder / "generations" / name for name in names] for folder in folders))
    one, two = (pd.read_csv(folder / "sweep_results.csv") for folder in folders)
    assert one[["candidate", "kind", "task"]].equals(two[["candidate", "kind", "task"]])
    assert (one["pass_at_1"] - two["pass_at_1"]).abs().max() <= 0.05
