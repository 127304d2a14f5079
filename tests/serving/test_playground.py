"""The playground: what is asked, shown and refused, and what is said of a dead server; and all of it in a browser."""

import asyncio
import base64
import html
import json
import shutil
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import uvicorn
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from realign_pipes.cli import program
from realign_pipes.errors import InputError
from realign_pipes.models.load import load_chat_tokenizer, render_chat
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.serving.foreground import _OneReplica
from realign_pipes.serving.playground.answers import CHARACTERS, Answer, fold, follow, read_question, read_tags
from realign_pipes.serving.playground.front import Front
from realign_pipes.serving.playground.local import LocalModel
from realign_pipes.serving.playground.server import ServerBackend, find_server, refusal
from realign_pipes.serving.playground.shown import Turn, read_chat, show_answer, show_conversation, show_side_by_side
from realign_pipes.serving.server import ServedModel, start_server
from realign_pipes.tasks.completion import THINK, ThinkingTags

PROJECT = Path(__file__).parents[2]
PATIENCE = 180_000
"""Milliseconds for the browser, on a machine that is busy with other tests."""
PAYLOAD = "<img src=x onerror='window.hacked = 1'>${window.hacked = 1}{{7 * 7}}</details>\"&amp;"
INRA = ServerBackend("http://127.0.0.1:9", "inra", max_tokens=100)
LADDER = ServerBackend("http://127.0.0.1:9", "base", 100, {0.5: "alpha-0.5", -0.5: "alpha--0.5", 1.5: "alpha-1.5"})


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("4 - 9 = -5</think><answer> 2", True, ("4 - 9 = -5", "<answer> 2")),
        ("<think>hm</think> 2", False, ("hm", "2")),
        ("so far", True, ("so far", None)),
        ("<think>so far", False, ("so far", None)),
        ("no thinking", False, ("", "no thinking")),
        ("a</think>b</think>c", True, ("a</think>b", "c")),  # as grading: the last closing tag counts
        ("", True, ("", None)),
    ],
)
def test_fold(text, opened, expected):
    assert fold(text, THINK, opened=opened) == expected


def test_tags_are_those_of_the_chat_template(tmp_path, make_checkpoint, thinking_tokenizer):
    assert read_tags(None) == (THINK, False)
    thinking_tokenizer.chat_template = thinking_tokenizer.chat_template.replace("<think>", "<|start_thinking|>")
    folder = make_checkpoint(tmp_path / "model", tokenizer=thinking_tokenizer)
    assert read_tags(folder) == (ThinkingTags(open="<|start_thinking|>", close="<|/start_thinking|>"), True)


def test_everything_that_was_written_is_escaped():
    answer = Answer(0.5, f"{PAYLOAD}</think>{PAYLOAD}", tokens=9, thinking=4, cut=True, trouble=PAYLOAD)
    shown = show_conversation([Turn(PAYLOAD, answer)], INRA, PAYLOAD)
    assert shown.count(html.escape(PAYLOAD)) == 5
    for tag in ("article", "details", "div"):  # nothing that was written opens or closes an element
        assert shown.count(f"<{tag}") == shown.count(f"</{tag}>")
    assert "<img" not in shown
    assert show_side_by_side([answer], INRA).count(html.escape(PAYLOAD)) == 3


def test_an_answer_is_shown_with_its_tokens_and_its_thinking_folded_once_it_is_over():
    answer = Answer(0.25)
    answer.extend("<think>hm", 8, THINK)
    assert "8 tokens, 8 of them thinking" in show_answer(answer, INRA, 8)
    assert "<details open>" in show_answer(answer, INRA, 8)
    answer.extend("<think>hm</think>", 10, THINK)
    answer.extend("<think>hm</think> 2", 40, THINK)
    shown = show_answer(answer, INRA, 80)
    assert "<b>alpha 0.25</b>" in shown and "40 tokens, 10 of them thinking" in shown
    assert "<details open>" not in shown and "<details" in shown
    assert "width:12.5%" in shown and "width:37.5%" in shown  # 10 and 30 of 80


def test_a_server_is_asked_for_what_was_chosen():
    chat = [{"role": "user", "content": "?"}]
    body = INRA.body(chat, 0.25, 0)
    assert body["vllm_xargs"] == {"inra_alpha": 0.25} and body["model"] == "inra"
    assert body["stream"] and body["temperature"] == 0 and body["max_tokens"] == 100 and body["messages"] == chat
    assert INRA.body(chat, 0.25, 64)["vllm_xargs"] == {"inra_alpha": 0.25, "inra_budget": 64}
    body = LADDER.body(chat, -0.5, 0)
    assert body["model"] == "alpha--0.5" and "vllm_xargs" not in body


ASKED = {"message": "?", "alphas": [0.5], "budget": 0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"message": "  "}, "write a message first"),
        ({"message": "x" * (CHARACTERS + 1)}, "wrong with the message"),
        ({"message": {"path": "/etc/passwd"}}, "wrong with the message"),
        ({"alphas": []}, "wrong with alpha"),
        ({"alphas": [None]}, "wrong with alpha"),
        ({"alphas": ["0.5"]}, "wrong with alpha"),
        ({"alphas": [7]}, "Alpha 7 cannot be had here: it goes from -1 to 3"),
        ({"alphas": [float("nan")]}, "wrong with alpha"),
        ({"alphas": [0, 1, 2, 3]}, "wrong with alpha"),
        ({"budget": 101}, "budget of 101 tokens"),
        ({"budget": -1}, "wrong with the budget"),
        ({"budget": None}, "wrong with the budget"),
        ({"model": "other"}, "wrong with the question"),
    ],
)
def test_what_is_not_a_question_is_refused_in_words(change, said):
    with pytest.raises(InputError, match=said):
        read_question(INRA, {**ASKED, **change})


def test_a_ladder_has_its_rungs_and_no_budget():
    assert read_question(LADDER, {**ASKED, "alphas": [-0.5, 1.5]}).alphas == [-0.5, 1.5]
    far = replace(LADDER, models={-2.0: "alpha--2", 4.0: "alpha-4"})
    assert read_question(far, {**ASKED, "alphas": [-2, 4]}).alphas == [-2, 4]
    with pytest.raises(InputError, match=r"no rung at 0.25. Its rungs are -0.5, 0.5, 1.5"):
        read_question(LADDER, {**ASKED, "alphas": [0.25]})
    with pytest.raises(InputError, match="budget of 5"):
        read_question(LADDER, {**ASKED, "budget": 5})
    with pytest.raises(InputError, match="wrong with the question"):
        read_question(LADDER, None)


def test_a_conversation_goes_on_with_its_answers_and_without_its_thinking():
    turns = [
        Turn("a", Answer(1, "hm</think> b")),
        Turn("c", Answer(1, "", trouble="The server is dead")),
        Turn("d", Answer(1, "<think>without an end")),
    ]
    assert read_chat(turns, "e", INRA) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "e"},
    ]
    long = [Turn("x" * CHARACTERS, Answer(1, "y" * CHARACTERS))] * 2
    with pytest.raises(InputError, match="start a new one"):
        read_chat(long, "e", INRA)


# -- a model in this process -------------------------------------------------------------------------------------------
@pytest.fixture
def make_inra(tmp_path, make_checkpoint, thinking_tokenizer):
    """`make_inra(dtype)` writes a random InRa model whose adapter is far from the identity, and which writes ASCII."""

    def make(dtype, **config):
        folder = make_checkpoint(tmp_path / "inra", tokenizer=thinking_tokenizer, dtype=dtype, **config)
        model = InRaForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(folder))
        others = [id for token, id in thinking_tokenizer.get_vocab().items() if len(token) > 1 or token > "~"]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for parameter in (one for layer in model.adapter_layers for one in layer.parameters()):
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
            model.expanded.get_output_embeddings().weight[others] = 0
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def inra(make_inra):
    """In float64, where an answer does not depend on those beside it."""
    return make_inra("float64")


def write(backend, answers, message="4 - 9 =", budget=0):
    async def write_all():
        async for _ in follow(backend, [{"role": "user", "content": message}], budget, answers):
            pass

    asyncio.run(write_all())
    return answers


def generated(folder, alpha, message="4 - 9 =", tokens=24):
    """What InRaForCausalLM.generate writes."""
    tokenizer, model = load_chat_tokenizer(folder), InRaForCausalLM.from_pretrained(folder)
    prompt = render_chat(tokenizer, [{"role": "user", "content": message}], add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**ids, alpha=alpha, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_in_this_process_are_those_of_generate(inra):
    backend = LocalModel(inra, max_tokens=24)
    answers = write(backend, [Answer(0.0), Answer(0.5), Answer(1.5)])
    texts = [answer.text for answer in answers]
    assert texts == [generated(inra, alpha) for alpha in (0.0, 0.5, 1.5)] and len(set(texts)) == 3
    assert all(answer.tokens == 24 and answer.cut for answer in answers)
    budgeted = write(backend, [Answer(0.0)], budget=12)
    assert budgeted[0].text == generated(inra, TokenBudget(12)) != texts[0]
    backend.stops = frozenset([backend.tokenizer.encode(texts[0])[5]])  # what comes after a row's end is not shown
    ended = write(backend, [Answer(0.0)])[0]
    assert ended.tokens <= 6 and not ended.cut


def test_a_conversation_without_room_for_an_answer_says_so(inra):
    answer = write(LocalModel(inra, max_tokens=24), [Answer(1.0)], message="x" * 600)[0]
    assert "the model has no room for more" in answer.trouble


def test_an_answer_that_nobody_waits_for_is_not_written_to_its_end(inra):
    backend, answer = LocalModel(inra, max_tokens=400), Answer(0.5)

    async def leave():
        following = follow(backend, [{"role": "user", "content": "?"}], 0, [answer])
        async for _ in following:
            if answer.tokens:
                break
        await following.aclose()

    asyncio.run(leave())  # which waits for the thread
    assert 0 < answer.tokens < 400
    assert not backend._busy.locked()


# -- a server ----------------------------------------------------------------------------------------------------------
class Script(ThreadingHTTPServer):
    """A server on loopback that answers with the alpha that it is asked for, as often as `words` says."""

    def __init__(self, models=("inra",), knows_alpha=True):
        self.models, self.knows_alpha, self.words, self.end = models, knows_alpha, 3, "data: [DONE]\n\n"
        self.bodies, self.pause, self.left = [], 0, 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, {"data": [{"id": name, "max_model_len": 120} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        alpha = body.get("vllm_xargs", {}).get("inra_alpha")
        if self.path == "/v1/completions":
            wrong = self.server.knows_alpha and abs(alpha) > 100
            return self.reply(400 if wrong else 200, {"error": {"message": "inra_alpha must be between -100 and 100"}})
        self.server.bodies.append(body)
        if body["messages"][-1]["content"] == "refuse":
            return self.reply(400, {"error": {"message": f"no, {PAYLOAD}"}})
        self.send_response(200)
        self.end_headers()
        said = body["model"] if alpha is None else f"alpha={alpha:g}"
        for word, text in enumerate([f"{said}</think>", *[f" {said}"] * self.server.words], start=1):
            time.sleep(self.server.pause)
            try:
                self.chunk({"choices": [{"delta": {"content": text}}], "usage": {"completion_tokens": 2 * word}})
            except OSError:
                self.server.left += 1
                return None
        self.chunk({"choices": [{"delta": {"content": PAYLOAD}, "finish_reason": "length"}]})
        self.wfile.write(self.server.end.encode())
        return None

    def chunk(self, content):
        self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())

    def reply(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def script():
    """`script(…)` starts one."""
    started = []

    def start(*arguments, **options):
        started.append(Script(*arguments, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_answers_of_a_server_each_at_its_alpha(script):
    server = script()
    backend = find_server(f"{server.url}/v1/", 1000, None, None)
    assert backend.name == "inra" and backend.rungs == [] and backend.max_tokens == 60  # half of its positions
    answers = write(backend, [Answer(0.0), Answer(-0.35), Answer(2.0)], budget=7)
    for answer, said in zip(answers, ("alpha=0", "alpha=-0.35", "alpha=2"), strict=True):
        assert answer.text == f"{said}</think>" + f" {said}" * 3 + PAYLOAD
        assert (answer.tokens, answer.thinking, answer.cut, answer.trouble) == (8, 2, True, "")
    assert all(body["vllm_xargs"]["inra_budget"] == 7 for body in server.bodies)
    refused = write(backend, [Answer(0.0)], message="refuse")[0]
    assert refused.trouble == f"The server refuses this (status 400): no, {PAYLOAD}"
    assert refusal(502, b"<html>bad") == "The server refuses this (status 502): <html>bad"


def test_the_models_of_a_ladder_are_its_rungs(script):
    server = script(["base", "alpha-1.5", "alpha--0.5", "alpha-0.5", "alpha-x"], knows_alpha=False)
    backend = find_server(server.url, 10, None, None)
    assert backend.rungs == [-0.5, 0.5, 1.5]
    assert write(backend, [Answer(-0.5)])[0].text.startswith("alpha--0.5</think>")


def test_alpha_0_of_a_ladder_is_its_base(script):
    server = script(["reference", "alpha-0.5", "alpha-0.8"], knows_alpha=False)
    backend = find_server(server.url, 10, None, None)
    assert backend.rungs == [0, 0.5, 0.8]
    assert write(backend, [Answer(0.0)])[0].text.startswith("reference</think>")
    with pytest.raises(InputError, match="does not know alpha"):
        find_server(script(["reference"], knows_alpha=False).url, 10, None, None)


def test_the_slider_reaches_each_rung_of_a_ladder():
    import gradio as gr

    from realign_pipes.serving.playground.page import _alpha_slider

    rungs = [0.0, 0.5, 0.8]
    backend = replace(LADDER, models={rung: f"alpha-{rung:g}" for rung in rungs})
    with gr.Blocks():
        slider = _alpha_slider(backend, "alpha", 1.0, "Alpha")
    count = int((slider.maximum - slider.minimum) / slider.step)
    stops = [slider.minimum + slider.step * place for place in range(count + 1)]
    assert {min(rungs, key=lambda rung: abs(rung - stop)) for stop in stops} == {*rungs}


def test_a_server_that_is_not_there_or_does_not_know_alpha_is_refused(script):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"no server answers at http.* `realign-pipes serve MODEL` starts one"):
            find_server(f"http://127.0.0.1:{taken.getsockname()[1]}", 10, None, None)
    with pytest.raises(InputError, match="does not know alpha"):
        find_server(script(knows_alpha=False).url, 10, None, None)
    with pytest.raises(InputError, match="no server answers at localhost:80"):
        find_server("localhost:80", 10, None, None)
    with pytest.raises(InputError, match="not a list of models"):
        find_server(script(models=[]).url, 10, None, None)


def test_a_server_that_dies_is_said_in_words(script):
    server = script()
    backend = find_server(server.url, 100, None, None)
    server.end = ""
    answer = write(backend, [Answer(1.0)])[0]
    assert answer.text.startswith("alpha=1</think>")  # what it wrote stays
    assert answer.trouble == f"The server at {server.url} ended in the middle of this answer."
    server.end = 'data: {"error": {"message": "EngineCore died"}}\n\ndata: [DONE]\n\n'
    assert write(backend, [Answer(1.0)])[0].trouble == "The server says: EngineCore died"
    server.end = "data: {\n\ndata: [DONE]\n\n"
    assert "sent what cannot be read" in write(backend, [Answer(1.0)])[0].trouble
    server.stop()
    answer = write(backend, [Answer(1.0)])[0]
    assert answer.trouble == f"The server at {server.url} does not answer. Is it running?" and not answer.text


# -- who may ask what --------------------------------------------------------------------------------------------------
def status(password, path="/", host="127.0.0.1:7860", method="GET", **headers):
    """The answer of `Front` before an application that answers 200 to everything."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    given = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "path": path, "method": method,
             "headers": [(name.encode(), value.encode()) for name, value in given.items()]}  # fmt: skip
    asyncio.run(Front(app, password)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_the_page_alone_is_served():
    code, headers = status(None)
    assert code == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert status(None, "/gradio_api/queue/join", method="POST", content_length="10")[0] == 200
    for path in ("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://x", "/docs",
                 "/gradio_api/component_server", "/gradio_api/call/chat", "/monitoring"):  # fmt: skip
        assert status(None, path, method="POST", content_length="10")[0] == 404
    assert status(None, "/gradio_api/queue/join", method="POST", content_length="9999999")[0] == 413
    assert status(None, "/gradio_api/queue/join", method="POST")[0] == 413
    assert status(None, host="evil.example:7860")[0] == 400
    assert status(None, host="[::1]:7860")[0] == 200
    for name in ("127.0.0.1", "localhost", "[::1]"):  # at port 80, which browsers leave out
        assert status(None, host=name)[0] == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "evil.example:127.0.0.1:80", ""):
        assert status(None, host=name)[0] == 400


def test_a_password_is_asked_of_everybody():
    code, headers = status("secret", host="page.example")
    assert code == 401 and headers[b"www-authenticate"].startswith(b"Basic")
    assert status("secret", host="page.example", authorization=basic("any name:secret"))[0] == 200
    for wrong in (basic("a:Secret"), basic("secret"), "Basic !", "Bearer secret", basic("a:")):
        assert status("secret", "/assets/x.js", host="page.example", authorization=wrong)[0] == 401


def refused(*arguments):
    result = CliRunner().invoke(program, ["playground", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return result.output


def test_the_command_refuses_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("PLAYGROUND_PASSWORD", raising=False)
    assert "set a password in the variable PLAYGROUND_PASSWORD" in refused("--host", "192.0.2.1")
    assert "Name an InRa model's folder, or a server with --server" in refused("--port", 17860)
    assert "has no inra_config.json" in refused(tmp_path, "--port", 17860)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen on" in refused("--port", taken.getsockname()[1])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'realign_pipes[playground]'" in refused(tmp_path)


# -- in a browser ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("This test needs Chromium: install the Debian package `chromium`.")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=executable, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, monkeypatch):
    """`open_page(backend)` shows its page, without the protection of its Content-Security-Policy.

    Fails if the page or this process asked for anything beyond loopback, or if script that was written somewhere ran.
    """
    from realign_pipes.serving.playground.page import build_app

    asked, connected, errors, servers = [], [], [], []
    connect = socket.socket.connect

    def note(self, address):
        connected.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    context = browser.new_context(bypass_csp=True, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE)

    def show(backend):
        config = uvicorn.Config(build_app(backend, None), port=0, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.1)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda answer: errors.append(answer.url) if answer.status >= 400 else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/")
        page.wait_for_selector("#message textarea:enabled")
        return page

    yield show
    hacked = [page.evaluate("window.hacked ?? null") for page in context.pages]
    context.close()
    for server, thread in servers:
        server.should_exit = True
        thread.join()
    assert len(asked) > 30 and [url for url in asked if not url.startswith("http://127.0.0.1:")] == []
    assert [one for one in connected if isinstance(one, tuple) and one[0] not in ("127.0.0.1", "localhost")] == []
    assert errors == [] and set(hacked) == {None}


MOVE_AND_SEND = """([id, kind, value]) => {
    const field = document.querySelector(`#alpha input[type=${kind}]`);
    field.value = value;
    field.dispatchEvent(new Event('input', {bubbles: true}));
    document.querySelector(id).click();
}"""
"""Both in one go: nothing of the page's own runs in between."""


def send(page, text):
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")


def answer_number(page, number):
    return page.locator("#conversation article").nth(number)


def wait_for_cut_answers(page, count):
    """Wait until `count` answers stand side by side, all of them cut: each had its request then."""
    page.wait_for_function(
        """count => {
            const answers = [...document.querySelectorAll('#answers article')];
            return answers.length == count && answers.every(answer => answer.textContent.includes('Cut after'));
        }""",
        arg=count,
    )


@pytest.mark.browser
@pytest.mark.full
def test_another_alpha_is_another_answer_and_the_one_that_generate_gives(open_page, inra):
    page, message = open_page(LocalModel(inra, max_tokens=24)), f"4 - 9 {PAYLOAD} ="
    for number, alpha in enumerate(("0", "1.5")):
        page.fill("#alpha input[type=number]", alpha)
        send(page, message)
        answer = answer_number(page, number)
        answer.get_by_text("Cut after 24 tokens").wait_for()
        assert answer.locator("b").text_content() == f"alpha {alpha}"
    texts = [generated(inra, alpha, message) for alpha in (0.0, 1.5)]
    shown = page.locator("#conversation article .written").all_text_contents()
    assert shown == [text.strip() for text in texts] and texts[0] != texts[1]
    assert page.locator(".question").first.text_content() == message
    assert page.locator("#conversation img").count() == 0


@pytest.mark.browser
@pytest.mark.full
def test_what_is_shown_is_sent_and_what_goes_wrong_is_said(open_page, script):
    server = script()
    page = open_page(find_server(server.url, 100, None, None))
    for number, (kind, value) in enumerate((("range", "2.45"), ("number", "-0.7"), ("range", "0.1"))):
        page.fill("#message textarea", f"message {number}")
        page.evaluate(MOVE_AND_SEND, ["#send", kind, value])
        answer_number(page, number).get_by_text("Cut after").wait_for()
        assert server.bodies[-1]["vllm_xargs"] == {"inra_alpha": float(value)}
        assert server.bodies[-1]["messages"][-1]["content"] == f"message {number}"
        assert f"alpha={value}" in answer_number(page, number).locator(".final").text_content()
    assert PAYLOAD in answer_number(page, 0).locator(".final").text_content()
    assert page.locator("#conversation img").count() == 0

    page.get_by_role("tab", name="Side by side").click()
    page.click("#ask")
    wait_for_cut_answers(page, 3)
    assert sorted(body["vllm_xargs"]["inra_alpha"] for body in server.bodies[-3:]) == [0, 0.25, 1]
    page.get_by_role("radio", name="2").click()
    page.locator("#alpha-3").wait_for(state="hidden")
    page.fill("#budget-of-all input[type=number]", "33")
    page.click("#ask")
    wait_for_cut_answers(page, 2)
    asked = [body["vllm_xargs"] for body in server.bodies[-2:]]
    assert sorted(one["inra_alpha"] for one in asked) == [0, 0.25] and asked[0]["inra_budget"] == 33

    page.get_by_role("tab", name="Chat").click()
    server.pause, server.words = 0.05, 2000
    send(page, "slowly")
    answer_number(page, 3).locator(".final").wait_for()  # it is shown while it is written
    page.click("#stop")
    while not server.left:
        page.wait_for_timeout(100)
    server.pause, server.words, server.end = 0, 3, ""
    send(page, "and now?")
    page.get_by_text("ended in the middle of this answer").wait_for()
    assert "alpha=0.1" in answer_number(page, 4).locator(".final").text_content()
    server.stop()
    send(page, "still there?")
    page.get_by_text("does not answer. Is it running?").wait_for()


@pytest.mark.browser
@pytest.mark.full
def test_the_slider_of_a_ladder_stops_at_its_rungs(open_page, script):
    server = script(["base", "alpha--0.5", "alpha-0.5", "alpha-0.75", "alpha-1.5"])
    page = open_page(find_server(server.url, 100, None, None))
    assert page.locator("#budget").count() == 0
    page.fill("#alpha input[type=number]", "1.25")
    page.locator("#alpha input[type=number]").blur()
    page.wait_for_function("document.querySelector('#alpha input[type=number]').value == '1.5'")
    send(page, "?")
    answer_number(page, 0).get_by_text("Cut after").wait_for()
    page.fill("#message textarea", "?")
    page.evaluate(MOVE_AND_SEND, ["#send", "range", "-0.25"])
    answer_number(page, 1).get_by_text("Cut after").wait_for()
    assert [body["model"] for body in server.bodies] == ["alpha-1.5", "alpha--0.5"]


@pytest.mark.browser
@pytest.mark.serve
@pytest.mark.slow
def test_answers_by_vllm_are_those_of_generate(open_page, make_inra, tmp_path):
    folder = make_inra("float32", hidden_size=64, num_attention_heads=2)
    with start_server(ServedModel(folder), _OneReplica(PROJECT / ".venv-serve"), tmp_path / "log") as server:
        page = open_page(find_server(server.url, 24, folder, None))
        for number, alpha in enumerate(("0", "0.35", "2")):
            page.fill("#alpha input[type=number]", alpha)
            send(page, "4 - 9 =")
            answer_number(page, number).get_by_text("Cut after 24 tokens").wait_for()
        shown = page.locator("#conversation article .written").all_text_contents()
        page.fill("#budget input[type=number]", "12")
        send(page, "4 - 9 =")
        answer_number(page, 3).get_by_text("Cut after 24 tokens").wait_for()
        budgeted = answer_number(page, 3).locator(".written").text_content()
    texts = [generated(folder, alpha) for alpha in (0.0, 0.35, 2.0)]
    assert shown == [text.strip() for text in texts] and len(set(texts)) == 3
    assert budgeted == generated(folder, TokenBudget(12, alpha=2.0)).strip()
    send(page, "still there?")
    page.get_by_text("does not answer. Is it running?").wait_for()
