"""TrRa, training-time realignment: distil softmax(z(alpha)) into a copy of the reference model.

`TrRaTrainer` has the loss, `train_trra` trains one student, `Realigner` makes checkpoints of them: at any alpha, and
for TrRa-iter with the last round's student as the aligned model. `kedro run --pipeline trra` runs it.
"""

import math
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from realign_pipes.parameters import Teachers, TrRa
from realign_pipes.progress import progress_bar
from realign_pipes.realignment.callbacks import ProgressCallback, last_complete_checkpoint
from realign_pipes.realignment.checkpoints import (
    check_pair,
    copy_tokenizer,
    default_device,
    fingerprint_model,
    fingerprint_tokenizer,
    load_model,
)
from realign_pipes.realignment.fused_loss import fused_linear_divergence
from realign_pipes.realignment.fusion import Divergence
from realign_pipes.realignment.model_card import checkpoint_name, write_model_card
from realign_pipes.realignment.teachers import (
    CachedTeacher,
    HiddenStateCache,
    OnlineTeacher,
    Teacher,
    TeacherSignal,
    cache_dtype,
    check_linear_head,
    collate,
    completion_hidden_states,
    fingerprint_examples,
    open_cache,
    write_cache,
)
from realign_pipes.resume import atomic_path, open_work


class TrainingDivergedError(ArithmeticError):
    """The loss became NaN or infinite."""


class FiniteGradients(TrainerCallback):
    """Stops a training before gradients that are NaN or infinite reach the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise TrainingDivergedError(
                f"the gradient of step {state.global_step + 1} is not finite. Checkpoints saved before it are in "
                f"{args.output_dir}, until a run with other parameters starts over."
            )


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
    reference: Path,
    teacher: Teacher,
    alpha: float,
    examples: Dataset,
    *,
    parameters: TrRa,
    vocab_size: int,
    device: torch.device,
    work: Path,
    description: str,
) -> PreTrainedModel:
    """A copy of the checkpoint `reference`, trained to follow the teacher's softmax(z(alpha)).

    `examples` has the columns `id`, `prompt_ids` and `completion_ids`; only completion tokens count in the loss.
    `work` holds the training state: a training that was interrupted there goes on from its last checkpoint.
    `vocab_size` is the tokenizer's. Trains in float32, under bfloat16 autocast where the device has it; the result is
    in the dtype of the reference's checkpoint.
    """
    saved_dtype = AutoConfig.from_pretrained(reference).dtype or torch.float32
    student = load_model(reference, device=device, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=parameters.steps,
        per_device_train_batch_size=parameters.micro_batch_size,
        gradient_accumulation_steps=parameters.batch_size // parameters.micro_batch_size,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(parameters.warmup_ratio * parameters.steps),
        weight_decay=parameters.weight_decay,
        max_grad_norm=parameters.max_grad_norm,
        activation_checkpointing=parameters.gradient_checkpointing,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        save_steps=parameters.save_steps,
        save_total_limit=2,
        logging_steps=1,
        seed=parameters.seed,
        data_seed=parameters.seed,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    pad = student.config.pad_token_id or 0

    def collate_rows(batch: list[Any]) -> dict[str, torch.Tensor]:
        return {**collate(batch, pad), "row": torch.tensor([example["row"] for example in batch])}

    with progress_bar(description, parameters.steps) as advance:
        trainer = TrRaTrainer(
            model=student,
            teacher=teacher,
            alpha=alpha,
            divergence=parameters.divergence,
            temperature=parameters.temperature,
            vocab_size=vocab_size,
            chunk_tokens=parameters.chunk_tokens,
            args=arguments,
            train_dataset=examples.add_column("row", np.arange(len(examples))),
            data_collator=collate_rows,
            callbacks=[ProgressCallback(advance), FiniteGradients()],
        )
        trainer.remove_callback(PrinterCallback)
        last = last_complete_checkpoint(work)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    del student.forward  # the class's own again
    return student.to(dtype=saved_dtype).eval()


class Realigner:
    """TrRa of one pair of models over one calibration set, at any alpha and for any number of rounds.

    Everything is checked here, before the first training: both checkpoints, that their tokenizers are one, and (with
    cached teachers) that the cache is whole and was made from just these models and data.
    """

    def __init__(
        self,
        reference: Path,
        aligned: Path,
        examples: Dataset,
        *,
        parameters: TrRa,
        teachers: Teachers,
        teacher_cache: Path,
        work: Path,
    ) -> None:
        self.reference, self.examples = reference, examples.select_columns(["id", "prompt_ids", "completion_ids"])
        self.parameters, self.teachers, self.work = parameters, teachers, work
        self.tokenizer = check_pair(reference, aligned)
        self.tokenizer_fingerprint = fingerprint_tokenizer(self.tokenizer)
        self.device = default_device()
        self.data_fingerprint = fingerprint_examples(self.examples)
        self.fingerprints = {path: fingerprint_model(path) for path in (reference, aligned)}
        self.caches: dict[Path, HiddenStateCache] = {}
        if teachers.mode == "cached":
            for path, name in ((reference, "reference"), (aligned, "aligned")):
                self.caches[path] = open_cache(teacher_cache / name, self._cache_source(path))

    def realign(self, name: str, alpha: float, iteration: int, aligned: Path) -> Path:
        """The finished checkpoint folder of one round, trained now or found finished in the work folder.

        `aligned` is the aligned model in round 0 and the last round's result after it. A training that was
        interrupted goes on from its last saved step.
        """
        if aligned not in self.fingerprints:
            self.fingerprints[aligned] = fingerprint_model(aligned)
        parameters = self.parameters.model_dump(exclude={"alphas", "iterations", "iteration_alphas"})
        metadata = {
            "method": "TrRa",
            "alpha": alpha,
            "iteration": iteration,
            "reference": {"name": checkpoint_name(self.reference), "fingerprint": self.fingerprints[self.reference]},
            "aligned": {
                "name": aligned.parent.name if iteration else checkpoint_name(aligned),
                "fingerprint": self.fingerprints[aligned],
            },
            "data_fingerprint": self.data_fingerprint,
            "parameters": {**parameters, "teachers": self.teachers.model_dump(include={"mode", "dtype"})},
        }
        work = open_work(self.work / name, metadata)
        finished = work / "checkpoint"
        if not finished.exists():
            student = train_trra(
                self.reference,
                self._teacher(aligned, work / "aligned_cache"),
                alpha,
                self.examples,
                parameters=self.parameters,
                vocab_size=len(self.tokenizer),
                device=self.device,
                work=work / "trainer",
                description=f"training {name}",
            )
            with atomic_path(finished) as temporary:
                student.save_pretrained(temporary)
                copy_tokenizer(self.reference, temporary)
                write_model_card(temporary, title=name, tags=["trra"], metadata=metadata)
            shutil.rmtree(work / "trainer")
            shutil.rmtree(work / "aligned_cache", ignore_errors=True)  # of a later round's own aligned model
        return finished

    def _teacher(self, aligned: Path, cache_folder: Path) -> Teacher:
        if self.teachers.mode == "online":
            reference_model, aligned_model = (
                load_model(path, device=self.device) for path in (self.reference, aligned)
            )
            check_linear_head(reference_model, "reference")
            check_linear_head(aligned_model, "aligned model")
            return OnlineTeacher(reference_model, aligned_model)
        if aligned not in self.caches:  # a later round: its aligned model was trained a moment ago
            model = load_model(aligned, device=self.device)
            with progress_bar(f"caching {aligned.parent.name}'s hidden states", len(self.examples)) as advance:
                write_cache(
                    cache_folder,
                    model,
                    self.examples,
                    self._cache_source(aligned),
                    dtype=cache_dtype(self.teachers.dtype, model),
                    batch_size=self.teachers.batch_size,
                    shard_tokens=self.teachers.shard_tokens,
                    advance=advance,
                )
            self.caches[aligned] = open_cache(cache_folder, self._cache_source(aligned))
        return CachedTeacher(self.caches[self.reference], self.caches[aligned], self.device)

    def _cache_source(self, model: Path) -> dict[str, str]:
        return {
            "model": self.fingerprints[model],
            "tokenizer": self.tokenizer_fingerprint,
            "data": self.data_fingerprint,
        }
