"""The judge on a server that this project starts: a random model says nothing to read, and all of it is kept."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from realign_pipes.graders.answered import Answered
from realign_pipes.graders.judge import collect_verdicts, make_pairs, render, summarise_verdicts
from realign_pipes.graders.parameters import Judge
from realign_pipes.models.load import load_tokenizer, render_prompts
from realign_pipes.serving.server import ServedModel, start_server

ENVIRONMENT = Path(__file__).parents[2] / ".venv-serve"

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="there is no vLLM: make serve-setup"),
]


def test_a_served_model_judges(make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiled kernels
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    checkpoint = make_checkpoint(tmp_path / "judge", hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    (tmp_path / "prompt.txt").write_text("{question} {first} or {second}?")
    ours, theirs = (
        [Answered("chat", f"chat-{number}", 0, "Which?", {}, text, text) for number, text in enumerate(texts)]
        for texts in (["yes", "no"], ["perhaps", "never"])
    )
    parameters = SimpleNamespace(environment=ENVIRONMENT, data_parallel_size=1, tensor_parallel_size=1)
    with start_server(ServedModel(checkpoint), parameters, tmp_path / "server.log") as server:
        judge = Judge(kind="judge", url=server.url, model=server.model, prompt=str(tmp_path / "prompt.txt"),
                      max_tokens=12, max_in_flight=4)  # fmt: skip
        pairs = make_pairs(judge, ours, theirs)
        verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert len(verdicts) == 4 and set(verdicts["winner"]) == {"unreadable"} and verdicts["text"].str.len().gt(0).all()
    tokenizer, template = load_tokenizer(checkpoint), Path(judge.prompt).read_text()
    asked = render_prompts(tokenizer, [render(template, pair) for pair in pairs])
    assert verdicts["prompt_tokens"].tolist() == [len(ids) for ids in asked]
    assert verdicts["completion_tokens"].between(1, 12).all()
    about = summarise_verdicts(verdicts, pairs)
    assert (about["win_rate"], about["unreadable"], about["requests"]) == (0.5, 1, 4)
