"""Examples laid end to end in one row, against each example by itself, in float64."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.trra import collate, collate_flat, completion_hidden_states, decoder_inputs, examples_of

EXAMPLES = [
    {"prompt_ids": [5, 6], "completion_ids": [7, 8, 9, 10, 11, 12, 13]},
    {"prompt_ids": [14], "completion_ids": [15]},
    {"prompt_ids": [16, 17, 18, 19], "completion_ids": [20, 21]},
    {"prompt_ids": [22, 23], "completion_ids": [24, 25, 26, 27]},
]


def make_model(architecture, attention="sdpa"):
    config = AutoConfig.for_model(
        architecture, vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.double()


def one_by_one(model):
    """Hidden states that predict the completion tokens, with no batch at all."""
    states = []
    for example in EXAMPLES:
        ids = torch.tensor([example["prompt_ids"] + example["completion_ids"]])
        states.append(model.get_decoder()(input_ids=ids).last_hidden_state[0, len(example["prompt_ids"]) - 1 : -1])
    return torch.cat(states)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_no_example_sees_another(architecture, attention):
    model = make_model(architecture, attention)
    weights = torch.linspace(-1, 1, 14 * 32, dtype=torch.float64).view(14, 32)
    found = []
    for states in (
        lambda: one_by_one(model),
        lambda: completion_hidden_states(model, **collate_flat(EXAMPLES)),
        lambda: completion_hidden_states(model, **collate(EXAMPLES, pad_token_id=0)),
    ):
        hidden = states()
        gradients = torch.autograd.grad((hidden * weights).sum(), list(model.get_decoder().parameters()))
        found.append([hidden, *gradients])
    for other in found[1:]:
        # Transformers takes the softmax of eager attention in float32.
        tolerance = 1e-10 if attention == "sdpa" else 1e-5
        torch.testing.assert_close(other, found[0], rtol=tolerance, atol=tolerance)


def test_one_row_has_every_token_once_and_gives_the_examples_back():
    batch = collate_flat(EXAMPLES)
    assert batch["input_ids"].tolist() == [list(range(5, 28))]
    assert batch["position_ids"].tolist() == [[*range(9), *range(2), *range(6), *range(6)]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 9, 11, 17, 23] and batch["max_length_q"] == 9
    assert set(decoder_inputs({**batch, "row": torch.arange(4)})) == {
        "input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"
    }  # fmt: skip
    assert examples_of(batch) == EXAMPLES == examples_of(collate(EXAMPLES, pad_token_id=0))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_both_streams_of_inra_keep_the_examples_apart(architecture, alpha):
    torch.manual_seed(1)
    model = InRaForCausalLM.from_base(make_model(architecture), init="random")
    batch = collate_flat(EXAMPLES)
    with torch.no_grad():
        flat = model(batch["input_ids"], position_ids=batch["position_ids"], alpha=alpha, use_cache=False).logits[0]
        alone = [
            model(torch.tensor([row["prompt_ids"] + row["completion_ids"]]), alpha=alpha).logits[0] for row in EXAMPLES
        ]
    torch.testing.assert_close(flat, torch.cat(alone), rtol=1e-10, atol=1e-10)


def test_two_streams_of_one_row_are_refused_with_flash_attention():
    model = InRaForCausalLM.from_base(make_model("llama"))
    model.expanded.config._attn_implementation = "flash_attention_2"
    batch = collate_flat(EXAMPLES)
    with pytest.raises(ValueError, match="flash attention cannot tell the sequences of a row apart"):
        model(batch["input_ids"], position_ids=batch["position_ids"], alpha=0.5)
