"""Sampling: the right distribution, and completions that depend on their own seed alone."""

import numpy as np
import pytest
import torch

from realign_pipes.evaluation.sampling import InverseCDFSampler, draw_uniforms, sample_completions
from realign_pipes.parameters import Sampling
from realign_pipes.realignment.checkpoints import load_model


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
