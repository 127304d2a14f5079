"""What the playground's page shows, as HTML: everything that a user, a model or a server wrote is escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from realign_pipes.errors import InputError
from realign_pipes.serving.playground.answers import CHARACTERS, Answer, Backend, Chat, fold

STYLE = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important; width: 100%}
.gradio-container main {width: 100%}
#answers, #answers > *, #conversation, #conversation > * {padding: 0 !important}
.page-head h1 {font-size: 1.5rem; font-weight: 650; margin: 0}
.page-head p {margin: .25rem 0 0; color: var(--body-text-color-subdued)}
.answers {display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: var(--layout-gap, 16px)}
.answer {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .8rem 1rem;
  background: var(--block-background-fill)}
.answer header {display: flex; flex-wrap: wrap; justify-content: space-between; gap: .25rem .75rem}
.answer header span {color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
.bar {display: flex; height: 6px; margin: .5rem 0 .7rem; border-radius: 3px; overflow: hidden;
  background: var(--background-fill-secondary)}
.bar i {background: var(--primary-300)} .bar i + i {background: var(--primary-600)}
.answer summary {cursor: pointer; color: var(--body-text-color-subdued)}
.written {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5}
details .written {margin: .35rem 0 .6rem; padding-left: .75rem; border-left: 3px solid var(--border-color-primary);
  color: var(--body-text-color-subdued)}
.final {font-size: 1.05rem; margin-top: .35rem}
.trouble {margin-top: .5rem; padding: .5rem .75rem; border-radius: 8px; background: #fef2f2; color: #991b1b}
.dark .trouble {background: #450a0a; color: #fecaca}
.conversation {display: flex; flex-direction: column; gap: .8rem; min-height: 20rem}
.question {align-self: flex-end; max-width: 85%; padding: .6rem .9rem; border-radius: 10px;
  background: var(--primary-100); color: var(--neutral-900)}
.hint {color: var(--body-text-color-subdued); font-size: .9rem; line-height: 1.45}
"""


@dataclass
class Turn:
    """A message and its answer."""

    message: str
    answer: Answer


def show_answer(answer: Answer, backend: Backend, longest: int) -> str:
    """An answer with its alpha, its tokens (and a bar of them, beside those of the `longest`), and its thinking folded.

    The thinking is open as long as it is being written.
    """
    thinking, final = fold(answer.text, backend.tags, opened=backend.opened)
    thought = answer.tokens if final is None else (answer.thinking or 0)
    shares = [100 * tokens / max(longest, 1) for tokens in (thought, answer.tokens - thought)]
    counted = f"{answer.tokens} tokens" + (f", {thought} of them thinking" if thought else "")
    parts = [
        f"<header><b>alpha {answer.alpha:g}</b><span>{counted}</span></header>",
        f'<div class="bar">{"".join(f"<i style=width:{share:.1f}%></i>" for share in shares)}</div>',
    ]
    if thinking:
        folded = "open" if final is None else ""
        parts += [f"<details {folded}><summary>Thinking</summary>{_written(thinking)}</details>"]
    if final:
        parts += [_written(final, "final")]
    if answer.cut:
        parts += [show_trouble(f"Cut after {answer.tokens} tokens: an answer may not have more here.")]
    if answer.trouble:
        parts += [show_trouble(answer.trouble)]
    return f'<article class="answer">{"".join(parts)}</article>'


def show_side_by_side(answers: Sequence[Answer], backend: Backend) -> str:
    """Answers to one prompt, in columns."""
    longest = max(answer.tokens for answer in answers)
    return f'<div class="answers">{"".join(show_answer(answer, backend, longest) for answer in answers)}</div>'


def show_conversation(turns: Sequence[Turn], backend: Backend, trouble: str = "") -> str:
    """A conversation, and why the last message was not sent."""
    longest = max((turn.answer.tokens for turn in turns), default=0)
    parts = [
        f'<div class="question written">{html.escape(turn.message)}</div>{show_answer(turn.answer, backend, longest)}'
        for turn in turns
    ]
    parts += [show_trouble(trouble)] if trouble else []
    return f'<div class="conversation">{"".join(parts)}</div>'


def _written(text: str, kind: str = "") -> str:
    return f'<div class="written {kind}">{html.escape(text)}</div>'


def show_trouble(text: str) -> str:
    """What went wrong, in words."""
    return f'<div class="trouble" role="alert">{html.escape(text)}</div>'


def read_chat(turns: Sequence[Turn], message: str, backend: Backend) -> Chat:
    """The conversation as a model is given it: without what it thought, and without turns that got no answer."""
    chat: Chat = []
    for turn in turns:
        _, final = fold(turn.answer.text, backend.tags, opened=backend.opened)
        if final:
            chat += [{"role": "user", "content": turn.message}, {"role": "assistant", "content": final}]
    if sum(len(one["content"]) for one in chat) + len(message) > 4 * CHARACTERS:
        raise InputError("This conversation has become too long: start a new one.")
    return [*chat, {"role": "user", "content": message}]
