"""What all trainings share: their curves, and that nothing but the curves' own files is written for them."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from realign_pipes.models.load import load_model
from realign_pipes.runtime import training
from realign_pipes.runtime.parameters import Training

CPU = torch.device("cpu")


def run(checkpoint, work, steps=6, callbacks=()):
    """A small training by `train`: rows of 5 tokens, 4 in a step."""
    model = load_model(checkpoint, device=CPU)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(8, 48).view(8, 5)]
    parameters = Training(
        steps=steps, batch_size=4, micro_batch_size=2, learning_rate=1e-2, warmup_ratio=0.5, weight_decay=0.0,
        max_grad_norm=1.0, gradient_checkpointing=False, save_steps=2, seed=3,
    )  # fmt: skip
    arguments = TrainingArguments(**training.trainer_arguments(parameters, work / "trainer"))
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))
    training.train(trainer, "a test")
    return trainer


def curve(work, name):
    return pd.read_csv(work / "curves" / "plots" / "metrics" / f"{name}.tsv", sep="\t")


def test_curves_are_what_the_trainer_saw(make_checkpoint, tmp_path):
    norms = []

    class Seen(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            norms.append(gradients.norm().item())

    trainer = run(make_checkpoint(tmp_path / "model"), tmp_path, callbacks=[Seen()])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert curve(tmp_path, "loss")["loss"].tolist() == pytest.approx(losses)
    assert curve(tmp_path, "loss")["step"].tolist() == [1, 2, 3, 4, 5, 6]
    # clipped to a norm of 1 before the optimizer sees them
    logged = curve(tmp_path, "grad_norm")["grad_norm"]
    assert [min(norm, 1.0) for norm in logged] == pytest.approx(norms, rel=1e-3)
    rates = curve(tmp_path, "learning_rate")["learning_rate"].tolist()
    assert rates[3:] == pytest.approx([1e-2 * (1 + torch.cos(torch.tensor(torch.pi * i / 3)).item()) / 2
                                       for i in (0, 1, 2)], rel=1e-3)  # fmt: skip
    assert (curve(tmp_path, "tokens_per_second")["tokens_per_second"] > 0).all()
    assert curve(tmp_path, "memory_mib")["memory_mib"].between(50, 100_000).all()


def test_speed_counts_the_tokens_of_the_step(make_checkpoint, tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    run(make_checkpoint(tmp_path / "model"), tmp_path)
    # 4 rows of 5 tokens a step, and whatever else reads the clock makes the steps no shorter than one tick
    assert curve(tmp_path, "tokens_per_second")["tokens_per_second"].max() == 20


def test_curves_of_a_resumed_training_are_whole(make_checkpoint, tmp_path, kill):
    callback, killed = kill
    checkpoint = make_checkpoint(tmp_path / "model")
    run(checkpoint, tmp_path / "whole")
    with pytest.raises(killed):
        run(checkpoint, tmp_path / "cut", callbacks=[callback])
    assert curve(tmp_path / "cut", "loss")["step"].tolist() == [1, 2, 3, 4, 5]
    run(checkpoint, tmp_path / "cut")  # goes on from step 4
    for name in ("loss", "grad_norm", "learning_rate"):
        pd.testing.assert_frame_equal(curve(tmp_path / "cut", name), curve(tmp_path / "whole", name))
    speeds = curve(tmp_path / "cut", "tokens_per_second")
    assert speeds["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_seconds_count_every_step_once_however_often_it_was_interrupted(make_checkpoint, tmp_path, kill, monkeypatch):
    """Each reading of the clock is a second later; after the kill it starts again, as another process's would."""
    clock = iter(range(1000))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    callback, killed = kill
    checkpoint = make_checkpoint(tmp_path / "model")
    with pytest.raises(killed):
        run(checkpoint, tmp_path, callbacks=[callback])
    before = curve(tmp_path, "train_seconds").set_index("step")["train_seconds"]
    clock = iter(range(5000, 6000))
    run(checkpoint, tmp_path)  # from step 4
    after = curve(tmp_path, "train_seconds").set_index("step")["train_seconds"]
    assert after[:4].tolist() == before[:4].tolist(), "the fifth step was lost, and counts only as it was repeated"
    assert (after.diff()[1:] > 0).all() and after[6] - after[4] < 100
    assert training.training_seconds(tmp_path) > after[6]
    assert training.training_seconds(tmp_path / "elsewhere") is None


def test_the_only_state_outlives_a_kill_while_the_next_one_is_saved(make_checkpoint, tmp_path, monkeypatch):
    """Trainer writes trainer_state.json last, and removes the older state after that."""
    checkpoint = make_checkpoint(tmp_path / "model")
    save = TrainerState.save_to_json

    def killed(self, path):
        if self.global_step == 4:
            raise KeyboardInterrupt
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, tmp_path / "cut")
    states = {path.name for path in (tmp_path / "cut" / "trainer").iterdir()}
    assert states == {"checkpoint-2", "checkpoint-4"}
    last = training.last_complete_checkpoint(tmp_path / "cut" / "trainer")
    assert last.name == "checkpoint-2"
    resumed = run(checkpoint, tmp_path / "cut")
    assert {path.name for path in (tmp_path / "cut" / "trainer").iterdir()} == {"checkpoint-6"}
    whole = run(checkpoint, tmp_path / "whole")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_an_optimizer_that_transformers_does_not_know_is_refused():
    given = {
        "steps": 1, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 1e-2, "warmup_ratio": 0.0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "gradient_checkpointing": False, "save_steps": 1, "seed": 3,
    }  # fmt: skip
    for name in OptimizerNames:
        assert Training(**given, optim=name.value).optim == name.value
    with pytest.raises(ValidationError, match="there is no optimizer 'adafactr': did you mean 'adafactor'"):
        Training(**given, optim="adafactr")
    assert TrainingArguments(output_dir="x").optim == Training(**given).optim


def test_bfloat16_products_follow_the_autocast_of_a_gpu(monkeypatch):
    def chosen(name, device, **changes):
        monkeypatch.setattr(training, "PartialState", lambda: SimpleNamespace(device=torch.device(device)))
        return training.matmul_dtype(name, Training.model_construct(**{"bf16": None, **changes}))

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert chosen("auto", "cuda") == torch.bfloat16
    assert chosen("auto", "cuda", bf16=False) == chosen("auto", "cpu") == torch.float32
    assert chosen("auto", "cpu", bf16=True) == torch.float32
    assert chosen("bfloat16", "cpu") == torch.bfloat16 and chosen("float32", "cuda") == torch.float32


def test_a_dvc_project_around_it_stays_as_it_is(make_checkpoint, tmp_path, monkeypatch):
    """DVCLive by itself would write dvc.yaml and commit an experiment."""
    project = tmp_path / "project"
    project.mkdir()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
    dvc = [sys.executable, "-m", "dvc", "init", "-q"]
    for command in ([*git, "init", "-q"], dvc, [*git, "add", "-A"], [*git, "commit", "-qm", "start"]):
        subprocess.run(command, cwd=project, check=True)
    monkeypatch.chdir(project)
    run(make_checkpoint(tmp_path / "model"), project / "work")
    opened = len(os.listdir("/proc/self/fd"))
    run(tmp_path / "model", project / "work")
    assert len(os.listdir("/proc/self/fd")) == opened  # DVC's databases are closed: a process trains many students
    status = subprocess.check_output([*git, "status", "--porcelain"], text=True).split()
    assert status == ["??", "work/"]
    refs = subprocess.check_output([*git, "for-each-ref", "--format=%(refname)"], text=True).split()
    assert len(refs) == 1
    summary = json.loads((project / "work" / "curves" / "metrics.json").read_text())
    assert summary["step"] == 6
