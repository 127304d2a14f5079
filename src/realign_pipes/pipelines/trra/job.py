"""The job of the stage trra: distil softmax(z(alpha)) into copies of the reference, one for each alpha and round."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel
from transformers import PreTrainedModel, TrainingArguments

from realign_pipes.generation.engine import Prompt
from realign_pipes.generation.graded import check_length
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.card import base_name, checkpoint_name, describe_checkpoint
from realign_pipes.models.fingerprint import fingerprint, fingerprint_model
from realign_pipes.models.load import load_chat_tokenizer, load_model, max_positions
from realign_pipes.models.trust import read_config
from realign_pipes.paper.trra import OnPolicy, Teacher, TrRaTrainer
from realign_pipes.pipelines.trra.parameters import Distillation, StudentName, TrRa
from realign_pipes.runtime.launch import AbsolutePath, Job, run_as_process
from realign_pipes.runtime.parameters import Training
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.training import (
    CURVES,
    in_training_order,
    matmul_dtype,
    student_device,
    train,
    trainer_arguments,
    training_state,
)
from realign_pipes.runtime.work import do_once
from realign_pipes.teachers.fused import FusedTeachers
from realign_pipes.teachers.parameters import Teachers


class Students(BaseModel):
    """What the stage makes."""

    checkpoints: dict[str, Path]
    """By alpha and name: `1.5/trra-1.5`, `1.5/trra-iter1-1.5`."""


class TrainStudents(Job[Students]):
    """Train a student for each alpha (or for `only_alpha`) and round, or find it finished in `work`."""

    parameters: TrRa
    teachers: Teachers
    reference: AbsolutePath
    aligned: AbsolutePath
    examples: AbsolutePath
    """The calibration set: columns `id`, `prompt_ids` and `completion_ids`."""
    teacher_cache: AbsolutePath
    chat_template: AbsolutePath | None = None
    """A file with the chat template that the checkpoints get; None: the reference's own."""
    attn_implementation: str | None = None
    work: AbsolutePath
    tracking: Tracking = NOT_TRACKED

    def run(self) -> Students:
        """The checkpoints of all alphas, or of `only_alpha`."""
        teachers = FusedTeachers(
            self.reference,
            self.aligned,
            Dataset.load_from_disk(str(self.examples)),
            teachers=self.teachers,
            teacher_cache=self.teacher_cache,
            attn_implementation=self.attn_implementation,
        )
        checkpoints = {}
        for alpha in self.parameters.alphas:
            if self.parameters.only_alpha not in (None, alpha):
                continue
            last = self.aligned
            for checkpoint, student in self.parameters.students(alpha).items():
                aligned = last if student.iteration else self.aligned
                last = checkpoints[checkpoint] = train_student(
                    student, aligned, teachers, self.parameters, self.work, self.chat_template, self.tracking
                )
        return Students(checkpoints=checkpoints)


def train_student(
    student: StudentName,
    aligned: Path,
    teachers: FusedTeachers,
    parameters: TrRa,
    work: Path,
    chat_template: Path | None = None,
    tracking: Tracking = NOT_TRACKED,
) -> Path:
    """The student's finished checkpoint folder, trained now or found finished in `work`.

    `aligned` is the aligned model, or the last round's result in a further round of TrRa-iter.
    """
    reference, alpha = teachers.reference, float(student.alpha)
    parameters = parameters.of_student(student)
    if parameters.on_policy:
        check_on_policy(parameters, teachers, chat_template)
    unread = {"alphas", "only_alpha", "iterations", "iteration_alphas", "ablation_alphas", "scaled_lora"}
    if parameters.adapter == "full":
        unread.add("lora")
    if not parameters.on_policy:
        unread.add("on_policy_sampling")
    metadata = {
        "method": "TrRa",
        "alpha": alpha,
        "iteration": student.iteration,
        "reference": {"name": checkpoint_name(reference), "fingerprint": fingerprint_model(reference)},
        "aligned": {
            "name": aligned.parent.name if student.iteration else checkpoint_name(aligned),
            "fingerprint": fingerprint_model(aligned),
        },
        "data_fingerprint": teachers.data_fingerprint,
        "parameters": {
            **parameters.model_dump(exclude=unread),
            "teachers": teachers.teachers.model_dump(include={"mode", "dtype"}),
        },
    }
    if teachers.attn_implementation is not None:
        metadata["attn_implementation"] = teachers.attn_implementation
    if chat_template is not None:
        metadata["chat_template"] = fingerprint(chat_template.read_text(encoding="utf-8"))

    def do(folder: Path) -> Callable[[Path], None]:
        model, _ = _fresh_student(reference, parameters, student_device(), teachers.attn_implementation)
        state = train_trra(
            model,
            teachers.teacher(aligned, folder / "aligned_cache"),
            alpha,
            teachers.examples,
            training=parameters,
            distillation=parameters,
            plausibility=parameters.plausibility,
            vocab_size=len(teachers.tokenizer),
            folder=folder,
            description=f"training {student.name}",
            on_policy=on_policy(model, parameters),
            tracking=tracking,
        )

        def write(checkpoint: Path) -> None:
            trained, save = _fresh_student(reference, parameters, torch.device("cpu"))
            trained.load_state_dict(state)
            save(checkpoint)
            describe_checkpoint(
                checkpoint,
                reference,
                folder / CURVES,
                title=student.name,
                introduction=_introduction(metadata),
                tags=["trra"],
                metadata=metadata,
                chat_template=chat_template,
            )

        return write

    return do_once(work / student.name, "checkpoint", metadata, do)


def check_on_policy(parameters: TrRa, teachers: FusedTeachers, chat_template: Path | None) -> None:
    """InputError, before any training, for a student that cannot draw completions of the calibration set's prompts."""
    parameters.check_on_policy(teachers.teachers.mode, PartialState().num_processes)
    load_chat_tokenizer(teachers.reference, chat_template)  # what the prompts went through, or they are none to answer
    check_length(
        teachers.examples["prompt_ids"],
        parameters.on_policy_sampling.max_new_tokens,
        max_positions(teachers.reference),
        parameter="trra.on_policy_sampling.max_new_tokens",
        model=str(teachers.reference),
    )


def on_policy(student: PreTrainedModel, parameters: TrRa) -> OnPolicy | None:
    """What `student` draws in a training with these parameters, with the weights that it then has; None for nothing."""
    if not parameters.on_policy:
        return None
    engine = TransformersEngine(student)
    sampling = Sampling(**parameters.on_policy_sampling.model_dump(), samples=1, seed=parameters.seed)

    def draw(prompts: Mapping[int, list[int]]) -> dict[int, list[int]]:
        asked = [Prompt(str(number), prompt_ids) for number, prompt_ids in prompts.items()]
        return {int(one.key): one.token_ids for group in engine.draw(asked, sampling) for one in group}

    return OnPolicy(parameters.on_policy, draw)


def train_trra(
    student: PreTrainedModel,
    teacher: Teacher,
    alpha: float,
    examples: Dataset,
    *,
    training: Training,
    distillation: Distillation,
    plausibility: float,
    vocab_size: int,
    folder: Path,
    description: str,
    on_policy: OnPolicy | None = None,
    tracking: Tracking = NOT_TRACKED,
) -> dict[str, torch.Tensor]:
    """Train `student` to follow the teacher's softmax(z(alpha)); its state dict after that, whole on the main process.

    `plausibility` is the beta of the teacher's mask, 0 for none.
    The student itself has these weights too, unless FSDP left each process a shard. Frozen parameters do not change.
    `examples` has the columns `id`, `prompt_ids` and `completion_ids`. `folder` is where the training keeps its state
    and curves: an interrupted training resumes from its last checkpoint there. `vocab_size` is the tokenizer's.
    """
    trainer = TrRaTrainer(
        model=student,
        teacher=teacher,
        alpha=alpha,
        train_dataset=in_training_order(examples.add_column("row", np.arange(len(examples))), training),
        divergence=distillation.divergence,
        temperature=distillation.temperature,
        plausibility=plausibility,
        vocab_size=vocab_size,
        chunk_tokens=distillation.chunk_tokens,
        matmul_dtype=matmul_dtype(distillation.matmul_dtype, training),
        padding_free=training.padding_free,
        on_policy=on_policy,
        args=TrainingArguments(**trainer_arguments(training, training_state(folder), tracking)),
    )
    return train(trainer, description)


def _fresh_student(
    reference: Path, parameters: TrRa, device: torch.device, attn_implementation: str | None = None
) -> tuple[PreTrainedModel, Callable[[Path], None]]:
    """A student before its training, on `device`, with its trainable weights chosen; and the function that saves it."""
    lora = parameters.lora
    if parameters.adapter == "full":
        student = load_model(reference, device=device, dtype=parameters.dtype, attn_implementation=attn_implementation)
        dtype = read_config(reference).dtype or torch.float32
        return student, lambda folder: student.to(dtype=dtype).save_pretrained(folder)
    torch.manual_seed(parameters.seed)  # of the matrices: the same in every process
    student = load_model(reference, device=device, attn_implementation=attn_implementation)
    adapted = get_peft_model(
        student,
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    config = adapted.peft_config["default"]  # where PEFT notes the folder that the model was loaded from
    config.base_model_name_or_path, config.revision = base_name(reference)

    def save(folder: Path) -> None:
        if lora.merge:
            adapted.merge_and_unload().save_pretrained(folder)  # type: ignore[operator]
        else:
            adapted.save_pretrained(str(folder), save_embedding_layers=False)
            student.generation_config.save_pretrained(folder)

    return student, save


def _introduction(metadata: dict[str, Any]) -> str:
    """The first paragraph of the model card."""
    text = (
        f"{metadata['reference']['name']} moved by **alpha = {metadata['alpha']}** along what alignment did to "
        f'{metadata["aligned"]["name"]} (training-time realignment, "Flexible Realignment of Language Models", arXiv '
        "2506.12704): a copy of the reference was trained to follow softmax((1 - alpha) z_reference + alpha z_aligned)."
    )
    if beta := metadata["parameters"]["plausibility"]:
        text += (
            f" The teacher's plausibility was {beta:g}: it gave no probability to tokens that both models find less "
            f"than {beta:g} times as likely as the likeliest token of either."
        )
    if metadata["iteration"]:
        text += f" This is round {metadata['iteration']} of TrRa-iter: the aligned model was the round before it."
    return text


if __name__ == "__main__":
    run_as_process(TrainStudents)
