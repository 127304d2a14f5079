"""The real vLLM on the CPU, in the environment of `make serve-setup`, against Transformers. `make test-serve`.

A server takes half a minute to start, so tests share one; those that start another one say why.
"""

import multiprocessing
import os
import re
import shlex
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import psutil
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from realign_pipes.generation.engine import Closing, Description, Engine, Prompt
from realign_pipes.generation.graded import GradedCompletion, Question, read_graded, sample_and_grade
from realign_pipes.generation.parameters import Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.generation.vllm_engine import Endpoint, ServerError, VLLMEngine
from realign_pipes.models.load import load_model, load_tokenizer, read_stops
from realign_pipes.pipelines.ladder.job import MakeLadder
from realign_pipes.pipelines.trra.parameters import TrRa
from realign_pipes.serving.ladder import describe
from realign_pipes.serving.server import ServedModel, Server, is_ready, start_guard, start_server
from realign_pipes.tasks.parameters import DatasetProblems
from realign_pipes.teachers.parameters import Teachers

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = PROJECT / ".venv-serve"
PARAMETERS = SimpleNamespace(environment=ENVIRONMENT, data_parallel_size=1, tensor_parallel_size=1)
STOP = 3  # <|im_end|>

pytestmark = [
    pytest.mark.serve,
    pytest.mark.skipif(not ENVIRONMENT.exists(), reason="there is no vLLM: make serve-setup"),
]


@pytest.fixture(scope="module", autouse=True)
def _small_server() -> Iterator[None]:
    """One thread, and no compiled kernels: compiling takes longer than all that these models compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_CI_ENV", "1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


def save_random_model(path: Path, tokenizer: PreTrainedTokenizerFast, model_class: type, config_class: type) -> Path:
    """Two layers with heads of 32, which is what attention on the CPU asks for; far from uniform, so that no two tokens
    are as good as each other."""
    torch.manual_seed(1)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        eos_token_id=STOP,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model_class(config)
    model.generation_config = GenerationConfig(eos_token_id=STOP, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def engine_of(server: Server, checkpoint: Path, max_in_flight: int = 96) -> VLLMEngine:
    description = Description("vllm", server.version, server.dtype)
    return VLLMEngine((Endpoint(server.url, server.model),), read_stops(checkpoint), max_in_flight, description)


def sampling_of(max_new_tokens: int = 40, samples: int = 1, **values: float) -> Sampling:
    chosen = {"temperature": 1.0, "top_p": 0.9, "batch_size": 8, "seed": 7, **values}
    return Sampling(max_new_tokens=max_new_tokens, samples=samples, **chosen)


GREEDY = sampling_of(temperature=0.01, top_p=1e-6)  # one token has all of it


def draw(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> dict[tuple[str, int], list[int]]:
    return {(one.key, one.sample): one.token_ids for group in engine.draw(prompts, sampling) for one in group}


def random_prompts(count: int, closing: Closing | None = None) -> list[Prompt]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [
        Prompt(f"prompt-{number}", torch.randint(8, 264, (length,), generator=generator).tolist(), closing=closing)
        for number, length in enumerate(lengths)
    ]


def greedy(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """Transformers' own `generate`, one prompt at a time."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def assert_greedy_completions_agree(server: Server, checkpoint: Path, stops_of: Path) -> None:
    """`checkpoint` is what Transformers loads, an adapter too; `stops_of` names the stop tokens."""
    prompts = random_prompts(24)
    drawn = draw(engine_of(server, stops_of), prompts, GREEDY)
    model = load_model(checkpoint, device=torch.device("cpu"))
    assert drawn == {(prompt.key, 0): greedy(model, prompt.token_ids, 40) for prompt in prompts}
    ends = [ids[-1] == STOP for ids in drawn.values()]
    assert any(ends) and not all(ends)  # both a stop token and the limit end them


@pytest.fixture(scope="module")
def qwen2(folder: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_random_model(folder / "qwen2", byte_tokenizer, Qwen2ForCausalLM, Qwen2Config)


@pytest.fixture(scope="module")
def qwen2_server(qwen2: Path, folder: Path) -> Iterator[Server]:
    with start_server(ServedModel(qwen2), PARAMETERS, folder / "qwen2.log") as server:
        yield server


def test_greedy_completions_are_transformers_token_by_token(qwen2: Path, qwen2_server: Server):
    assert_greedy_completions_agree(qwen2_server, qwen2, stops_of=qwen2)


def test_a_seed_draws_the_same_alone_and_in_a_crowd(qwen2: Path, qwen2_server: Server):
    """Chunked prefill with this crowd ends the server (vLLM 0.32 on the CPU), which is why it is off."""
    prompts, engine = random_prompts(96), engine_of(qwen2_server, qwen2)
    in_a_crowd = draw(engine, prompts, sampling_of())
    for prompt in prompts[::12]:
        assert draw(engine, [prompt], sampling_of())[prompt.key, 0] == in_a_crowd[prompt.key, 0]
    assert len({tuple(ids) for ids in in_a_crowd.values()}) > 90
    assert draw(engine, prompts[:8], sampling_of(seed=8)) != {
        (one.key, 0): in_a_crowd[one.key, 0] for one in prompts[:8]
    }


def test_thinking_is_closed_by_force_as_transformers_does_it(qwen2: Path, qwen2_server: Server):
    closing = Closing(open_ids=(4,), close_ids=(5, 10), opened=True, at=10)
    prompts = random_prompts(12, closing)
    drawn = draw(engine_of(qwen2_server, qwen2), prompts, GREEDY)
    assert drawn == draw(TransformersEngine.of_checkpoint(qwen2), prompts, GREEDY)
    assert any(ids[10:12] == [5, 10] and len(ids) > 12 for ids in drawn.values())


def answer(server: Server, checkpoint: Path, file: Path, in_flight: int = 8) -> list[GradedCompletion]:
    """What a stage does with an engine: all questions, sampled and graded, and kept in `file` as they come."""
    task = DatasetProblems(kind="dataset", path="unused", verifier="exact")
    questions = [
        Question(prompt.key, task, "", prompt.token_ids, answer="0", metadata="{}") for prompt in random_prompts(60)
    ]
    graded = sample_and_grade(
        lambda: engine_of(server, checkpoint, in_flight),
        questions,
        load_tokenizer(checkpoint),
        sampling_of(max_new_tokens=120, samples=4),
        file,
        description="answers",
    )
    return sorted(graded, key=lambda one: (one.id, one.sample))


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_lines(file: Path, count: int) -> None:
    while lines(file) < count:
        time.sleep(0.01)


def test_after_a_kill_of_the_client_only_what_is_missing_is_drawn(qwen2: Path, qwen2_server: Server, folder: Path):
    file = folder / "killed.jsonl"
    client = multiprocessing.get_context("fork").Process(target=answer, args=(qwen2_server, qwen2, file))
    client.start()
    wait_for_lines(file, 5)
    os.kill(client.pid, signal.SIGKILL)
    client.join()
    kept = len(read_graded(file))  # removes a line that is not whole
    before = file.read_bytes()
    assert 0 < kept < 240
    resumed = answer(qwen2_server, qwen2, file)
    assert file.read_bytes().startswith(before) and len(read_graded(file)) == 240
    assert resumed == answer(qwen2_server, qwen2, folder / "undisturbed.jsonl", in_flight=96)


@pytest.mark.slow  # the same as of Qwen2, of the other architecture
def test_greedy_completions_of_a_llama(folder: Path, byte_tokenizer: PreTrainedTokenizerFast):
    path = save_random_model(folder / "llama", byte_tokenizer, LlamaForCausalLM, LlamaConfig)
    with start_server(ServedModel(path), PARAMETERS, folder / "llama.log") as server:
        assert_greedy_completions_agree(server, path, stops_of=path)


@pytest.mark.slow  # it starts two engines
def test_two_replicas_of_one_server_draw_what_one_engine_draws(qwen2: Path, qwen2_server: Server, folder: Path):
    two = SimpleNamespace(environment=ENVIRONMENT, data_parallel_size=2, tensor_parallel_size=1)
    prompts = random_prompts(64)
    with start_server(ServedModel(qwen2), two, folder / "replicas.log") as server:
        drawn = draw(engine_of(server, qwen2), prompts, sampling_of())
        served = httpx2.get(f"{server.url}/metrics", trust_env=False).text
    assert drawn == draw(engine_of(qwen2_server, qwen2), prompts, sampling_of())
    counts = re.findall(r'^vllm:request_success_total\{engine="(\d)".* (\d+)\.0$', served, re.MULTILINE)
    requests = Counter[str]()
    for engine, count in counts:
        requests[engine] += int(count)
    assert requests.keys() == {"0", "1"} and min(requests.values()) > 0 and requests.total() == 64


def test_a_lora_student_is_served(qwen2: Path, folder: Path):
    """A server of its own: adapters have to be asked for at the start."""
    torch.manual_seed(2)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(qwen2),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    adapter = folder / "lora"
    model.save_pretrained(adapter)
    with start_server(ServedModel(qwen2, adapter), PARAMETERS, folder / "lora.log") as server:
        assert_greedy_completions_agree(server, adapter, stops_of=qwen2)


def make_ladder(reference: Path, aligned: Path, parameters: dict[str, object], work: Path) -> Path:
    trra = yaml.safe_load((PROJECT / "conf" / "base" / "parameters_trra.yml").read_text())["trra"]
    job = MakeLadder(
        parameters=parameters,
        trra=TrRa.model_validate(trra),
        teachers=Teachers(mode="online", dtype="auto", batch_size=4, shard_tokens=12),
        reference=reference,
        aligned=aligned,
        examples=work / "none",
        teacher_cache=work / "none",
        environment=ENVIRONMENT,
        work=work,
        students=work / "none",
    )
    return job.run().folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_ladder_is_served_by_the_command_that_it_prints(qwen2: Path, folder: Path):
    """Two rungs in one batch. A server of its own: the command starts stock vLLM, and nothing else is set for it."""
    aligned = AutoModelForCausalLM.from_pretrained(qwen2)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in aligned.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    aligned.save_pretrained(folder / "aligned")
    load_tokenizer(qwen2).save_pretrained(folder / "aligned")
    ladder = make_ladder(
        qwen2, folder / "aligned", {"method": "svd", "alphas": [0.5, 1.5], "rank": 12}, folder / "made"
    )
    command, _ = describe(ladder, qwen2, ENVIRONMENT)
    port = free_port()
    output = (folder / "ladder.log").open("w")
    guard = start_guard([*shlex.split(command), "--port", str(port)], dict(os.environ), output)
    try:
        while not is_ready(port):
            assert guard.poll() is None, (folder / "ladder.log").read_text()[-3000:]
            time.sleep(0.5)
        prompts = random_prompts(10)
        description = Description("vllm", "of the command", "float32")

        def ask(name: str) -> dict[tuple[str, int], list[int]]:
            endpoint = Endpoint(f"http://127.0.0.1:{port}", name)
            return draw(VLLMEngine((endpoint,), read_stops(qwen2), 16, description), prompts, GREEDY)

        with ThreadPoolExecutor() as pool:
            names = {"alpha-0.5": ladder / "alpha-0.5", "alpha-1.5": ladder / "alpha-1.5", "reference": qwen2}
            drawn = dict(zip(names, pool.map(ask, names), strict=True))
    finally:
        guard.terminate()
        guard.wait()
        output.close()
    for name, path in names.items():
        model = load_model(path, device=torch.device("cpu"))
        assert drawn[name] == {(prompt.key, 0): greedy(model, prompt.token_ids, 40) for prompt in prompts}, name
    assert len({str(texts) for texts in drawn.values()}) == 3


def test_after_a_kill_of_the_server_a_new_one_draws_what_is_missing(
    qwen2: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("realign_pipes.generation.vllm_engine.DELAYS", (0.1,))  # a minute otherwise
    file = folder / "server_killed.jsonl"

    def kill_server() -> None:
        wait_for_lines(file, 5)
        served = [one for one in psutil.Process().children(recursive=True) if "api_server" in " ".join(one.cmdline())]
        max(served, key=lambda one: one.create_time()).kill()  # the guard, which names it too, started before it

    with start_server(ServedModel(qwen2), PARAMETERS, folder / "first.log") as server, ThreadPoolExecutor() as pool:
        killed = pool.submit(kill_server)
        with pytest.raises(ServerError):
            answer(server, qwen2, file)
        killed.result()
    before = file.read_bytes()
    assert 0 < len(read_graded(file)) < 240
    with start_server(ServedModel(qwen2), PARAMETERS, folder / "second.log") as server:
        resumed = answer(server, qwen2, file)
        assert file.read_bytes().startswith(before)
        assert resumed == answer(server, qwen2, folder / "undisturbed_2.jsonl", in_flight=96)
