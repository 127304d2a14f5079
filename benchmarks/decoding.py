"""Tokens a second of InRa (mixed alphas, alpha 0, alpha 1) against the base model and DeRa, all with generate().

    python benchmarks/decoding.py
    python benchmarks/decoding.py --cells all --sizes 135m --batches 32 128 --lengths 512/512 --repetitions 1

Random models decode greedily, always the same number of new tokens. The mixed alphas are one for each row, none of
them 0 or 1; the mask is plausibility 0.1, which needs the logits of both streams. Alpha 0 has the base model as its
stock model, alpha 1 the expanded one, which has a layer more. DeRa is two models of the base's size. `--cells some`
measures those of the combinations asked for that take about six minutes together on two cores, and names those it
leaves out. Decoding is bound by memory where reading the weights takes longer than
computing with them: here at batch 1 of models larger than a processor's caches, on a GPU up to batch 32.
"""

from harness import DEVICE, Results, arguments
from models import random_model

# isort: split
import torch
from transformers import PreTrainedModel

from realign_pipes.paper.dera import DeRaForCausalLM
from realign_pipes.paper.inra import InRaForCausalLM

ON_CPU = DEVICE.type == "cpu"
SOME_ON_CPU = {
    *(("demo", batch, "30/64") for batch in (1, 8, 32, 128)),
    *(("demo", batch, "512/512") for batch in (1, 8)),
    ("135m", 1, "30/64"),
    ("135m", 8, "30/64"),
}


def weight_bytes(*models: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for model in models for parameter in model.parameters())


def measure(results: Results, size: str, batches: list[int], lengths: list[str], cells: str, repetitions: int) -> None:
    """All cells of one size of models."""
    wanted = [(size, batch, length) for length in lengths for batch in batches]
    chosen = [cell for cell in wanted if cells == "all" or not ON_CPU or cell in SOME_ON_CPU]
    for _, batch, length in (cell for cell in wanted if cell not in chosen):
        results.console.print(f"left out: {size}, batch {batch}, {length} tokens (--cells all measures it)")
    if not chosen:
        return
    dtype = torch.float32 if ON_CPU else torch.bfloat16
    base, second = (random_model(size, seed, dtype).to(DEVICE) for seed in (0, 1))
    inra = InRaForCausalLM.from_base(base, init="random")
    expanded = type(base)(inra.expanded.config).to(DEVICE, dtype).eval()
    dera = DeRaForCausalLM(base, second, 0.7)
    bytes_of_inra, bytes_of_dera = weight_bytes(inra), weight_bytes(base, second)
    for _, batch, length in chosen:
        prompt, new = map(int, length.split("/"))
        generator = torch.Generator().manual_seed(batch)
        input_ids = torch.randint(1, base.config.vocab_size, (batch, prompt), generator=generator).to(DEVICE)
        common = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "min_new_tokens": new,
            "max_new_tokens": new,
            "do_sample": False,
            "pad_token_id": 0,
        }
        mixed = torch.linspace(0.3, 1.5, batch + 2)[1:-1].tolist()
        mixed = [alpha if abs(alpha - 1) > 1e-6 else 1.01 for alpha in mixed]
        variants = {
            "base": lambda: base.generate(**common),  # noqa: B023  # run in this very turn
            "expanded": lambda: expanded.generate(**common),  # noqa: B023  # the same
            "InRa, mixed alphas": lambda: inra.generate(**common, alpha=mixed),  # noqa: B023  # the same
            "InRa, mixed alphas, mask": lambda: inra.generate(**common, alpha=mixed, plausibility=0.1),  # noqa: B023
            "InRa, alpha 0": lambda: inra.generate(**common, alpha=0.0),  # noqa: B023  # the same
            "InRa, alpha 1": lambda: inra.generate(**common, alpha=1.0),  # noqa: B023  # the same
            "DeRa": lambda: dera.generate(**common),  # noqa: B023  # the same
        }
        case = f"{size}, batch {batch}, {length} tokens"
        times = results.time(case, variants, repetitions)
        for name in variants:
            seconds = sorted(times[name])[len(times[name]) // 2]
            results.figure(case, f"{name}: tokens/s", batch * new / seconds)
        bound_by_memory = size != "demo" and batch <= (1 if ON_CPU else 32)
        speed = {name: times.ratio("base", name) for name in variants}  # tokens/s as a share of the base's
        results.figure(
            case, "InRa, mixed alphas / base", speed["InRa, mixed alphas"], ">=", 0.9 if bound_by_memory else 0.48
        )
        masked = times.ratio("InRa, mixed alphas", "InRa, mixed alphas, mask")
        results.figure(case, "InRa, mixed alphas: with a mask / without", masked)
        results.figure(case, "InRa, alpha 0 / base", speed["InRa, alpha 0"], ">=", 0.95)
        results.figure(case, "InRa, alpha 1 / expanded", times.ratio("expanded", "InRa, alpha 1"), ">=", 0.95)
        results.figure(case, "DeRa / base", speed["DeRa"])
        per_byte = times.ratio("DeRa", "InRa, mixed alphas") * bytes_of_dera / bytes_of_inra
        results.figure(case, "InRa, mixed alphas / DeRa, per byte of weights", per_byte, ">=", 1.8)


def main() -> None:
    given = arguments(
        __doc__,
        sizes=["demo", "135m"] if ON_CPU else ["demo", "135m", "1.5b"],
        batches=[1, 8, 32, 128],
        lengths=["30/64", "512/512"],
        repetitions=3,
        cells="some",
    )
    results = Results("decoding", "Decoding", given)
    with torch.inference_mode():
        for size in given.sizes:
            measure(results, size, given.batches, given.lengths, given.cells, given.repetitions)
    results.save()


if __name__ == "__main__":
    main()
