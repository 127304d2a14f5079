"""Chats as the hub has them, lists of messages with `role` and `content`; and reading rows that may not be usable."""

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from realign_pipes.errors import InputError
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.tasks.parameters import DatasetSource

logger = logging.getLogger(__name__)

Message = dict[str, str]
Chat = list[Message]
T = TypeVar("T")

SHOWN = 3
"""Unusable rows that a message describes."""


class UnusableRowError(Exception):
    """Why a row of a dataset cannot be used, for `read_usable` to report."""


def user_turn(question: str) -> Chat:
    """A chat of one question."""
    return [{"role": "user", "content": question}]


def chat_text(chat: Sequence[Message]) -> str:
    """A chat as text, to be shown and compared: of one user turn its content, else a paragraph for each message."""
    if len(chat) == 1:
        return chat[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in chat)


def split_reply(messages: Iterable[Mapping[str, Any] | None]) -> tuple[Chat, str | None]:
    """The messages before the assistant's last reply, and that reply; None if the user has the last word.

    UnusableRowError unless the user and the assistant take turns, after an optional message of the system, and every
    message has a content.
    """
    chat: Chat = []
    for number, message in enumerate(messages, start=1):
        if message is None:
            raise UnusableRowError(f"message {number} of the chat is null")
        chat.append({"role": message["role"], "content": message["content"]})
    turns = chat[1:] if chat and chat[0]["role"] == "system" else chat
    if not turns:
        raise UnusableRowError("the chat has no turn")
    for place, message in enumerate(turns):
        number, due = 1 + len(chat) - len(turns) + place, ("user", "assistant")[place % 2]
        if message["role"] != due:
            raise UnusableRowError(f"message {number} of the chat has the role {message['role']!r} in place of {due!r}")
    for number, message in enumerate(chat, start=1):
        if not (message["content"] or "").strip():
            raise UnusableRowError(f"message {number} of the chat ({message['role']}) is empty")
    if chat[-1]["role"] == "assistant":
        return chat[:-1], chat[-1]["content"]
    return chat, None


def split_example(messages: Iterable[Mapping[str, Any] | None]) -> tuple[Chat, str]:
    """As `split_reply`, of a chat that has to end with a reply."""
    prompt, reply = split_reply(messages)
    if reply is None:
        raise UnusableRowError("the chat ends with the user, without a reply of the assistant")
    return prompt, reply


def question_turn(question: str) -> Chat:
    """As `user_turn`. UnusableRowError for an empty question."""
    if not question.strip():
        raise UnusableRowError("the prompt is empty")
    return user_turn(question)


def draw_rows(count: int, limit: int | None, seed: int, key: str) -> Sequence[int]:
    """Numbers of the rows that are read, in order: all of `count`, or `limit` of them, drawn with the seed."""
    if limit is None or limit >= count:
        return range(count)
    return sorted(random.Random(f"{seed}/{key}").sample(range(count), limit))


def read_usable(
    rows: Sequence[Any], numbers: Sequence[int], build: Callable[[Any], T], source: DatasetSource, key: str
) -> list[T]:
    """`build` of the rows with these numbers (from 0).

    Rows for which it raises UnusableRowError are left out with a warning if `source.skip_unusable`. InputError that
    describes some of them, naming `key`, if not, or if no row is left.
    """
    built: list[T] = []
    unusable: list[str] = []
    with progress_bar(f"reading {key}", len(numbers)) as advance:
        for number in numbers:
            try:
                built.append(build(rows[number]))
            except UnusableRowError as error:
                unusable.append(f"row {number + 1}: {error}")
            advance()
    if not unusable:
        return built
    some = "; ".join(unusable[:SHOWN]) + ("; …" if len(unusable) > SHOWN else "")
    found = f"{key}: {source.named()}: {len(unusable):,} of {len(numbers):,} rows cannot be used ({some})"
    if not source.skip_unusable:
        raise InputError(f"{found}. Correct them, or set {key}.skip_unusable to true to leave them out.")
    if not built:
        raise InputError(f"{found}, so none is left.")
    logger.warning("%s. They are left out.", found)
    return built
