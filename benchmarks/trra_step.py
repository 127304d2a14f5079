"""One optimizer step of TrRa with cached teachers, against fine-tuning and against the other ways to distil.

    python benchmarks/trra_step.py --sizes demo 135m 1.5b-head

All variants train the same student with the same AdamW on the same batch, one after the other:
- SFT: Hugging Face's own loss on labels. The floor: no distillation is cheaper. TrRa's arithmetic against it is
  (6 (N + Vd) + 4 Vd) / 6 (N + Vd), with N the body's parameters and Vd the head's: forward and backward cost 2 and 4
  operations for each parameter and token, and each of the two teachers' heads 2.
- TrRa with a mask: plausibility 0.1, so the teacher's logits are formed from the two models' log-probabilities.
- three live models: both teachers run at every step, and full float32 logits of all three meet in log_softmax.
- released: what the paper's code does, with its mathematics corrected (the softmax over the vocabulary, prompt and
  padding masked). It is built on a DPO trainer, so each sequence comes with a rejected one, which all three models
  process although nothing uses the result.
- TRL: DistillationTrainer's loss against one live teacher (it has no second one to fuse it with).
- Liger: its chunked JSD loss at beta 0 (forward KL) on the same cached hidden states, the two teachers as one of twice
  the width. It needs the package liger-kernel, which the project does not depend on: without it the row is left out.

The second part is only the loss, over a vocabulary of 151,936: its memory, and that it does not grow with the tokens.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import DEVICE, PeakMemory, Results, arguments, timed
from models import parameters, random_model

# isort: split
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.paper.objective import divergence_between, fuse_logits, fused_linear_divergence
from realign_pipes.paper.trra import collate, completion_hidden_states
from realign_pipes.teachers.fused import CachedTeacher
from realign_pipes.teachers.hidden_states import open_cache, write_cache

ALPHA = 1.5
PLAUSIBILITY = 0.1
PROMPT = 8
"""Tokens of a prompt: few, as the floor counts every token and TrRa's loss only completions."""


def made_up_examples(vocab: int, count: int, tokens: int) -> Dataset:
    """`count` examples of `tokens` random tokens each, the prompt's among them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (count, tokens), generator=generator).tolist()
    return Dataset.from_list(
        [{"id": str(i), "prompt_ids": row[:PROMPT], "completion_ids": row[PROMPT:]} for i, row in enumerate(ids)]
    )


def cached_teacher(
    reference: PreTrainedModel, aligned: PreTrainedModel, examples: Dataset, folder: Path
) -> CachedTeacher:
    """Both models' hidden states on disk, as the stage teacher_logits writes them."""
    caches = []
    for name, model in (("reference", reference), ("aligned", aligned)):
        source = {"model": name, "tokenizer": "none", "data": "random"}
        write_cache(
            folder / name, model, examples, source,
            dtype=model.dtype, batch_size=1, shard_tokens=65_536, advance=lambda steps: None,
        )  # fmt: skip
        caches.append(open_cache(folder / name, source, examples))
    return CachedTeacher(*caches, DEVICE)


def divergence_of_logits(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean forward KL over completion tokens, from full logits [B, T, V]."""
    mask = labels[:, 1:] != -100
    return (divergence_between(student[:, :-1], teacher[:, :-1], "forward_kl") * mask).sum() / mask.sum()


class Steps:
    """Every variant's step, all on one student and one optimizer."""

    def __init__(self, size: str, batch_size: int, tokens: int, folder: Path, steps: int = 1) -> None:
        precision = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")
        self.student = random_model(size).to(DEVICE).train()
        self.reference = random_model(size, dtype=precision).to(DEVICE)
        self.aligned = random_model(size, seed=1, dtype=precision).to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-6, fused=True)  # Trainer's default
        self.examples = made_up_examples(self.student.config.vocab_size, steps * batch_size, tokens)
        self.teacher = cached_teacher(self.reference, self.aligned, self.examples, folder)
        self.batches = []
        for start in range(0, len(self.examples), batch_size):
            rows = range(start, start + batch_size)
            batch = {**collate([self.examples[row] for row in rows], 0), "row": torch.tensor(rows)}
            self.batches.append({name: tensor.to(DEVICE) for name, tensor in batch.items()})
        self.batch = self.batches[0]
        self.folder = folder

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {name: self.batch[name] for name in ("input_ids", "attention_mask")}

    def step(self, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with self.autocast:
                value = loss()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return run

    def trra(self, plausibility: float = 0.0) -> torch.Tensor:
        signal = self.teacher.signal(self.batch)
        return fused_linear_divergence(
            completion_hidden_states(self.student, **self.inputs, labels=self.batch["labels"]),
            self.student.get_output_embeddings().weight,
            signal.reference_hidden,
            self.teacher.reference_head,
            signal.aligned_hidden,
            self.teacher.aligned_head,
            ALPHA,
            plausibility=plausibility,
        )

    def masked(self) -> torch.Tensor:
        return self.trra(PLAUSIBILITY)

    def sft(self) -> torch.Tensor:
        return self.student(**self.inputs, labels=self.batch["labels"]).loss

    def three_live_models(self) -> torch.Tensor:
        with torch.no_grad():
            teacher = fuse_logits(self.reference(**self.inputs).logits, self.aligned(**self.inputs).logits, ALPHA)
        return divergence_of_logits(self.student(**self.inputs).logits, teacher, self.batch["labels"])

    def released(self) -> torch.Tensor:
        paired = {name: torch.cat([tensor, tensor.flip(0)]) for name, tensor in self.inputs.items()}
        with torch.no_grad():
            reference, aligned = self.reference(**paired).logits.float(), self.aligned(**paired).logits.float()
        student = self.student(**paired).logits.float()
        chosen = slice(0, len(self.batch["labels"]))
        teacher = fuse_logits(reference[chosen], aligned[chosen], ALPHA)
        return divergence_of_logits(student[chosen], teacher, self.batch["labels"])

    def trl(self) -> Callable[[], torch.Tensor]:
        from trl import DistillationConfig, DistillationTrainer

        config = DistillationConfig(
            output_dir=str(self.folder / "trl"), beta=0.0, gradient_checkpointing=False, use_cpu=DEVICE.type == "cpu",
            bf16=False, report_to="none", per_device_train_batch_size=len(self.batch["labels"]),
        )  # fmt: skip
        trainer = DistillationTrainer(
            model=self.student,
            teacher_model=self.aligned,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["1 + 1"] * 8}),
            processing_class=build_tokenizer(9),
        )
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        inputs = {
            "prompt_ids": ids[:, :PROMPT],
            "prompt_mask": mask[:, :PROMPT],
            "completion_ids": ids[:, PROMPT:],
            "completion_mask": mask[:, PROMPT:],
        }
        return lambda: trainer.compute_loss(self.student, inputs)

    def liger(self) -> Callable[[], torch.Tensor]:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=DEVICE.type == "cuda", chunk_size=256
        )
        teacher = self.teacher
        head = torch.cat([(1 - ALPHA) * teacher.reference_head, ALPHA * teacher.aligned_head], dim=1)
        labels = self.batch["labels"][:, 1:][self.batch["labels"][:, 1:] != -100]

        def compute() -> torch.Tensor:
            signal = teacher.signal(self.batch)
            hidden = completion_hidden_states(self.student, **self.inputs, labels=self.batch["labels"])
            both = torch.cat([signal.reference_hidden, signal.aligned_hidden], dim=1)
            weight = self.student.get_output_embeddings().weight
            return loss(hidden, weight.to(hidden.dtype), both.to(hidden.dtype), head.to(hidden.dtype), labels)

        return compute


def steps(results: Results, size: str, batch_size: int, tokens: int, repetitions: int) -> None:
    case = f"{size}, {batch_size} x {tokens} tokens"
    with tempfile.TemporaryDirectory() as folder:
        of = Steps(size, batch_size, tokens, Path(folder))
        losses: dict[str, Callable[[], Any]] = {
            "TrRa": of.trra,
            "TrRa with a mask": of.masked,
            "SFT": of.sft,
            "three live models": of.three_live_models,
            "released": of.released,
            "TRL": of.trl(),
        }
        try:
            losses["Liger"] = of.liger()
        except ImportError:
            results.console.print("Liger is left out: liger-kernel is not installed.")
        for name in ("three live models", "Liger"):  # the same loss, by another way
            if name in losses:
                torch.testing.assert_close(losses[name]().float(), of.trra().float(), rtol=2e-2, atol=1e-4)
        of.step(of.sft)()  # the optimizer's state is no variant's memory
        times = results.time(case, {name: of.step(loss) for name, loss in losses.items()}, repetitions)
        body, head = parameters(of.student)
    floor = (6 * (body + head) + 4 * head) / (6 * (body + head))
    large = size != "demo"
    results.figure(case, "arithmetic floor: (6(N+Vd)+4Vd) / 6(N+Vd)", floor)
    # "within 10 % of SFT times the floor"
    results.figure(case, "TrRa / SFT", times.ratio("TrRa", "SFT"), "<=" if large else None, 1.1 * floor)
    results.figure(case, "TrRa with a mask / TrRa", times.ratio("TrRa with a mask", "TrRa"), "<=", 1.05)
    for baseline, target in (("three live models", 0.72), ("released", 0.33), ("TRL", 1.0), ("Liger", 1.0)):
        if baseline in times:
            results.figure(case, f"TrRa / {baseline}", times.ratio("TrRa", baseline), "<=" if large else None, target)


def loss_alone(results: Results, tokens: list[int], vocab: int = 151_936, width: int = 1536) -> None:
    """Peak memory of loss and gradient above their inputs: the chunked one and the one over full logits."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(vocab, width, generator=generator).mul_(0.02).to(DEVICE) for _ in range(3)]
    heads[0].requires_grad_()

    def chunked(hidden: list[torch.Tensor]) -> torch.Tensor:
        (student, reference, aligned), (head, reference_head, aligned_head) = hidden, heads
        return fused_linear_divergence(student, head, reference, reference_head, aligned, aligned_head, ALPHA)

    def full_logits(hidden: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            teacher = fuse_logits(hidden[1] @ heads[1].T, hidden[2] @ heads[2].T, ALPHA)
        return divergence_between(hidden[0] @ heads[0].T, teacher, "forward_kl").mean()

    def measure(
        name: str, loss: Callable[[list[torch.Tensor]], torch.Tensor], hidden: list[torch.Tensor]
    ) -> tuple[float, list[float]]:
        """Peak MiB; the loss and the norms of both gradients."""
        value = torch.empty(0)

        def run() -> None:
            nonlocal value
            value = loss(hidden)
            value.backward()

        with PeakMemory() as memory:
            seconds = timed(run)
        results.console.print(f"loss of {len(hidden[0])} tokens · {name}: {memory.mib:.0f} MiB, {seconds:.1f} s")
        numbers = [value.item(), *(tensor.grad.double().norm().item() for tensor in (heads[0], hidden[0]))]
        heads[0].grad = hidden[0].grad = None
        return memory.mib, numbers

    peaks = {}
    for count in tokens:
        hidden = [torch.randn(count, width, generator=generator).to(DEVICE) for _ in range(3)]
        hidden[0].requires_grad_()
        peaks["chunked", count], ours = measure("chunked", chunked, hidden)
        peaks["full logits", count], theirs = measure("full logits", full_logits, hidden)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        for name in ("chunked", "full logits"):
            results.figure(f"loss alone, {count} tokens, V = {vocab:,}", f"{name}: peak MiB", peaks[name, count])
    most, least = max(tokens), min(tokens)
    case = f"loss alone, V = {vocab:,}"
    ratio = peaks["chunked", most] / peaks["full logits", most]
    results.figure(case, f"peak memory, chunked / full logits, at {most} tokens", ratio, "<=", 1 / 8)
    growth = peaks["chunked", most] / peaks["chunked", least]
    results.figure(case, f"chunked: peak at {most} tokens / at {least}", growth, "<=", 1.1)


if __name__ == "__main__":
    given = arguments(
        __doc__,
        sizes=["demo", "135m", "1.5b-head"],
        batch_size=2,
        tokens=256,
        repetitions=3,
        loss_tokens=[1024, 4096],
    )
    results = Results("trra_step", "A TrRa step", given)
    for size in given.sizes:
        steps(results, size, given.batch_size, given.tokens, given.repetitions)
    loss_alone(results, given.loss_tokens)
    results.save()
