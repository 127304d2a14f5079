"""A judge that vLLM serves: a small model that was taught to prefer the answer that says yes, wherever it stands."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from realign_pipes.generation.parameters import Generation
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.judge import Pair, collect_verdicts, make_pairs, render, scores_of, summarise_verdicts
from realign_pipes.graders.parameters import Judge
from realign_pipes.models.load import load_tokenizer, render_prompts
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


def teach(checkpoint: Path, pairs: list[Pair]) -> None:
    """Train the model until greedy decoding writes `verdict` for each pair."""
    tokenizer, model = load_tokenizer(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    rows = []
    for prompt, pair in zip(render_prompts(tokenizer, [render(TEMPLATE, pair) for pair in pairs]), pairs, strict=True):
        reply = [*tokenizer(verdict(pair), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt, reply))
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([prompt + reply + [pad] * (width - len(prompt) - len(reply)) for prompt, reply in rows])
    labels = torch.tensor(
        [[-100] * len(prompt) + reply + [-100] * (width - len(prompt) - len(reply)) for prompt, reply in rows]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        output = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels)
        found = output.logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:]
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
    teach(checkpoint, pairs)
    with start_server(ServedModel(checkpoint), generation, tmp_path / "server.log") as server:
        judge = Judge(**asked, url=server.url, model=server.model)
        verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert verdicts["text"].tolist() == [verdict(pair) for pair in pairs]
    assert [scores_of(verdicts)["chat", f"chat-{number}", 0] for number in range(4)] == WINS
    about = summarise_verdicts(verdicts, pairs)
    assert (about["win_rate"], about["ties"], about["unreadable"], about["agreement"]) == (0.5, 0.5, 0, 1)
    assert about["first_preferred"] == 0.5
    tokenizer = load_tokenizer(checkpoint)
    read = render_prompts(tokenizer, [render(TEMPLATE, pair) for pair in pairs])
    assert verdicts["prompt_tokens"].tolist() == [len(ids) for ids in read]
    written = [len(tokenizer(verdict(pair), add_special_tokens=False)["input_ids"]) + 1 for pair in pairs]
    assert verdicts["completion_tokens"].tolist() == written
