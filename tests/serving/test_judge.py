"""A judge that vLLM serves: a small model that was taught to prefer the answer that says yes, wherever it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from realign_pipes.data.prompts import encode_completion
from realign_pipes.generation.parameters import Generation
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.judge import Pair, collect_verdicts, make_pairs, render, scores_of, summarise_verdicts
from realign_pipes.graders.parameters import Judge
from realign_pipes.models.load import load_tokenizer, render_prompts
from realign_pipes.paper.trra import collate
from realign_pipes.serving.server import ServedModel, start_server

ENVIRONMENT = Path(__file__).parents[2] / ".venv-serve"

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="there is no vLLM: make serve-setup"),
]

TEMPLATE = "{question} A {first}, B {second}?"
CANDIDATE, REFERENCE = ("yes", "no", "no", "yes"), ("no", "yes", "no", "yes")
WINS = [1.0, 0.0, 0.5, 0.5]
"""Of the candidate, by that preference."""


def answers(texts: tuple[str, ...]) -> list[Answered]:
    return [Answered("chat", f"chat-{number}", 0, "Which?", {}, text, text, []) for number, text in enumerate(texts)]


def verdict(pair: Pair) -> str:
    """What it was taught to write."""
    texts = (pair.candidate, pair.reference) if pair.candidate_first else (pair.reference, pair.candidate)
    letter = "tie" if texts[0] == texts[1] else "AB"[texts.index("yes")]
    return f"One says {texts[0]}.\nVerdict: {letter}"


def as_examples(checkpoint: Path, pairs: list[Pair]) -> list[dict[str, list[int]]]:
    """The ids of what the judge is asked for each pair, and of `verdict` with the end of its turn."""
    tokenizer = load_tokenizer(checkpoint)
    prompts = render_prompts(tokenizer, [render(TEMPLATE, pair) for pair in pairs])
    end = tokenizer.eos_token_id
    return [
        {"prompt_ids": prompt, "completion_ids": encode_completion(tokenizer, verdict(pair), end)}
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]


def teach(checkpoint: Path, examples: list[dict[str, list[int]]]) -> None:
    """Train the model until greedy decoding completes each example."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    batch = collate(examples, model.config.pad_token_id)
    wanted = batch["labels"][:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        output = model(**batch)
        found = output.logits[:, :-1].argmax(-1)
        if bool(((found == wanted) | (wanted == -100)).all()) and output.loss.item() < 0.02:
            model.save_pretrained(checkpoint)
            return
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pytest.fail(f"the judge did not learn its verdicts in 400 steps: a loss of {output.loss.item():.3f}")


def test_a_served_model_judges(make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiled kernels
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(TEMPLATE)
    checkpoint = make_checkpoint(
        tmp_path / "judge", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.02
    )
    generation = Generation(
        engine="vllm", servers=None, environment=ENVIRONMENT, data_parallel_size=1, tensor_parallel_size=1,
        max_in_flight=4,
    )  # fmt: skip
    asked = {"kind": "judge", "prompt": str(prompt), "max_tokens": 64, "max_in_flight": 4}
    pairs = make_pairs(Judge(**asked, url="http://none", model="none"), answers(CANDIDATE), answers(REFERENCE))
    examples = as_examples(checkpoint, pairs)
    teach(checkpoint, examples)
    with start_server(ServedModel(checkpoint), generation, tmp_path / "server.log") as server:
        judge = Judge(**asked, url=server.url, model=server.model)
        verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert verdicts["text"].tolist() == [verdict(pair) for pair in pairs]
    assert [scores_of(verdicts)["chat", f"chat-{number}", 0] for number in range(4)] == WINS
    about = summarise_verdicts(verdicts, pairs)
    assert (about["win_rate"], about["ties"], about["unreadable"], about["agreement"]) == (0.5, 0.5, 0, 1)
    assert about["first_preferred"] == 0.5
    assert verdicts["prompt_tokens"].tolist() == [len(one["prompt_ids"]) for one in examples]
    assert verdicts["completion_tokens"].tolist() == [len(one["completion_ids"]) for one in examples]
