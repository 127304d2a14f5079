"""TrRa, training-time realignment: distil softmax(z(alpha)) into a copy of the reference model.

`TrRaTrainer` has the loss, `train_trra` trains one student, `Realigner` makes checkpoints of them: at any alpha, and
for TrRa-iter with the last round's student as the aligned model. `kedro run --pipeline trra` runs it.
"""

import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from realign_pipes.parameters import Distillation, Training, TrRa
from realign_pipes.realignment.checkpoints import copy_tokenizer, load_model, read_config
from realign_pipes.realignment.fused_loss import fused_linear_divergence
from realign_pipes.realignment.fusion import Divergence
from realign_pipes.realignment.model_card import checkpoint_name, write_model_card
from realign_pipes.realignment.teachers import (
    FusedTeachers,
    Teacher,
    TeacherSignal,
    collate,
    completion_hidden_states,
)
from realign_pipes.realignment.training import CURVES, TrainingDivergedError, train, trainer_arguments
from realign_pipes.resume import atomic_path, open_work


class TrRaTrainer(Trainer):
    """Transformers' Trainer with the divergence from the fused teacher as its loss.

    The loss is computed inside the model's own forward (replaced on this one instance), so that whatever wraps the
    model (DDP, FSDP, autocast) wraps the loss too. Trainer counts the labels of all micro-batches of an optimizer
    step, and their sum is what each micro-batch's loss is divided by.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        teacher: Teacher,
        alpha: float,
        divergence: Divergence,
        temperature: float,
        vocab_size: int,
        chunk_tokens: int,
        **kwargs: Any,
    ) -> None:
        def fused_forward(
            student: PreTrainedModel,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            labels: torch.Tensor,
            signal: TeacherSignal,
            num_tokens: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            loss = fused_linear_divergence(
                completion_hidden_states(student, input_ids, attention_mask, labels),
                student.get_output_embeddings().weight,
                signal.reference_hidden,
                teacher.reference_head,
                signal.aligned_hidden,
                teacher.aligned_head,
                alpha,
                divergence=divergence,
                temperature=temperature,
                vocab_size=vocab_size,
                chunk_tokens=chunk_tokens,
                num_tokens=num_tokens,
            )
            return {"loss": loss}

        model.forward = MethodType(fused_forward, model)
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of the whole optimizer step
        self.teacher = teacher

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's mean divergence. TrainingDivergedError if it is not finite."""
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            signal=self.teacher.signal(inputs),
            num_tokens=num_items_in_batch,
        )
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            rows = inputs["row"].tolist()
            ids = [self.train_dataset[row]["id"] for row in rows]  # type: ignore[index]
            raise TrainingDivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, on examples {ids}. Checkpoints saved "
                f"before it are in {self.args.output_dir}, until a run with other parameters starts over. Try a lower "
                "learning_rate or a smaller alpha."
            )
        loss = (
            loss * self.accelerator.num_processes
        )  # gradients are averaged over processes; the tokens are all of theirs
        return (loss, outputs) if return_outputs else loss


def train_trra(
    student: PreTrainedModel,
    teacher: Teacher,
    alpha: float,
    examples: Dataset,
    *,
    training: Training,
    distillation: Distillation,
    vocab_size: int,
    work: Path,
    description: str,
) -> None:
    """Train `student` in place to follow the teacher's softmax(z(alpha)); parameters that are frozen stay as they are.

    `examples` has the columns `id`, `prompt_ids` and `completion_ids`; only completion tokens count in the loss.
    `work` holds the training state: a training that was interrupted there goes on from its last checkpoint.
    `vocab_size` is the tokenizer's.
    """
    arguments = TrainingArguments(**trainer_arguments(training, student.device, work), remove_unused_columns=False)
    pad = student.config.pad_token_id or 0

    def collate_rows(batch: list[Any]) -> dict[str, torch.Tensor]:
        return {**collate(batch, pad), "row": torch.tensor([example["row"] for example in batch])}

    trainer = TrRaTrainer(
        model=student,
        teacher=teacher,
        alpha=alpha,
        divergence=distillation.divergence,
        temperature=distillation.temperature,
        vocab_size=vocab_size,
        chunk_tokens=distillation.chunk_tokens,
        args=arguments,
        train_dataset=examples.add_column("row", np.arange(len(examples))),
        data_collator=collate_rows,
    )
    train(trainer, description)
    del student.forward  # the class's own again


class Realigner:
    """TrRa of one pair of models over one calibration set, at any alpha and for any number of rounds."""

    def __init__(self, teachers: FusedTeachers, *, parameters: TrRa, work: Path) -> None:
        self.teachers, self.parameters, self.work = teachers, parameters, work

    def realign(self, name: str, alpha: float, iteration: int, aligned: Path) -> Path:
        """The finished checkpoint folder of one round, trained now or found finished in the work folder.

        `aligned` is the aligned model in round 0 and the last round's result after it. A training that was
        interrupted goes on from its last saved step.
        """
        reference = self.teachers.reference
        parameters = self.parameters.model_dump(exclude={"alphas", "only_alpha", "iterations", "iteration_alphas"})
        metadata = {
            "method": "TrRa",
            "alpha": alpha,
            "iteration": iteration,
            "reference": {"name": checkpoint_name(reference), "fingerprint": self.teachers.fingerprint(reference)},
            "aligned": {
                "name": aligned.parent.name if iteration else checkpoint_name(aligned),
                "fingerprint": self.teachers.fingerprint(aligned),
            },
            "data_fingerprint": self.teachers.data_fingerprint,
            "parameters": {**parameters, "teachers": self.teachers.teachers.model_dump(include={"mode", "dtype"})},
        }
        work = open_work(self.work / name, metadata)
        finished = work / "checkpoint"
        if not finished.exists():
            student = load_model(reference, device=self.teachers.device, dtype=torch.float32)
            train_trra(
                student,
                self.teachers.teacher(aligned, work / "aligned_cache"),
                alpha,
                self.teachers.examples,
                training=self.parameters,
                distillation=self.parameters,
                vocab_size=len(self.teachers.tokenizer),
                work=work / "trainer",
                description=f"training {name}",
            )
            student.to(dtype=read_config(reference).dtype or torch.float32)
            with atomic_path(finished) as temporary:
                student.save_pretrained(temporary)
                copy_tokenizer(reference, temporary)
                shutil.copytree(work / CURVES, temporary / CURVES)
                write_model_card(
                    temporary, title=name, introduction=_introduction(metadata), tags=["trra"], metadata=metadata
                )
            shutil.rmtree(work / "trainer")
            shutil.rmtree(work / "aligned_cache", ignore_errors=True)  # of a later round's own aligned model
        return finished


def _introduction(metadata: dict[str, Any]) -> str:
    """What the model card says first."""
    text = (
        f"{metadata['reference']['name']} moved by **alpha = {metadata['alpha']}** along what alignment did to "
        f'{metadata["aligned"]["name"]} (training-time realignment, "Flexible Realignment of Language Models", arXiv '
        "2506.12704): a copy of the reference was trained to follow softmax((1 - alpha) z_reference + alpha z_aligned)."
    )
    if metadata["iteration"]:
        text += f" This is round {metadata['iteration']} of TrRa-iter: the aligned model was the round before it."
    return text
