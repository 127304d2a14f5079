"""Sampling: the right distribution, and completions that depend on their own seed alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from realign_pipes.evaluation.sampling import sample_completions
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import InverseCDFSampler, draw_uniforms
from realign_pipes.models.load import load_model
from realign_pipes.paper.dera import DeRaForCausalLM
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget


@pytest.fixture
def model(tmp_path, make_checkpoint):
    return load_model(make_checkpoint(tmp_path / "model", seed=4), device=torch.device("cpu"))


def make_sampling(**changes):
    defaults = {"samples": 2, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 20, "batch_size": 64, "seed": 1}
    return Sampling(**{**defaults, **changes})


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [5]]
KEYS = ["a", "b", "c", "d"]


def draw(model, prompts=PROMPTS, keys=KEYS, **changes):
    """{(key, sample): token ids}, and which were finished."""
    batches = sample_completions(model, prompts, keys, make_sampling(**changes))
    drawn = [completion for batch in batches for completion in batch]
    return {(keys[c.prompt_index], c.sample): (c.token_ids, c.finished) for c in drawn}


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.0, 0.3])
    rows = 20_000
    uniforms = torch.rand(rows, 1, generator=torch.Generator().manual_seed(0))
    scores = InverseCDFSampler(uniforms)(torch.zeros(rows, 1), probabilities.log().expand(rows, 5))
    counts = torch.bincount(scores.argmax(-1), minlength=5) / rows
    torch.testing.assert_close(counts, probabilities, atol=0.015, rtol=0)
    assert counts[1] == counts[3] == 0


def test_the_extremes_of_the_uniforms_never_pick_an_impossible_token():
    scores = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, 4)
    largest = float(np.minimum(np.float32(1), np.float32(1 - 2**-20)))
    picked = InverseCDFSampler(torch.tensor([[0.0], [largest]]))(torch.zeros(2, 1), scores).argmax(-1)
    assert picked.tolist() == [1, 2]


def test_uniforms_depend_on_seed_problem_and_sample():
    base = draw_uniforms(1, "a", 0, 50)
    assert np.array_equal(base, draw_uniforms(1, "a", 0, 50))
    assert all(0 <= u < 1 for u in base)
    for other in (draw_uniforms(2, "a", 0, 50), draw_uniforms(1, "b", 0, 50), draw_uniforms(1, "a", 1, 50)):
        assert not np.array_equal(base, other)


def test_a_completion_does_not_depend_on_its_batch(model):
    together = draw(model)
    assert len(together) == 8
    assert together == draw(model, batch_size=1)
    assert together == draw(model, batch_size=3)
    alone = draw(model, prompts=[PROMPTS[2]], keys=["c"])
    assert alone == {key: value for key, value in together.items() if key[0] == "c"}


def test_samples_and_seeds_differ(model):
    drawn = draw(model)
    assert drawn["a", 0] != drawn["a", 1]
    assert drawn != draw(model, seed=2)


def test_sampled_tokens_are_those_of_the_formula(model):
    """Token by token without cache or batch: temperature, nucleus, inverse distribution function."""
    (tokens, _) = draw(model)["c", 1]
    uniforms = draw_uniforms(1, "c", 1, 20)
    so_far = list(PROMPTS[2])
    for step, token in enumerate(tokens):
        with torch.no_grad():
            p = torch.softmax(model(torch.tensor([so_far])).logits[0, -1].double() / 0.9, -1)
        ordered, ids = p.sort(descending=True)
        nucleus = ids[: int((ordered.cumsum(0) < 0.95).sum()) + 1]
        kept = torch.zeros_like(p)
        kept[nucleus] = p[nucleus]
        cdf = (kept / kept.sum()).cumsum(0)
        assert token == int((cdf <= uniforms[step]).sum())
        so_far.append(token)


def test_finished_and_truncated_completions(model):
    drawn = draw(model, max_new_tokens=60)
    eos = model.generation_config.eos_token_id
    finished = [tokens for tokens, done in drawn.values() if done]
    cut = [tokens for tokens, done in drawn.values() if not done]
    assert finished, "the seed gives both kinds"
    assert cut, "the seed gives both kinds"
    assert all(tokens[-1] == eos and eos not in tokens[:-1] for tokens in finished)
    assert all(len(tokens) == 60 and eos not in tokens for tokens in cut)


def test_the_checkpoints_own_generation_settings_do_not_leak_in(model):
    plain = draw(model)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 15
    assert draw(model) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_a_model_without_an_end_token_is_refused(model):
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="names no eos_token_id"):
        draw(model)


# -- rows that have finished leave the batch -----------------------------------------------------------------------
ALPHAS = [0.0, 0.4, 1.0, 1.6]


@pytest.fixture(params=["stock", "sliding", "dera", "inra", "inra_at_0", "budget"])
def case(request, tmp_path, make_checkpoint):
    """(model, arguments for generate of rows with these prompts after so many tokens)."""
    sliding = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "use_sliding_window": True}
    config = sliding if request.param in ("sliding", "inra") else {}
    first, second = (
        load_model(make_checkpoint(tmp_path / str(seed), seed=seed, **config), device=torch.device("cpu"))
        for seed in (4, 5)
    )
    first.generation_config.eos_token_id = list(range(1, 21))  # so that random models finish now and then
    if request.param == "dera":
        return DeRaForCausalLM(first, second, 1.3), lambda indices, step: {}
    if request.param in ("stock", "sliding"):
        return first, lambda indices, step: {}
    inra = InRaForCausalLM.from_base(first)
    with torch.no_grad():
        for parameter in inra.adapter_layers[0].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)
    budget = TokenBudget(60, ramp=0.2, alpha=-0.5, fast=1.5)
    return inra, {
        "inra": lambda indices, step: {"alpha": [ALPHAS[i] for i in indices]},
        "inra_at_0": lambda indices, step: {"alpha": 0.0},
        "budget": lambda indices, step: {"alpha": lambda further, row: budget(step + further, row)},
    }[request.param]


def plain(model, prompts, keys, sampling, arguments):
    """One call of `generate` for all rows, in which they wait for the slowest."""
    rows = [(i, s) for i in range(len(prompts)) for s in range(sampling.samples)]
    width = max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(prompts[i])) + prompts[i] for i, _ in rows])
    mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i, _ in rows])
    uniforms = np.stack([draw_uniforms(sampling.seed, keys[i], s, sampling.max_new_tokens) for i, s in rows])
    processors = [
        TemperatureLogitsWarper(sampling.temperature),
        TopPLogitsWarper(sampling.top_p),
        InverseCDFSampler(torch.from_numpy(uniforms)),
    ]
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList(processors),
        **arguments([i for i, _ in rows], 0),
    )[:, width:].tolist()
    stops = [next((t + 1 for t, token in enumerate(row) if 1 <= token <= 20), None) for row in generated]
    return {row: tokens[:stop] for row, tokens, stop in zip(rows, generated, stops, strict=True)}


def test_completions_are_those_of_one_plain_generate(case, monkeypatch):
    model, arguments = case
    sampling = make_sampling(samples=8, max_new_tokens=60, temperature=1.3)
    expected = plain(model, PROMPTS, KEYS, sampling, arguments)
    sizes = []
    generate = type(model).generate

    def counted(self, input_ids, **kwargs):
        sizes.append(len(input_ids))
        return generate(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", counted)
    for batch_size in (32, 7):
        sizes.clear()
        batches = sample_completions(
            model, PROMPTS, KEYS, sampling.model_copy(update={"batch_size": batch_size}), arguments=arguments
        )
        drawn = {(c.prompt_index, c.sample): c.token_ids for batch in batches for c in batch}
        assert drawn == expected
        if batch_size == 32:
            assert sizes[0] == 32
            assert len(sizes) > 3
            assert sizes == sorted(sizes, reverse=True)
            # Each call but the last ends when a quarter of its rows has finished, and the next has what is left.
            assert all(after <= 0.75 * before for before, after in pairwise(sizes))
    assert min(map(len, expected.values())) < 20, "rows end early"
    assert max(map(len, expected.values())) > 40, "and late"


def test_arguments_are_asked_for_the_rows_and_tokens_that_are_left(model):
    asked = []
    model.generation_config.eos_token_id = list(range(1, 21))
    sampling = make_sampling(samples=4, max_new_tokens=60, temperature=1.3)
    batches = sample_completions(
        model, PROMPTS, KEYS, sampling, arguments=lambda indices, step: asked.append((indices, step)) or {}
    )
    lengths = [(c.prompt_index, len(c.token_ids)) for batch in batches for c in batch]
    assert len(asked) > 2
    for indices, step in asked:
        assert sorted(indices) == sorted(i for i, length in lengths if length > step)
