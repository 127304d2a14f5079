"""What every fuzz test shares: reproducible examples in a bounded number, and ways to break JSON and bytes."""

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# `REALIGN_PIPES_FUZZ=thorough pytest tests/fuzz` now and then: other examples each time, and many more of them.
_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", max_examples=60, derandomize=True, deadline=None, suppress_health_check=_CHECKS)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=_CHECKS)
settings.load_profile(os.environ.get("REALIGN_PIPES_FUZZ", "ci"))

VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "\0"]),
    st.sampled_from(
        ["..", "../../x", "/etc/passwd", "x/../y", "\ud800", "\u202e", [], {}, [[]], {"a": {}}, "9" * 5000]
    ),
    st.sampled_from(["evil/kernel", "evil.Model", "__import__('os')", "pytorch_model.bin", "file:///etc/passwd"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=5,
    ),
).map(copy.deepcopy)
"""What stands in the place of any value of a broken JSON file."""


def _paths(content: Any, path: tuple = ()) -> list[tuple]:
    """The place of every value inside `content`; of a vocabulary, of its first few."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    items = list(items)[:20]
    return [path] + [inner for key, value in items for inner in _paths(value, (*path, key))]


@st.composite
def _broken_json(draw: st.DrawFn, content: Any) -> bytes:
    """JSON text of `content` with one to three changes: another value, a value gone, doubled or in another's place."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(content)))
        if not path:
            return json.dumps(draw(VALUES)).encode()
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "replace", "delete", "double", "swap", "add"]))
        if change == "replace":
            parent[path[-1]] = draw(VALUES)
        elif change == "delete":
            del parent[path[-1]]
        elif change == "double" and isinstance(parent, list):
            parent.append(parent[path[-1]])
        elif change == "swap" and isinstance(parent, list):
            other = draw(st.integers(0, len(parent) - 1))
            parent[path[-1]], parent[other] = parent[other], parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(VALUES)
    return json.dumps(content).encode()


@st.composite
def _broken_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut off, lengthened, or with some bytes changed."""
    change = draw(st.sampled_from(["cut", "append", "set", "insert", "replace"]))
    place = draw(st.integers(0, len(content)))
    junk = draw(st.binary(min_size=1, max_size=16))
    return {
        "cut": content[:place],
        "append": content + junk,
        "set": content[:place] + junk + content[place + len(junk) :],
        "insert": content[:place] + junk + content[place:],
        "replace": draw(st.sampled_from([b"", b"[" * 100_000, b"{", b"null", b"\xff\xfe", b'{"a":' * 5000, junk])),
    }[change]


@pytest.fixture
def broken_json():
    """`broken_json(content)` is a strategy: the JSON text of `content`, broken."""
    return _broken_json


@pytest.fixture
def broken_bytes():
    return _broken_bytes


@pytest.fixture
def examples():
    """Nine calibration examples of different lengths."""
    from datasets import Dataset

    rows = [
        {"id": f"e{i}", "prompt_ids": [4, 5 + i], "completion_ids": list(range(4, 7 + 2 * (i % 4)))} for i in range(9)
    ]
    return Dataset.from_list(rows)
