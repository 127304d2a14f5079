"""What is refused before any model runs, and how models are loaded."""

import shutil

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from realign_pipes.data.parameters import Models
from realign_pipes.models.load import (
    check_pair,
    copy_tokenizer,
    load_chat_tokenizer,
    load_model,
    load_tokenizer,
    max_positions,
    read_stops,
)


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


def test_a_tokenizer_without_a_chat_template_is_refused_where_there_are_chats(
    tmp_path, make_checkpoint, tiny_tokenizer
):
    """With what to do: name a file. Where nothing is rendered, as in a sweep, no template is needed."""
    template, tiny_tokenizer.chat_template = tiny_tokenizer.chat_template, None
    plain = make_checkpoint(tmp_path / "plain", tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match=r"plain has no chat template.*name the file in .*models: {chat_template: "):
        load_chat_tokenizer(plain)
    assert check_pair(plain, plain).chat_template is None
    (tmp_path / "given.jinja").write_text(template)
    assert load_chat_tokenizer(plain, tmp_path / "given.jinja").chat_template == template
    assert load_tokenizer(plain).chat_template is None


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("jinja_file", [True, False])
def test_a_copied_tokenizer_has_the_template_of_the_file(tmp_path, make_checkpoint, tiny_tokenizer, own, jinja_file):
    """Stock tools find it, whether the source has a template in tokenizer_config.json, in a file, or none."""
    if not own:
        tiny_tokenizer.chat_template = None
    source = make_checkpoint(tmp_path / "source", tokenizer=tiny_tokenizer)
    if not jinja_file:
        tiny_tokenizer.save_pretrained(source, save_jinja_files=False)
        (source / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "given.jinja").write_text("given: {{ messages[0].content }}")
    for template in (tmp_path / "given.jinja", None):
        target = shutil.copytree(source, tmp_path / f"target-{template is None}", ignore=shutil.ignore_patterns("*to*"))
        copy_tokenizer(source, target, template)
        expected = tiny_tokenizer.chat_template if template is None else "given: {{ messages[0].content }}"
        for loaded in (AutoTokenizer.from_pretrained(target), load_tokenizer(target)):
            assert loaded.chat_template == expected
            assert loaded.get_vocab() == tiny_tokenizer.get_vocab()


def test_positions_and_stops_are_read_from_the_checkpoint(tmp_path, make_checkpoint):
    path = make_checkpoint(tmp_path / "model", max_position_embeddings=77)
    assert max_positions(path) == 77
    assert read_stops(path) == [3]
    config = path / "generation_config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 3', '"eos_token_id": [3, 5]'))
    assert read_stops(path) == [3, 5]
    config.unlink()
    assert read_stops(path) == []


def test_a_model_without_positions_has_no_limit(tmp_path):
    from transformers import BloomConfig

    BloomConfig().save_pretrained(tmp_path)  # ALiBi
    assert max_positions(tmp_path) is None


def test_models_load_in_the_dtype_they_were_saved_in(tmp_path, pair):
    AutoModelForCausalLM.from_pretrained(pair[0]).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    shutil.copy(pair[0] / "tokenizer.json", tmp_path / "half")
    assert load_model(tmp_path / "half", device=torch.device("cpu")).dtype == torch.bfloat16


def test_attention_is_computed_as_asked(make_checkpoint, tmp_path):
    path = make_checkpoint(tmp_path / "model")
    ids = torch.tensor([[8, 9, 10, 11]])
    logits = {}
    for name in ("eager", "sdpa"):
        model = load_model(path, device=torch.device("cpu"), attn_implementation=name)
        assert model.config._attn_implementation == name
        logits[name] = model(ids).logits
    torch.testing.assert_close(logits["eager"], logits["sdpa"], rtol=1e-4, atol=1e-5)


def test_attention_without_its_package_is_refused_by_name():
    given = {"chat_template": None, "thinking": None}
    assert Models(**given).attn_implementation is None
    with pytest.raises(ValidationError, match="flash_attention_2 needs the package flash-attn, which is not installed"):
        Models(**given, attn_implementation="flash_attention_2")
    with pytest.raises(ValidationError, match="'eager', 'sdpa', 'flash_attention_2' or 'flash_attention_3'"):
        Models(**given, attn_implementation="flash")
