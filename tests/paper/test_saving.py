"""What all trainers share. That states hold the trained weights alone is seen in tests/runtime/test_training.py."""

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTConfig

from realign_pipes.paper.adapters import _SFTTrainer
from realign_pipes.paper.trra import TrRaTrainer
from realign_pipes.teachers import OnlineTeacher

EXAMPLES = {"prompt_ids": [[5, 6]] * 8, "completion_ids": [[7, 8, 9]] * 8}


@pytest.mark.parametrize("kind", ["sft", "trra"])
def test_a_process_that_sees_two_gpus_trains_on_one_and_with_the_batch_that_was_asked_for(
    kind, make_checkpoint, tmp_path
):
    path = make_checkpoint(tmp_path / "model")
    reference, model = (AutoModelForCausalLM.from_pretrained(path) for _ in range(2))
    config = SFTConfig if kind == "sft" else TrainingArguments
    arguments = config(str(tmp_path), max_steps=1, per_device_train_batch_size=4, use_cpu=True, report_to="none")
    assert arguments.n_gpu == 0
    arguments._n_gpu = 2  # as Transformers sets it in a process that sees two
    if kind == "sft":
        rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]}] * 8
        trainer = _SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows))
    else:
        trainer = TrRaTrainer(model=model, teacher=OnlineTeacher(reference, reference), alpha=1.0, args=arguments,
                              train_dataset=Dataset.from_dict(EXAMPLES))  # fmt: skip
    assert trainer.args.n_gpu == 1
    assert len(next(iter(trainer.get_train_dataloader()))["input_ids"]) == 4
