"""Evaluation throughput: the sweep's sample_completions against plain generate() in a loop, on the demo's models.

    python benchmarks/evaluation.py

Needs the data of a finished `make run`. The reference and InRa (seven alphas decoded together) answer problems of the
evaluation set with the sweep's parameters of conf/base. Compared are tokens a second, stop tokens included and padding
not, of: one problem after the other (its samples, and for InRa its alphas, are one batch), batches of the sweep's size
in the file's order, these sorted by the prompts' length, and sample_completions, which also drops finished rows.
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
from realign_pipes.evaluation.sampling import sample_completions
from transformers import PreTrainedModel

from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import stop_token_ids
from realign_pipes.models.load import load_model
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.pipelines.alpha_sweep.parameters import AlphaSweep

PROJECT = Path(__file__).parents[1]


def plain(
    model: PreTrainedModel, prompts: list[list[int]], alphas: list[float] | None, sampling: Sampling, batch_size: int
) -> int:
    """`generate` with its own sampling, batch after batch; the number of tokens up to each row's first stop token."""
    stops, tokens = torch.tensor(stop_token_ids(model), device=DEVICE), 0
    torch.manual_seed(0)
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
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
            **({"alpha": alphas[start : start + batch_size]} if alphas else {}),
        )[:, width:]
        before_stop = torch.isin(generated, stops).long().cumsum(-1) == 0
        tokens += int((before_stop.sum(-1) + 1).clamp(max=generated.shape[1]).sum())
    return tokens


def ours(model: PreTrainedModel, prompts: list[list[int]], alphas: list[float] | None, sampling: Sampling) -> int:
    """The sweep's way, for rows of which each is a prompt of its own."""
    batches = sample_completions(
        model,
        prompts,
        [str(number) for number in range(len(prompts))],
        sampling.model_copy(update={"samples": 1}),
        arguments=lambda rows, step: {"alpha": [alphas[row] for row in rows]} if alphas else {},
    )
    return sum(len(completion.token_ids) for batch in batches for completion in batch)


def main() -> None:
    given = arguments(__doc__, problems=100, problems_one_by_one=10, repetitions=3)
    models, data = PROJECT / "data" / "06_models", PROJECT / "data" / "05_model_input" / "evaluation_set"
    if not data.exists() or not (models / "inra" / "config.json").exists():
        raise FileNotFoundError(f"{models} and {data} are not there: `make run` makes them.")
    conf = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_alpha_sweep.yml").read_text())
    sweep = AlphaSweep(**conf["alpha_sweep"])
    sampling = sweep.sampling
    results = Results("evaluation", "Evaluation throughput", given)
    evaluation_set = load_from_disk(str(data))
    chosen = evaluation_set.select(range(0, len(evaluation_set), max(1, len(evaluation_set) // given.problems)))
    reference = load_model(models / "reference", device=DEVICE)
    inra = InRaForCausalLM.from_pretrained(models / "inra").to(DEVICE)
    for case, model, several in (("reference", reference, [None]), ("InRa, all alphas", inra, sweep.inra_alphas)):
        rows = [
            (list(prompt), alpha)
            for prompt in chosen["prompt_ids"]
            for alpha in several
            for _ in range(sampling.samples)
        ]
        if len(several) == 1:  # as many batches as with InRa, or nearly
            rows *= 3
        by_length = sorted(rows, key=lambda row: -len(row[0]))
        each = len(several) * sampling.samples
        tokens: dict[str, int] = {}

        def run(name: str, call: Callable[[], int], tokens: dict[str, int] = tokens) -> None:
            tokens[name] = call()

        def variant(
            name: str, work: Callable[..., int], rows: list, *more: object, model: PreTrainedModel = model
        ) -> Callable[[], None]:
            alphas = None if rows[0][1] is None else [alpha for _, alpha in rows]
            return partial(run, name, partial(work, model, [prompt for prompt, _ in rows], alphas, sampling, *more))

        variants = {
            "one problem at a time": (plain, rows[: given.problems_one_by_one * each], each),
            "in the file's order": (plain, rows, sampling.batch_size),
            "sorted": (plain, by_length, sampling.batch_size),
            "sample_completions": (ours, rows),
        }
        with torch.inference_mode():
            times = results.time(case, {n: variant(n, *how) for n, how in variants.items()}, given.repetitions)
        for name, seconds in times.items():
            results.figure(case, f"{name}: tokens/s", tokens[name] / statistics.median(seconds))
        for name in list(variants)[:-1]:
            ratio = times.ratio(name, "sample_completions") * tokens["sample_completions"] / tokens[name]
            results.figure(case, f"tokens/s, sample_completions / {name}", ratio)
    results.save()


if __name__ == "__main__":
    main()
