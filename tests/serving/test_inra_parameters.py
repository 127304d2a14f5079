"""What a request may say of InRa, and its translation; without vLLM."""

import asyncio
import hashlib
import json
import re

import pytest
from inra_vllm import ARCHITECTURES
from inra_vllm.front import Front, translate
from inra_vllm.parameters import Realignment, read_realignment

from realign_pipes.paper.schedules import TokenBudget
from realign_pipes.serving import inra


@pytest.mark.parametrize(
    ("arguments", "realignment"),
    [
        (None, Realignment(0.75)),
        ({"session_id": "mine"}, Realignment(0.75)),
        ({"inra_alpha": 0.5}, Realignment(0.5)),
        ({"inra_alpha": -1, "inra_plausibility": 0.25}, Realignment(-1.0, 0.25)),
        ({"inra_alpha": 100}, Realignment(100.0)),
        ({"inra_budget": 64}, Realignment(TokenBudget(64))),
        ({"inra_budget": 64.0, "inra_ramp": 0, "inra_alpha": 0.25, "inra_fast": 2},
         Realignment(TokenBudget(64, 0.0, 0.25, 2.0))),
        ({"inra_budget": 64, "inra_begun": 10}, Realignment(TokenBudget(64), begun=10)),
    ],
)  # fmt: skip
def test_what_requests_ask_for(arguments, realignment):
    assert read_realignment(arguments, default_alpha=0.75) == realignment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inra_alpha": float("nan")}, "inra_alpha must be a finite number"),
        ({"inra_alpha": float("-inf")}, "inra_alpha must be a finite number"),
        ({"inra_alpha": 1e300}, "inra_alpha must be a finite number"),
        ({"inra_alpha": 10**400}, "inra_alpha must be a finite number"),
        ({"inra_alpha": "0.5"}, "inra_alpha must be a number, not '0.5'"),
        ({"inra_alpha": [0.5, 1.0]}, r"inra_alpha must be a number, not \[0.5, 1.0\]"),
        ({"inra_alpha": True}, "inra_alpha must be a number, not True"),
        ({"inra_alpha": None}, "inra_alpha must be a number, not None"),
        ({"inra_alpha": 100.5}, "inra_alpha must be between -100 and 100, not 100.5"),
        ({"inra_budget": 9, "inra_fast": -101}, "inra_fast must be between"),
        (
            {"inra_alfa": 0.5, "inra_lambda": 1},
            "there is no inra_alfa, inra_lambda: InRa knows inra_alpha, inra_budget",
        ),
        ({"inra_plausibility": 1}, r"inra_plausibility must be at least 0 and below 1, not 1.0"),
        ({"inra_plausibility": 0.999999999}, r"below 1"),  # 1 in float32
        ({"inra_plausibility": -0.1}, r"inra_plausibility must be"),
        ({"inra_budget": 0}, "inra_budget: a budget is at least one token"),
        ({"inra_budget": 2.5}, "inra_budget must be a whole number of tokens, not 2.5"),
        ({"inra_budget": 8, "inra_begun": 2.5}, "inra_begun must be a whole number of tokens, not 2.5"),
        ({"inra_budget": 8, "inra_begun": -1}, "inra_begun must be a whole number of tokens, not -1"),
        ({"inra_begun": 1}, "inra_begun belong to an inra_budget, which is missing"),
        ({"inra_budget": 8, "inra_ramp": 1.5}, "inra_budget: ramp is a share of the budget between 0 and 1, not 1.5"),
        ({"inra_ramp": 0.5, "inra_fast": 1}, "inra_ramp and inra_fast belong to an inra_budget, which is missing"),
    ],
)
def test_what_requests_are_refused_for(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_realignment(arguments)


def test_the_authors_control_is_an_alpha():
    request = {"model": "inra", "prompt": "é", "vllm_xargs": {"session_id": "mine"}, "control": 0.25}
    translated = json.loads(translate(json.dumps(request).encode()))
    assert translated == {
        "model": "inra", "prompt": "é", "vllm_xargs": {"session_id": "mine", "inra_alpha": 0.25},
    }  # fmt: skip
    for other in (b'{"vllm_xargs": {"inra_alpha": 2}}', b"[1]", b"not JSON", b'{"control": 1, "vllm_xargs": 3}'):
        assert translate(other) == other
    with pytest.raises(ValueError, match=re.escape("control and inra_alpha are two names of one thing")):
        translate(b'{"control": 1, "vllm_xargs": {"inra_alpha": 1}}')


@pytest.mark.parametrize("value", [True, 1, "true"])  # each is true to vLLM
def test_beam_search_which_would_lose_alpha_is_refused(value):
    with pytest.raises(ValueError, match="use_beam_search"):
        translate(json.dumps({"prompt": "a", "control": 0, "use_beam_search": value}).encode())
    assert translate(b'{"control": 0.5, "use_beam_search": false}')


@pytest.mark.parametrize("field", ["control", "inra_alpha"])
def test_what_cannot_be_read_does_not_reach_vllm(field):
    """Which takes true for 1: the request's prefix would be cached without the salt of alpha 1."""
    request = {"control": True} if field == "control" else {"vllm_xargs": {field: True}}
    with pytest.raises(ValueError, match="inra_alpha must be a number, not True"):
        translate(json.dumps(request).encode())


@pytest.mark.parametrize(
    ("arguments", "salt"),
    [
        ({"inra_alpha": 0}, "R "),
        ({"inra_alpha": 1e-60}, "R "),  # 0 in float32
        ({"inra_alpha": 1.0, "inra_plausibility": 0.5}, "A "),
        ({"inra_plausibility": 0.5}, "default "),
        ({}, "default "),
        ({"inra_alpha": 0.5}, None),
        ({"inra_alpha": 0.000001}, None),
        ({"inra_budget": 8}, None),
        ({"inra_budget": 8, "inra_alpha": 1, "inra_fast": 1}, None),
    ],
)
def test_prefixes_that_lack_a_stream_are_cached_apart(arguments, salt):
    request = {"prompt": "a", "vllm_xargs": arguments}
    assert json.loads(translate(json.dumps(request).encode())).get("cache_salt") == salt
    # a client's own salt is none of ours
    own = hashlib.sha256(b"R ").hexdigest()
    salted = json.loads(translate(json.dumps({**request, "cache_salt": "R "}).encode()))["cache_salt"]
    assert salted == f"{salt or 'AR '}{own}"


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_a_salt_is_as_long_as_vllm_takes_and_none_is_made_up(alpha):
    def salted(salt):
        request = {"prompt": "a", "vllm_xargs": {"inra_alpha": alpha}, "cache_salt": salt}
        return json.loads(translate(json.dumps(request).encode()))["cache_salt"]

    assert len(salted("x" * 128)) <= 128 and salted("x" * 128) != salted("x" * 127 + "y")
    for refused in ("", 3, False):  # by vLLM
        assert salted(refused) == refused
    assert salted(None) == ("R " if alpha == 0 else None)


def test_a_request_that_is_too_large_is_not_kept(monkeypatch):
    monkeypatch.setattr("inra_vllm.front.LARGEST", 10)
    parts = iter([b"12345678", b"90", b"1", b"never read"])
    sent = []

    async def app(*_):
        raise AssertionError("vLLM must not see it")

    async def receive():
        return {"type": "http.request", "body": next(parts), "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(Front(app)(scope, receive, send))
    assert sent[0]["status"] == 400
    assert "a request has 10 bytes at most" in sent[1]["body"].decode()
    assert next(parts) == b"never read"


def test_both_sides_know_the_same_architectures():
    assert inra.ARCHITECTURES == ARCHITECTURES
