"""TrRa, training-time realignment, of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704).

Distils softmax(z(alpha)), Eq. 5, into a copy of the reference model by minimising Eq. 6 on completion tokens:

    trainer = TrRaTrainer(
        model=student, teacher=OnlineTeacher(reference, aligned), alpha=1.5, args=TrainingArguments(...),
        train_dataset=examples,
    )
    trainer.train()

TrRa-iter repeats this, with the student as the aligned model of the next teacher.

Beyond the paper, with `on_policy` the student itself draws a share of the completions, with its weights of that step,
and so learns what the teacher would have said after prefixes of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import MethodType
from typing import Any, Protocol, TypedDict

import torch
from datasets import Dataset
from transformers import DataCollatorWithFlattening, PreTrainedModel

from realign_pipes.errors import InputError, UserError
from realign_pipes.paper import Divergence
from realign_pipes.paper.objective import check_plausibility, fused_linear_divergence
from realign_pipes.paper.saving import SavesTrainedWeights


class TrainingDivergedError(UserError, ArithmeticError):
    """The loss or the gradient became NaN or infinite."""


class Example(TypedDict):
    """One calibration example as token ids. A data set's rows may have more columns."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True)
class OnPolicy:
    """Which examples' completions the student draws in place of those that they have, and how."""

    share: float
    """In (0, 1], of the examples; evenly spread over the training."""
    draw: Callable[[Mapping[int, list[int]]], Mapping[int, list[int]]]
    """Prompts -> completions of the student, all token ids. The keys number the examples of the training from 0 through
    all its steps: where random numbers depend only on a seed and that number, a resumed training draws the same."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of on-policy examples must be above 0 and at most 1, not {self.share}.")

    def includes(self, number: int) -> bool:
        """Whether the student completes the example of this number itself."""
        return int((number + 1) * self.share) > int(number * self.share)


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

    def signal(self, batch: dict[str, Any]) -> TeacherSignal:
        """Hidden states for a batch of `collate` or `collate_flat` that also has each example's number, `row` [B]."""
        ...


def completion_hidden_states(model: PreTrainedModel, labels: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Final hidden states [N, d] that predict the N completion tokens, example after example, in the model's dtype.

    `labels`, int64 [B, T], and `inputs`, what the decoder takes, are those of `collate` or `collate_flat`. Completion
    tokens are those whose label is not -100; the state that predicts the token at position t is the one at t - 1.
    """
    output = model.get_decoder()(**inputs, use_cache=False)
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


def collate_flat(examples: Sequence[Example]) -> dict[str, Any]:
    """All examples in one row without padding: `input_ids`, `labels` and `position_ids`, int64 [1, T].

    Positions start at 0 in each example, by which Transformers knows that none may attend to another. The boundaries
    are there too (`cu_seq_lens_q`, …), as flash attention takes them. Labels are those of `collate`.
    """
    rows = [
        {
            "input_ids": example["prompt_ids"] + example["completion_ids"],
            "labels": [-100] * len(example["prompt_ids"]) + example["completion_ids"],
        }
        for example in examples
    ]
    flat: dict[str, Any] = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True)(rows)
    return flat


def decoder_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch from `collate` or `collate_flat` the decoder takes."""
    return {name: value for name, value in batch.items() if name not in ("labels", "row")}


def examples_of(batch: Mapping[str, Any]) -> list[Example]:
    """The examples of a batch from `collate` or `collate_flat`."""
    if "position_ids" in batch:
        lengths = batch["cu_seq_lens_q"].diff().tolist()
        rows = zip(batch["input_ids"][0].split(lengths), batch["labels"][0].split(lengths), strict=True)
        return [
            {"prompt_ids": ids[labels == -100].tolist(), "completion_ids": ids[labels != -100].tolist()}
            for ids, labels in rows
        ]
    own = batch["labels"] != -100
    prompts = batch["attention_mask"].bool() & ~own
    return [
        {"prompt_ids": ids[prompt].tolist(), "completion_ids": ids[completion].tolist()}
        for ids, prompt, completion in zip(batch["input_ids"], prompts, own, strict=True)
    ]


class TrRaTrainer(SavesTrainedWeights):
    """Transformers' Trainer with the divergence from the fused teacher as its loss (Eq. 6).

    `train_dataset` has the columns `prompt_ids` and `completion_ids` (token ids), optionally `id` (named in errors) and
    `row`, the example's number for the teacher (default: its place). Only completion tokens count. `vocab_size` is the
    tokenizer's; None is that of the smallest head. With `padding_free`, a micro-batch is one row (`collate_flat`). The
    other arguments are those of `fused_linear_divergence` and of Trainer. `train` raises TrainingDivergedError when the
    loss is no longer finite.

    With `on_policy`, the student draws completions before each optimizer step, in eval mode and by its class's forward.
    The teacher must then compute its signal from the batch's `input_ids`, as OnlineTeacher does. InputError in several
    processes or with FSDP.

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
        matmul_dtype: torch.dtype = torch.float32,
        padding_free: bool = False,
        on_policy: OnPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        check_plausibility(plausibility, divergence)
        if "row" not in train_dataset.column_names:
            train_dataset = train_dataset.add_column("row", range(len(train_dataset)))
        pad_token_id = model.config.pad_token_id or 0

        def collate_rows(examples: list[Any]) -> dict[str, Any]:
            batch = collate_flat(examples) if padding_free else collate(examples, pad_token_id)
            return {**batch, "row": torch.tensor([example["row"] for example in examples])}

        super().__init__(model=model, train_dataset=train_dataset, data_collator=collate_rows, **kwargs)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of the whole optimizer step
        self.teacher, self.on_policy = teacher, on_policy
        if on_policy is not None and (self.args.world_size > 1 or self.is_fsdp_enabled):
            raise InputError("an on-policy student is trained in one process, without FSDP.")

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
                matmul_dtype=matmul_dtype,
            )

        def student_forward(
            student: PreTrainedModel,
            labels: torch.Tensor,
            signal: TeacherSignal,
            num_tokens: torch.Tensor,
            **inputs: Any,
        ) -> dict[str, torch.Tensor]:
            hidden = completion_hidden_states(student, labels, **inputs)
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

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Trainer's: a step's micro-batches and the number of their labels, which the student's completions change."""
        if self.on_policy is not None:
            batches = list(islice(epoch_iterator, num_batches))
            epoch_iterator = iter(self._with_own_completions(batches, self.on_policy))
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _with_own_completions(self, batches: list[dict[str, Any]], on_policy: OnPolicy) -> list[dict[str, Any]]:
        first = self.state.global_step * self.args.train_batch_size * self.args.gradient_accumulation_steps
        examples = [
            {**example, "row": row}
            for batch in batches
            for example, row in zip(examples_of(batch), batch["row"].tolist(), strict=True)
        ]
        prompts = {
            number: example["prompt_ids"]
            for number, example in enumerate(examples, start=first)
            if on_policy.includes(number)
        }
        with self._own_forward():
            drawn = on_policy.draw(prompts)
        for number in prompts:
            examples[number - first]["completion_ids"] = drawn[number]
        left = iter(examples)
        return [self.data_collator(list(islice(left, len(batch["row"])))) for batch in batches]

    @contextmanager
    def _own_forward(self) -> Iterator[None]:
        """The student in eval mode and with its class's forward, in the middle of `train`."""
        student, modules = self.model, (self.model, self.model.get_output_embeddings())
        was_training, forwards = student.training, [module.forward for module in modules]
        for module in modules:
            del module.forward
        student.eval()
        try:
            with self.accelerator.autocast():
                yield
        finally:
            student.train(was_training)
            for module, forward in zip(modules, forwards, strict=True):
                module.forward = forward

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's mean divergence. TrainingDivergedError if it is not finite."""
        outputs = model(
            labels=inputs["labels"],
            signal=self.teacher.signal(inputs),
            num_tokens=num_items_in_batch,
            **decoder_inputs(inputs),
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
