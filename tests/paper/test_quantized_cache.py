"""Stream A's keys and values in 8 bits: against exact InRa, and against rounding written out number by number."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from realign_pipes.errors import InputError
from realign_pipes.paper import quantized_cache
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.quantized_cache import HalfQuantizedLayer, QuantizedLayer, pack, unpack
from realign_pipes.paper.schedules import TokenBudget

DTYPES = ["int8"]
ALPHAS = [-0.5, 0.0, 0.3, 1.0, 1.7]


def make_inra(**more):
    """Of a random model, with an adapter that is not the identity."""
    config = Qwen2Config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=2,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InRaForCausalLM.from_base(Qwen2ForCausalLM(config).eval(), init="random").eval()


@pytest.fixture
def inra():
    return make_inra()


@pytest.fixture
def batch():
    ids = torch.tensor([[0, 0, 5, 9, 14], [0, 23, 31, 8, 40], [3, 4, 5, 6, 7], [0, 0, 0, 11, 12], [50, 51, 52, 53, 54]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def generate(model, batch, **kwargs):
    return model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None, output_logits=True,
                          return_dict_in_generate=True, **kwargs)  # fmt: skip


def stored_bytes(cache):
    """Of every tensor that the cache holds."""
    layers = [*cache.layers, *(layer.aligned for layer in cache.layers if isinstance(layer, HalfQuantizedLayer))]
    return sum(t.nbytes for layer in layers for t in (layer.keys, layer.values) if t is not None)


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_those_of_the_formula(dtype, model_dtype):
    """Each number in Python's floats, group by group; the bits of a bfloat16 are the upper half of a float32's."""
    states = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0)).to(model_dtype) * 3
    limit = 127
    got = unpack(pack(states), torch.float32)
    for group, back in zip(states.flatten(0, -2).tolist(), got.flatten(0, -2).tolist(), strict=True):
        word = int(np.float32(max(map(abs, group)) / limit).view(np.uint32))
        rounded_word = (word + 0x7FFF + ((word >> 16) & 1)) & 0xFFFF0000  # to the nearest, ties to even
        scale = float(np.uint32(rounded_word).view(np.float32))
        for number, returned in zip(group, back, strict=True):
            code = max(-limit, min(limit, round(number / scale)))
            assert returned == pytest.approx(code * scale, abs=1e-6 * scale)
            assert abs(returned - number) <= scale / 2 * (1 + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_is_off_by_more_than_half_a_scale(dtype):
    """Also where the scale was rounded down, which cuts the largest number off."""
    largest = torch.linspace(1, 2, 4001)[:, None]  # all roundings of a scale
    states = largest * torch.linspace(-1, 1, 64)
    limit = 127
    error = (unpack(pack(states), torch.float32) - states).abs().amax(-1)
    exact_scale = largest[:, 0] / limit
    assert (error <= exact_scale / 2 * (1 + 2**-8) + 1e-6).all()  # bfloat16 moves the scale by 2^-8 at most
    assert error.max() > 0.45 * exact_scale.min()  # the bound is a tight one


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_and_tiny_and_huge_numbers_survive(dtype):
    states = torch.tensor([[0.0] * 8, [1e-30] * 8, [-1e30] * 8])
    back = unpack(pack(states), torch.float32)
    torch.testing.assert_close(back, states, rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "aligned_rows", "reference_rows"), [
    (0.0, 0, 5), (1.0, 5, 0), (0.5, 5, 5), (ALPHAS, 4, 4),
])  # fmt: skip
def test_the_cache_takes_the_bytes_that_it_should(inra, batch, dtype, alpha, aligned_rows, reference_rows):
    """Of a token: 3 layers and 1 of the adapter, keys and values, 2 heads of 8 numbers; a scale has 2 bytes."""
    cache = generate(inra, batch, alpha=alpha, aligned_cache_dtype=dtype).past_key_values
    tokens, pairs = 5 + 6 - 1, 2 * 2
    of_reference = 3 * pairs * 8 * 4
    of_aligned = (3 + 1) * pairs * (8 + 2)
    assert stored_bytes(cache) == tokens * (reference_rows * of_reference + aligned_rows * of_aligned)
    assert cache.get_seq_length() == tokens


def test_auto_is_exact_inra_to_the_bit(inra, batch):
    for alpha in (ALPHAS, 0.5):
        exact, auto = (generate(inra, batch, alpha=alpha, **more) for more in ({}, {"aligned_cache_dtype": "auto"}))
        assert type(auto.past_key_values.layers[0]) is type(exact.past_key_values.layers[0])
        assert torch.equal(torch.stack(auto.logits), torch.stack(exact.logits))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, ALPHAS, TokenBudget(5)], ids=str)
def test_without_rounding_the_layers_are_exact_inra_to_the_bit(inra, batch, alpha, monkeypatch):
    """What is left when numbers are stored as they are: the rows and their order."""
    exact = generate(inra, batch, alpha=alpha)
    monkeypatch.setattr(quantized_cache, "pack", lambda states: states)
    monkeypatch.setattr(quantized_cache, "unpack", lambda packed, out: packed)
    got = generate(inra, batch, alpha=alpha, aligned_cache_dtype="int8")
    assert isinstance(got.past_key_values.layers[0], HalfQuantizedLayer)
    assert isinstance(got.past_key_values.layers[-1], QuantizedLayer)
    assert torch.equal(torch.stack(got.logits), torch.stack(exact.logits))


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_0_is_the_base_to_the_bit(inra, batch, dtype):
    base = generate(inra.base_model_view(), batch)
    alone = generate(inra, batch, alpha=0.0, aligned_cache_dtype=dtype)
    both = generate(inra, batch, alpha=0.0, both_streams=True)
    quantized = generate(inra, batch, alpha=0.0, both_streams=True, aligned_cache_dtype=dtype)
    assert torch.equal(torch.stack(alone.logits), torch.stack(base.logits))
    assert torch.equal(torch.stack(quantized.logits), torch.stack(both.logits))


def test_logits_are_near_to_exact_inra_and_not_the_same(inra, batch):
    with torch.no_grad():
        exact = inra(**batch, alpha=0.7).logits
        got = inra(**batch, alpha=0.7, past_key_values=inra._new_cache("int8"), use_cache=True).logits
    seen = batch["attention_mask"].bool()
    assert 0 < (got - exact)[seen].norm() < 0.02 * exact[seen].norm()


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_prompt_in_pieces_gives_the_cache_of_the_whole(inra, dtype):
    ids = torch.tensor([[5, 9, 14, 23, 31, 8, 40]])
    options = {"alpha": 0.5, "use_cache": True}
    whole, pieces = (inra._new_cache(dtype) for _ in range(2))
    expected = inra(ids, past_key_values=whole, **options).logits[:, -1]
    for part in ids.split([3, 1, 3], dim=1):
        got = inra(part, past_key_values=pieces, **options).logits[:, -1]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alphas", [ALPHAS, [0.0] * 5, [1.0] * 5, [0.4] * 5, [0.0, 1.0, 0.0, 1.0, 0.0]])
@torch.no_grad()
def test_rows_dropped_from_the_cache_leave_the_others_as_they_were(inra, batch, alphas):
    def start():
        cache = inra._new_cache("int8")
        inra(**batch, alpha=alphas, past_key_values=cache, use_cache=True)
        return cache

    cache, whole, rows = start(), start(), torch.arange(5)
    for step, keep in enumerate(map(torch.tensor, ([4, 1, 3], [2, 1], [0]))):  # out of order too
        rows = rows[keep]
        cache.batch_select_indices(keep)
        tokens = torch.full((5, 1), 7 + step)
        mask = torch.cat([batch["attention_mask"], torch.ones(5, step + 1, dtype=torch.long)], dim=1)
        places = (mask.cumsum(1) - 1)[:, -1:]
        expected = inra(tokens, attention_mask=mask, position_ids=places, past_key_values=whole, use_cache=True,
                        alpha=alphas).logits[rows]  # fmt: skip
        got = inra(tokens[rows], attention_mask=mask[rows], position_ids=places[rows], past_key_values=cache,
                   use_cache=True, alpha=[alphas[row] for row in rows]).logits  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cropped_cache_goes_on_as_if_the_tokens_had_not_come(inra):
    ids = torch.tensor([[5, 9, 14, 23, 31]])
    cropped, short = (inra._new_cache("int8") for _ in range(2))
    inra(ids, alpha=0.5, past_key_values=cropped, use_cache=True)
    cropped.crop(-2)
    inra(ids[:, :3], alpha=0.5, past_key_values=short, use_cache=True)
    got, expected = (inra(torch.tensor([[44]]), alpha=0.5, past_key_values=cache, use_cache=True).logits
                     for cache in (cropped, short))  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_conversation_keeps_the_dtype_that_it_was_started_with(inra, batch):
    first = generate(inra, batch, alpha=0.5, aligned_cache_dtype="int8")
    more = {"input_ids": first.sequences, "attention_mask": torch.ones_like(first.sequences)}
    more["attention_mask"][:, :5] = batch["attention_mask"]
    exact = generate(inra, batch, alpha=0.5)
    with pytest.raises(InputError, match=r"aligned_cache_dtype='int8'"):
        generate(inra, more, alpha=0.5, past_key_values=exact.past_key_values, aligned_cache_dtype="int8")
    second = generate(inra, more, alpha=0.7, past_key_values=first.past_key_values)
    assert second.past_key_values.layers[0].aligned.keys.dtype == torch.uint8


def test_what_cannot_be_is_refused(inra, batch):
    with pytest.raises(InputError, match="must be one of auto, int8, not 'int3'"):
        generate(inra, batch, alpha=0.5, aligned_cache_dtype="int3")
    with pytest.raises(InputError, match="past_key_values do not store"):
        generate(inra, batch, alpha=0.5, aligned_cache_dtype="int8", past_key_values=DynamicCache(config=inra.config))
    sliding = make_inra(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(InputError, match="full attention only"):
        generate(sliding, batch, alpha=0.5, aligned_cache_dtype="int8")
