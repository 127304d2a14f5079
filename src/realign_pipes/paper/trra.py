"""TrRa, training-time realignment, of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704).

Distils softmax(z(alpha)), Eq. 5, into a copy of the reference model by minimising Eq. 6 on completion tokens:

    trainer = TrRaTrainer(
        model=student, teacher=OnlineTeacher(reference, aligned), alpha=1.5, args=TrainingArguments(...),
        train_dataset=examples,
    )
    trainer.train()

TrRa-iter repeats this, with the student as the aligned model of the next teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol, TypedDict

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from realign_pipes.errors import UserError
from realign_pipes.paper import Divergence
from realign_pipes.paper.objective import check_plausibility, fused_linear_divergence


class TrainingDivergedError(UserError, ArithmeticError):
    """The loss or the gradient became NaN or infinite."""


class Example(TypedDict):
    """One calibration example as token ids. A data set's rows may have more columns."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class TeacherSignal:
    """Hidden states of both models at the N completion tokens of a batch, row after row."""

    reference_hidden: torch.Tensor
    """[N, d_reference], the reference's dtype or the cache's."""
    aligned_hidden: torch.Tensor
    """[N, d_aligned]."""


class Teacher(Protocol):
    """The pair of models whose logits are mixed. Heads are [V, d]."""

    reference_head: torch.Tensor
    aligned_head: torch.Tensor

    def signal(self, batch: dict[str, torch.Tensor]) -> TeacherSignal:
        """Hidden states for a collated batch: `input_ids`, `attention_mask`, `labels` [B, T] and `row` [B]."""
        ...


def completion_hidden_states(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Final hidden states [N, d] that predict the N completion tokens, row after row, in the model's dtype.

    All three inputs are int64 [B, T]. Completion tokens are those whose label is not -100; the state that predicts the
    token at position t is the one at t - 1.
    """
    output = model.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[:, :-1][labels[:, 1:] != -100]


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `attention_mask` and `labels`, int64 [B, T].

    Labels are the token ids on completion tokens, and -100 on prompts and padding.
    """
    width = max(len(example["prompt_ids"]) + len(example["completion_ids"]) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, example in enumerate(examples):
        begin = len(example["prompt_ids"])
        end = begin + len(example["completion_ids"])
        input_ids[row, :begin] = torch.tensor(example["prompt_ids"])
        input_ids[row, begin:end] = labels[row, begin:end] = torch.tensor(example["completion_ids"])
        attention_mask[row, :end] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class TrRaTrainer(Trainer):
    """Transformers' Trainer with the divergence from the fused teacher as its loss (Eq. 6).

    `train_dataset` has the columns `prompt_ids` and `completion_ids` (token ids), optionally `id` (named in errors) and
    `row`, the example's number for the teacher (default: its place). Only completion tokens count. `vocab_size` is the
    tokenizer's; None is that of the smallest head. The other arguments are those of `fused_linear_divergence` and of
    Trainer. `train` raises TrainingDivergedError when the loss is no longer finite.

    During `train` the forward of this model instance is replaced by one that returns the loss, so that whatever wraps
    the model (DDP, FSDP, autocast) wraps the loss too. In there, the loss is computed by the head's forward, which is
    replaced as well, since FSDP gathers a sharded weight for the forward of the module that holds it. Trainer counts
    the labels of all micro-batches of an optimizer step on all processes, and each micro-batch's loss is divided by
    that number.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        teacher: Teacher,
        alpha: float,
        train_dataset: Dataset,
        divergence: Divergence = "forward_kl",
        temperature: float = 1.0,
        plausibility: float = 0.0,
        vocab_size: int | None = None,
        chunk_tokens: int = 256,
        **kwargs: Any,
    ) -> None:
        check_plausibility(plausibility, divergence)
        if "row" not in train_dataset.column_names:
            train_dataset = train_dataset.add_column("row", range(len(train_dataset)))
        pad_token_id = model.config.pad_token_id or 0

        def collate_rows(examples: list[Any]) -> dict[str, torch.Tensor]:
            return {**collate(examples, pad_token_id), "row": torch.tensor([example["row"] for example in examples])}

        super().__init__(model=model, train_dataset=train_dataset, data_collator=collate_rows, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of the whole optimizer step
        self.teacher = teacher

        def head_forward(
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
                plausibility=plausibility,
                vocab_size=vocab_size,
                chunk_tokens=chunk_tokens,
                num_tokens=num_tokens,
            )

        def student_forward(
            student: PreTrainedModel,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            labels: torch.Tensor,
            signal: TeacherSignal,
            num_tokens: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            hidden = completion_hidden_states(student, input_ids, attention_mask, labels)
            return {"loss": student.get_output_embeddings()(hidden, signal, num_tokens)}

        self._forwards = (student_forward, head_forward)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's `train`. Afterwards, even if it raised, the model's forward is its class's own again."""
        student, head = self.model, self.model.get_output_embeddings()
        student_forward, head_forward = self._forwards
        student.forward, head.forward = MethodType(student_forward, student), MethodType(head_forward, head)
        try:
            return super().train(*args, **kwargs)
        finally:
            del student.forward, head.forward

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
            raise TrainingDivergedError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, on examples "
                f"{self._names(inputs['row'].tolist())}. The checkpoints before it are in {self.args.output_dir}. "
                "Try a lower learning_rate or a smaller alpha."
            )
        # The loss was divided by the tokens of all processes, and gradients are averaged over the processes.
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _names(self, rows: list[int]) -> list[Any]:
        if "id" not in self.train_dataset.column_names:
            return rows
        ids = dict(zip(self.train_dataset["row"], self.train_dataset["id"], strict=True))
        return [ids[row] for row in rows]

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer keeps what the model's own forward takes; ours are read by the collator.
        self._signature_columns = ["id", "row", "prompt_ids", "completion_ids"]
