"""What is refused before any model runs, and how models are loaded."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from realign_pipes.models.load import check_pair, load_chat_tokenizer, load_model, load_tokenizer, render_chat


def test_a_pair_with_heads_of_different_size_is_fine(pair, tiny_tokenizer):
    assert check_pair(*pair).get_vocab() == tiny_tokenizer.get_vocab()


def test_different_tokenizers_are_refused_naming_the_first_difference(tmp_path, pair, make_checkpoint):
    other = load_tokenizer(pair[0])
    other.add_tokens(["<extra>"])
    aligned = make_checkpoint(tmp_path / "other", tokenizer=other)
    new_id = len(other) - 1
    with pytest.raises(ValueError, match=f"id {new_id} is None in the first and '<extra>' in the second"):
        check_pair(pair[0], aligned)


def test_one_vocabulary_with_another_splitting_is_refused(tmp_path, pair, make_checkpoint):
    from tokenizers.pre_tokenizers import Whitespace

    other = load_tokenizer(pair[0])
    other.backend_tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(ValueError, match="their pre_tokenizer differs"):
        check_pair(pair[0], make_checkpoint(tmp_path / "other", tokenizer=other))


def test_a_head_smaller_than_the_tokenizer_is_refused(tmp_path, pair, make_checkpoint, tiny_tokenizer):
    small = make_checkpoint(tmp_path / "small", vocab_padding=-1)
    with pytest.raises(ValueError, match=f"small: the head has {len(tiny_tokenizer) - 1} rows, but the tokenizer"):
        check_pair(pair[0], small)


def test_paths_that_are_no_checkpoints_are_refused(tmp_path, pair):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        check_pair(pair[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no config.json"):
        check_pair(tmp_path / "empty", pair[1])
    pickled = shutil.copytree(pair[0], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickled has no \*.safetensors"):
        check_pair(pair[0], pickled)


def test_a_chat_needs_a_template_which_may_be_a_file_of_the_users(tmp_path, make_checkpoint, tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    plain = make_checkpoint(tmp_path / "plain", tokenizer=tiny_tokenizer)
    assert load_tokenizer(plain).chat_template is None  # enough for whoever has token ids already
    with pytest.raises(ValueError, match=r"plain has no chat template.*`models: \{chat_template: conf/"):
        load_chat_tokenizer(plain)
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}Q: {{ message['content'] }}\nA:{% endfor %}")
    chat = [{"role": "user", "content": "3 + 4"}]
    assert render_chat(load_chat_tokenizer(plain, template), chat, add_generation_prompt=True) == "Q: 3 + 4\nA:"
    template.write_text("Q: none")
    with pytest.raises(ValueError, match=r"the chat template .*mine.jinja leaves out what the user says"):
        load_chat_tokenizer(plain, template)


def test_models_load_in_the_dtype_they_were_saved_in(tmp_path, pair):
    AutoModelForCausalLM.from_pretrained(pair[0]).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    shutil.copy(pair[0] / "tokenizer.json", tmp_path / "half")
    assert load_model(tmp_path / "half", device=torch.device("cpu")).dtype == torch.bfloat16
