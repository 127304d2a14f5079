"""What makes a 135M model's training and decoding faster on a CPU: bfloat16, threads, micro-batches with less padding.

    python benchmarks/small_machine.py

A training step has `--batch` examples of SmolLM2's traces in conf/smollm2: prompts of 38 tokens, completions of 54
tokens and 28 more for each re-check. Its optimizer is left out: it takes the same time in every variant. Decoding is
`generate`, greedy, always the same number of new tokens. Both are of a random Llama of SmolLM2's size.
"""

import random
from collections.abc import Callable

from harness import Results, arguments
from models import random_model

# isort: split
import torch
from transformers import PreTrainedModel

from realign_pipes.runtime.sft import sorted_batches

PROMPT, FLOOR, CHECK = 38, 54, 28
CHECKS = [10, 25, 25, 25, 15]


def training_step(model: PreTrainedModel, lengths: list[int], micro: int, *, bf16: bool) -> Callable[[], None]:
    """Forward and backward of one batch of these lengths, in micro-batches of `micro`, the longest last."""
    order = sorted_batches(lengths, len(lengths)) if micro < len(lengths) else list(range(len(lengths)))

    def step() -> None:
        for start in range(0, len(order), micro):
            rows = [lengths[row] for row in order[start : start + micro]]
            input_ids = torch.randint(1, model.config.vocab_size, (len(rows), max(rows)))
            mask = torch.arange(max(rows))[None] < torch.tensor(rows)[:, None]
            labels = input_ids.masked_fill(~mask | (torch.arange(max(rows)) < PROMPT), -100)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(input_ids=input_ids, attention_mask=mask.long(), labels=labels).loss
            loss.backward()
        model.zero_grad()

    return step


def decoding(model: PreTrainedModel, rows: int, new: int) -> Callable[[], None]:
    """`new` tokens for each of `rows` prompts."""
    input_ids = torch.randint(1, model.config.vocab_size, (rows, PROMPT))

    def decode() -> None:
        model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )

    return decode


def on_threads(threads: int, call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        call()
        torch.set_num_threads(before)

    return run


def main() -> None:
    given = arguments(__doc__, batch=8, rows=64, new=48, repetitions=3, seed=1)
    results = Results("small_machine", "A pretrained model on a small machine", given)
    model = random_model("135m", given.seed, torch.float32).train()
    draws = random.Random(given.seed)
    lengths = [PROMPT + FLOOR + CHECK * draws.choices(range(5), CHECKS)[0] for _ in range(given.batch)]

    def step(micro: int, threads: int, *, bf16: bool) -> Callable[[], None]:
        return on_threads(threads, training_step(model, lengths, micro, bf16=bf16))

    whole = given.batch
    variants = {
        "float32": step(whole, 1, bf16=False),
        "bfloat16": step(whole, 1, bf16=True),
        "bfloat16, 2 threads": step(whole, 2, bf16=True),
        **{f"bfloat16, micro-batches of {size}": step(size, 1, bf16=True) for size in (whole // 2, whole // 4)},
    }
    case = f"training step, {whole} examples, {sum(lengths)} tokens"
    times = results.time(case, variants, given.repetitions)
    results.figure(case, "float32 / bfloat16", times.ratio("float32", "bfloat16"))
    results.figure(case, "1 thread / 2 threads", times.ratio("bfloat16", "bfloat16, 2 threads"))
    for size in (whole // 2, whole // 4):
        ratio = times.ratio("bfloat16", f"bfloat16, micro-batches of {size}")
        results.figure(case, f"at once / micro-batches of {size}", ratio)
    padded = len(lengths) * max(lengths)
    results.figure(case, "share of padding, at once", 1 - sum(lengths) / padded)

    slow, fast = model.eval(), random_model("135m", given.seed, torch.bfloat16)
    case = f"decoding, {given.rows} rows of {given.new} tokens"
    with torch.inference_mode():
        times = results.time(
            case,
            {
                "float32": on_threads(1, decoding(slow, given.rows, given.new)),
                "bfloat16": on_threads(1, decoding(fast, given.rows, given.new)),
                "bfloat16, 2 threads": on_threads(2, decoding(fast, given.rows, given.new)),
            },
            given.repetitions,
        )
    results.figure(case, "float32 / bfloat16", times.ratio("float32", "bfloat16"))
    results.figure(case, "1 thread / 2 threads", times.ratio("bfloat16", "bfloat16, 2 threads"))
    results.save()


if __name__ == "__main__":
    main()
