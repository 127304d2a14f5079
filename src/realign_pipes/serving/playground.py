"""A page on which anybody can move alpha: a chat, and two or three alphas side by side on one prompt.

realign-pipes playground data/06_models/inra
realign-pipes playground data/06_models/inra --server http://127.0.0.1:8000
"""

import base64
import html
import importlib.util
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.serving.answers import (
    CHARACTERS,
    HIGHEST,
    LOWEST,
    Answer,
    Backend,
    Chat,
    LocalModel,
    find_server,
    fold,
    follow,
    read_question,
)
from realign_pipes.serving.foreground import KEY, LOOPBACK, Address, check_port

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

PASSWORD = "PLAYGROUND_PASSWORD"  # noqa: S105  the name of the variable
BYTES = 1_000_000
"""Of a request, at most."""
SESSION = 3600
"""Seconds for which a conversation is kept that nobody goes on with."""
SUM = "State the final answer to the following arithmetic problem:"
EXAMPLES = (f"{SUM} 4 - 9 + 7 =", f"{SUM} 8 + 6 - 5 =", f"{SUM} 7 - 2 =")
"""Sums, as the demo's model can do nothing else."""
SERVED = ("/", "/config", "/theme.css", "/gradio_api/startup-events", "/gradio_api/queue/join",
          "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/reset")  # fmt: skip
SERVED_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
"""All that is served. Gradio has more: files, uploads, a proxy."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
STYLE = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
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
READ = """(...inputs) => {
    const field = id => document.querySelector(`#${id} input[type=number]`);
    const number = id => field(id).value === '' ? null : Number(field(id).value);
    const nearest = alpha => RUNGS.reduce((a, b) => Math.abs(b - alpha) < Math.abs(a - alpha) ? b : a, RUNGS[0] ?? alpha);
    const shown = ALPHAS.filter(field).map(number).map(alpha => alpha === null ? null : nearest(alpha));
    const message = EXAMPLE ?? document.querySelector('#MESSAGE textarea').value;
    return [{message, alphas: shown, budget: field('BUDGET') ? number('BUDGET') : 0}, ...inputs.slice(1)];
}"""
"""What the controls show becomes the event's first input. Gradio's own copy of them is late: a message that is sent
right after a slider moved would take the old value along."""


@dataclass
class Turn:
    """A message and its answer."""

    message: str
    answer: Answer


# -- what is shown: everything that a user or a model wrote is escaped -------------------------------------------------
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
        parts += [_trouble(f"Cut after {answer.tokens} tokens: an answer may not have more here.")]
    if answer.trouble:
        parts += [_trouble(answer.trouble)]
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
    parts += [_trouble(trouble)] if trouble else []
    return f'<div class="conversation">{"".join(parts)}</div>'


def _written(text: str, kind: str = "") -> str:
    return f'<div class="written {kind}">{html.escape(text)}</div>'


def _trouble(text: str) -> str:
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


# -- the page ----------------------------------------------------------------------------------------------------------
def read_controls(
    backend: Backend, message: str, alphas: Sequence[str], budget: str, example: str | None = None
) -> str:
    """The Javascript that reads the controls of these names; an `example` takes the message's place."""
    values = {"RUNGS": sorted(backend.rungs), "ALPHAS": list(alphas), "EXAMPLE": example}
    script = READ.replace("MESSAGE", message).replace("BUDGET", budget)
    for name, value in values.items():
        script = script.replace(name, json.dumps(value))
    return script


def build_page(backend: Backend) -> "gradio.Blocks":
    """The page: its two tabs, each with its own controls."""
    import gradio as gr

    async def chat(asked: Any, turns: list[Turn]) -> AsyncGenerator[tuple[Any, str, list[Turn]]]:
        try:
            question = read_question(backend, asked)
            conversation = read_chat(turns, question.message, backend)
        except InputError as error:
            yield gr.skip(), show_conversation(turns, backend, str(error)), turns
            return
        answer = Answer(question.alphas[0])
        turns = [*turns, Turn(question.message, answer)]
        field: Any = ""
        async for _ in follow(backend, conversation, question.budget, [answer]):
            yield field, show_conversation(turns, backend), turns
            field = gr.skip()  # the next message is being typed there

    async def compare(asked: Any) -> AsyncGenerator[str]:
        try:
            question = read_question(backend, asked)
        except InputError as error:
            yield _trouble(str(error))
            return
        answers = [Answer(alpha) for alpha in question.alphas]
        async for _ in follow(backend, [{"role": "user", "content": question.message}], question.budget, answers):
            yield show_side_by_side(answers, backend)

    def alpha_slider(name: str, value: float, label: str) -> gr.Slider:
        if not backend.rungs:
            return gr.Slider(LOWEST, HIGHEST, value, step=0.05, label=label, elem_id=name)
        rungs = sorted(backend.rungs)
        step = min((high - low for low, high in pairwise(rungs)), default=1)
        start = min(rungs, key=lambda rung: abs(rung - value))
        slider = gr.Slider(rungs[0], rungs[-1], start, step=step, label=label, elem_id=name)
        nearest = f"alpha => {rungs}.reduce((a, b) => Math.abs(b - alpha) < Math.abs(a - alpha) ? b : a)"
        slider.release(None, slider, slider, js=nearest, show_progress="hidden")
        return slider

    def budget_slider(name: str) -> gr.Slider:
        return gr.Slider(0, backend.max_tokens, 0, step=1, label="Budget in tokens (0: none)", elem_id=name,
                         visible=not backend.rungs)  # fmt: skip

    def listen(answer: Any, asked: Any, states: list[Any], outputs: list[Any], controls: Sequence[Any]) -> None:
        """Let the controls ask: the message's field, the button, and the examples, which are sent as they are."""
        field, ask, stop, examples, alphas, budget = controls
        names = (field.elem_id, [alpha.elem_id for alpha in alphas], budget.elem_id)
        common: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": backend.at_once,
                                  "concurrency_id": "answers", "api_visibility": "private"}  # fmt: skip
        inputs = [asked, *states]
        events = [
            gr.on([field.submit, ask.click], answer, inputs, outputs, js=read_controls(backend, *names), **common)
        ]
        for button, example in zip(examples, EXAMPLES, strict=True):
            button.click(None, None, field, js=f"() => {json.dumps(example)}")
            script = read_controls(backend, *names, example)
            events.append(button.click(answer, inputs, outputs, js=script, **common))
        stop.click(None, cancels=events)

    def example_buttons() -> list[gr.Button]:
        with gr.Row():
            gr.HTML('<p class="hint">Examples: the same sum, thought about more or less.</p>', min_width=120)
            return [gr.Button(example.removeprefix(SUM), size="sm") for example in EXAMPLES]

    with gr.Blocks(title="realign_pipes", analytics_enabled=False) as page:
        gr.HTML(f'<div class="page-head"><h1>How deeply should it think?</h1><p>{html.escape(backend.name)}: alpha 0 is '
                "the base model and 1 the aligned one; beyond them it goes further the same way.</p></div>")  # fmt: skip
        asked = gr.JSON(visible=False)
        with gr.Tab("Chat"), gr.Row():
            with gr.Column(scale=3):
                conversation = gr.HTML(
                    show_conversation([], backend), elem_id="conversation", autoscroll=True, max_height=560
                )
                message = gr.Textbox(show_label=False, placeholder="Message", lines=1, max_lines=6, elem_id="message",
                                     max_length=CHARACTERS)  # fmt: skip
                examples = example_buttons()
            with gr.Column(scale=1, min_width=260):
                alpha, budget = alpha_slider("alpha", 1.0, "Alpha"), budget_slider("budget")
                send = gr.Button("Send", variant="primary", elem_id="send")
                stop, new = gr.Button("Stop", elem_id="stop"), gr.Button("New conversation")
            turns = gr.State([], time_to_live=SESSION)
            controls = (message, send, stop, examples, [alpha], budget)
            listen(chat, asked, [turns], [message, conversation, turns], controls)
            new.click(lambda: (show_conversation([], backend), []), None, [conversation, turns], show_progress="hidden")
        with gr.Tab("Side by side"):
            prompt = gr.Textbox(
                EXAMPLES[0], label="Prompt", lines=2, max_lines=6, max_length=CHARACTERS, elem_id="prompt"
            )
            examples = example_buttons()
            with gr.Row():
                budget = budget_slider("budget-of-all")
                columns = gr.Radio([2, 3], value=3, label="How many alphas", min_width=160)
                ask, stop = gr.Button("Ask", variant="primary", elem_id="ask"), gr.Button("Stop")
            with gr.Row():
                alphas = [alpha_slider(f"alpha-{place}", value, f"Alpha {place}")
                          for place, value in enumerate((0.0, 0.25, 1.0), start=1)]  # fmt: skip
            columns.change(lambda count: gr.update(visible=count == 3), columns, alphas[2], show_progress="hidden")
            answers = gr.HTML(elem_id="answers")
            listen(compare, asked, [], [answers], (prompt, ask, stop, examples, alphas, budget))
    page.queue(max_size=32)
    return page


# -- serving it --------------------------------------------------------------------------------------------------------
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Front:
    """Stands before Gradio: serves only `SERVED` and `SERVED_BELOW`, to who knows the password if there is one.

    Without a password the page is this machine's own: a request with another name of it, as from a page elsewhere whose
    name is made to lead here, is refused.
    """

    def __init__(self, app: App, password: str | None) -> None:
        self.app, self.password = app, password

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if refused := self._refuse(scope):
            return await _refuse(send, *refused)

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        return await self.app(scope, receive, send_with_policy)

    def _refuse(self, scope: Message) -> tuple[int, str] | None:
        """The status and the reason, if it is refused."""
        headers = dict(scope["headers"])
        if self.password is None:
            name = headers.get(b"host", b"").decode("latin-1").rpartition(":")[0].strip("[]")
            if name not in LOOPBACK:
                return 400, f"this page is at {LOOPBACK[0]} only"
        else:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"basic" or not _is_password(given, self.password):
                return 401, f"the password is the one in {PASSWORD}; any user name will do"
        if scope["path"] not in SERVED and not scope["path"].startswith(SERVED_BELOW):
            return 404, "there is nothing here"
        length = headers.get(b"content-length", b"0")
        if scope["method"] == "POST" and (
            not length.isdigit() or int(length) > BYTES or b"content-length" not in headers
        ):
            return 413, f"a request may have {BYTES} bytes"
        return None


def _is_password(given: bytes, password: str) -> bool:
    """Whether the credentials of HTTP's Basic scheme have this password."""
    try:
        _, _, found = base64.b64decode(given, validate=True).partition(b":")
    except ValueError:
        return False
    return secrets.compare_digest(found, password.encode())


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    headers += [(b"www-authenticate", b'Basic realm="realign_pipes"')] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def build_app(backend: Backend, password: str | None) -> App:
    """The page as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI

    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(app, build_page(backend), "/", theme=theme, css=STYLE, footer_links=[], run_history=False,
                        ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, show_error=False)  # fmt: skip
    return Front(app, password)


def serve_playground(model: Path | None, server: str | None, address: Address, max_tokens: int) -> None:
    """Serve the page until this process is asked to end.

    With `server` that answers, and `model` is where the thinking tags are read from; else the InRa model in the folder
    `model` does, in this process. A key for the server is taken from VLLM_API_KEY, and what is asked of visitors from
    PLAYGROUND_PASSWORD.

    Raises, before a model is loaded, MissingFileError without Gradio, and InputError for an address that others reach
    without a password, one that is taken, and a server that does not answer or does not know alpha.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingFileError("the page needs Gradio: pip install 'realign_pipes[playground]'")
    password = os.environ.get(PASSWORD) or None
    if address.host not in LOOPBACK and password is None:
        raise InputError(f"{address.host} is reached from elsewhere: set a password in the variable {PASSWORD}, or listen "
                         f"on {LOOPBACK[0]}.")  # fmt: skip
    check_port(address)
    backend: Backend
    if server is not None:
        backend = find_server(server, max_tokens, model, os.environ.get(KEY) or None)
    elif model is not None:
        backend = LocalModel(model, max_tokens)
    else:
        raise InputError("whom to ask? Name an InRa model's folder, or a server with --server.")

    import uvicorn

    logger.info("The page is at http://%s:%d. Ctrl-C stops it.", address.host, address.port)
    uvicorn.run(
        build_app(backend, password), host=address.host, port=address.port, log_level="warning", access_log=False
    )
