"""Evaluation throughput: the sweep's engine against plain generate() in a loop, on the demo's models.

    python benchmarks/evaluation.py

Needs the data of a finished `make run`. The reference, and InRa at one alpha after the other, answer problems of the
evaluation set with the sweep's parameters of conf/base. It compares tokens a second (with stop tokens, without padding)
of: one problem after the other (its samples are a batch), batches of the sweep's size in the file's order, the same
sorted by the prompts' length, and the engine (TransformersEngine), which also drops finished rows.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import DEVICE, Results, arguments

# isort: split
import torch
import yaml
from datasets import load_from_disk
from transformers import PreTrainedModel

from realign_pipes.generation.engine import Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine, stop_token_ids
from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.sweep.parameters import AlphaSweep

PROJECT = Path(__file__).parents[1]


Alphas = list[float] | list[None]


def plain(model: PreTrainedModel, alphas: Alphas, prompts: list[list[int]], sampling: Sampling, batch_size: int) -> int:
    """`generate` with its own sampling, batch after batch; the number of tokens up to each row's first stop token."""
    stops, tokens = torch.tensor(stop_token_ids(model), device=DEVICE), 0
    rows = [prompt for prompt in prompts for _ in range(sampling.samples)]
    torch.manual_seed(0)
    for alpha in alphas:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            width = max(map(len, batch))
            input_ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in batch], device=DEVICE)
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=DEVICE)
            generated = model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=0,
                **({} if alpha is None else {"alpha": alpha}),
            )[:, width:]
            before_stop = torch.isin(generated, stops).long().cumsum(-1) == 0
            tokens += int((before_stop.sum(-1) + 1).clamp(max=generated.shape[1]).sum())
    return tokens


def engine(model: PreTrainedModel, alphas: Alphas, prompts: list[list[int]], sampling: Sampling) -> int:
    """The sweep's way."""
    tokens = 0
    for alpha in alphas:
        keyed = [Prompt(str(number), prompt, alpha) for number, prompt in enumerate(prompts)]
        groups = TransformersEngine(model).draw(keyed, sampling)
        tokens += sum(len(completion.token_ids) for group in groups for completion in group)
    return tokens


def main() -> None:
    given = arguments(__doc__, problems=300, problems_one_by_one=30, alphas=3, repetitions=3)
    models, data = PROJECT / "data" / "06_models", PROJECT / "data" / "05_model_input" / "evaluation_set"
    if not data.exists() or not (models / "inra" / "config.json").exists():
        raise FileNotFoundError(f"{models} and {data} do not exist: `make run` makes them.")
    conf = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_alpha_sweep.yml").read_text())
    sweep = AlphaSweep(**conf["alpha_sweep"])
    sampling = sweep.sampling
    results = Results("evaluation", "Evaluation throughput", given)
    prompts = [list(ids) for ids in load_from_disk(str(data))["prompt_ids"][: given.problems]]
    by_length = sorted(prompts, key=len, reverse=True)
    some = prompts[:: max(1, len(prompts) // given.problems_one_by_one)]
    inra = InRaForCausalLM.from_pretrained(models / "inra").to(DEVICE)
    cases: list[tuple[str, PreTrainedModel, Alphas]] = [
        ("reference", load_model(models / "reference", device=DEVICE), [None]),
        ("InRa", inra, sweep.inra_alphas[: given.alphas]),
    ]
    for case, model, alphas in cases:
        tokens: dict[str, int] = {}

        def run(name: str, work: Callable[[], int], tokens: dict[str, int] = tokens) -> None:
            tokens[name] = work()

        variants = {
            "one problem at a time": partial(plain, model, alphas, some, sampling, sampling.samples),
            "in the file's order": partial(plain, model, alphas, prompts, sampling, sampling.batch_size),
            "sorted": partial(plain, model, alphas, by_length, sampling, sampling.batch_size),
            "engine": partial(engine, model, alphas, prompts, sampling),
        }
        with torch.inference_mode():
            calls = {name: partial(run, name, work) for name, work in variants.items()}
            times = results.time(case, calls, given.repetitions)
        for name, seconds in times.items():
            results.figure(case, f"{name}: tokens/s", tokens[name] / statistics.median(seconds))
        for name in list(variants)[:-1]:
            ratio = times.ratio(name, "engine") * tokens["engine"] / tokens[name]
            results.figure(case, f"tokens/s, engine / {name}", ratio)
    results.save()


if __name__ == "__main__":
    main()
