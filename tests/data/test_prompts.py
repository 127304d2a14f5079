"""Chat templates that open the thinking and those that do not, and the boundary of prompt and completion."""

import pytest

from realign_pipes.data.prompts import (
    continue_prompt,
    encode_completion,
    end_of_turn_id,
    render_prompt,
    thinking_tags,
)
from realign_pipes.generation.graded import completion_text
from realign_pipes.tasks.completion import THINK, ThinkingTags

QUESTION = "State the final answer to the following arithmetic problem: 4 + 2 ="


def test_prompt_is_the_template_with_the_assistants_turn_open(tiny_tokenizer, thinking_tokenizer) -> None:
    text, ids = render_prompt(tiny_tokenizer, QUESTION)
    assert text == f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_tokenizer.decode(ids) == text
    assert render_prompt(thinking_tokenizer, QUESTION)[0] == text + "<think>\n"


def test_prompt_begins_with_one_bos_token(tiny_tokenizer) -> None:
    """The template writes it; a tokenizer that adds it too, as Llama's does, must not."""
    from tokenizers.processors import TemplateProcessing

    start = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert tiny_tokenizer(QUESTION)["input_ids"][0] == start
    _, ids = render_prompt(tiny_tokenizer, QUESTION)
    assert ids[:2] == [start, tiny_tokenizer.convert_tokens_to_ids("u")]
    assert encode_completion(tiny_tokenizer, "4", 3)[0] == tiny_tokenizer.convert_tokens_to_ids("4")


@pytest.mark.parametrize(
    ("prompt", "completion", "rest"),
    [
        ("assistant ", "<think>\na </think> b", "<think>\na </think> b"),
        ("assistant <think>\n", "<think>\na </think> b", "a </think> b"),
        ("assistant <think>\n", " <think> a </think> b", " a </think> b"),
        ("assistant <think>", "<think>\na </think> b", "\na </think> b"),
        ("assistant <think>\n", "a </think> b", "a </think> b"),
        ("assistant <think>\n", "<think>\n\na", "\na"),
        ("what is <think>? assistant ", "<think> a", "<think> a"),
    ],
)
def test_think_is_opened_once(prompt: str, completion: str, rest: str) -> None:
    assert continue_prompt(prompt, completion, THINK) == rest
    other = ThinkingTags(open="[T]", close="[/T]")
    prompt, completion, rest = (text.replace("think>", "T]").replace("<", "[") for text in (prompt, completion, rest))
    assert continue_prompt(prompt, completion, other) == rest


def test_the_tags_of_a_tokenizer_s_template(tiny_tokenizer, thinking_tokenizer) -> None:
    assert thinking_tags(tiny_tokenizer) == thinking_tags(thinking_tokenizer) == THINK
    tiny_tokenizer.chat_template = thinking_tokenizer.chat_template.replace("<think>", "<thought>")
    assert thinking_tags(tiny_tokenizer) == ThinkingTags(open="<thought>", close="</thought>")
    tiny_tokenizer.chat_template = {"default": tiny_tokenizer.chat_template, "tool_use": "<think>"}
    assert thinking_tags(tiny_tokenizer) == ThinkingTags(open="<thought>", close="</thought>")


def test_completion_is_closed_once(tiny_tokenizer) -> None:
    end = end_of_turn_id(tiny_tokenizer)
    ids = encode_completion(tiny_tokenizer, "<think>6</think><answer>6</answer>", end)
    assert tiny_tokenizer.convert_ids_to_tokens(ids) == [
        "<think>", "6", "</think>", "<answer>", "6", "</answer>", "<|im_end|>",
    ]  # fmt: skip
    assert encode_completion(tiny_tokenizer, "<think>6</think><answer>6</answer><|im_end|>", end) == ids
    assert completion_text(tiny_tokenizer, ids, finished=True) == "<think>6</think><answer>6</answer>"
    assert completion_text(tiny_tokenizer, ids[:2], finished=False) == "<think>6"


def test_end_of_turn_is_the_templates_not_the_eos_token(tiny_tokenizer) -> None:
    tiny_tokenizer.eos_token = "<|pad|>"  # as Gemma's <eos> beside <end_of_turn>
    assert end_of_turn_id(tiny_tokenizer) == tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_template_without_an_end_of_turn(tiny_tokenizer) -> None:
    tiny_tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} so {% endfor %}"
    with pytest.raises(ValueError, match=r"closes the assistant's turn with ' so '.*without a special token"):
        end_of_turn_id(tiny_tokenizer)
