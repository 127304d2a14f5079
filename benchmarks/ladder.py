"""The three ways to make a ladder of adapters, against what they stand for, on the demo.

    python benchmarks/ladder.py
    python benchmarks/ladder.py --env smoke --problems 2

Needs the data of a run in that environment up to the stage inra. Makes ladders of trained students and of cut
differences (at several ranks), and lets every rung answer the evaluation set (or the first `--problems` of each task);
beside them the sweep's own candidates: the reference, merged weights, the scaled student, and InRa. The table of the
default run's whole set goes to docs/ladder.md, others are printed. Rungs are kept in the folder `ladder_benchmark` of
the run's work folder, and what the sweep has finished is taken from its own.
"""

import math
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from page_command import PROJECT, write_page

ALPHAS = (0.5, 1.0, 2.0)
INRA_ALPHAS = (0.25, 0.5, 1.0)
RANKS = (8, 32)
HEADS = ("model", "alpha", "pass@1 %", "tokens", "tokens saved", "beyond the rank", "MiB a rung", "KV bytes a token")


def main(env: str, limit: int | None) -> str:
    """The page."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.pipelines.trra.parameters import SCALED_LORA
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        both = (catalog.load("reference_model"), catalog.load("aligned_model"))
        inra, student = catalog.load("inra_checkpoint"), catalog.load("trra_checkpoints")[f"1.0/{SCALED_LORA}"]
        work = catalog.load("params:folders").work
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        inra_beta, trra_beta = (catalog.load(f"params:{stage}").plausibility for stage in ("inra", "trra"))
        problems = catalog.load("evaluation_set")
    if limit is not None:
        places = pd.Series(problems["task"][:]).groupby(problems["task"][:]).head(limit).index
        problems = problems.select(places)

    def measured(candidate: Candidate) -> Any:
        """The completions, a frame."""
        evaluator = Evaluator(
            problems,
            tasks,
            fingerprints={path: fingerprint_model(path) for path in candidate.checkpoints},
            tokenizer=check_pair(*both),
            work=work / ("alpha_sweep" if limit is None else f"ladder_benchmark/{limit}-problems"),
        )
        [file] = evaluator.evaluate([candidate], sampling).values()
        evaluator.close()
        return pd.read_parquet(file)

    reference = measured(Candidate("reference", "reference", math.nan, both[:1]))
    rows = [("reference", math.nan, reference, None)]
    for alpha in ALPHAS:
        rows.append(("merged weights", alpha, measured(Candidate(f"merge-{alpha:g}", "merge", alpha, both)), both[1]))
    for rank in RANKS:
        ladder = make_ladder(catalog, "svd", rank, work)
        for alpha in ALPHAS:
            rung = ladder / f"alpha-{alpha:g}"
            # A rung's matrices are scaled already: at alpha 1 the kind adds them as a server does.
            frame = measured(Candidate(f"svd-r{rank}-{alpha:g}", "lora_scale", 1.0, (rung,)))
            rows.append((f"svd, rank {rank}", alpha, frame, rung))
    for alpha in ALPHAS:
        candidate = Candidate(f"lora-scale-{alpha:g}", "lora_scale", alpha, (student,), plausibility=trra_beta)
        rows.append(("scaled", alpha, measured(candidate), student))
    ladder = make_ladder(catalog, "trained", RANKS[0], work)
    for alpha in ALPHAS:
        rung = ladder / f"alpha-{alpha:g}"
        rows.append(("trained", alpha, measured(Candidate(f"trained-{alpha:g}", "lora_scale", 1.0, (rung,))), rung))
    for alpha in INRA_ALPHAS:
        candidate = Candidate(f"inra-{alpha:g}", "inra", alpha, (inra,), plausibility=inra_beta)
        rows.append(("InRa", alpha, measured(candidate), None))
    return page_of(catalog, rows, f"{len(problems)} problems of the sweep, {sampling.samples} samples each")


def make_ladder(catalog: Any, method: str, rank: int, work: Path) -> Path:
    """The folder of a ladder, made now or found finished."""
    from realign_pipes.pipelines.ladder.job import MakeLadder

    job = MakeLadder(
        parameters={"method": method, "rank": rank, "alphas": ALPHAS},
        trra=catalog.load("params:trra"),
        teachers=catalog.load("params:teachers"),
        reference=catalog.load("reference_model"),
        aligned=catalog.load("aligned_model"),
        examples=catalog.load("ladder_examples"),
        teacher_cache=catalog.load("ladder_teacher_cache"),
        environment=catalog.load("params:generation").environment,
        work=work / "ladder_benchmark" / f"{method}-{rank}",
        students=work / "trra",
    )
    return job.run().folder


def page_of(catalog: Any, measured: list[tuple[str, float, Any, Path | None]], about: str) -> str:
    """The page. `measured` has name, alpha and frame of each row, and the checkpoint that one alpha of it takes."""
    from realign_pipes.paper.expansion import InRaConfig
    from realign_pipes.pipelines.plan.estimate import Model
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, tokens_text
    from realign_pipes.serving.ladder import Summary

    base = Model.read(catalog.load("reference_model") / "config.json")
    layers = 2 * base.layers + InRaConfig.load(catalog.load("inra_checkpoint")).num_adapter_layers
    cut = {name: Summary.load(path.parent) for name, _, _, path in measured if path and name.startswith("svd")}
    rows, whole = [], 0.0
    for name, alpha, frame, path in measured:
        found = frame.groupby("task")[["correct", "completion_tokens"]].mean().mean()
        tokens = found["completion_tokens"]
        whole = whole or tokens  # the first row is the reference
        error = f"{percent(cut[name].relative_error or 0)} %" if name in cut else "–"
        size = f"{sum(file.stat().st_size for file in path.glob('*.safetensors')) / 2**20:.2f}" if path else "–"
        kv = base.kv_token * (layers / base.layers if name == "InRa" else 1)
        cells = [percent(found["correct"]), tokens_text(tokens), f"{percent(1 - tokens / whole)} %", error, size]
        rows.append([name, "–" if math.isnan(alpha) else alpha_text(alpha), *cells, f"{kv:,.0f}"])
    names = list(next(iter(cut.values())).shares or {})
    shares = [[str(one.rank), *(f"{(one.shares or {})[name]:.2%}" for name in names)] for one in cut.values()]
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
    write_page(__doc__, "ladder.md", main)
