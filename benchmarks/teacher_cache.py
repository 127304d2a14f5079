"""The cache of hidden states: its size, what storing in fewer bits costs, and how fast it is written and read.

    python benchmarks/teacher_cache.py

Accuracy is measured on the demo's trained pair (data/06_models, from `make run`), as random models have no opinion that
could be lost: the largest |difference| of log p(token) between softmax(z(alpha)) from stored hidden states and from the
models in float64, over all completion tokens of the calibration set's first examples, all ids to which the exact
teacher gives at least 0.001, and alpha from -1 to 10. The alternative is a cache of each model's 64 largest log
probabilities, the rest of the probability spread evenly over the other ids.

Speed is measured on the random 135m model: the whole of write_cache against its forward passes alone, and the time in
which a training step waits for the cache against the whole step. The kernel is asked to drop the shard's pages first,
but may keep those that are mapped: the speed of reading is then that of memory.
"""

import os
import statistics
import tempfile
from pathlib import Path

from harness import DEVICE, Results, arguments, timed
from models import random_model
from trra_step import Steps, made_up_examples

# isort: split
import torch
from datasets import load_from_disk

from realign_pipes.models.load import load_model
from realign_pipes.paper.objective import fuse_logits
from realign_pipes.paper.trra import collate, completion_hidden_states
from realign_pipes.teachers.hidden_states import write_cache

PROJECT = Path(__file__).parents[1]
ALPHAS = [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0]
TOP = 64
LEAST = 1e-3


def sizes(results: Results) -> None:
    """Bytes a token for both models together, in two bytes a number; top-64 has a 4-byte id beside each."""
    for name, width, vocab in (("135m", 576, 49_152), ("Qwen2.5-1.5B", 1536, 151_936)):
        hidden, logits, top = 2 * 2 * width, 2 * 2 * vocab, 2 * TOP * (2 + 4)
        case = f"bytes a token, {name}, bfloat16"
        results.figure(case, "hidden states", hidden)
        results.figure(case, f"top-{TOP}", top)
        results.figure(case, "full logits", logits)
        results.figure(case, "full logits / hidden states", logits / hidden)


@torch.inference_mode()
def accuracy(results: Results, examples: int) -> None:
    models = PROJECT / "data" / "06_models"
    data = PROJECT / "data" / "05_model_input" / "calibration_set"
    if not data.exists() or not (models / "aligned").exists():
        raise FileNotFoundError(f"{models} and {data} do not exist: `make run` makes them.")
    batch = collate(list(load_from_disk(str(data)).select(range(examples))), 0)
    exact, rounded, top = [], {}, []
    for name in ("reference", "aligned"):
        model = load_model(models / name, device=torch.device("cpu"), dtype=torch.float64)
        hidden = completion_hidden_states(model, **batch)
        head = model.get_output_embeddings().weight
        logits = hidden @ head.T
        exact.append(logits)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            # As the loss has it: stored hidden states and head, products in float32.
            z = hidden.to(dtype).float() @ head.to(dtype).float().T
            rounded.setdefault(str(dtype).removeprefix("torch."), []).append(z)
        log_p = torch.log_softmax(logits, dim=-1)
        values, ids = log_p.topk(TOP, dim=-1)
        rest = (1 - values.exp().sum(-1, keepdim=True)).clamp_min(1e-12) / (log_p.shape[-1] - TOP)
        top.append(rest.log().expand_as(log_p).scatter(1, ids, values))
    caches = {**{f"hidden states in {name}": pair for name, pair in rounded.items()}, f"top-{TOP}": top}
    case = f"largest |error of log p|, demo, {len(exact[0])} tokens, alpha from {ALPHAS[0]:g} to {ALPHAS[-1]:g}"
    for name, (reference, aligned) in caches.items():
        largest = 0.0
        for alpha in ALPHAS:
            true = torch.log_softmax((1 - alpha) * exact[0] + alpha * exact[1], dim=-1)
            cached = torch.log_softmax(fuse_logits(reference, aligned, alpha), dim=-1)
            largest = max(largest, (cached - true).abs()[true >= torch.tensor(LEAST).log()].max().item())
        results.figure(case, name, largest)


def speed(results: Results, size: str, count: int, tokens: int, batch_size: int, repetitions: int) -> None:
    model = random_model(size).to(DEVICE)
    examples = made_up_examples(model.config.vocab_size, count, tokens)
    case = f"writing, {size}, {count} x {tokens} tokens"
    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(1000))

        def write() -> None:
            source = {"model": size, "tokenizer": "none", "data": "random"}
            write_cache(
                Path(folder) / str(next(runs)), model, examples, source,
                dtype=torch.bfloat16, batch_size=1, shard_tokens=65_536, advance=lambda steps: None,
            )  # fmt: skip

        @torch.inference_mode()
        def forward() -> None:
            for example in examples:
                batch = collate([example], 0)
                completion_hidden_states(model, **{name: tensor.to(DEVICE) for name, tensor in batch.items()})

        times = results.time(case, {"write_cache": write, "forward passes alone": forward}, repetitions)
        results.figure(case, "write_cache / forward passes alone", times.ratio("write_cache", "forward passes alone"))
        results.figure(case, "tokens a second", count * tokens / statistics.median(times["write_cache"]))

        of = Steps(size, batch_size, tokens, Path(folder) / "steps")
        shares, seconds = [], []
        step = of.step(of.trra)
        step()
        for _ in range(repetitions):
            for shard in (Path(folder) / "steps").rglob("shard-*.safetensors"):
                with shard.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            seconds.append(timed(lambda: of.teacher.signal(of.batch)))
            shares.append(seconds[-1] / timed(step))
        case = f"reading, {size}, {batch_size} x {tokens} tokens a step"
        bytes_read = sum(tensor.nbytes for tensor in vars(of.teacher.signal(of.batch)).values())
        results.figure(case, "MiB a second", bytes_read / 2**20 / statistics.median(seconds))
        results.figure(case, "share of a training step", statistics.median(shares), "<=", 0.03)


if __name__ == "__main__":
    given = arguments(
        __doc__, examples=100, size="135m", count=8, tokens=256, batch_size=2, repetitions=3
    )  # fmt: skip
    results = Results("teacher_cache", "The teacher cache", given)
    sizes(results)
    accuracy(results, given.examples)
    speed(results, given.size, given.count, given.tokens, given.batch_size, given.repetitions)
    results.save()
