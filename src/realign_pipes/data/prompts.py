"""Text to token ids: prompts through the chat template, completions as the model itself would have generated them.

Prompt and completion are tokenised separately, and the training sequence is their concatenation. Tokenising the joined
text could merge the last piece of the prompt with the first of the completion. There would then be no boundary where
the loss starts, and the model would learn from ids that it never sees when it generates.
"""

from transformers import PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.models.load import render_chat
from realign_pipes.tasks.completion import THINK, ThinkingTags, tags_named_in

_REPLY = "REPLY-OF-THE-ASSISTANT"


def render_prompt(
    tokenizer: PreTrainedTokenizerFast, question: str, *instructions: str | None
) -> tuple[str, list[int]]:
    """The chat template's text for one user turn with the assistant's opened, and its ids.

    The user asks the question and then gives the instructions, each a paragraph; None is not one.
    """
    chat = [{"role": "user", "content": "\n\n".join([question, *filter(None, instructions)])}]
    text = render_chat(tokenizer, chat, add_generation_prompt=True)
    # The template has already written the beginning of the sequence: the tokenizer must not add it again.
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def thinking_tags(tokenizer: PreTrainedTokenizerFast) -> ThinkingTags:
    """The tags that the tokenizer's chat template names, else `<think>` and `</think>`."""
    return tags_named_in(tokenizer.get_chat_template()) or THINK


def continue_prompt(prompt: str, completion: str, tags: ThinkingTags) -> str:
    """The part of a written-out `completion` that follows `prompt`.

    If the template has already opened the thinking, the completion's own opening tag is removed, with the white space
    that the template puts after it.
    """
    opened = prompt.rstrip()
    if not (opened.endswith(tags.open) and completion.lstrip().startswith(tags.open)):
        return completion
    return completion.lstrip().removeprefix(tags.open).removeprefix(prompt[len(opened) :])


def encode_completion(tokenizer: PreTrainedTokenizerFast, completion: str, end_of_turn: int) -> list[int]:
    """Ids of a written-out completion. They end with `end_of_turn`, as the model should end it."""
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return ids if ids[-1:] == [end_of_turn] else [*ids, end_of_turn]


def end_of_turn_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id with which the chat template closes the assistant's turn; often, but not always, the eos token.

    InputError if the template closes it with no special token.
    """
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
    closing = render_chat(tokenizer, chat, add_generation_prompt=False).rpartition(_REPLY)[2]
    tokens = tokenizer.added_tokens_decoder
    for token_id in tokenizer(closing, add_special_tokens=False)["input_ids"]:
        if token_id in tokens and tokens[token_id].special:
            return token_id
    raise InputError(f"the chat template of {tokenizer.name_or_path} closes the assistant's turn with {closing!r}, "
                     "without a special token, so a model could not learn where to stop.")  # fmt: skip
