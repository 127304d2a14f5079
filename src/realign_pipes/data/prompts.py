"""Text to token ids: prompts through the chat template, completions as the model itself would have generated them.

Prompt and completion are tokenised separately, and the training sequence is their concatenation. Tokenising the joined
text could merge the last piece of the prompt with the first of the completion. There would then be no boundary where
the loss starts, and the model would learn from ids that it never sees when it generates.
"""

from transformers import PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.models.load import render_chat
from realign_pipes.tasks.chats import Chat, user_turn
from realign_pipes.tasks.completion import THINK, Thinking, ThinkingTags, opens_thinking, tags_named_in

_REPLY = "REPLY-OF-THE-ASSISTANT"


def render_prompt(
    tokenizer: PreTrainedTokenizerFast, asked: str | Chat, *instructions: str | None
) -> tuple[str, list[int]]:
    """The chat template's text for a question, or a chat that ends with one, with the assistant's turn opened; its ids.

    The user asks the question and then gives the instructions, each a paragraph; None is not one.
    """
    *earlier, last = user_turn(asked) if isinstance(asked, str) else asked
    chat = [*earlier, {**last, "content": "\n\n".join([last["content"], *filter(None, instructions)])}]
    text = render_chat(tokenizer, chat, add_generation_prompt=True)
    # The template has already written the beginning of the sequence: the tokenizer must not add it again.
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def thinking_tags(tokenizer: PreTrainedTokenizerFast) -> ThinkingTags:
    """The tags that the tokenizer's chat template names, else `<think>` and `</think>`."""
    return tags_named_in(tokenizer.get_chat_template()) or THINK


def check_thinking(tokenizer: PreTrainedTokenizerFast, tags: ThinkingTags, thinking: Thinking) -> None:
    """Raise InputError where no completion may think and the chat template opens the thinking."""
    if thinking == "none" and opens_thinking(render_prompt(tokenizer, "?")[0], tags):
        raise InputError(f"data_prep.thinking is none, but the chat template opens each reply with {tags.open}. Set it "
                         "to optional or required, or give another template in models.chat_template.")  # fmt: skip


def continue_prompt(prompt: str, completion: str, tags: ThinkingTags) -> str:
    """The part of a written-out `completion` that follows `prompt`.

    If the template has already opened the thinking, the completion's own opening tag is removed, with the white space
    that the template puts after it.
    """
    opened = prompt.rstrip()
    if not (opened.endswith(tags.open) and completion.lstrip().startswith(tags.open)):
        return completion
    return completion.lstrip().removeprefix(tags.open).removeprefix(prompt[len(opened) :])


def complete_reply(prompt: str, reply: str, tags: ThinkingTags, thinking: Thinking) -> str:
    """A written-out reply as the completion of `prompt`, as `continue_prompt` does it.

    Where the template has opened the thinking, a reply may have none if `thinking` is optional: it closes it first.
    """
    text = continue_prompt(prompt, reply, tags)
    if thinking == "optional" and opens_thinking(prompt, tags) and tags.close not in text:
        return f"{tags.close}\n\n{text.lstrip()}"
    return text


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
