"""Batches of mixed lengths with and without padding: forward and backward passes of a model's body.

    python benchmarks/padding_free.py --sizes demo 135m

Lengths are uniform between `--shortest` and `--longest` tokens, so a padded batch is about a third empty. On a CPU
attention is sdpa, which masks and computes the square of the row's tokens: padding-free batches lose there what flash
attention would not. Tokens a second count no padding.
"""

import statistics

from harness import DEVICE, Results, arguments
from models import random_model

# isort: split
import torch
from accelerate.utils import send_to_device

from realign_pipes.paper.trra import collate, collate_flat, completion_hidden_states


def measure(results: Results, size: str, batch_size: int, shortest: int, longest: int, repetitions: int) -> None:
    model = random_model(size).to(DEVICE).train()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (batch_size,), generator=generator).tolist()
    examples = [
        {"prompt_ids": ids[:8], "completion_ids": ids[8:]}
        for ids in (torch.randint(model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths)
    ]
    batches = {
        "padded": send_to_device(collate(examples, 0), DEVICE),
        "padding-free": send_to_device(collate_flat(examples), DEVICE),
    }

    def step(name: str) -> None:
        completion_hidden_states(model, **batches[name]).square().mean().backward()
        model.zero_grad()

    case = f"{size}, {batch_size} examples of {shortest} to {longest} tokens, {model.config._attn_implementation}"
    times = results.time(case, {name: lambda name=name: step(name) for name in batches}, repetitions)
    results.figure(case, "share of padding", 1 - sum(lengths) / (batch_size * max(lengths)))
    for name in batches:
        results.figure(case, f"{name}: tokens a second", sum(lengths) / statistics.median(times[name]))
    results.figure(case, "padding-free / padded, time", times.ratio("padding-free", "padded"))


if __name__ == "__main__":
    given = arguments(__doc__, sizes=["demo", "135m"], batch_size=4, shortest=64, longest=256, repetitions=3)
    results = Results("padding_free", "Batches without padding", given)
    for size in given.sizes:
        measure(results, size, given.batch_size, given.shortest, given.longest, given.repetitions)
    results.save()
