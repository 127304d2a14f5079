"""The playground's page, in Gradio."""

import html
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gradio as gr
from fastapi import FastAPI

from realign_pipes.errors import InputError
from realign_pipes.serving.playground.answers import (
    CHARACTERS,
    HIGHEST,
    LOWEST,
    Answer,
    Backend,
    follow,
    read_question,
)
from realign_pipes.serving.playground.front import App, Front
from realign_pipes.serving.playground.shown import (
    STYLE,
    Turn,
    read_chat,
    show_conversation,
    show_side_by_side,
    show_trouble,
)

SESSION = 3600
"""Seconds for which a conversation is kept that nobody goes on with."""
WAITING = 32
"""Questions that wait for their turn, at most."""
SUM = "State the final answer to the following arithmetic problem:"
EXAMPLES = (f"{SUM} 4 - 9 + 7 =", f"{SUM} 8 + 6 - 5 =", f"{SUM} 7 - 2 =")
"""Sums, as the demo's model can do nothing else."""
NEAREST = "(alpha, rungs) => rungs.reduce((a, b) => Math.abs(b - alpha) < Math.abs(a - alpha) ? b : a)"
READ = f"""async (page, inputs) => {{
    await new Promise(resolve => setTimeout(resolve));  // until both fields of a slider show the same
    const field = id => document.querySelector(`#${{id}} input[type=number]`);
    const number = id => field(id).value === '' ? null : Number(field(id).value);
    const rung = alpha => alpha === null || !page.rungs.length ? alpha : ({NEAREST})(alpha, page.rungs);
    const alphas = page.alphas.filter(field).map(number).map(rung);
    const message = page.example ?? document.querySelector(`#${{page.message}} textarea`).value;
    return [{{message, alphas, budget: field(page.budget) ? number(page.budget) : 0}}, ...inputs.slice(1)];
}}"""
"""Makes what the controls show the event's first input. Gradio's own copy of it is late: a message that is sent right
after a slider moved would take the old value along. A control that is not shown is not there."""


def build_page(backend: Backend) -> gr.Blocks:
    """The page: its two tabs, each with its own controls."""
    page = gr.Blocks(title="realign_pipes", fill_width=True, analytics_enabled=False)
    with page:
        gr.HTML(
            f'<div class="page-head"><h1>How deeply should it think?</h1><p>{html.escape(backend.name)}: alpha 0 is '
            "the base model and 1 the aligned one; beyond them it goes further the same way.</p></div>"
        )
        asked = gr.JSON(visible=False)
        with gr.Tab("Chat"), gr.Row():
            _build_chat(backend, asked)
        with gr.Tab("Side by side"):
            _build_side_by_side(backend, asked)
    page.queue(max_size=WAITING)
    return page


def _build_chat(backend: Backend, asked: gr.JSON) -> None:
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

    empty = show_conversation([], backend)
    with gr.Column(scale=3):
        conversation = gr.HTML(empty, elem_id="conversation", autoscroll=True, max_height=560)
        message = gr.Textbox(placeholder="Message", max_lines=6, max_length=CHARACTERS, elem_id="message",
                             show_label=False, interactive=True)  # fmt: skip
        examples = _example_buttons()
    with gr.Column(scale=1, min_width=260):
        alpha, budget = _alpha_slider(backend, "alpha", 1.0, "Alpha"), _budget_slider(backend, "budget")
        send = gr.Button("Send", variant="primary", elem_id="send")
        stop, new = gr.Button("Stop", elem_id="stop"), gr.Button("New conversation", elem_id="new")
    turns = gr.State([], time_to_live=SESSION)
    outputs = [message, conversation, turns]
    _listen(backend, chat, [asked, turns], outputs, _Controls(message, send, stop, examples, [alpha], budget))
    new.click(lambda: (empty, []), None, [conversation, turns], show_progress="hidden", api_visibility="private")


def _build_side_by_side(backend: Backend, asked: gr.JSON) -> None:
    async def compare(asked: Any) -> AsyncGenerator[str]:
        try:
            question = read_question(backend, asked)
        except InputError as error:
            yield show_trouble(str(error))
            return
        answers = [Answer(alpha) for alpha in question.alphas]
        async for _ in follow(backend, [{"role": "user", "content": question.message}], question.budget, answers):
            yield show_side_by_side(answers, backend)

    with gr.Row(equal_height=True):
        prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=2, max_lines=6, max_length=CHARACTERS, elem_id="prompt",
                            interactive=True, scale=5)  # fmt: skip
        with gr.Column(scale=1, min_width=160):
            ask, stop = gr.Button("Ask", variant="primary", elem_id="ask"), gr.Button("Stop")
    examples = _example_buttons()
    with gr.Row():
        columns = gr.Radio([2, 3], value=3, label="How many alphas", elem_id="columns")
        budget = _budget_slider(backend, "budget-of-all")
    with gr.Row():
        starts = enumerate((0.0, 0.25, 1.0), start=1)
        alphas = [_alpha_slider(backend, f"alpha-{place}", value, f"Alpha {place}") for place, value in starts]
    columns.change(lambda count: gr.update(visible=count == 3), columns, alphas[2], show_progress="hidden",
                   api_visibility="private")  # fmt: skip
    answers = gr.HTML(elem_id="answers")
    _listen(backend, compare, [asked], [answers], _Controls(prompt, ask, stop, examples, alphas, budget))


def _alpha_slider(backend: Backend, name: str, value: float, label: str) -> gr.Slider:
    """A slider for alpha; of a ladder it stops at the rungs."""
    if not backend.rungs:
        return gr.Slider(LOWEST, HIGHEST, value, step=0.05, label=label, elem_id=name, interactive=True)
    rungs = sorted(backend.rungs)
    # Half the narrowest gap: then each rung is the nearest one of some stop, the highest too.
    step = min((high - low for low, high in pairwise(rungs)), default=1) / 2
    start = min(rungs, key=lambda rung: abs(rung - value))
    slider = gr.Slider(rungs[0], rungs[-1], start, step=step, label=label, elem_id=name, interactive=True)
    slider.release(None, slider, slider, js=f"alpha => ({NEAREST})(alpha, {rungs})", show_progress="hidden")
    return slider


def _budget_slider(backend: Backend, name: str) -> gr.Slider:
    return gr.Slider(0, backend.max_tokens, 0, step=1, label="Budget in tokens (0: none)", elem_id=name,
                     interactive=True, visible=not backend.rungs)  # fmt: skip


def _example_buttons() -> list[gr.Button]:
    with gr.Row(elem_classes="examples"):
        return [gr.Button(example.removeprefix(SUM), size="sm") for example in EXAMPLES]


@dataclass(frozen=True)
class _Controls:
    """What asks, and what is read when it does."""

    message: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    examples: list[gr.Button]
    alphas: list[gr.Slider]
    budget: gr.Slider


def _listen(
    backend: Backend, answer: Callable[..., Any], inputs: list[Any], outputs: list[Any], controls: _Controls
) -> None:
    """Let the button, Enter in the message's field, and the examples ask, and the other button stop."""

    def read(example: str | None) -> str:
        names = {
            "message": controls.message.elem_id,
            "alphas": [alpha.elem_id for alpha in controls.alphas],
            "budget": controls.budget.elem_id,
            "rungs": sorted(backend.rungs),
            "example": example,
        }
        return f"(...inputs) => ({READ})({json.dumps(names)}, inputs)"

    common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "answers",
                              "concurrency_limit": backend.at_once}  # fmt: skip
    asking = [controls.message.submit, controls.ask.click]
    events = [gr.on(asking, answer, inputs, outputs, js=read(None), **common)]
    for button, example in zip(controls.examples, EXAMPLES, strict=True):
        button.click(None, None, controls.message, js=f"() => {json.dumps(example)}")
        events.append(button.click(answer, inputs, outputs, js=read(example), **common))
    controls.stop.click(None, cancels=events)


def build_app(backend: Backend, password: str | None) -> App:
    """The page as an ASGI application."""
    # Fonts by name, so that none is loaded.
    theme = gr.themes.Default(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ).set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400")
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app, build_page(backend), "/", theme=theme, css=STYLE, footer_links=[], run_history=False, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False, show_error=False,
    )  # fmt: skip
    return Front(app, password)
