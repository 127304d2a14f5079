"""Merged weights against arithmetic in float64, tensor by tensor."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from realign_pipes.errors import InputError
from realign_pipes.paper.merging import check_mergeable, merge

TIED = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def make(seed, **changes):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**TIED | changes)).eval()


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_every_weight_is_interpolated(alpha):
    reference, aligned = make(0), make(1)
    merged = merge(reference, aligned, alpha)
    for name, tensor in merged.state_dict().items():
        ours, theirs = (model.state_dict()[name].double() for model in (reference, aligned))
        torch.testing.assert_close(tensor.double(), (1 - alpha) * ours + alpha * theirs, rtol=0, atol=1e-6)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not torch.equal(reference.lm_head.weight, aligned.lm_head.weight)


def test_the_ends_are_the_models():
    reference, aligned = make(0), make(1)
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        for alpha, end in ((0.0, reference), (1.0, aligned)):
            torch.testing.assert_close(merge(reference, aligned, alpha)(tokens).logits, end(tokens).logits)


def test_half_precision_is_rounded_once():
    reference, aligned = make(0).bfloat16(), make(1).bfloat16()
    ours, theirs = (model.lm_head.weight.float() for model in (reference, aligned))
    merged = merge(reference, aligned, 1.7).lm_head.weight
    assert torch.equal(merged, (ours + 1.7 * (theirs - ours)).bfloat16())


@pytest.mark.parametrize("alpha", [-1.0, 1.0, 2.5])
def test_ties_keeps_the_largest_differences(alpha):
    reference, aligned = make(0), make(1)
    merged = merge(reference, aligned, alpha, density=0.25)
    for name, tensor in merged.state_dict().items():
        ours, theirs = (model.state_dict()[name].double().flatten() for model in (reference, aligned))
        difference = theirs - ours
        kept = difference.abs().argsort(descending=True)[: int(0.25 * len(difference))]
        expected = ours.clone()
        expected[kept] += alpha * difference[kept]
        torch.testing.assert_close(tensor.double().flatten(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 33}, r"model.embed_tokens.weight is \[31, 16\] in the reference and \[33, 16\] in the aligned"),
        ({"num_hidden_layers": 3}, r"model.layers.2.\S+ is missing in the reference and \["),
        ({"num_hidden_layers": 1}, r"model.layers.1.\S+ is \[\d+(, \d+)?\] in the reference and missing"),
        ({"tie_word_embeddings": False, "intermediate_size": 26}, r"mlp.gate_proj.weight is \[24, 16\]"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_their_first_tensor(changes, message):
    with pytest.raises(InputError, match=message):
        check_mergeable(make(0), make(1, **changes))


@pytest.mark.parametrize("density", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(density):
    with pytest.raises(ValueError, match="density must be between 0 and 1"):
        merge(make(0), make(1), 1.0, density)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        merge(make(0), make(1), alpha)
