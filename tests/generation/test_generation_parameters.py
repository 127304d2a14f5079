"""The parameters `generation`: servers are addresses, and are vLLM's."""

from pathlib import Path

import pytest
import yaml

from realign_pipes.generation.parameters import Generation

BASE = Path(__file__).parents[2] / "conf" / "base" / "parameters_generation.yml"


def test_base_draws_with_transformers():
    assert Generation.model_validate(yaml.safe_load(BASE.read_text())["generation"]).engine == "transformers"


def test_the_protocol_s_own_path_may_be_given(make_generation):
    given = ["http://localhost:8000/", "https://gpu-3.example/v1", "http://[::1]:8000/router/v1/"]
    expected = ["http://localhost:8000", "https://gpu-3.example", "http://[::1]:8000/router"]
    assert make_generation(engine="vllm", servers=given).servers == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"servers": ["localhost:8000"]}, "'localhost:8000' is not the address of a server"),
        ({"servers": ["ftp://host/x"]}, "'ftp://host/x' is not the address of a server"),
        ({"servers": ["http://"]}, "'http://' is not the address of a server"),
        ({"servers": ["http://host/v1?x=1"]}, "is not the address of a server"),
        ({"servers": []}, "at least 1 item"),
        ({"servers": ["http://a:1", "http://a:1/v1"]}, "name one server twice"),
        ({"servers": ["http://a:1"], "engine": "transformers"}, "Set engine to vllm, or servers to null"),
        ({"engine": "sglang"}, "Input should be 'transformers' or 'vllm'"),
        ({"max_in_flight": 0}, "greater than 0"),
        ({"tensor_parallel_size": 0}, "greater than 0"),
    ],
)
def test_what_is_refused(make_generation, changes, message):
    with pytest.raises(ValueError, match=message):
        make_generation(**{"engine": "vllm", **changes})
