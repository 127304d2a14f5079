"""Closing the thinking of a model: by force at a token, or with a bias on the closing tag.

Force is the budget forcing of s1 (https://arxiv.org/abs/2501.19393), which vLLM calls `thinking_token_budget`.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.generation.engine import Closing
from realign_pipes.tasks.completion import ThinkingTags, opens_thinking


def make_closing(
    tokenizer: PreTrainedTokenizerFast, tags: ThinkingTags, prompt: str, *, at: int | None = None, bias: float = 0.0
) -> Closing:
    """What acts on the thinking between `tags` in a completion of `prompt` (its text)."""
    open_ids, close_ids = (
        tuple(tokenizer(tag, add_special_tokens=False)["input_ids"]) for tag in (tags.open, tags.close)
    )
    return Closing(open_ids, close_ids, opens_thinking(prompt, tags), at, bias)


def check_closing_tag(tokenizer: PreTrainedTokenizerFast, tag: str) -> None:
    """Raise InputError unless the ids of the closing tag stand in a text as they stand alone, whatever is around it.

    BPE may join the end of a tag that is no token of its own with what follows: `>` and a line break. Then a tag that
    a model writes is never found, and a second one is forced.
    """
    alone = tuple(tokenizer(tag, add_special_tokens=False)["input_ids"])
    for after in ("\n\n", "x", " x"):
        text = f"x\n{tag}{after}"
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not any(_ends_with(ids, count, alone) for count in range(len(ids) + 1)):
            raise InputError(
                f"the tokenizer gives {tag!r} other tokens in {text!r} than alone, so it would not be seen that a "
                f"model closes its thinking. Make {tag!r} a token of its own (tokenizer.add_tokens), or set "
                "alpha_sweep.budgets.tokens and alpha_sweep.close_biases to []."
            )


class CloseThinking(LogitsProcessor):
    """Does in Transformers' `generate` what the `Closing` of each row says; None leaves a row alone.

    `closings` has one for each row that is decoded, and `prompt_tokens` is the width of the prompts with their padding
    (`input_ids.shape[1]`). It is for one batch. Temperature, top-k and top-p may follow it: of a forced token's row
    they leave the one finite score that it has.
    """

    def __init__(self, closings: Sequence[Closing | None], prompt_tokens: int) -> None:
        self.closings, self.prompt_tokens = list(closings), prompt_tokens
        self.open = [closing is not None and closing.opened for closing in closings]
        tags = [tag for closing in closings if closing for tag in (closing.open_ids, closing.close_ids)]
        self.longest = max(map(len, tags), default=0)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch alone."""
        self.closings, self.open = [self.closings[row] for row in rows], [self.open[row] for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_tokens
        tails = input_ids[:, input_ids.shape[1] - min(step, self.longest) :].tolist()
        forced: dict[int, int] = {}
        biased: dict[int, Closing] = {}
        for row, (closing, tail) in enumerate(zip(self.closings, map(tuple, tails), strict=True)):
            if closing is None:
                continue
            if _end_of(tail, len(closing.close_ids)) == closing.close_ids:
                self.open[row] = False
            elif _end_of(tail, len(closing.open_ids)) == closing.open_ids:
                self.open[row] = True
            if self.open[row] and closing.at is not None and step >= closing.at:
                forced[row] = closing.close_ids[count_begun(closing.close_ids, tail)]
            elif self.open[row] and closing.bias:
                biased[row] = closing
        if forced or biased:
            scores = scores.clone()
        if biased:
            ids = [closing.close_ids[0] for closing in biased.values()]
            scores[list(biased), ids] += torch.tensor([closing.bias for closing in biased.values()]).to(scores)
        if forced:
            scores[list(forced)] = -torch.inf
            scores[list(forced), list(forced.values())] = 0.0
        return scores


def thinking_open(closing: Closing, tokens: Sequence[int]) -> list[bool]:
    """Whether thinking is open after the first 0, 1, …, len(tokens) tokens of a completion."""
    opened, written = [closing.opened], tuple(tokens)
    for count in range(1, len(written) + 1):
        if _ends_with(written, count, closing.close_ids):
            opened.append(False)
        else:
            opened.append(opened[-1] or _ends_with(written, count, closing.open_ids))
    return opened


def count_begun(tag: tuple[int, ...], tokens: Sequence[int]) -> int:
    """How many ids of `tag`, from its first and without its last, `tokens` end with."""
    return next(count for count in range(len(tag) - 1, -1, -1) if _end_of(tuple(tokens), count) == tag[:count])


def _end_of(tokens: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The last `count` tokens, or all if there are fewer."""
    return tokens[max(len(tokens) - count, 0) :]


def _ends_with(tokens: tuple[int, ...], count: int, tag: tuple[int, ...]) -> bool:
    """Whether the first `count` of the tokens end with `tag`."""
    return count >= len(tag) and tokens[count - len(tag) : count] == tag
