"""Parameters and made-up data for the tests of data_prep, and a reference model that follows a script."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign_pipes.data.parameters import Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.pipelines.data_prep.nodes import collect_samples
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep

SUMS = {"min_terms": 3, "max_terms": 6, "min_digits": 1, "max_digits": 1}


def _sampled(problems: int = 6, **calibration: Any) -> DataPrep:
    """Four samples of each of `problems` sums, in batches of eight."""
    sampling = {"samples": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24, "batch_size": 8, "seed": 3}
    return DataPrep.model_validate(
        {
            "seed": 5,
            "instruction": None,
            "thinking": "required",
            "calibration": {
                "source": "sampled",
                "task": {"kind": "reasoning_gym", "dataset": "chain_sum", "problems": problems, "options": SUMS},
                "sampling": sampling,
                "keep": "longest",
                "min_tokens": 1,
                "max_tokens": 24,
                **calibration,
            },
            "short_solutions": {"source": "samples", "cut_share": 0.5, "max_tokens": None},
            "preference_pairs": {"source": "samples"},
            "tasks": {
                "short": {
                    "kind": "reasoning_gym",
                    "dataset": "chain_sum",
                    "problems": 5,
                    "options": {**SUMS, "max_terms": 3},
                },
                "long": {
                    "kind": "reasoning_gym",
                    "dataset": "chain_sum",
                    "problems": 4,
                    "options": {**SUMS, "min_terms": 6},
                },
            },
        }
    )


def _from_dataset(path: Any, **calibration: Any) -> DataPrep:
    """The same evaluation tasks, calibrated on the completions in a file."""
    return DataPrep.model_validate(
        {
            **_sampled().model_dump(exclude={"calibration"}),
            "calibration": {
                "source": "dataset",
                "path": str(path),
                "keep": "all",
                "min_tokens": 1,
                "max_tokens": 100,
                "verifier": "exact",
                **calibration,
            },
        }
    )


def _write_jsonl(path: Any, rows: list[dict]) -> Any:
    """Write `rows`, return `path`."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _total(prompt: str) -> int:
    """What the sum in a chain_sum prompt comes to."""
    terms = re.search(r": (.*?) =", prompt)[1].replace("+ ", "+").replace("- ", "-").split()
    return sum(map(int, terms))


def _four_kinds(result: int, sample: int) -> str:
    """Sample 0: right and short; 1: right and longer by three tokens; 2: wrong; 3: cut off while thinking."""
    return {
        0: f"<think>a</think>so<answer>{result}</answer><|im_end|>",
        1: f"<think>aaaa</think>so<answer>{result}</answer><|im_end|>",
        2: f"<think>a</think>so<answer>{result + 1}</answer><|im_end|>",
        3: "<think>aaaaaaaa",
    }[sample]


@pytest.fixture
def sampled() -> Callable[..., DataPrep]:
    return _sampled


@pytest.fixture
def from_dataset() -> Callable[..., DataPrep]:
    return _from_dataset


@pytest.fixture
def write_jsonl() -> Callable[[Any, list[dict]], Any]:
    return _write_jsonl


@pytest.fixture
def four_kinds() -> Callable[[int, int], str]:
    return _four_kinds


def _sweep(max_new_tokens: int = 8, budgets: tuple[int, ...] = (), prompts: dict[str, str] | None = None) -> AlphaSweep:
    """How long the sweep's completions may be, which is all that data_prep asks of it."""
    sampling = {"samples": 1, "temperature": 1.0, "top_p": 1.0, "batch_size": 4, "seed": 0}
    return AlphaSweep.model_validate(
        {
            "dera_alphas": [],
            "merge_alphas": [],
            "ties": {"alphas": [], "density": 0.2},
            "svd": None,
            "lora_scale_alphas": [],
            "plausibility": 0.0,
            "inra_alphas": [],
            "close_biases": [],
            "others": {},
            "prompts": prompts or {},
            "budgets": {"tokens": list(budgets), "ramp": 0.5, "answer_tokens": 1},
            "sampling": {**sampling, "max_new_tokens": max_new_tokens},
            "bootstrap_samples": 1,
            "bootstrap_seed": 0,
        }
    )


def _models(**given: Any) -> Models:
    return Models.model_validate({"chat_template": None, "thinking": None, **given})


@pytest.fixture
def short_sweep() -> AlphaSweep:
    """One whose completions fit into any model."""
    return _sweep()


@pytest.fixture
def models() -> Callable[..., Models]:
    """`models(chat_template=None, thinking=None)`"""
    return _models


@pytest.fixture
def collect(make_generation: Callable[..., Generation]) -> Callable[..., Any]:
    """`collect(parameters, reference, work, models=…, generation=…, **_sweep)` runs collect_samples.

    The reference is both models.
    """

    def collect(
        parameters: DataPrep,
        reference: Path,
        work: Path,
        models: Models | None = None,
        generation: Generation | None = None,
        **sweep: Any,
    ) -> Any:
        folders = Folders(work=work, logs=work, validation=work)
        given = (_sweep(**sweep), models or _models(), generation or make_generation())
        return collect_samples(parameters, *given, folders, reference, reference)

    return collect


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, scripted_engine: Callable[..., Any]) -> Callable[..., Any]:
    """`script(write)`: the reference answers a sum of `result` in `sample` with `write(result, sample)`.

    A text that ends in `<|im_end|>` is finished, any other was cut off. Returns the engine (see `scripted_engine`).
    """

    def install(write: Callable[[int, int], str], **options: Any) -> Any:
        engine = scripted_engine(lambda prompt, sample: write(_total(prompt), sample), **options)
        monkeypatch.setattr(TransformersEngine, "of_checkpoint", lambda path, **_: engine.open())
        return engine

    return install
