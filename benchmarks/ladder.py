"""The three ways to make a ladder of adapters, against what they stand for, on the demo.

    python benchmarks/ladder.py
    python benchmarks/ladder.py --env smoke --problems 2

Needs the data of a finished run in that environment. Makes a ladder in each way (the cut differences at several ranks),
lets every rung answer the evaluation set (or the first `--problems` of each task) as the sweep does, and puts the
sweep's own rows beside them: the reference, InRa, and merged weights. The table of the default run's whole set goes to
docs/ladder.md, others are printed. Ladders and finished rungs are kept in the folder `ladder_benchmark` of the run's
work folder.
"""

import argparse
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
ALPHAS = (0.5, 1.0, 2.0, 3.0)
WAYS = {
    "trained": {"method": "trained", "rank": 8},
    "scaled": {"method": "scaled", "rank": 8},
    **{f"svd, rank {rank}": {"method": "svd", "rank": rank} for rank in (8, 16, 32, 64)},
}
HEADS = ("model", "alpha", "pass@1 %", "tokens", "tokens saved", "beyond the rank", "MiB a rung", "KV bytes a token")


def main(env: str, limit: int | None) -> str:
    """The page."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.serving.ladder import Summary
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        ladders = make_ladders(catalog)
        work = catalog.load("params:folders").work / "ladder_benchmark"
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        problems = catalog.load("evaluation_set")
        tokenizer = check_pair(catalog.load("reference_model"), catalog.load("aligned_model"))
    if limit is not None:
        places = pd.Series(problems["task"][:]).groupby(problems["task"][:]).head(limit).index
        problems = problems.select(places)
    # The matrices of a rung are scaled already: at alpha 1 the kind adds them as a server does.
    rungs = {
        (way, alpha): Candidate(f"{folder.parent.name}-{alpha:g}", "lora_scale", 1.0, (folder / f"alpha-{alpha:g}",))
        for way, folder in ladders.items()
        for alpha in ALPHAS
    }
    evaluator = Evaluator(
        problems,
        tasks,
        fingerprints={path: fingerprint_model(path) for one in rungs.values() for path in one.checkpoints},
        tokenizer=tokenizer,
        work=work / ("all" if limit is None else f"{limit}-problems"),
    )
    files = evaluator.evaluate(list(rungs.values()), sampling)
    evaluator.close()
    answers = {rung: pd.read_parquet(files[candidate.name]) for rung, candidate in rungs.items()}
    return page_of(
        catalog,
        {way: (folder, Summary.load(folder)) for way, folder in ladders.items()},
        answers,
        about=f"{len(problems)} problems of the sweep, {sampling.samples} samples each",
    )


def make_ladders(catalog: Any) -> dict[str, Path]:
    """Way -> the folder of its ladder, made now or found finished."""
    from realign_pipes.pipelines.ladder.job import MakeLadder

    folders = catalog.load("params:folders")
    return {
        way: MakeLadder(
            parameters={**values, "alphas": ALPHAS},
            trra=catalog.load("params:trra"),
            teachers=catalog.load("params:teachers"),
            reference=catalog.load("reference_model"),
            aligned=catalog.load("aligned_model"),
            examples=catalog.load("ladder_examples"),
            teacher_cache=catalog.load("ladder_teacher_cache"),
            environment=catalog.load("params:generation").environment,
            work=folders.work / "ladder_benchmark" / way.replace(", ", "-").replace(" ", "-"),
            students=folders.work / "trra",
        )
        .run()
        .folder
        for way, values in WAYS.items()
    }


def page_of(catalog: Any, ladders: dict[str, Any], answers: dict[tuple[str, float], Any], about: str) -> str:
    """The page. `ladders` has a folder and a summary for each way, `answers` a frame for each rung."""
    from realign_pipes.paper.expansion import InRaConfig
    from realign_pipes.pipelines.plan.estimate import Model
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, tokens_text

    swept = {name: load() for name, load in catalog.load("generations").items()}
    asked = set(next(iter(answers.values()))["problem_id"])
    base = Model.read(catalog.load("reference_model") / "config.json")
    layers = 2 * base.layers + InRaConfig.load(catalog.load("inra_checkpoint")).num_adapter_layers

    def means(frame: Any) -> tuple[float, float]:
        """pass@1 and tokens, each the mean over tasks."""
        found = frame[frame["problem_id"].isin(asked)].groupby("task")[["correct", "completion_tokens"]].mean().mean()
        return found["correct"], found["completion_tokens"]

    def row(
        name: str, alpha: str, frame: Any, error: str = "–", size: str = "–", kv: float = base.kv_token
    ) -> list[str]:
        correct, tokens = means(frame)
        saved = f"{percent(1 - tokens / means(swept['reference'])[1])} %"
        return [name, alpha, percent(correct), tokens_text(tokens), saved, error, size, f"{kv:,.0f}"]

    rows = [row(name, "–", swept[name]) for name in ("reference", "aligned")]
    for (way, alpha), frame in answers.items():
        folder, summary = ladders[way]
        error = "–" if summary.relative_error is None else f"{percent(summary.relative_error)} %"
        weights = folder / f"alpha-{alpha:g}" / "adapter_model.safetensors"
        rows.append(row(way, alpha_text(alpha), frame, error, f"{weights.stat().st_size / 2**20:.2f}"))
    for frame in swept.values():
        kind, alpha = frame["kind"].iloc[0], alpha_text(frame["alpha"].iloc[0])
        if kind == "merge":
            rows.append(row("merged weights", alpha, frame, size=f"{base.weights / 2**20:.2f}"))
        if kind == "inra":
            rows.append(row("InRa", alpha, frame, kv=base.kv_token * layers / base.layers))
    cut = [summary for _, summary in ladders.values() if summary.shares is not None]
    names = list(cut[0].shares)
    shares = [[str(one.rank), *(f"{one.shares[name]:.2%}" for name in names)] for one in cut]
    trra = catalog.load("params:trra")
    lines = [
        "# Ladders of adapters on the demo",
        "",
        f"Made by `python benchmarks/ladder.py` after `make run`: every rung answers {about},",
        "on the sweep's random numbers. The rows of InRa and of merged weights are the sweep's own.",
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
