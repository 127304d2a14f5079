"""The paper's method without the pipelines: what importing it needs, and a TrRa training in ten lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

TORCH_ALONE = """
import sys
import torch

allowed = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names | {"realign_pipes"}

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"imports {name}")

sys.meta_path.insert(0, Refuses())
from realign_pipes.paper import TokenBudget, fuse_logits, fused_linear_divergence
from realign_pipes.paper.objective import divergence_between

logits = torch.randn(2, 7)
assert torch.equal(fuse_logits(logits, logits + 1, TokenBudget(8)(7, 0)), logits + 1)
hidden, head = torch.randn(2, 3, requires_grad=True), torch.randn(7, 3)
fused_linear_divergence(hidden, head, hidden + 1, head, hidden, head, 0.5).backward()
assert hidden.grad.isfinite().all()
"""

TEN_LINES = """
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, TrainingArguments
from realign_pipes.paper import TrRaTrainer
from realign_pipes.teachers import OnlineTeacher

reference, aligned, student = (AutoModelForCausalLM.from_pretrained(path) for path in ("reference", "aligned", "reference"))
examples = load_from_disk("examples")
arguments = TrainingArguments("work", max_steps=30, learning_rate=1e-2, logging_steps=1, use_cpu=True)
trainer = TrRaTrainer(model=student, teacher=OnlineTeacher(reference, aligned), alpha=1.5, args=arguments, train_dataset=examples)
trainer.train()
student.save_pretrained("student")
"""  # noqa: E501

REPORT = """
import json, sys
print(json.dumps([[entry["loss"] for entry in trainer.state.log_history if "loss" in entry], sorted(sys.modules)]))
"""


def run(script, folder):
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_objective_and_schedules_need_torch_alone(tmp_path):
    run(TORCH_ALONE, tmp_path)


def test_a_training_in_ten_lines_needs_neither_kedro_nor_what_only_the_pipelines_use(tmp_path, pair, examples):
    examples.save_to_disk(tmp_path / "examples")
    losses, modules = json.loads(run(TEN_LINES + REPORT, tmp_path).splitlines()[-1])
    assert len(losses) == 30
    assert losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "student" / "model.safetensors").exists()
    for name in ("kedro", "dvc", "dvclive", "trl", "rich", "great_expectations", "realign_pipes.runtime"):
        assert name not in modules, name


@pytest.mark.parametrize("name", ["paper", "teachers"])
def test_a_name_that_is_not_there_is_refused(name):
    import importlib

    with pytest.raises(AttributeError, match=f"'realign_pipes.{name}' has no attribute 'Nothing'"):
        importlib.import_module(f"realign_pipes.{name}").Nothing  # noqa: B018
