"""Two models decoding together, against the formula and against each model alone."""

import pytest
import torch

from realign_pipes.models.load import load_model
from realign_pipes.paper.dera import DeRaForCausalLM

CPU = torch.device("cpu")


@pytest.fixture
def models(pair):
    return [load_model(path, device=CPU) for path in pair]


@pytest.fixture
def batch(tiny_tokenizer):
    """Two left-padded prompts of different lengths."""
    input_ids = torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 9, 8]])
    return {"input_ids": input_ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}


def greedy(model, batch, **kwargs):
    return model.generate(**batch, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0, **kwargs)


@torch.no_grad()
def assert_greedy(texts, models, batch, alphas, vocab_size):
    """Each of the `texts` takes, token by token, the most likely one of the mixture: without a cache, without padding.

    Most likely to within 1e-3: rounding, which is another on another processor, may decide between two logits that are
    nearer to each other.
    """
    for text, ids, mask, alpha in zip(texts, batch["input_ids"], batch["attention_mask"], alphas, strict=True):
        prompt = ids[mask.bool()].tolist()
        own = slice(len(prompt) - 1, -1)
        z_ref, z_aligned = (
            model(torch.tensor([prompt + text.tolist()])).logits[0, own, :vocab_size] for model in models
        )
        z = (1 - alpha) * z_ref + alpha * z_aligned
        assert (z.max(-1).values - z[torch.arange(len(text)), text]).max() < 1e-3


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_next_token_distribution_is_the_formula(models, batch, alpha, tiny_tokenizer):
    vocab = len(tiny_tokenizer)
    pair = DeRaForCausalLM(*models, alpha, vocab_size=vocab)
    with torch.no_grad():
        got = torch.softmax(pair(**batch).logits[1, -1], -1)
        z_ref, z_aligned = (model(**batch).logits[1, -1, :vocab].double() for model in models)
    weights = torch.softmax(z_ref, -1) ** (1 - alpha) * torch.softmax(z_aligned, -1) ** alpha
    torch.testing.assert_close(got.double(), weights / weights.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.7, 5.0])
@torch.no_grad()
def test_implausible_tokens_have_no_probability(models, batch, alpha, tiny_tokenizer):
    vocab = len(tiny_tokenizer)
    pair = DeRaForCausalLM(*models, alpha, vocab_size=vocab, plausibility=0.3)
    got = torch.softmax(pair(**batch).logits[1], -1)
    p_ref, p_aligned = (torch.softmax(model(**batch).logits[1, :, :vocab].double(), -1) for model in models)
    best = torch.maximum(p_ref, p_aligned)
    plausible = best >= 0.3 * best.max(-1, keepdim=True).values
    assert 1 < plausible.sum() < plausible.numel()
    weights = torch.where(plausible, p_ref ** (1 - alpha) * p_aligned**alpha, 0)
    torch.testing.assert_close(got.double(), weights / weights.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_a_plausibility_outside_its_range_is_refused(models):
    with pytest.raises(ValueError, match="plausibility must be at least 0 and below 1, not 1"):
        DeRaForCausalLM(*models, 0.5, plausibility=1.0)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_greedy_text_equals_decoding_without_a_cache(models, batch, alpha, tiny_tokenizer):
    vocab = len(tiny_tokenizer)
    generated = greedy(DeRaForCausalLM(*models, alpha, vocab_size=vocab), batch)[:, 5:]
    assert_greedy(generated, models, batch, [alpha] * 2, vocab)


def test_ends_reproduce_each_models_own_greedy_text(models, batch):
    reference, aligned = (greedy(model, batch) for model in models)
    assert not torch.equal(reference, aligned)
    assert torch.equal(greedy(DeRaForCausalLM(*models, 0.0), batch), reference)
    assert torch.equal(greedy(DeRaForCausalLM(*models, 1.0), batch), aligned)


def test_one_alpha_per_row(models, batch, tiny_tokenizer):
    alphas = torch.tensor([-0.4, 1.5])
    both = greedy(DeRaForCausalLM(*models, alphas, vocab_size=len(tiny_tokenizer)), batch)[:, 5:]
    assert_greedy(both, models, batch, alphas, len(tiny_tokenizer))


def test_a_pair_generates_again_with_a_fresh_cache(models, batch, tiny_tokenizer):
    pair = DeRaForCausalLM(*models, 0.5)
    assert torch.equal(greedy(pair, batch), greedy(pair, batch))
    assert_greedy(greedy(pair, batch, use_cache=False)[:, 5:], models, batch, [0.5] * 2, len(tiny_tokenizer) + 3)


def test_alphas_for_another_number_of_rows_are_refused(models, batch):
    with pytest.raises(ValueError, match=r"alpha has \[1\] numbers, and the batch 2 rows"):
        greedy(DeRaForCausalLM(*models, torch.tensor([0.5])), batch)


@torch.no_grad()
def test_rows_dropped_from_the_cache_are_dropped_from_both_models(models, batch):
    pair = DeRaForCausalLM(*models, 1.3)
    whole, cache = (pair(**batch, use_cache=True).past_key_values for _ in range(2))
    cache.batch_select_indices(torch.tensor([1]))
    mask = torch.ones(1, 6, dtype=torch.long)
    both = torch.cat([torch.tensor([[0, 0, 1, 1, 1, 1]]), mask])
    expected = pair(torch.tensor([[7], [7]]), attention_mask=both, past_key_values=whole, use_cache=True).logits[1:]
    got = pair(torch.tensor([[7]]), attention_mask=mask, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
