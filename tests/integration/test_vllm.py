"""The real vLLM on the CPU, in the environment of `make serve-setup`, against Transformers. `make test-serve`.

A server takes half a minute to start, so tests share one; those that start another one say why.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
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

from realign_pipes.models.load import load_model
from realign_pipes.serving.server import ServedModel, Server, start_server

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


def complete(server: Server, prompt: Sequence[int], **sampling: object) -> list[int]:
    """The ids of one completion, straight from the protocol."""
    body = {"model": server.model, "prompt": list(prompt), "return_token_ids": True, **sampling}
    connection = HTTPConnection(server.url.removeprefix("http://"), timeout=300)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["choices"][0]["token_ids"]


def random_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(8, 264, (length,), generator=generator).tolist() for length in lengths]


def greedy(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """Transformers' own `generate`, one prompt at a time."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def assert_greedy_completions_agree(server: Server, model: torch.nn.Module) -> None:
    prompts = random_prompts(24)
    with ThreadPoolExecutor(len(prompts)) as pool:
        drawn = list(pool.map(lambda prompt: complete(server, prompt, temperature=0, max_tokens=40), prompts))
    assert drawn == [greedy(model, prompt, 40) for prompt in prompts]
    assert any(ids[-1] == STOP for ids in drawn) and any(len(ids) == 40 for ids in drawn)  # both ends are covered


@pytest.fixture(scope="module")
def qwen2(folder: Path, byte_tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_random_model(folder / "qwen2", byte_tokenizer, Qwen2ForCausalLM, Qwen2Config)


@pytest.fixture(scope="module")
def qwen2_server(qwen2: Path, folder: Path) -> Iterator[Server]:
    with start_server(ServedModel(qwen2), PARAMETERS, folder / "qwen2.log") as server:
        yield server


def test_greedy_completions_are_transformers_token_by_token(qwen2: Path, qwen2_server: Server):
    assert_greedy_completions_agree(qwen2_server, load_model(qwen2, device=torch.device("cpu")))


def test_a_seed_draws_the_same_alone_and_in_a_crowd(qwen2_server: Server):
    """Chunked prefill with this crowd ends the server (vLLM 0.32 on the CPU), which is why it is off."""
    prompts = random_prompts(96)

    def draw(number: int) -> list[int]:
        return complete(qwen2_server, prompts[number], seed=1000 * number, temperature=1.0, top_p=0.9, max_tokens=40)

    with ThreadPoolExecutor(len(prompts)) as pool:
        in_a_crowd = list(pool.map(draw, range(len(prompts))))
    alone = [draw(number) for number in range(0, len(prompts), 12)]
    assert alone == in_a_crowd[::12]
    assert len({tuple(ids) for ids in in_a_crowd}) > 90


@pytest.mark.slow  # the same as of Qwen2, of the other architecture
def test_greedy_completions_of_a_llama(folder: Path, byte_tokenizer: PreTrainedTokenizerFast):
    path = save_random_model(folder / "llama", byte_tokenizer, LlamaForCausalLM, LlamaConfig)
    with start_server(ServedModel(path), PARAMETERS, folder / "llama.log") as server:
        assert_greedy_completions_agree(server, load_model(path, device=torch.device("cpu")))


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
        assert_greedy_completions_agree(server, load_model(adapter, device=torch.device("cpu")))
