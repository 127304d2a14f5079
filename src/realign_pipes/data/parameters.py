"""Parameters of data sets, and of what the models' checkpoints may leave open."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, field_validator

from realign_pipes.runtime.parameters import Parameters
from realign_pipes.tasks.completion import ThinkingTags
from realign_pipes.tasks.parameters import ChatSource, DatasetSource

FLASH_ATTENTION = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""The module and the package that each needs. Without them Transformers would look for a kernel on the hub."""


class Models(Parameters):
    """parameters_models.yml: what the checkpoints of the reference and the aligned model may leave open."""

    chat_template: Path | None
    """A file with a chat template in Jinja, relative to the working folder. Prompts go through it, and the checkpoints
    that are trained get it; null: the reference's own."""
    thinking: ThinkingTags | None
    """The tags around the models' thinking; null: those that the chat template names, else `<think>` and `</think>`."""

    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    """How Transformers computes attention, in trainings, the cache and decoding; null: its choice (sdpa for most
    models). Flash attention needs its package, a GPU, and weights in half precision or `bf16`."""

    @field_validator("attn_implementation")
    @classmethod
    def _is_installed(cls, attn_implementation: str | None) -> str | None:
        module, package = FLASH_ATTENTION.get(attn_implementation or "", (None, None))
        if module is not None and find_spec(module) is None:
            raise ValueError(f"{attn_implementation} needs the package {package}, which is not installed. Install it, "
                             "or choose sdpa.")  # fmt: skip
        return attn_implementation

    @field_validator("chat_template")
    @classmethod
    def _is_a_file(cls, chat_template: Path | None) -> Path | None:
        if chat_template is not None and not chat_template.is_file():
            raise ValueError(f"there is no file {chat_template} in {Path.cwd()}. Give the path of a chat template in "
                             "Jinja, or null for the reference's own.")  # fmt: skip
        return chat_template


class Replies(ChatSource):
    """Replies that a dataset holds, each with its prompt: two columns of text, or chats that end with the reply."""

    completion_column: str = "completion"
    """The whole reply, any thinking with its tags. Not read where `messages_column` is given."""
    limit: PositiveInt | None = None
    """At most this many rows are read, drawn with the seed; the other filters are applied to these."""


class GivenReplies(Replies):
    """What InRa's adapter learns by SFT: replies that a dataset holds."""

    source: Literal["dataset"]
    max_tokens: PositiveInt | None = None
    """Longest example, its prompt included; longer ones are left out."""


class GivenPairs(DatasetSource):
    """Preference pairs that a dataset holds: two chats that differ in their last reply, or a prompt and two texts."""

    source: Literal["dataset"]
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    question_column: str | None = None
    """The prompt, where chosen and rejected are texts; null: they are whole chats."""
    limit: PositiveInt | None = None
    """At most this many rows are read, drawn with the seed."""
    max_tokens: PositiveInt | None = None
    """Longest prompt and reply of a pair together; pairs with longer ones are left out."""
