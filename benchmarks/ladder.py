"""The three ways to make a ladder of adapters, against what they stand for, on the demo.

    python benchmarks/ladder.py
    python benchmarks/ladder.py --env smoke --problems 2

Needs the models, the calibration set and the teacher cache of a run in that environment. Makes a ladder in each way
(the cut differences at several ranks), and lets every rung answer the evaluation set (or the first `--problems` of each
task) as the sweep does; beside them the reference, merged weights, and InRa. The table of the default run's whole set
goes to docs/ladder.md, others are printed. What is finished is kept in the folder `ladder_benchmark` of the run's work
folder.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
ALPHAS = (0.5, 1.0, 2.0)
INRA_ALPHAS = (0.25, 0.5, 1.0)
WAYS = {
    **{f"svd, rank {rank}": {"method": "svd", "rank": rank} for rank in (8, 16, 32)},
    "scaled": {"method": "scaled", "rank": 8},
    "trained": {"method": "trained", "rank": 8},
}
HEADS = ("model", "alpha", "pass@1 %", "tokens", "tokens saved", "beyond the rank", "MiB a rung", "KV bytes a token")


def main(env: str, limit: int | None) -> str:
    """The page."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        both = (catalog.load("reference_model"), catalog.load("aligned_model"))
        work = catalog.load("params:folders").work / "ladder_benchmark"
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        beta = catalog.load("params:inra").plausibility
        problems = catalog.load("evaluation_set")
    if limit is not None:
        places = pd.Series(problems["task"][:]).groupby(problems["task"][:]).head(limit).index
        problems = problems.select(places)

    def measured(name: str, kind: str, alpha: float, paths: tuple[Path, ...], plausibility: float = 0.0) -> Any:
        """The completions, a frame."""
        evaluator = Evaluator(
            problems,
            tasks,
            fingerprints={path: fingerprint_model(path) for path in paths},
            tokenizer=check_pair(*both),
            work=work / ("all" if limit is None else f"{limit}-problems"),
        )
        candidate = Candidate(name, kind, alpha, paths, plausibility=plausibility)
        [file] = evaluator.evaluate([candidate], sampling).values()
        evaluator.close()
        return pd.read_parquet(file)

    answers = {("reference", math.nan): measured("reference", "reference", math.nan, both[:1])}
    for alpha in ALPHAS:
        answers["merged weights", alpha] = measured(f"merge-{alpha:g}", "merge", alpha, both)
    ladders = {}
    for way, values in WAYS.items():
        ladders[way] = folder = make_ladder(catalog, values, work / way.replace(", ", "-").replace(" ", "-"))
        for alpha in ALPHAS:
            # A rung's matrices are scaled already: at alpha 1 the kind adds them as a server does.
            name = f"{folder.parent.name}-{alpha:g}"
            answers[way, alpha] = measured(name, "lora_scale", 1.0, (folder / f"alpha-{alpha:g}",))
    inra = catalog.load("inra_checkpoint")
    for alpha in INRA_ALPHAS:
        answers["InRa", alpha] = measured(f"inra-{alpha:g}", "inra", alpha, (inra,), beta)
    return page_of(catalog, ladders, answers, f"{len(problems)} problems of the sweep, {sampling.samples} samples each")


def make_ladder(catalog: Any, values: dict[str, Any], work: Path) -> Path:
    """The folder of a ladder, made now or found finished."""
    from realign_pipes.pipelines.ladder.job import MakeLadder

    return (
        MakeLadder(
            parameters={**values, "alphas": ALPHAS},
            trra=catalog.load("params:trra"),
            teachers=catalog.load("params:teachers"),
            reference=catalog.load("reference_model"),
            aligned=catalog.load("aligned_model"),
            examples=catalog.load("ladder_examples"),
            teacher_cache=catalog.load("ladder_teacher_cache"),
            environment=catalog.load("params:generation").environment,
            work=work,
            students=catalog.load("params:folders").work / "trra",
        )
        .run()
        .folder
    )


def page_of(catalog: Any, ladders: dict[str, Path], answers: dict[tuple[str, float], Any], about: str) -> str:
    """The page. `ladders` has a folder for each way, `answers` a frame for each way and alpha."""
    from realign_pipes.paper.expansion import InRaConfig
    from realign_pipes.pipelines.plan.estimate import Model
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, tokens_text
    from realign_pipes.serving.ladder import Summary

    base = Model.read(catalog.load("reference_model") / "config.json")
    layers = 2 * base.layers + InRaConfig.load(catalog.load("inra_checkpoint")).num_adapter_layers
    summaries = {way: Summary.load(folder) for way, folder in ladders.items()}
    means = {
        key: frame.groupby("task")[["correct", "completion_tokens"]].mean().mean() for key, frame in answers.items()
    }
    whole = next(iter(means.values()))["completion_tokens"]
    rows = []
    for (name, alpha), found in means.items():
        error, size, kv = "–", "–", float(base.kv_token)
        if name in ladders:
            if (relative := summaries[name].relative_error) is not None:
                error = f"{percent(relative)} %"
            weights = ladders[name] / f"alpha-{alpha:g}" / "adapter_model.safetensors"
            size = f"{weights.stat().st_size / 2**20:.2f}"
        elif name == "merged weights":
            size = f"{base.weights / 2**20:.2f}"
        elif name == "InRa":
            kv *= layers / base.layers
        tokens = found["completion_tokens"]
        saved = f"{percent(1 - tokens / whole)} %"
        cells = [percent(found["correct"]), tokens_text(tokens), saved, error, size, f"{kv:,.0f}"]
        rows.append([name, "–" if math.isnan(alpha) else alpha_text(alpha), *cells])
    cut = [summary for summary in summaries.values() if summary.shares is not None]
    names = list(cut[0].shares or {})
    shares = [[str(one.rank), *(f"{(one.shares or {})[name]:.2%}" for name in names)] for one in cut]
    trra = catalog.load("params:trra")
    lines = [
        "# Ladders of adapters on the demo",
        "",
        f"Made by `python benchmarks/ladder.py` after `make run`: every rung answers {about},",
        "on the same random numbers.",
        "[How to make and serve a ladder](how_to/ladder.md) says what to make of it.",
        "",
        markdown_table(Cells(list(HEADS), rows, left=1), None),
        f"Students are LoRA of rank {trra.lora.rank}, trained for {trra.steps} steps each: `trained` at each alpha,",
        "`scaled` once, at alpha 1. `svd` cuts the difference of each linear layer to a rank; *beyond the rank* is",
        "what that loses of it, in the Frobenius norm. Merged weights are a whole model at each alpha.",
        "",
        "## What LoRA cannot hold",
        "",
        "Shares of the difference of all weights of the two models (squared Frobenius norm): what is kept in the",
        "adapters, what is cut beyond the rank, and what is no linear layer of the body.",
        "",
        markdown_table(Cells(["rank", *names], shares, left=0), None),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--problems", type=int, help="of each task (default: all)")
    given = parser.parse_args()
    page = main(given.env, given.problems)
    if given.env == "base" and given.problems is None:
        (PROJECT / "docs" / "ladder.md").write_text(page, encoding="utf-8")
    else:
        print(page)
