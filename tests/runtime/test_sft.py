"""Micro-batches without padding to spare: the same optimizer step."""

import json

import pytest
import torch

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.runtime.parameters import FineTuning
from realign_pipes.runtime.sft import fine_tune, sorted_batches


def test_examples_stay_in_their_batch_and_come_shortest_first():
    lengths = [5, 1, 3, 2, 9, 9, 4, 7]
    order = sorted_batches(lengths, 4)
    assert [set(order[:4]), set(order[4:])] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert [lengths[row] for row in order] == [1, 2, 3, 5, 4, 7, 9, 9]


def test_micro_batches_change_neither_the_loss_nor_the_gradient(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer(9)
    examples = [([5, 6, 7], [8] * length) for length in (1, 20, 3, 9)]
    recipe = FineTuning(steps=1, batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, save_steps=1, seed=0)
    found = {}
    for size in (4, 2, 1):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
            )
        )
        fine_tune(model, tokenizer, examples, recipe, tmp_path / str(size), "", micro_batch_size=size)
        metrics = json.loads((tmp_path / str(size) / "curves" / "metrics.json").read_text())
        found[size] = metrics["loss"], metrics["grad_norm"]
    assert found[2] == pytest.approx(found[4], rel=1e-4)
    assert found[1] == pytest.approx(found[4], rel=1e-4)
