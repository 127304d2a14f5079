"""A made-up sweep of all kinds of candidates, with the shape of real ones and seeded noise."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from realign_pipes.reporting.recommendation import recommend
from realign_pipes.sweep.kinds import KINDS
from realign_pipes.sweep.metrics import summarise_budgets, summarise_sweep
from realign_pipes.validation.validator import GreatExpectations

# candidate: (kind, alpha, probability of a correct answer, mean tokens, seconds)
CANDIDATES: dict[str, tuple[str, float, float, float, float]] = {
    "reference": ("reference", np.nan, 0.983, 89, 31),
    "aligned": ("aligned", np.nan, 0.977, 73, 26),
    **{
        f"dera_{alpha}": ("dera", alpha, correct, tokens, 70)
        for alpha, correct, tokens in [
            (0.25, 0.983, 85),
            (0.5, 0.982, 80),
            (1.5, 0.975, 65),
            (2.0, 0.94, 58),
            (3.0, 0.75, 49),
        ]
    },
    **{
        f"trra_{alpha}": ("trra", alpha, correct, tokens, 24)
        for alpha, correct, tokens in [
            (0.5, 0.98, 80.1),
            (1.0, 0.979, 72.5),
            (1.5, 0.977, 64.3),
            (2.0, 0.927, 59),
            (3.0, 0.73, 49.5),
        ]
    },
    "trra_iter_1_1.5": ("trra_iter", 1.5, 0.96, 56, 20),
    "trra_iter_2_1.5": ("trra_iter", 1.5, 0.90, 50, 19),
    **{
        f"inra_{alpha}": ("inra", alpha, correct, tokens, 48)
        for alpha, correct, tokens in [
            (-0.25, 0.984, 95),
            (0.0, 0.983, 89),
            (0.25, 0.955, 92),
            (0.5, 0.90, 60),
            (0.75, 0.975, 31),
            (1.0, 0.97, 30.5),
            (1.25, 0.965, 30),
        ]
    },
}

FURTHER: dict[str, tuple[str, float, float, float, float]] = {
    **{
        f"merge_{alpha}": ("merge", alpha, correct, tokens, 24)
        for alpha, correct, tokens in [
            (0.5, 0.98, 82),
            (1.0, 0.977, 73),
            (1.5, 0.974, 66),
            (2.0, 0.95, 61),
            (3.0, 0.60, 60),
        ]
    },
    "ties_1.0": ("ties", 1.0, 0.97, 75, 24),
    **{
        f"lora_scale_{alpha}": ("lora_scale", alpha, correct, tokens, 25)
        for alpha, correct, tokens in [(0.5, 0.98, 80), (1.0, 0.97, 74), (2.0, 0.93, 67)]
    },
    "dera_2.0_unmasked": ("dera", 2.0, 0.90, 58, 70),
    "dera_5.0_unmasked": ("dera", 5.0, 0.68, 45, 70),
    "trra_2.0_unmasked": ("trra", 2.0, 0.90, 60, 24),
    "trra_5.0_unmasked": ("trra", 5.0, 0.70, 46, 24),
    "reference_min_p": ("reference", np.nan, 0.984, 88, 31),
    "aligned_min_p": ("aligned", np.nan, 0.979, 72, 26),
}
"""The free alternatives, and rows that show what the mask does."""


def make_generations(
    tasks: tuple[str, ...] = ("chain_sum",),
    problems: int = 40,
    samples: int = 4,
    candidates: Mapping[str, tuple[str, float, float, float, float]] = CANDIDATES,
) -> dict[str, pd.DataFrame]:
    """candidate -> frame, as alpha_sweep writes them."""
    frames = {}
    for name, (kind, alpha, correct, tokens, seconds) in candidates.items():
        rows = []
        for number, task in enumerate(tasks):
            generator = np.random.default_rng([7, number])  # the same for all candidates, like the sweep's samplers
            for problem in range(problems):
                for sample in range(samples):
                    right = bool(generator.random() < correct - 0.03 * number)
                    length = int(tokens * (1 + 0.6 * number) * generator.lognormal(0, 0.25))
                    finished = bool(generator.random() < 0.995)
                    rows.append(
                        {
                            "candidate": name,
                            "kind": kind,
                            "alpha": alpha,
                            "plausibility": plausibility(name, kind),
                            "engine": "transformers 5.23.0 float32",
                            "task": task,
                            "problem_id": f"{task}-{problem:04d}",
                            "sample": sample,
                            "completion": trace(generator, length, right, finished),
                            "completion_tokens": length,
                            "finished": finished,
                            "correct": right and finished,
                            "seconds": float(seconds),
                        }
                    )
        frames[name] = pd.DataFrame(rows)
    return frames


def costs(candidates: Mapping[str, tuple[str, float, float, float, float]]) -> dict[str, dict[str, float]]:
    """Half a minute of training where there is one, and a megabyte of weights."""
    return {
        name: {
            "train_seconds": 34.5 if KINDS[kind].trains else 0.0,
            "bytes": 0 if kind == "reference" else 1_234_567,
        }
        for name, (kind, *_) in candidates.items()
    }


def plausibility(name: str, kind: str) -> float:
    """The mask is where logits are mixed, and in rows with a min-p."""
    masked = name.endswith("min_p") or (kind in ("dera", "trra", "trra_iter", "inra") and "unmasked" not in name)
    return 0.1 if masked else 0.0


def trace(generator: np.random.Generator, length: int, right: bool, finished: bool) -> str:
    """Running totals in the manner of the demo's models."""
    total, lines = 0, []
    for _ in range(max(length // 12, 1)):
        term = int(generator.integers(1, 99))
        lines.append(f"{total} + {term} = {total + term}\ncheck: {total} + {term} = {total + term} ok")
        total += term
    if not finished:
        return "<think>\n" + "\n".join(lines)
    return "<think>\n" + "\n".join(lines) + f"\n</think>\nThe answer is {total if right else total + 1}."


@pytest.fixture(scope="session")
def make_sweep() -> Callable[..., dict[str, pd.DataFrame]]:
    return make_generations


@pytest.fixture(scope="session")
def generations() -> dict[str, pd.DataFrame]:
    return make_generations()


@pytest.fixture(scope="session")
def sweep_results(generations: dict) -> pd.DataFrame:
    return summarise_sweep(generations, bootstrap_samples=2000, bootstrap_seed=0, costs=costs(CANDIDATES))


@pytest.fixture(scope="session")
def recommendation(generations: dict[str, pd.DataFrame]) -> dict:
    return recommend(generations, 0.02, bootstrap_samples=200, bootstrap_seed=0)


@pytest.fixture(scope="session")
def wide_results() -> pd.DataFrame:
    """The sweep with the free alternatives, and with rows that show what the mask does."""
    frames = make_generations(candidates={**CANDIDATES, **FURTHER})
    return summarise_sweep(frames, bootstrap_samples=2000, bootstrap_seed=0, costs=costs({**CANDIDATES, **FURTHER}))


@pytest.fixture(scope="session")
def budget_results() -> pd.DataFrame:
    """The three kinds at three budgets: shares of 40 problems that finish, and of them are correct."""
    generations = {}
    for kind, budget, finished, correct in [
        ("truncation", 24, 2, 2),
        ("forced_close", 24, 40, 28),
        ("token_budget", 24, 36, 30),
        ("truncation", 48, 24, 23),
        ("forced_close", 48, 40, 37),
        ("token_budget", 48, 38, 37),
        ("truncation", 96, 40, 39),
        ("forced_close", 96, 40, 39),
        ("token_budget", 96, 40, 38),
    ]:
        generations[f"{kind}-{budget}"] = pd.DataFrame(
            {
                "candidate": f"{kind}-{budget}",
                "kind": kind,
                "plausibility": 0.0,
                "budget": budget,
                "task": "chain_sum",
                "problem_id": [f"chain_sum-{problem:04d}" for problem in range(40)],
                "sample": 0,
                "completion_tokens": [20 if problem < finished else budget for problem in range(40)],
                "finished": [problem < finished for problem in range(40)],
                "correct": [problem < correct for problem in range(40)],
            }
        )
    return summarise_budgets(generations, bootstrap_samples=500, bootstrap_seed=0)


@pytest.fixture(scope="session")
def no_budgets() -> pd.DataFrame:
    return summarise_budgets({}, bootstrap_samples=500, bootstrap_seed=0)


@pytest.fixture(scope="session")
def evaluation_set(generations: dict) -> pd.DataFrame:
    ids = generations["reference"]["problem_id"].unique()
    return pd.DataFrame({"id": ids, "question": "What is 12 + 30 − 2?", "answer": "40"})


@pytest.fixture(scope="session")
def validation_results(
    tmp_path_factory: pytest.TempPathFactory, generations: dict, sweep_results: pd.DataFrame
) -> Path:
    """The folder with what was found in the made-up sweep, one of whose candidates was cut off by half and more."""
    folder = tmp_path_factory.mktemp("validation")
    cut = sweep_results.assign(
        truncated=sweep_results["truncated"].where(sweep_results["candidate"] != "aligned", 0.75)
    )
    GreatExpectations("generations", str(folder / "generations.json")).validate(generations)
    GreatExpectations("sweep_results", str(folder / "sweep_results.json")).validate(cut)
    return folder
