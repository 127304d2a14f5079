"""Chats of several turns: what is asked, what was replied, and what is refused."""

import logging

import pytest

from realign_pipes.errors import InputError
from realign_pipes.tasks.chats import UnusableRowError, chat_text, draw_rows, read_usable, split_example, split_reply
from realign_pipes.tasks.completion import ThinkingTags, thinks_right
from realign_pipes.tasks.parameters import DatasetSource

KEY = "data_prep.tasks.chats"


def chat(*turns: str) -> list[dict[str, str]]:
    """`"user: a"` -> a message."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


def test_the_prompt_is_all_before_the_last_reply() -> None:
    one = chat("system: s", "user: a", "assistant: b", "user: c", "assistant: d")
    assert split_reply(one) == (one[:4], "d")
    assert split_reply(one[:4]) == (one[:4], None)
    assert split_example(one) == (one[:4], "d")
    assert split_reply([{**message, "tool_calls": None} for message in one]) == (one[:4], "d")
    assert chat_text(one[:4]) == "system: s\n\nuser: a\n\nassistant: b\n\nuser: c"
    assert chat_text(one[1:2]) == "a"


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([], "the chat has no turn"),
        (["system: s"], "the chat has no turn"),
        (["assistant: a"], "message 1 of the chat has the role 'assistant' in place of 'user'"),
        (["user: a", "user: b"], "message 2 of the chat has the role 'user' in place of 'assistant'"),
        (["user: a", "assistant: b", "system: s"], "message 3 of the chat has the role 'system' in place of 'user'"),
        (["user: a", "tool: b"], "message 2 of the chat has the role 'tool' in place of 'assistant'"),
        (["user:  ", "assistant: b"], r"message 1 of the chat \(user\) is empty"),
        (["user: a"], "the chat ends with the user, without a reply"),
    ],
)
def test_chats_that_cannot_be_used(turns, why) -> None:
    with pytest.raises(UnusableRowError, match=why):
        split_example(chat(*turns))


def test_a_message_that_is_null_cannot_be_used() -> None:
    with pytest.raises(UnusableRowError, match="message 2 of the chat is null"):
        split_reply([*chat("user: a"), None])


def test_unusable_rows_are_refused_by_number_or_left_out(caplog) -> None:
    rows = [chat("user: a", "assistant: b")] * 9 + [chat("user: a")] * 4

    def read(**source: object) -> list:
        return read_usable(rows, range(13), split_example, DatasetSource(path="x.jsonl", **source), KEY)

    with pytest.raises(InputError) as refusal:
        read()
    message = str(refusal.value)
    assert message.startswith(f"{KEY}: x.jsonl: 4 of 13 rows cannot be used (row 10: the chat ends with the user")
    assert "row 12" in message and "row 13" not in message and f"set {KEY}.skip_unusable to true" in message
    with caplog.at_level(logging.WARNING):
        assert len(read(skip_unusable=True)) == 9
    assert "4 of 13 rows cannot be used" in caplog.text
    with pytest.raises(InputError, match="so none is left"):
        read_usable(rows, [10, 11], split_example, DatasetSource(path="x.jsonl", skip_unusable=True), KEY)


def test_a_limit_draws_rows_in_order() -> None:
    assert draw_rows(5, None, 1, KEY) == range(5) == draw_rows(5, 5, 1, KEY)
    drawn = draw_rows(50, 9, 1, KEY)
    assert drawn == sorted(set(drawn)) == draw_rows(50, 9, 1, KEY) and len(drawn) == 9
    assert drawn != draw_rows(50, 9, 2, KEY)


@pytest.mark.parametrize(
    ("prompt", "completion", "right"),
    [  # required, optional, none
        ("?", "a", (False, True, True)),
        ("?", "<t>a</t>b", (True, True, False)),
        ("?", "<t>a", (False, False, False)),
        ("?", "a</t>b</t>c", (False, False, False)),
        ("?<t>\n", "a</t>b", (True, True, False)),
        ("?<t>\n", "a", (False, False, False)),
    ],
)
def test_thinking_is_required_optional_or_none(prompt, completion, right) -> None:
    tags = ThinkingTags(open="<t>", close="</t>")
    found = tuple(thinks_right(prompt, completion, tags, thinking) for thinking in ("required", "optional", "none"))
    assert found == right
