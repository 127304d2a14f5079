"""Parameters for what the models' checkpoints may leave open."""

from pathlib import Path

from pydantic import field_validator

from realign_pipes.runtime.parameters import Parameters
from realign_pipes.tasks.completion import ThinkingTags


class Models(Parameters):
    """parameters_models.yml: what the checkpoints of the reference and the aligned model may leave open."""

    chat_template: Path | None
    """A file with a chat template in Jinja, relative to the working folder. Prompts go through it, and the checkpoints
    that are trained get it; null: the reference's own."""
    thinking: ThinkingTags | None
    """The tags around the models' thinking; null: those that the chat template names, else `<think>` and `</think>`."""

    @field_validator("chat_template")
    @classmethod
    def _is_a_file(cls, chat_template: Path | None) -> Path | None:
        if chat_template is not None and not chat_template.is_file():
            raise ValueError(f"there is no file {chat_template} in {Path.cwd()}. Give the path of a chat template in "
                             "Jinja, or null for the reference's own.")  # fmt: skip
        return chat_template
