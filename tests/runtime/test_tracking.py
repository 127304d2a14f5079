"""A training reports to MLflow's local database as a run of its own."""

import mlflow
import pytest
import torch
from pydantic import ValidationError
from transformers import Trainer, TrainingArguments

from realign_pipes.models.load import load_model
from realign_pipes.runtime.parameters import Training
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.training import train, trainer_arguments


def run(checkpoint, work, to):
    """Three steps of a small training whose state is in `work`."""
    model = load_model(checkpoint, device=torch.device("cpu"))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.arange(8, 48).view(8, 5)]
    parameters = Training(
        steps=3, batch_size=4, micro_batch_size=2, learning_rate=1e-2, warmup_ratio=0.5, weight_decay=0.0,
        max_grad_norm=1.0, gradient_checkpointing=False, save_steps=2, seed=3,
    )  # fmt: skip
    arguments = TrainingArguments(**trainer_arguments(parameters, work / "trainer", to))
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    train(trainer, "a test")
    return trainer


def test_each_training_is_a_run_with_its_name_and_its_losses(make_checkpoint, tmp_path, mlflow_runs):
    checkpoint = make_checkpoint(tmp_path / "model")
    trained = {name: run(checkpoint, tmp_path / name, Tracking(to="mlflow")) for name in ("trra-0.5", "trra-2")}
    run(checkpoint, tmp_path / "unseen", NOT_TRACKED)
    runs = {one.info.run_name: one for one in mlflow_runs()}
    assert runs.keys() == trained.keys()
    for name, trainer in trained.items():
        assert runs[name].info.status == "FINISHED"
        assert runs[name].data.params["learning_rate"] == "0.01"
        history = mlflow.MlflowClient().get_metric_history(runs[name].info.run_id, "loss")
        logged = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        assert [(point.step, point.value) for point in history] == logged
        assert [step for step, _ in logged] == [1, 2, 3]
    assert (tmp_path / "trra-2" / "curves" / "metrics.json").exists()  # DVCLive's, as without a tracker


def test_other_trackers_are_refused():
    with pytest.raises(ValidationError, match="'mlflow', 'wandb', 'trackio' or 'none'"):
        Tracking(to="tensorboard")
