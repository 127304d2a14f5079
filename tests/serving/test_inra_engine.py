"""InRa in vLLM against `InRaForCausalLM.generate`, token by token in float32, on random models.

Requests at alpha 0 or 1 run through one stream, and have the salt that `inra_vllm.front` gives them.
"""

import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from inra_vllm.front import translate
from transformers import AutoConfig, AutoModelForCausalLM

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget

PROJECT = Path(__file__).parents[2]
PYTHON = PROJECT / ".venv-serve" / "bin" / "python"
pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM's environment: make serve-setup"),
]

VOCAB, NEW_TOKENS, POSITIONS = 96, 16, 128
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # vLLM's attention on the CPU has none smaller
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}
ALPHAS = (-0.5, 0.0, 0.3, 1.0, 1.7, 0.6)


def make_model(architecture, folder, layers=1, placement="bottom", tied=True, seed=0, **shape):
    """An InRa checkpoint with biases, and an adapter that is far from the identity."""
    config = AutoConfig.for_model(architecture, **SHAPE, tie_word_embeddings=tied, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(config).eval()
        model = InRaForCausalLM.from_base(base, num_adapter_layers=layers, placement=placement)
        with torch.no_grad():
            biases = [value for name, value in base.named_parameters() if name.endswith("bias")]
            for parameter in [*biases, *(one for layer in model.adapter_layers for one in layer.parameters())]:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    return InRaForCausalLM.from_pretrained(folder)


@dataclass(frozen=True)
class Request:
    """A request of vLLM, and what Transformers is asked instead."""

    ids: list[int]
    arguments: dict[str, float]
    n: int = 1
    prompt_logprobs: int | None = None
    abort: bool = False

    def as_json(self):
        salted = json.loads(translate(json.dumps({"vllm_xargs": self.arguments}).encode()))
        return {**vars(self), "cache_salt": salted.get("cache_salt"), "max_tokens": NEW_TOKENS}

    def expected(self, model):
        """The greedy completion."""
        given = {name.removeprefix("inra_"): value for name, value in self.arguments.items()}
        plausibility = given.pop("plausibility", 0.0)
        begun = given.pop("begun", 0)
        alpha = given.get("alpha", 1.0)
        if "budget" in given:
            schedule = TokenBudget(**given)
            alpha = lambda step, row: schedule(begun + step, row)  # noqa: E731
        ids = torch.tensor([self.ids])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), alpha=alpha, plausibility=plausibility, do_sample=False,
            max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return output[0, len(self.ids) :].tolist()


def draw_ids(count, longest=70, seed=1):
    """Prompts of many lengths. Half of them begin with the same 40 tokens, more than one block of the cache."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(3, VOCAB, (40,), generator=generator).tolist()
    prompts = []
    for index in range(count):
        length = int(torch.randint(3, longest - 40, (1,), generator=generator))
        own = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        prompts.append(shared + own if index % 2 else own)
    return prompts


def mixed(count, seed=1):
    """Requests whose alphas go round."""
    return [Request(ids, {"inra_alpha": ALPHAS[i % len(ALPHAS)]}) for i, ids in enumerate(draw_ids(count, seed=seed))]


def ask(tmp_path, folder, architecture, phases, staggered=(), **options):
    """The answers of an engine to each of the `phases` (lists of requests), and its counters."""
    job = {
        "model": str(folder),
        "architecture": architecture,
        "options": {"max_model_len": POSITIONS, "additional_config": {"inra_salted": True}, **options},
        "phases": [
            {"staggered": index in staggered, "requests": [request.as_json() for request in phase]}
            for index, phase in enumerate(phases)
        ],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [PYTHON, Path(__file__).parent / "ask_engine.py", tmp_path / "job.json", tmp_path / "answers.json"],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    return answers["phases"], answers["counters"]


def count_equal(requests, answers, model):
    expected = [request.expected(model) for request in requests]
    assert len({tuple(tokens[:8]) for tokens in expected}) == len(expected), "the completions must tell requests apart"
    return sum(
        one["tokens"] == [tokens] * request.n for request, one, tokens in zip(requests, answers, expected, strict=True)
    )


def test_mixed_alphas_and_all_that_a_request_can_ask(tmp_path):
    model = make_model("qwen2", tmp_path / "model")
    requests = mixed(12)
    others = [replace(one, arguments={"inra_alpha": 0.9 - one.arguments["inra_alpha"]}) for one in requests]
    first = [replace(one, arguments=requests[0].arguments) for one in requests]
    budgets = [
        Request(
            ids,
            {
                "inra_budget": 8 + index,
                "inra_ramp": 0.25,
                "inra_alpha": -0.5,
                "inra_fast": 1.5,
                "inra_begun": index % 3,
            },
        )
        for index, ids in enumerate(draw_ids(6, seed=2))
    ]
    masked = [Request(ids, {"inra_alpha": 4.0, "inra_plausibility": beta})
              for ids, beta in zip(draw_ids(6, seed=3), (0.0, 0.1, 0.1, 0.5, 0.9, 0.02), strict=True)]  # fmt: skip
    at_an_end = [Request(ids, {"inra_alpha": alpha, "inra_plausibility": 0.9})
                 for ids, alpha in zip(draw_ids(2, seed=4), (0.0, 1.0), strict=True)]  # fmt: skip
    several = [
        Request(ids, {"inra_alpha": alpha}, n=3) for ids, alpha in zip(draw_ids(4, seed=5), ALPHAS[:4], strict=True)
    ]
    without = [Request(ids, {}) for ids in draw_ids(2, seed=6)]
    scored = [replace(one, prompt_logprobs=0) for one in mixed(6, seed=7)]
    scored += [Request(ids, {"inra_alpha": 0.8, "inra_plausibility": 0.001}, prompt_logprobs=0)
               for ids in draw_ids(1, seed=9)]  # fmt: skip
    base, expanded = ([replace(one, arguments={"inra_alpha": alpha}) for one in requests] for alpha in (0.0, 1.0))
    crowd = budgets + masked + at_an_end + several + without + scored
    arriving = [replace(one, abort=index % 5 == 3) for index, one in enumerate(mixed(16, seed=8))]

    phases = [requests, others, requests, first, crowd, arriving, base, expanded, requests]
    answers, counters = ask(tmp_path, tmp_path / "model", "Qwen2ForCausalLM", phases, staggered=[5],
                            enable_chunked_prefill=False, max_num_batched_tokens=512)  # fmt: skip

    assert count_equal(requests, answers[0], model) == 12
    assert count_equal(others, answers[1], model) == 12, "the cache was filled at other alphas"
    assert count_equal(requests, answers[2], model) == 12, "the cache was warm"
    assert counters["vllm:prefix_cache_hits"] > 0
    assert count_equal(requests, answers[3], model) == 2, "the control: all got the first request's alpha"
    assert count_equal(crowd, answers[4], model) == len(crowd)
    kept = [place for place, request in enumerate(arriving) if not request.abort]
    assert count_equal([arriving[place] for place in kept], [answers[5][place] for place in kept], model) == len(kept)

    assert count_equal(base, answers[6], model) == 12
    assert count_equal(expanded, answers[7], model) == 12
    assert count_equal(requests, answers[8], model) == 12, "what they left in the cache lacks a stream"

    for request, answer in zip(scored, answers[4][-len(scored) :], strict=True):
        ids = torch.tensor([request.ids])
        plausibility = request.arguments.get("inra_plausibility", 0.0)
        with torch.inference_mode():
            logits = model(ids, alpha=request.arguments["inra_alpha"], plausibility=plausibility).logits
        logprobs = logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer["prompt_logprobs"]), logprobs, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_chunked_prefill_and_preemption(tmp_path):
    """Prompts of up to 70 tokens in pieces of 32, in a cache of 8 blocks, where two or three requests fit."""
    model = make_model("qwen2", tmp_path / "model", layers=2, tied=False)
    budgets = [
        Request(
            ids, {"inra_budget": 30, "inra_ramp": 0.0, "inra_alpha": 0.0, "inra_fast": 2.0, "inra_plausibility": 0.1}
        )
        for ids in draw_ids(12, seed=2)
    ]
    requests = [*mixed(24), *budgets]
    answers, counters = ask(tmp_path, tmp_path / "model", "Qwen2ForCausalLM", [requests, requests], staggered=[1],
                            enable_chunked_prefill=True, max_num_batched_tokens=32, max_num_seqs=8,
                            num_gpu_blocks_override=8)  # fmt: skip
    assert counters["vllm:num_preemptions"] > 0
    assert count_equal(requests, answers[0], model) == len(requests)
    assert count_equal(requests, answers[1], model) == len(requests)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        ("llama", "LlamaForCausalLM", {"layers": 2, "tied": False, "attention_bias": True, "mlp_bias": True}),
        ("mistral", "MistralForCausalLM", {"placement": "top"}),
        ("qwen3", "Qwen3ForCausalLM", {"placement": "top", "layers": 2, "tied": False}),
        ("qwen3", "Qwen3ForCausalLM", {}),
    ],
)
def test_architectures_and_placements(tmp_path, architecture, name, shape):
    model = make_model(architecture, tmp_path / "model", **shape)
    requests = mixed(12)
    answers, _ = ask(tmp_path, tmp_path / "model", name, [requests])
    assert count_equal(requests, answers[0], model) == 12


@pytest.mark.slow
def test_the_authors_form(tmp_path):
    """No inra_config.json, untied heads, in shards: one adapter layer at the bottom. And a default alpha."""
    model = make_model("llama", tmp_path / "model", tied=False)
    model.expanded.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert not (tmp_path / "theirs" / "inra_config.json").exists()
    requests = [*mixed(12), *(Request(ids, {}) for ids in draw_ids(2, seed=2))]
    answers, _ = ask(tmp_path, tmp_path / "theirs", "LlamaForCausalLM", [requests])
    assert count_equal(requests, answers[0], model) == len(requests)

    (tmp_path / "theirs" / "inra_config.json").write_text('{"default_alpha": 0.3}')
    answers, _ = ask(tmp_path, tmp_path / "theirs", "LlamaForCausalLM", [requests[-2:]])
    named = [Request(request.ids, {"inra_alpha": 0.3}) for request in requests[-2:]]
    assert count_equal(named, answers[0], model) == 2
