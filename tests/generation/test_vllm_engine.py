"""The client of a server: what it asks for, what it makes of the answers, and how it takes a server's trouble."""

import dataclasses
import json
import math
import random
import socket
import threading
import time
from itertools import pairwise

import pytest
import torch

from realign_pipes.errors import UserError
from realign_pipes.generation import vllm_engine as module
from realign_pipes.generation.engine import Closing, Description, Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.generation.vllm_engine import Endpoint, ServerError, VLLMEngine, seed_of, served_min_p
from realign_pipes.models.load import load_model
from realign_pipes.paper.schedules import TokenBudget

STOPS = (3, 9)
DESCRIPTION = Description("vllm", "0.32.0", "float32")
SAMPLING = Sampling(samples=2, temperature=0.5, top_p=0.9, max_new_tokens=6, batch_size=1, seed=7)
PROMPTS = [Prompt(f"p{number}", [100 + number, 200]) for number in range(4)]


def write(body):
    """Some tokens that depend on the seed, to the end or cut off."""
    tokens = [50 + body["seed"] % 40, 60, 61, 62, 63, 64]
    return [tokens[0], 60, 9] if body["seed"] % 3 == 0 and body["max_tokens"] > 2 else tokens[: body["max_tokens"]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "DELAYS", (0.01, 0.02))


@pytest.fixture
def start(fake_server):
    """`start(draw=write, **attributes)` starts a FakeServer."""
    return lambda draw=write, **attributes: fake_server(draw, **attributes)


def engine_for(*servers, max_in_flight=4, stops=STOPS, **options):
    endpoints = tuple(Endpoint(server.url, "model") for server in servers)
    return VLLMEngine(endpoints, stops, max_in_flight, DESCRIPTION, **options)


def draw(engine, prompts=PROMPTS, done=(), **changes):
    """{(key, sample): (token ids, finished)}"""
    groups = engine.draw(prompts, SAMPLING.model_copy(update=changes), done)
    drawn = [one for group in groups for one in group]
    assert len({(one.key, one.sample) for one in drawn}) == len(drawn)
    return {(one.key, one.sample): (one.token_ids, one.finished) for one in drawn}


def test_completions_are_what_the_server_drew(start):
    server = start()
    drawn = draw(engine_for(server))
    assert len(drawn) == 8
    expected = {}
    for prompt in PROMPTS:
        for sample in range(2):
            tokens = write({"seed": seed_of(7, prompt.key, sample), "max_tokens": 6})
            expected[prompt.key, sample] = (tokens, tokens[-1] == 9)
    assert drawn == expected
    assert {finished for _, finished in drawn.values()} == {True, False}
    asked = {(body["prompt"][0], body["seed"]): body for body in server.bodies}
    assert asked[101, seed_of(7, "p1", 1)] == {
        "model": "model",
        "prompt": [101, 200],
        "max_tokens": 6,
        "n": 1,
        "seed": seed_of(7, "p1", 1),
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [3, 9],
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_what_is_done_is_not_asked_for(start):
    server = start()
    whole = draw(engine_for(server))
    server.bodies.clear()
    done = {("p0", 1), ("p2", 0), ("p2", 1)}
    assert draw(engine_for(server), done=done) == {key: one for key, one in whole.items() if key not in done}
    assert len(server.bodies) == 5
    assert draw(engine_for(server), done=list(whole)) == {} and len(server.bodies) == 5


# -- random numbers ----------------------------------------------------------------------------------------------------
def circular(first, second, size):
    return min((first - second) % size, (second - first) % size)


def test_seeds_are_apart_whatever_part_of_them_is_read():
    seeds = {(p, s): seed_of(50, f"aime-{p:05d}", s) for p in range(560) for s in range(64)}
    assert all(0 <= seed < 2**53 for seed in seeds.values())
    assert len(set(seeds.values())) == len(seeds)
    everything = sorted(seeds.values())
    assert min(after - before for before, after in pairwise(everything)) > 1000
    for bits in (32, 53):
        of_one = [seeds[0, sample] % 2**bits for sample in range(64)]
        gaps = [circular(one, other, 2**bits) for i, one in enumerate(of_one) for other in of_one[:i]]
        assert min(gaps) > 2**bits / 64 / 3, "three samples' even share, as golden multiples are spread"
    assert len({seed % 2**32 for p, seed in ((p, seeds[p, 0]) for p in range(560))}) == 560


def test_a_seed_depends_on_all_that_it_should():
    base = seed_of(1, "a", 0)
    assert base == seed_of(1, "a", 0)
    assert len({base, seed_of(2, "a", 0), seed_of(1, "b", 0), seed_of(1, "a", 1), seed_of(1, "a", 0, begun=5)}) == 5


def test_min_p_keeps_the_same_tokens_after_the_temperature():
    random_, counts = random.Random(0), set()
    for temperature in (0.3, 0.7, 1.0, 2.5):
        for min_p in (0.01, 0.1, 0.6):
            logits = torch.tensor([random_.gauss(0, 1.5) for _ in range(400)], dtype=torch.float64)
            before = torch.softmax(logits, -1)
            after = torch.softmax(logits / temperature, -1)
            kept = after >= served_min_p(min_p, temperature) * after.max()
            assert kept.tolist() == (before >= min_p * before.max()).tolist()
            counts.add(int(kept.sum()))
    assert len(counts) > 3 and min(counts) < 400


def test_min_p_and_inra_s_arguments_are_sent(start):
    server = start()
    draw(engine_for(server, min_p=0.1), PROMPTS[:1], samples=1)
    assert server.bodies[-1]["min_p"] == pytest.approx(0.01) and "vllm_xargs" not in server.bodies[-1]
    draw(engine_for(server, plausibility=0.2), [Prompt("a", [1], alpha=0.5)], samples=1)
    assert server.bodies[-1]["vllm_xargs"] == {"inra_alpha": 0.5, "inra_plausibility": 0.2}
    draw(engine_for(server), [Prompt("a", [1], alpha=TokenBudget(6, 0.75, 0.25, 1.5))], samples=1)
    budget = {"inra_budget": 6, "inra_ramp": 0.75, "inra_alpha": 0.25, "inra_fast": 1.5}
    assert server.bodies[-1]["vllm_xargs"] == budget
    closing = Closing((30,), (31, 32), True, at=2)
    server.draw = lambda body: [60] * body["max_tokens"]
    drawn = draw(engine_for(server), [Prompt("a", [1], TokenBudget(6, 0.75, 0.25, 1.5), closing)], samples=1)
    assert drawn["a", 0] == ([60, 60, 31, 32, 60, 60], False)
    assert server.bodies[-1]["vllm_xargs"] == {**budget, "inra_begun": 4}, "its schedule goes on"
    assert server.bodies[-1]["prompt"] == [1, 60, 60, 31, 32]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("a", [1], closing=Closing((1,), (2,), True, bias=2.0)), "a: a server cannot be asked for a bias"),
        (Prompt("a", [1], alpha=lambda step, row: 0.0), "a: a server cannot be asked for an alpha that follows"),
    ],
)
def test_what_no_request_can_say_is_refused(start, prompt, message):
    with pytest.raises(ValueError, match=message):
        draw(engine_for(start()), [prompt])


# -- requests in flight ------------------------------------------------------------------------------------------------
def test_servers_share_the_work_within_their_bounds(start):
    servers = [start(pause=0.02), start(pause=0.02)]
    prompts = [Prompt(f"p{number}", [number]) for number in range(20)]
    drawn = draw(engine_for(*servers, max_in_flight=3), prompts)
    assert len(drawn) == 40
    assert sum(len(server.bodies) for server in servers) == 40
    assert [server.most for server in servers] == [3, 3]
    assert drawn == draw(engine_for(servers[0], max_in_flight=64), prompts), "seeds, not servers, decide"


def test_completions_come_while_others_are_drawn(start):
    released = []

    def hold(number, body):
        while body["prompt"][0] == 102 and not released:
            time.sleep(0.005)

    server = start(trouble=hold)
    groups = engine_for(server).draw(PROMPTS, SAMPLING)
    seen = []
    while len(seen) < 6:
        seen += next(groups)
    assert {one.key for one in seen} == {"p0", "p1", "p3"}
    released.append(True)
    assert {one.key for group in groups for one in group} == {"p2"}


def test_a_caller_that_stops_leaves_nothing_behind(start):
    stopped = threading.Event()

    def hold(number, body):  # however slow the machine is, no more than one request follows before the caller stops
        if number > 0:
            stopped.wait(10)

    server = start(trouble=hold)
    groups = engine_for(server, max_in_flight=1).draw(PROMPTS, SAMPLING)
    next(groups)
    groups.close()
    stopped.set()
    time.sleep(0.5)  # also for a request that was on its way
    assert len(server.bodies) <= 3  # of ten


# -- a server's trouble ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_trouble_that_passes_is_waited_for(start, status):
    expected = draw(engine_for(start()))
    server = start(trouble=lambda number, body: (status, "busy") if number < 2 else None)
    assert draw(engine_for(server, max_in_flight=1)) == expected
    assert len(server.bodies) == 10


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def stop_midway(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("trouble", [hang_up, stop_midway])
def test_a_broken_connection_is_tried_again(start, trouble):
    expected = draw(engine_for(start()))
    server = start(trouble=lambda number, body: trouble if number in (0, 5) else None)
    assert draw(engine_for(server, max_in_flight=1)) == expected


@pytest.mark.parametrize("trouble", [(500, "CUDA error"), hang_up, stop_midway])
def test_a_server_that_is_lost_ends_the_run_and_what_came_is_kept(start, trouble):
    server = start(trouble=lambda number, body: trouble if number >= 3 else None)
    groups, drawn = engine_for(server, max_in_flight=1).draw(PROMPTS, SAMPLING), []
    with pytest.raises(ServerError, match=r"the server is lost: http://127.* failed 3 times, the last time with"):
        for group in groups:
            drawn += group
    assert len(drawn) == 3 and len(server.bodies) == 6
    server.trouble = lambda number, body: None
    rest = draw(engine_for(server), done={(one.key, one.sample) for one in drawn})
    assert {**{(one.key, one.sample): (one.token_ids, one.finished) for one in drawn}, **rest} == draw(
        engine_for(server)
    )


def test_a_server_that_is_not_there():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(UserError, match=r"the server is lost: .*ConnectError"):
        draw(VLLMEngine((Endpoint(url, "model"),), STOPS, 2, DESCRIPTION))


def test_a_completion_is_waited_for_as_long_as_its_server_is_alive():
    """Nothing but /health says whether a server still draws a long one."""
    timeout = module.make_client().timeout
    assert (timeout.connect, timeout.read, timeout.write, timeout.pool) == (module.CONNECTING, None, None, None)


def test_a_server_that_hangs_is_lost_long_before_its_answer_is_due(start, monkeypatch):
    monkeypatch.setattr(module, "WATCHING", 0.01)
    released = []

    def hold(handler):
        while not released:
            time.sleep(0.01)

    server = start(trouble=lambda number, body: hold, healthy=False)
    with pytest.raises(ServerError, match=r"/health did not answer 3 times"):
        draw(engine_for(server))
    released.append(True)


def changed(**changes):
    """An answer with other values in its choice; None for without."""

    def trouble(number, body):
        choice = {"token_ids": [60, 9], "prompt_token_ids": body["prompt"], "finish_reason": "stop", **changes}
        return 200, json.dumps({"choices": [{name: value for name, value in choice.items() if value is not None}]})

    return trouble


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            lambda *_: (400, '{"error": {"message": "too long"}}'),
            r"refused the request for 'model' \(status 400: .*too lo",
        ),
        (lambda *_: (404, "no such model"), r"refused the request for 'model' \(status 404: no such model\)"),
        (lambda *_: (200, "<html>"), r"answered what is no completion.*: <html>"),
        (lambda *_: (200, "[]"), r"answered what is no completion"),
        (lambda *_: (200, '{"choices": []}'), r"answered what is no completion \(choices: .*at least 1"),
        (changed(token_ids=None), "does not return token ids"),
        (changed(prompt_token_ids=None), "does not return token ids"),
        (changed(prompt_token_ids=[1, 100, 200]), "answered another prompt than it was given: 3 tokens instead of 2"),
        (changed(prompt_token_ids=[100, 201]), "answered another prompt than it was given"),
        (changed(token_ids=[]), "ended a completion after 0 tokens"),
        (changed(token_ids=[60, 61]), "ended a completion after 2 tokens"),
        (changed(token_ids=[60] * 7), "ended a completion after 7 tokens"),
        (changed(token_ids=[60, -1]), r"answered what is no completion \(choices.0.token_ids.1"),
        (changed(token_ids=["a", 9]), r"answered what is no completion \(choices.0.token_ids.0"),
    ],
)
def test_an_answer_that_cannot_be_used_ends_the_run_at_once(start, trouble, message):
    server = start(trouble=trouble)
    with pytest.raises(ServerError, match=message):
        draw(engine_for(server, max_in_flight=1))
    assert len(server.bodies) == 1


def test_tokens_after_the_end_are_cut_off(start):
    """A server may not know `stop_token_ids`, and decode on."""
    server = start(lambda body: [60, 9, 61, 62, 63, 64])
    assert set(map(str, draw(engine_for(server)).values())) == {"([60, 9], True)"}


# -- against Transformers' engine --------------------------------------------------------------------------------------
@pytest.fixture
def model(tmp_path, make_checkpoint):
    model = load_model(make_checkpoint(tmp_path / "m", seed=4), device=torch.device("cpu"), dtype=torch.float64)
    model.generation_config.eos_token_id = [3, 200, 201, 202]
    return model


def greedy(model):
    """What a server draws that decodes greedily with the model."""

    def draw(body):
        tokens = []
        with torch.inference_mode():
            while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
                logits = model(torch.tensor([[*body["prompt"], *tokens]])).logits[0, -1]
                tokens.append(int(logits.argmax()))
        return tokens

    return draw


GREEDY = Sampling(samples=1, temperature=1e-6, top_p=1.0, max_new_tokens=24, batch_size=3, seed=1)
OPEN, CLOSE = (33, 34), (41, 42, 43)


def both(model, server, prompts):
    engines = TransformersEngine(model), engine_for(server, stops=model.generation_config.eos_token_id)
    return [
        {one.key: (one.token_ids, one.finished) for group in engine.draw(prompts, GREEDY) for one in group}
        for engine in engines
    ]


def test_greedy_completions_are_those_of_transformers(start, model):
    prompts = [Prompt(f"p{number}", [number + 50, 60, number + 70]) for number in range(8)]
    ours, served = both(model, start(greedy(model)), prompts)
    assert ours == served and len({str(one) for one in ours.values()}) == 8
    assert {finished for _, finished in ours.values()} == {True, False}


@pytest.mark.parametrize("at", [0, 1, 7, 23, 24, 40])
def test_thinking_is_closed_where_transformers_closes_it(start, model, at):
    """Also a tag that the model has begun, thinking that it reopens, and a limit inside the tag."""
    plain = both(model, start(greedy(model)), [Prompt("x", [55, 60, 75])])[0]["x"][0]
    tags = {
        "its own": (OPEN, CLOSE),
        "begun": (OPEN, (*plain[5:7], 41, 42)),
        "closed by itself": (OPEN, tuple(plain[3:5])),
        "reopened": (tuple(plain[9:11]), tuple(plain[2:3])),
        "opened late": (tuple(plain[8:10]), CLOSE),
    }
    prompts = [
        Prompt(f"{name}, {opened}", [55, 60, 75], closing=Closing(*pair, opened, at=at))
        for name, pair in tags.items()
        for opened in (True, False)
    ]
    ours, served = both(model, start(greedy(model)), prompts)
    assert ours == served
    if at < 20:
        assert len({str(one) for one in ours.values()}) > 2


def test_a_closing_without_force_changes_nothing(start, model):
    prompt = Prompt("x", [55, 60, 75])
    server = start(greedy(model))
    closed = dataclasses.replace(prompt, closing=Closing(OPEN, CLOSE, opened=True))
    assert both(model, server, [prompt])[1] == both(model, server, [closed])[1]


def test_a_notebook_s_running_loop_is_no_obstacle(start):
    import asyncio

    server = start()

    async def cell():
        return draw(engine_for(server))

    assert len(asyncio.run(cell())) == 8


def test_temperatures_of_the_formula():
    assert served_min_p(0.25, 0.5) == 0.0625 and served_min_p(0.25, 1.0) == 0.25
    assert math.isclose(served_min_p(0.25, 2.0), 0.5)
