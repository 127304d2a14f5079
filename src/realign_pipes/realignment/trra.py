"""TrRa, training-time realignment: distil softmax(z(alpha)) into a copy of the reference model.

`TrRaTrainer` has the loss, `train_trra` trains one student, `Realigner` makes checkpoints of them: at any alpha, and
for TrRa-iter with the last round's student as the aligned model. `kedro run --pipeline trra` runs `make_students`.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, Trainer, TrainingArguments

from realign_pipes.parameters import Distillation, Teachers, Training, TrRa
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
from realign_pipes.realignment.training import (
    CURVES,
    TrainingDivergedError,
    in_training_order,
    student_device,
    train,
    trainer_arguments,
    training_state,
)
from realign_pipes.resume import atomic_path, open_work


class TrRaTrainer(Trainer):
    """Transformers' Trainer with the divergence from the fused teacher as its loss.

    The loss is computed inside the model's own forward (replaced on this one instance), so that whatever wraps the
    model (DDP, FSDP, autocast) wraps the loss too, and there inside the head's own forward: FSDP gathers a sharded
    weight for the forward of the module that holds it. Trainer counts the labels of all micro-batches of an optimizer
    step on all processes, and their sum is what each micro-batch's loss is divided by.
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
        ids: Sequence[str],
        **kwargs: Any,
    ) -> None:
        def fused_head_forward(
            head: torch.nn.Module, hidden: torch.Tensor, signal: TeacherSignal, num_tokens: torch.Tensor
        ) -> torch.Tensor:
            return fused_linear_divergence(
                hidden,
                head.weight,  # type: ignore[arg-type]
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

        def fused_forward(
            student: PreTrainedModel,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            labels: torch.Tensor,
            signal: TeacherSignal,
            num_tokens: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            hidden = completion_hidden_states(student, input_ids, attention_mask, labels)
            return {"loss": student.get_output_embeddings()(hidden, signal, num_tokens)}

        head = model.get_output_embeddings()
        head.forward = MethodType(fused_head_forward, head)
        model.forward = MethodType(fused_forward, model)
        super().__init__(model=model, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of the whole optimizer step
        self.teacher = teacher
        self.ids = ids

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
            ids = [self.ids[row] for row in inputs["row"].tolist()]
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
) -> dict[str, torch.Tensor]:
    """Train `student` to follow the teacher's softmax(z(alpha)); its state dict after that, whole on the main process.

    The student itself has these weights too, unless FSDP left each process a shard. Parameters that are frozen stay as
    they are. `examples` has the columns `id`, `prompt_ids` and `completion_ids`; only completion tokens count in the
    loss. `work` holds the training state: a training that was interrupted there goes on from its last checkpoint.
    `vocab_size` is the tokenizer's.
    """
    arguments = TrainingArguments(**trainer_arguments(training, work), remove_unused_columns=False)
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
        ids=examples["id"],
        args=arguments,
        train_dataset=in_training_order(examples.add_column("row", np.arange(len(examples))), training),
        data_collator=collate_rows,
    )
    state = train(trainer, description)
    del student.forward, student.get_output_embeddings().forward  # the classes' own again
    return state


def make_students(
    reference: Path,
    aligned: Path,
    examples: Dataset,
    *,
    parameters: TrRa,
    teachers: Teachers,
    teacher_cache: Path,
    work: Path,
) -> dict[str, Path]:
    """Checkpoints by alpha and name (`1.5/trra-1.5`, `1.5/trra-iter1-1.5`), of all alphas or of `only_alpha`.

    One that an earlier run finished in `work` is not trained again.
    """
    fused = FusedTeachers(reference, aligned, examples, teachers=teachers, teacher_cache=teacher_cache)
    realigner = Realigner(fused, parameters=parameters, work=work)
    checkpoints = {}
    for alpha in parameters.alphas:
        if parameters.only_alpha not in (None, alpha):
            continue
        last = aligned
        for iteration, name in enumerate(parameters.checkpoint_names(alpha)):
            last = checkpoints[name] = realigner.realign(Path(name).name, float(alpha), iteration, last)
    return checkpoints


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
        unread = {"alphas", "only_alpha", "iterations", "iteration_alphas"}
        if self.parameters.adapter == "full":
            unread.add("lora")
        parameters = self.parameters.model_dump(exclude=unread)
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
        with PartialState().main_process_first():
            work = open_work(self.work / name, metadata)
        finished = work / "checkpoint"
        if not finished.exists():
            student, _ = self._student(student_device())
            state = train_trra(
                student,
                self.teachers.teacher(aligned, work / "aligned_cache"),
                alpha,
                self.teachers.examples,
                training=self.parameters,
                distillation=self.parameters,
                vocab_size=len(self.teachers.tokenizer),
                work=training_state(work),
                description=f"training {name}",
            )
            if PartialState().is_main_process:
                student, save = self._student(torch.device("cpu"))
                student.load_state_dict(state)
                finish_checkpoint(
                    finished,
                    reference,
                    save,
                    title=name,
                    introduction=_introduction(metadata),
                    tags=["trra"],
                    metadata=metadata,
                )
            PartialState().wait_for_everyone()
        return finished

    def _student(self, device: torch.device) -> tuple[PreTrainedModel, Callable[[Path], None]]:
        """A fresh student on `device`, the reference with what is trained of it, and what saves it to a folder."""
        reference, lora = self.teachers.reference, self.parameters.lora
        if self.parameters.adapter == "full":
            student = load_model(reference, device=device, dtype=torch.float32)
            dtype = read_config(reference).dtype or torch.float32
            return student, lambda folder: student.to(dtype=dtype).save_pretrained(folder)
        torch.manual_seed(self.parameters.seed)  # of the matrices: the same in every process
        student = load_model(reference, device=device)
        adapted = get_peft_model(
            student,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
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


def finish_checkpoint(
    finished: Path,
    reference: Path,
    save: Callable[[Path], None],
    *,
    title: str,
    introduction: str,
    tags: list[str],
    metadata: dict[str, Any],
) -> None:
    """Put a finished checkpoint in place at once: what `save` writes into a folder, tokenizer, curves and model card.

    `finished` lies in the work folder of its training, whose state is removed.
    """
    work = finished.parent
    with atomic_path(finished) as temporary:
        save(temporary)
        copy_tokenizer(reference, temporary)
        shutil.copytree(work / CURVES, temporary / CURVES)
        write_model_card(temporary, title=title, introduction=introduction, tags=tags, metadata=metadata)
    for folder in work.glob("trainer*"):
        shutil.rmtree(folder)
    shutil.rmtree(work / "aligned_cache", ignore_errors=True)  # of a later round's own aligned model


def base_name(reference: Path) -> tuple[str, str | None]:
    """How an adapter names the model that it is for: a repository of the hub and its revision, or a folder.

    A folder below the working folder is named relative to it, so that an adapter can move with the project.
    """
    if reference.parent.name == "snapshots":  # in the hub's cache
        return tuple(checkpoint_name(reference).split("@"))  # type: ignore[return-value]
    path = reference.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path), None


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
