"""Reading a completion: what was thought, and what was answered."""

import re
from typing import Annotated, Literal, Self

from pydantic import StringConstraints, model_validator

from realign_pipes.runtime.parameters import Parameters

Tag = Annotated[str, StringConstraints(pattern=r"^\S(.*\S)?$")]


class ThinkingTags(Parameters):
    """What a model writes around its thinking."""

    open: Tag
    close: Tag

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open!r}, so nothing would tell where thinking ends")
        return self


THINK = ThinkingTags(open="<think>", close="</think>")
"""The tags of most models that think."""

Thinking = Literal["required", "optional", "none"]
"""Whether a completion has to think before it answers, may, or must not: `data_prep.thinking`."""

_BRACKETS = {"<": ">", "<|": "|>", "[": "]", "◁": "▷"}
_TAG = re.compile(
    r"(?P<left><\||<|◁|(?<![\w)\]])\[)"  # no subscript: `[` after a name belongs to Jinja
    r"(?P<slash>/?)(?P<name>[\w:]*(?:think|thought|reason)[\w:]*)"
    r"(?P<right>\|>|>|▷|\])",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(^|_)end(_|$)", re.IGNORECASE)


def tags_named_in(template: str) -> ThinkingTags | None:
    """The thinking tags in the text of a chat template, or None if it names none.

    Tags are in brackets and contain a word for thinking: `<think>`, `[THINK]`, `<seed:think>`, `<|END_THINKING|>`, …
    The first opening tag and the first closing tag count; if one of them is missing, it is the other with or without
    `/`.
    """
    opening = closing = None
    for found in _TAG.finditer(template):
        left, slash, name, right = found.group("left", "slash", "name", "right")
        if _BRACKETS[left] != right:
            continue
        if slash or _ENDS.search(name):
            closing = closing or found
        else:
            opening = opening or found
    if opening and closing:
        return ThinkingTags(open=opening[0], close=closing[0])
    named = opening or (closing if closing and closing["slash"] else None)
    if named is None:
        return None
    left, name, right = named.group("left", "name", "right")
    return ThinkingTags(open=f"{left}{name}{right}", close=f"{left}/{name}{right}")


def opens_thinking(prompt: str, tags: ThinkingTags) -> bool:
    """Whether `prompt` ends inside the thinking, because the chat template has opened it."""
    return prompt.rstrip().endswith(tags.open)


def answer_part(prompt: str, completion: str, tags: ThinkingTags = THINK) -> str | None:
    """The part of `completion` that is the answer to the user, or None if it has none.

    The answer of a thinking model comes after the last tag that closes thinking. A completion whose thinking was opened
    (by itself, or in the prompt by the chat template) and never closed ran out of tokens: it has no answer. Text
    without any thinking is all answer.
    """
    if tags.close in completion:
        return completion.rpartition(tags.close)[2].strip()
    thinking = opens_thinking(prompt, tags) or tags.open in completion
    return None if thinking else completion.strip()


def thinks_right(prompt: str, completion: str, tags: ThinkingTags, thinking: Thinking) -> bool:
    """Whether `completion` thinks as it should: once, at most once and to the end, or not at all."""
    closed = completion.count(tags.close)
    if thinking == "required":
        return closed == 1
    if thinking == "none":
        return not closed and tags.open not in completion and not opens_thinking(prompt, tags)
    return closed == 1 or (not closed and answer_part(prompt, completion, tags) is not None)


def describe_thinking(tags: ThinkingTags, thinking: Thinking) -> str:
    """What `thinks_right` asks of a completion, in words that follow "it"."""
    return {
        "required": f"has {tags.close} exactly once",
        "optional": f"has {tags.close} at most once, and once where {tags.open} is",
        "none": f"has neither {tags.open} nor {tags.close}",
    }[thinking]
