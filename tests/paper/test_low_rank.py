"""Adapters that hold a difference of weights, against numpy's singular values and weights merged in float64."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from realign_pipes.errors import InputError
from realign_pipes.models.load import load_model, read_model
from realign_pipes.paper.low_rank import copy_scaled, linear_layers, lora_size, save_rung, truncated_difference
from realign_pipes.paper.merging import merge

SHAPE = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
IDS = torch.tensor([[5, 6, 7, 8]])


def make(seed, **changes):
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE | {"initializer_range": 0.2} | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin at 0 and norms at 1, in any model
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def added(layer):
    """B A of a LoRA layer."""
    return layer.lora_B["default"].weight @ layer.lora_A["default"].weight


@pytest.mark.parametrize(("alpha", "rank"), [(-0.5, 16), (2.5, 20)])  # of the narrowest layers, and of none
def test_at_full_rank_the_linear_layers_are_the_merged_ones(alpha, rank):
    reference, aligned = make(0), make(1)
    merged = linear_layers(merge(make(0), aligned, alpha))
    adapted, held = truncated_difference(reference, aligned, rank)
    for name, layer in merged.items():
        lora = adapted.get_base_model().get_submodule(name)
        ours = lora.get_base_layer().weight + alpha * added(lora)
        # `merge` computes in float32.
        torch.testing.assert_close(ours, layer.weight, rtol=0, atol=1e-6)
        expected = (1 - alpha) * make(0).get_submodule(name).weight + alpha * aligned.get_submodule(name).weight
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert held.cut == pytest.approx(0, abs=1e-24) and held.relative_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 5])
def test_what_is_cut_is_the_tail_of_the_singular_values(rank):
    reference, aligned = make(0), make(1)
    tails, whole, layers = 0.0, 0.0, linear_layers(make(0))
    adapted, held = truncated_difference(reference, aligned, rank)
    assert len(layers) == 14
    for name, layer in layers.items():
        difference = (aligned.get_submodule(name).weight - layer.weight).detach().numpy()
        values = np.linalg.svd(difference, compute_uv=False)
        lora = adapted.get_base_model().get_submodule(name)
        error = difference - added(lora).detach().numpy()
        assert np.linalg.norm(error) ** 2 == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9)
        assert np.linalg.matrix_rank(added(lora).detach().numpy(), tol=1e-9) == rank
        a, b = (matrix["default"].weight.norm() for matrix in (lora.lora_A, lora.lora_B))
        assert a.item() == pytest.approx(b.item())
        tails, whole = tails + (values[rank:] ** 2).sum(), whole + (values**2).sum()
    assert held.relative_error == pytest.approx(np.sqrt(tails / whole))
    assert held.error(-1.5) == pytest.approx(1.5 * np.sqrt(tails))


@pytest.mark.parametrize(
    ("tied", "names"),
    [(True, ["biases", "embeddings", "norms"]), (False, ["biases", "embeddings", "norms", "output head"])],
)
def test_what_an_adapter_cannot_hold_is_named(tied, names):
    reference, aligned = (make(seed, tie_word_embeddings=tied) for seed in (0, 1))
    theirs = aligned.state_dict()
    squares = {
        name: float((theirs[name] - ours.detach()).square().sum()) for name, ours in reference.named_parameters()
    }
    _, held = truncated_difference(reference, aligned, 4)
    assert list(held.left_out) == names
    assert held.norm**2 == pytest.approx(sum(squares.values()))
    assert held.kept + held.cut + sum(held.left_out.values()) == pytest.approx(1)
    assert held.left_out["embeddings"] == pytest.approx(squares["model.embed_tokens.weight"] / held.norm**2)
    biases = sum(value for name, value in squares.items() if name.endswith("bias"))
    assert held.left_out["biases"] == pytest.approx(biases / held.norm**2) and biases > 0


@pytest.mark.parametrize("alpha", [-1.5])
def test_a_rung_s_folder_is_the_base_with_so_much_of_the_difference(tmp_path, make_checkpoint, alpha):
    """Loaded by PEFT through Transformers, against weights that are added up by hand."""
    paths = [make_checkpoint(tmp_path / name, seed=seed, dtype="float64") for seed, name in enumerate("ab")]
    reference, aligned, by_hand = (read_model(path) for path in (*paths, paths[0]))
    adapted, _ = truncated_difference(reference, aligned, 5)
    save_rung(adapted, tmp_path / "rung", alpha, (str(paths[0]), None))
    save_rung(adapted, tmp_path / "one", 1.0, (str(paths[0]), None))
    copy_scaled(tmp_path / "one", tmp_path / "copied", alpha)
    with torch.no_grad():
        for name, layer in linear_layers(by_hand).items():
            u, s, vh = np.linalg.svd((aligned.get_submodule(name).weight - layer.weight).numpy(), full_matrices=False)
            layer.weight += alpha * torch.from_numpy((u[:, :5] * s[:5]) @ vh[:5])
        expected = by_hand(IDS).logits
        for folder in ("rung", "copied"):
            torch.testing.assert_close(load_model(tmp_path / folder, device="cpu")(IDS).logits, expected)
        assert not torch.allclose(load_model(tmp_path / "one", device="cpu")(IDS).logits, expected)
    size = sum(matrix.numel() for matrix in adapted.state_dict().values() if matrix.ndim == 2) - sum(
        matrix.numel() for matrix in read_model(paths[0]).state_dict().values() if matrix.ndim == 2
    )
    assert lora_size(read_model(paths[0]), 5) == size


def test_half_precision_is_decomposed_in_float32():
    reference, aligned = make(0).bfloat16(), make(1).bfloat16()
    layers = {name: layer.weight.float().detach().clone() for name, layer in linear_layers(reference).items()}
    adapted, held = truncated_difference(reference, aligned, 16)
    assert held.cut == pytest.approx(0, abs=1e-12)
    for name, ours in layers.items():
        lora = adapted.get_base_model().get_submodule(name)
        assert lora.lora_A["default"].weight.dtype == torch.bfloat16
        difference = aligned.get_submodule(name).weight.float() - ours
        assert (added(lora).float() - difference).norm() < 0.02 * difference.norm()


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"mlp.gate_proj.weight is \[24, 16\] in the reference and \[26, 16\]"):
        truncated_difference(make(0), make(1, intermediate_size=26), 4)
    llama = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with pytest.raises(InputError, match=r"reference is a Qwen2ForCausalLM and the aligned model a LlamaForCausalLM"):
        truncated_difference(make(0), llama, 4)
    with pytest.raises(InputError, match="have the same weights"):
        truncated_difference(make(0), make(0), 4)
    conv1d = GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2)
    with pytest.raises(InputError, match="GPT2LMHeadModel has no linear layers"):
        truncated_difference(GPT2LMHeadModel(conv1d), GPT2LMHeadModel(conv1d), 4)
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        truncated_difference(make(0), make(1), 0)
