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
def plain_greedy(models, batch, alpha, vocab_size, steps=12):
    """Greedy decoding from the mixture without any cache, one row at a time and without padding."""
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        tokens = ids[mask.bool()].tolist()
        for _ in range(steps):
            z_ref, z_aligned = (model(torch.tensor([tokens])).logits[0, -1, :vocab_size] for model in models)
            tokens.append(int(((1 - alpha) * z_ref + alpha * z_aligned).argmax()))
        rows.append(tokens[-steps:])
    return torch.tensor(rows)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_next_token_distribution_is_the_formula(models, batch, alpha, tiny_tokenizer):
    vocab = len(tiny_tokenizer)
    pair = DeRaForCausalLM(*models, alpha, vocab_size=vocab)
    with torch.no_grad():
        got = torch.softmax(pair(**batch).logits[1, -1], -1)
        z_ref, z_aligned = (model(**batch).logits[1, -1, :vocab].double() for model in models)
    weights = torch.softmax(z_ref, -1) ** (1 - alpha) * torch.softmax(z_aligned, -1) ** alpha
    torch.testing.assert_close(got.double(), weights / weights.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [-0.5, 0.3, 1.7])
def test_greedy_text_equals_decoding_without_a_cache(models, batch, alpha, tiny_tokenizer):
    vocab = len(tiny_tokenizer)
    generated = greedy(DeRaForCausalLM(*models, alpha, vocab_size=vocab), batch)[:, 5:]
    assert torch.equal(generated, plain_greedy(models, batch, alpha, vocab))


def test_ends_reproduce_each_models_own_greedy_text(models, batch):
    reference, aligned = (greedy(model, batch) for model in models)
    assert not torch.equal(reference, aligned)
    assert torch.equal(greedy(DeRaForCausalLM(*models, 0.0), batch), reference)
    assert torch.equal(greedy(DeRaForCausalLM(*models, 1.0), batch), aligned)


def test_one_alpha_per_row(models, batch):
    both = greedy(DeRaForCausalLM(*models, torch.tensor([0.0, 1.0])), batch)
    assert torch.equal(both[0], greedy(models[0], batch)[0])
    assert torch.equal(both[1], greedy(models[1], batch)[1])


def test_a_pair_generates_again_with_a_fresh_cache(models, batch):
    pair = DeRaForCausalLM(*models, 0.5)
    assert torch.equal(greedy(pair, batch), greedy(pair, batch))
    assert torch.equal(greedy(pair, batch), greedy(pair, batch, use_cache=False))


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
