"""The tags around the thinking: which a chat template names, and which cannot be."""

import pytest

from realign_pipes.tasks.completion import THINK, ThinkingTags, tags_named_in

TEMPLATES = {
    # named both, one of them, or in another way than the default
    "{{ '<|Assistant|><think>\\n' }}{% set content = content.split('</think>')[-1] %}": ("<think>", "</think>"),
    "{{ '<|im_start|>assistant\\n<think>' }}": ("<think>", "</think>"),
    "{{ content.split('</think>')[-1] }}": ("<think>", "</think>"),
    "{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}": ("<think>", "</think>"),
    "Draft your thinking like this: [THINK]Your thoughts.[/THINK]Here, an answer.": ("[THINK]", "[/THINK]"),
    "{{ '<seed:think>' ~ message.reasoning_content ~ '</seed:think>' }}": ("<seed:think>", "</seed:think>"),
    "<|START_THINKING|>{{ x }}<|END_THINKING|><|START_RESPONSE|>": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "<|begin_of_thought|> {thought} <|end_of_thought|>": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "{{ '◁think▷' }}": ("◁think▷", "◁/think▷"),
    "{{ message['reasoning_content'] }}<thought>\\n": ("<thought>", "</thought>"),
    "assistant:<reasoning>": ("<reasoning>", "</reasoning>"),
    # names of variables and other tags
    "{{ messages[thinking_index] }}{{ messages[0][reasoning] }}{{ f(x)[thoughts] }}": None,
    "{% if enable_thinking %}<|im_start|>assistant\\n{% endif %}": None,
    "{% if n<reasoning and m>thinking %}{% endif %}": None,
    "<tool_call>{{ x }}</tool_call><answer>": None,
    "<|END_THINKING|>": None,  # what opens it cannot be told
    "<think|><|think>": None,
    "": None,
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_tags_that_a_chat_template_names(template: str) -> None:
    named, tags = tags_named_in(template), TEMPLATES[template]
    assert named == (None if tags is None else ThinkingTags(open=tags[0], close=tags[1]))


def test_the_default() -> None:
    assert (THINK.open, THINK.close) == ("<think>", "</think>")


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"open": "<think>"}, "close"),
        ({"open": "<think>", "close": ""}, "close"),
        ({"open": "<think>\n", "close": "</think>"}, "open"),
        ({"open": "***", "close": "***"}, r"both '\*\*\*', so nothing would tell where thinking ends"),
        ({"open": "<think>", "close": "</think>", "closes": "x"}, "no parameter 'closes': did you mean 'close'"),
    ],
)
def test_tags_that_cannot_be(tags: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ThinkingTags.model_validate(tags)
