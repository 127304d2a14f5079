"""What differs on a GPU: half precision, its kernels, NCCL. `make test-gpu`; skipped where there is no CUDA.

The same numbers are computed on the CPU, in the plain form, from the same weights.
"""

import csv
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.objective import divergence_between, fuse_logits, fused_linear_divergence
from realign_pipes.pipelines.trra.job import Students, TrainStudents
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.runtime.launch import Launcher, launch
from realign_pipes.teachers.parameters import Teachers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and torch finds no GPU on this machine"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONE = Launcher(num_processes=1, config_file=None)


# -- the fused loss ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
def test_the_fused_loss_equals_the_plain_one(dtype, tolerance, divergence):
    """In bfloat16 the inputs and the gradients are rounded, by 2**-8 at most; what lies between is float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 64), (1000, 64)] * 3
    inputs = [torch.randn(shape, generator=generator).div(4).to(CUDA, dtype) for shape in shapes]
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    loss = fused_linear_divergence(*inputs, 1.5, divergence=divergence, chunk_tokens=70)
    gradients = torch.autograd.grad(loss, inputs[:2])

    exact = [tensor.detach().to(CPU, torch.float64).requires_grad_() for tensor in inputs]
    student, reference, aligned = (hidden @ head.T for hidden, head in zip(exact[::2], exact[1::2], strict=True))
    mixed = (1 - 1.5) * reference + 1.5 * aligned
    log_p, log_q = mixed.log_softmax(-1), student.log_softmax(-1)
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    plain = {
        "forward_kl": log_p.exp() * (log_p - log_q),
        "reverse_kl": log_q.exp() * (log_q - log_p),
        "jsd": (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2,
    }[divergence].sum(-1).mean()  # fmt: skip
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, exact[:2]), strict=True):
        error = (ours.to(CPU, torch.float64) - theirs).norm() / theirs.norm()
        assert error < tolerance


@pytest.mark.parametrize("plausibility", [0.0, 0.1])
def test_bfloat16_products_on_a_gpu_give_the_numbers_of_a_cpu(plausibility):
    """A CPU multiplies the rounded factors in float32; tests/paper compares that with a formula."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).div(4) for shape in [(300, 64), (1000, 64)] * 3]
    found = []
    for device in (CPU, CUDA):
        own = [tensor.to(device) for tensor in inputs]
        for tensor in own[:2]:
            tensor.requires_grad_()
        loss = fused_linear_divergence(
            *own, 1.5, chunk_tokens=70, temperature=2.0, plausibility=plausibility, matmul_dtype=torch.bfloat16
        )
        found.append([loss.detach().to(CPU), *(gradient.to(CPU) for gradient in torch.autograd.grad(loss, own[:2]))])
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-7)
    for on_gpu, on_cpu in zip(found[1][1:], found[0][1:], strict=True):
        assert (on_gpu - on_cpu).norm() / on_cpu.norm() < 1e-3


def test_the_fused_loss_never_holds_all_logits():
    """[4096, 50000] in float32 are 781 MiB; two heads' gradients and a chunk's three buffers are 147."""
    hidden, head = (torch.randn(rows, 64, device=CUDA) for rows in (4096, 50_000))
    student, weight = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_linear_divergence(student, weight, hidden, head, hidden, head, 1.5, chunk_tokens=256).backward()
    assert torch.cuda.max_memory_allocated() - before < 4096 * 50_000 * 4 / 2


# -- a training -------------------------------------------------------------------------------------------------------
@pytest.fixture
def students(pair, examples, tmp_path):
    """`students(name)`: a job that trains one student for four steps, each of which sees all eight examples."""
    examples.select(range(8)).save_to_disk(str(tmp_path / "examples"))
    parameters = TrRa(
        alphas=[1.5], only_alpha=None, iterations=0, iteration_alphas=[], plausibility=0.1,
        ablation_alphas=[], scaled_lora=False, adapter="full", lora={"rank": 4, "alpha": 8, "merge": False},
        divergence="forward_kl", temperature=1.0, steps=4, batch_size=8, micro_batch_size=2, learning_rate=1e-3,
        warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False, chunk_tokens=16,
        save_steps=4, seed=1, on_policy=0,
        on_policy_sampling={"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "batch_size": 8},
    )  # fmt: skip
    teachers = Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=100)
    reference, aligned = pair

    def job(name: str) -> TrainStudents:
        return TrainStudents(
            parameters=parameters,
            teachers=teachers,
            reference=reference,
            aligned=aligned,
            examples=tmp_path / "examples",
            teacher_cache=tmp_path / "none",
            work=tmp_path / name,
        )

    return job


def losses(made: Students) -> list[float]:
    [checkpoint] = made.checkpoints.values()
    with (checkpoint / "curves" / "plots" / "metrics" / "loss.tsv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream, delimiter="\t")]


def loss_at_the_start(pair: tuple[Path, Path], examples: Dataset, vocab_size: int) -> float:
    """The mean divergence of the reference from z(1.5), one example at a time, on the CPU."""
    reference, aligned = (load_model(path, device=CPU, dtype=torch.float32) for path in pair)
    found = []
    for example in examples.select(range(8)):
        ids = torch.tensor([example["prompt_ids"] + example["completion_ids"]])
        places = slice(len(example["prompt_ids"]) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            ours, theirs = (model(ids).logits[0, places, :vocab_size] for model in (reference, aligned))
        found.append(divergence_between(ours, fuse_logits(ours, theirs, 1.5), "forward_kl"))
    return torch.cat(found).mean().item()


def test_a_training_begins_at_the_plain_loss_and_lowers_it(students, pair, examples, tiny_tokenizer):
    """Trainings take bfloat16 on a GPU that has it: two digits."""
    found = losses(launch(students("one"), Students, ONE, Path("unused"), training=None))
    assert found[0] == pytest.approx(loss_at_the_start(pair, examples, len(tiny_tokenizer)), rel=0.03)
    assert found[-1] < found[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs two GPUs, and this machine has fewer")
def test_two_processes_over_nccl_train_what_one_trains(students, tmp_path):
    one, two = students("one"), students("two")
    alone = losses(launch(one, Students, ONE, tmp_path / "launch", training=one.parameters))
    launcher = Launcher(num_processes=2, config_file=None)
    together = losses(launch(two, Students, launcher, tmp_path / "launch", training=two.parameters))
    assert together == pytest.approx(alone, rel=0.03)


# -- InRa -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def inra(pair):
    """The reference with an adapter that is no longer the identity, on the GPU, and a batch of prompts."""
    model = InRaForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(pair[0]))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (one for layer in model.adapter_layers for one in layer.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    ids = torch.randint(8, 200, (3, 6), generator=generator)
    return model.eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def on(device: torch.device, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def test_inra_mixes_per_row_as_on_the_cpu(inra):
    model, batch = inra
    alphas = [0.0, 0.5, 1.5]
    expected = model(**batch, alpha=alphas).logits
    found = model.to(CUDA)(**on(CUDA, batch), alpha=alphas).logits
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_inra_generates_the_base_models_tokens_at_alpha_0(inra, pair):
    model, batch = inra
    base = AutoModelForCausalLM.from_pretrained(pair[0]).to(CUDA)
    options = {"max_new_tokens": 20, "do_sample": False}
    expected = base.generate(**on(CUDA, batch), **options)
    found = model.to(CUDA).generate(**on(CUDA, batch), alpha=0.0, **options)
    assert torch.equal(found, expected)
    mixed = model.generate(**on(CUDA, batch), alpha=[0.0, 0.5, 1.5], **options)
    length = min(mixed.shape[1], expected.shape[1])
    assert torch.equal(mixed[0, :length], expected[0, :length])
    assert not torch.equal(mixed[2, :length], expected[2, :length])
