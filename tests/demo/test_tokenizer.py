from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config

from realign_pipes.demo.tokenizer import QUESTION, build_tokenizer

CONVERSATION = [{"role": "user", "content": f"{QUESTION} 4 - 5 + 12 ="}]


@pytest.fixture
def loaded(tmp_path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as AutoTokenizer gives it back from beside a Qwen2 model, where Transformers rebuilds it."""
    Qwen2Config().save_pretrained(tmp_path)
    build_tokenizer(20).save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_auto_tokenizer_gives_back_the_same_tokenizer(loaded: PreTrainedTokenizerFast) -> None:
    built = build_tokenizer(20)
    assert loaded.get_vocab() == built.get_vocab()
    assert loaded.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert loaded.eos_token_id != loaded.pad_token_id
    assert loaded.chat_template == built.chat_template


def test_each_number_sign_and_word_is_one_token(loaded: PreTrainedTokenizerFast) -> None:
    text = f"{QUESTION} 4 - 12 = -8 check 4 - 12 = -8 yes</think> 4 - 12 = -8<answer> -8</answer><|im_end|>"
    ids = loaded(text)["input_ids"]
    assert loaded.convert_ids_to_tokens(ids) == [
        QUESTION, " 4", " -", " 12", " =", " -8", " check", " 4", " -", " 12", " =", " -8", " yes", "</think>",
        " 4", " -", " 12", " =", " -8", "<answer>", " -8", "</answer>", "<|im_end|>",
    ]  # fmt: skip
    assert loaded.decode(ids) == text


def test_tags_survive_without_special_tokens(loaded: PreTrainedTokenizerFast) -> None:
    ids = loaded("<think> 1</think><answer> 1</answer><|im_end|>")["input_ids"]
    assert loaded.decode(ids, skip_special_tokens=True) == "<think> 1</think><answer> 1</answer>"


@pytest.mark.parametrize("text", ["Was ist 99999 + 1?", "naïve\n\ttext", " 21 -21"])
def test_text_outside_the_vocabulary_is_not_lost(loaded: PreTrainedTokenizerFast, text: str) -> None:
    assert loaded.decode(loaded(text)["input_ids"]) == text


def test_generation_prompt_opens_the_thinking(loaded: PreTrainedTokenizerFast) -> None:
    prompt = loaded.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert prompt == f"<|im_start|>user\n{QUESTION} 4 - 5 + 12 =<|im_end|>\n<|im_start|>assistant\n<think>"
    assert loaded.convert_ids_to_tokens(loaded(prompt)["input_ids"])[-1] == "<think>"


def test_a_conversation_with_an_assistant_turn(loaded: PreTrainedTokenizerFast) -> None:
    answered = [*CONVERSATION, {"role": "assistant", "content": "<think></think><answer> 11</answer>"}]
    text = loaded.apply_chat_template(answered, tokenize=False)
    assert text.endswith("<|im_start|>assistant\n<think></think><answer> 11</answer><|im_end|>\n")
