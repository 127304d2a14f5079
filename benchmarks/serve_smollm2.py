"""SmolLM2's InRa model over HTTP: is what vLLM answers at an alpha what `InRaForCausalLM.generate` writes at it?

    python benchmarks/serve_smollm2.py

Needs `make smollm2` and `make serve-setup`. All requests are in flight together, greedy, in the checkpoint's dtype.
Last bits differ between the two, so a token of nearly equal probabilities may fall the other way, and what follows it
is another completion: `the same` counts whole completions, `or up to a tie` also those that first differ where the two
best tokens' logits are within `TIE` of each other. The control compares with the completions at another alpha.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import torch
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
CHECKPOINT = PROJECT / "data" / "smollm2" / "06_models" / "inra"
PROBLEMS = PROJECT / "data" / "smollm2" / "01_raw" / "evaluation.jsonl"
ALPHAS = (-0.5, 0.0, 0.25, 1.0)
COUNT, NEW_TOKENS, TIE = 8, 64, 1e-3
PATIENCE = 1200


def main() -> str:
    """The table."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is used
    from realign_pipes.models.load import load_tokenizer, render_prompts
    from realign_pipes.paper import InRaForCausalLM
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table
    from realign_pipes.serving.server import ServedModel, start_server

    tokenizer = load_tokenizer(CHECKPOINT)
    questions = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()[:COUNT]]
    prompts = render_prompts(tokenizer, questions)
    asked = [(prompt, alpha) for alpha in ALPHAS for prompt in prompts]
    with KedroSession.create(PROJECT, env="smollm2") as session:
        generation = session.load_context().catalog.load("params:generation")
    log = CHECKPOINT.parents[1] / "logs" / "vllm.log"
    with start_server(ServedModel(CHECKPOINT), generation, log) as server:

        def ask(prompt: list[int], alpha: float) -> list[int]:
            body = {
                "model": server.model, "prompt": prompt, "temperature": 0, "max_tokens": NEW_TOKENS,
                "return_token_ids": True, "vllm_xargs": {"inra_alpha": alpha},
            }  # fmt: skip
            connection = HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            ids: list[int] = json.loads(connection.getresponse().read())["choices"][0]["token_ids"]
            connection.close()
            return ids

        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda one: ask(*one), asked))
        about = f"vLLM {server.version}, {server.dtype}"

    model = InRaForCausalLM.from_pretrained(CHECKPOINT)
    rows, expected = [], []
    for prompt, alpha in asked:
        inputs = torch.tensor([prompt])
        written = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), alpha=alpha, do_sample=False, max_new_tokens=NEW_TOKENS,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        expected.append((written.sequences[0, len(prompt) :].tolist(), [step[0] for step in written.logits]))
    for place, alpha in enumerate(ALPHAS):
        numbers = range(place * COUNT, (place + 1) * COUNT)
        same = sum(answers[number] == expected[number][0] for number in numbers)
        tied = sum(_same_up_to_a_tie(answers[number], *expected[number]) for number in numbers)
        other = (place + 1) % len(ALPHAS) * COUNT - place * COUNT
        control = sum(answers[number] == expected[number + other][0] for number in numbers)
        rows.append([alpha_text(alpha), str(COUNT), str(same), str(tied), str(control)])
    header = ["alpha", "completions", "the same", "or up to a tie", "control: another alpha's"]
    return f"{about}; up to {NEW_TOKENS} tokens each.\n\n{markdown_table(Cells(header, rows, left=0), None)}"


def _same_up_to_a_tie(answer: list[int], expected: list[int], logits: list[torch.Tensor]) -> bool:
    """Whether they are equal, or first differ where the best two logits are within `TIE`."""
    if answer == expected:
        return True
    first = next(
        (place for place, (one, other) in enumerate(zip(answer, expected, strict=False)) if one != other), None
    )
    if first is None:
        return False
    best, second = logits[first].float().topk(2).values
    return bool(best - second < TIE)


if __name__ == "__main__":
    print(main())
