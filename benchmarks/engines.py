"""Tokens a second, and a second of a processor, of vLLM, of our sampler on Transformers, and of its plain generate().

    OMP_NUM_THREADS=1 python benchmarks/engines.py
    OMP_NUM_THREADS=1 python benchmarks/engines.py --requests 256 --mean-tokens 256 --dtypes bfloat16

Needs `make serve-setup`. A random Llama of SmolLM2's size draws at temperature 1 until one of its stop tokens comes,
which are so many that completions have `mean-tokens` tokens in the mean, each about as likely as the next to be the
last, up to four times as many: lengths are mixed as in practice. Prompts have 16 to 64 tokens. All requests are there
at the start: one batch for Transformers, at most `in-flight` at a time for vLLM. The time of starting is not counted,
and a round of a few requests warms up. Processor time is that of all processes of the server and of this one. On a
machine that others use too, tokens per second of a processor are what can be compared.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from harness import DEVICE, Results, arguments
from models import random_model

# isort: split
import psutil
import torch
from transformers import GenerationConfig

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.generation.engine import Description, Prompt
from realign_pipes.generation.parameters import Generation, Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.generation.vllm_engine import Endpoint, VLLMEngine
from realign_pipes.models.load import load_model, read_stops
from realign_pipes.serving.server import ServedModel, start_server

SIZE = "135m"


def save_model(path: Path, dtype: str, mean_tokens: int) -> None:
    """With as many stop tokens as give that length: their share of the vocabulary is 1 / mean_tokens."""
    model = random_model(SIZE, 0, getattr(torch, dtype))
    size = model.config.vocab_size
    model.generation_config = GenerationConfig(eos_token_id=list(range(1, size // mean_tokens + 1)), pad_token_id=0)
    model.save_pretrained(path)
    build_tokenizer(60).save_pretrained(path)


def processor_seconds() -> float:
    """Of this process and of all that it started and that still run."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def measure(results: Results, case: str, name: str, draw: Callable[[], int], repetitions: int) -> None:
    """`draw` returns the number of its tokens."""
    best = (0.0, 0.0)
    for _ in range(repetitions):
        start, started = processor_seconds(), time.perf_counter()
        tokens = draw()
        used, seconds = processor_seconds() - start, time.perf_counter() - started
        results.console.print(f"{case} · {name}: {tokens} tokens, {seconds:.1f} s, {used:.1f} s of a processor")
        best = max(best, (tokens / used, tokens / seconds))
    results.figure(case, f"{name}: tokens per second of a processor", best[0])
    results.figure(case, f"{name}: tokens per second", best[1])


def plain_generate(path: Path, prompts: Sequence[Prompt], sampling: Sampling) -> Callable[[], int]:
    """One static batch, padded on the left: it ends with its longest completion."""
    model = load_model(path, device=DEVICE)
    stops = model.generation_config.eos_token_id
    width = max(len(prompt.token_ids) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt.token_ids)) + prompt.token_ids for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt.token_ids)) + [1] * len(prompt.token_ids) for prompt in prompts])

    @torch.inference_mode()
    def draw() -> int:
        torch.manual_seed(sampling.seed)
        output = model.generate(
            input_ids=ids.to(DEVICE),
            attention_mask=mask.to(DEVICE),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
        )
        ended = torch.isin(output[:, width:].cpu(), torch.tensor(stops)).int()
        before = (ended.cumsum(1) - ended) == 0  # up to the first stop token, which counts
        return int(before.sum())

    return draw


def main() -> None:
    given = arguments(
        __doc__,
        dtypes=["float32", "bfloat16"],
        requests=96,
        mean_tokens=64,
        in_flight=96,
        repetitions=3,
        environment=".venv-serve",
    )
    results = Results("engines", "What draws completions", given)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 65, (given.requests,), generator=generator).tolist()
    prompts = [
        Prompt(f"request-{number}", torch.randint(1000, 49_000, (length,), generator=generator).tolist())
        for number, length in enumerate(lengths)
    ]
    sampling = Sampling(
        samples=1, temperature=1.0, top_p=1.0, max_new_tokens=4 * given.mean_tokens, batch_size=given.requests, seed=3
    )
    generation = Generation(
        engine="vllm",
        servers=None,
        environment=Path(given.environment),
        data_parallel_size=1,
        tensor_parallel_size=1,
        max_in_flight=given.in_flight,
    )
    for dtype in given.dtypes:
        with ExitStack() as stack:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / SIZE
            save_model(path, dtype, given.mean_tokens)
            case = f"{SIZE}, {dtype}, {given.requests} requests of {given.mean_tokens} tokens in the mean"
            ours = TransformersEngine.of_checkpoint(path)
            plain = plain_generate(path, prompts, sampling)

            def count(engine: TransformersEngine | VLLMEngine, some: Sequence[Prompt] = prompts) -> int:
                return sum(len(one.token_ids) for group in engine.draw(some, sampling) for one in group)

            count(ours, prompts[:4])
            measure(results, case, "our sampler", lambda: count(ours), given.repetitions)  # noqa: B023  # this turn
            measure(results, case, "generate", plain, given.repetitions)
            server = stack.enter_context(start_server(ServedModel(path), generation, path.with_suffix(".log")))
            vllm = VLLMEngine(
                (Endpoint(server.url, server.model),),
                read_stops(path),
                given.in_flight,
                Description("vllm", server.version, server.dtype),
            )
            count(vllm, prompts[:4])
            measure(results, case, "vLLM", lambda: count(vllm), given.repetitions)  # noqa: B023  # this turn
            speeds = {row["figure"]: row["value"] for row in results.figures if row["case"] == case}
            for other in ("our sampler", "generate"):
                for unit in ("tokens per second of a processor", "tokens per second"):
                    results.figure(
                        case, f"vLLM / {other}, {unit}", speeds[f"vLLM: {unit}"] / speeds[f"{other}: {unit}"]
                    )
    results.save()


if __name__ == "__main__":
    main()
