"""A conversation with another alpha for each turn, of "Flexible Realignment of Language Models"
(https://arxiv.org/abs/2506.12704), appendix F.3.

    converse(model, tokenizer, ["Work out 4 - 9 + 7.", "Thank you. And 2 + 3?"], alphas=[0.0, 1.0], max_new_tokens=160)
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from realign_pipes.errors import InputError
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import Schedule

_REPLY = "REPLY"


def converse(
    model: InRaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[str],
    alphas: Sequence[float | Schedule],
    **generation: Any,
) -> list[str]:
    """The model's reply to each of the user's `turns`, written at that turn's alpha (a number, or a schedule).

    Both streams' KV caches are kept from turn to turn, so that a turn computes only what is new in it; where all alphas
    are the same, only the streams that it needs. What the model wrote stays in the conversation token by token.
    `generation` goes to `InRaForCausalLM.generate`: `max_new_tokens`, `do_sample`, `plausibility` and so on.

    InputError before the model runs if there is no turn, one is empty, or the alphas are not as many finite ones; and
    between turns if the chat template rewrites a reply (many drop its thinking), as the caches would not match.
    """
    _check(turns, alphas, generation)
    both_streams = len(set(alphas)) > 1
    messages: list[dict[str, str]] = []
    text, ids, cache, replies = "", list[int](), None, list[str]()
    for number, (turn, alpha) in enumerate(zip(turns, alphas, strict=True), start=1):
        messages.append({"role": "user", "content": turn})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if not prompt.startswith(text):
            raise InputError(
                f"turn {number}: the chat template does not repeat the conversation before it as it was written (many "
                "drop the thinking of earlier replies), so the caches do not match it. Set tokenizer.chat_template to "
                "one that keeps replies whole, or call generate() for each turn without past_key_values."
            )
        ids += tokenizer(prompt[len(text) :], add_special_tokens=False)["input_ids"]
        inputs = torch.tensor([ids], device=model.device)
        written = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            alpha=alpha,
            both_streams=both_streams,
            past_key_values=cache,  # generate() runs only what follows the tokens in it
            return_dict_in_generate=True,
            **generation,
        )
        cache = written.past_key_values
        reply = written.sequences[0, len(ids) :].tolist()
        replies.append(tokenizer.decode(reply, skip_special_tokens=True))
        if (
            reply[-1] in tokenizer.all_special_ids
        ):  # it ends the turn, and is not in the cache: the template has its own
            reply.pop()
        reply_text = tokenizer.decode(reply, clean_up_tokenization_spaces=False)
        messages.append({"role": "assistant", "content": _opened(tokenizer, messages, prompt) + reply_text})
        text = prompt + reply_text
        ids += reply
    return replies


def _check(turns: Sequence[str], alphas: Sequence[float | Schedule], generation: dict[str, Any]) -> None:
    if not turns:
        raise InputError("a conversation has at least one turn: turns is empty.")
    if len(turns) != len(alphas):
        raise InputError(f"each turn has an alpha of its own: there are {len(turns)} turns and {len(alphas)} alphas.")
    for number, (turn, alpha) in enumerate(zip(turns, alphas, strict=True), start=1):
        if not turn.strip():
            raise InputError(f"turn {number} is empty.")
        if not callable(alpha) and not math.isfinite(alpha):
            raise InputError(f"turn {number}: alpha must be finite, not {alpha}.")
    if generation.get("num_return_sequences", 1) != 1:
        raise InputError("a conversation has one reply for each turn: leave out num_return_sequences.")


def _opened(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], prompt: str) -> str:
    """What the template wrote of the reply itself: "<think>", or "" in most templates."""
    answered = [*messages, {"role": "assistant", "content": _REPLY}]
    before = tokenizer.apply_chat_template(answered, tokenize=False).rpartition(_REPLY)[0]
    return prompt[len(before) :] if prompt.startswith(before) else ""
