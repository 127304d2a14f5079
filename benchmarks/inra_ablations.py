"""InRa's design choices on the demo: initialisation, layers, placement, LoRA, and what the adapter learns from.

    python benchmarks/inra_ablations.py
    python benchmarks/inra_ablations.py --env smoke

Needs the data of a finished run in that environment. Trains one adapter for each variant of parameters_inra.yml and
decodes the evaluation set at three alphas; the default run's table goes to docs/inra_ablations.md. Finished variants
are kept in the folder `ablations` of the run's work folder.
"""

import argparse
import time
from pathlib import Path

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from realign_pipes.pipelines.inra.parameters import InRa

PROJECT = Path(__file__).parents[1]
ALPHAS = (0.0, 0.5, 1.0)
VARIANTS = {
    "default: SFT, full layer, identity, 1 layer, bottom": {},
    "random initialisation (Table 4)": {"init": "random"},
    "2 layers (Table 7)": {"num_adapter_layers": 2},
    "3 layers (Table 7)": {"num_adapter_layers": 3},
    "LoRA, rank 8 (Table 6)": {"adapter": "lora"},
    "top (Table 3)": {"placement": "top"},
    "DPO": {"method": "dpo", "learning_rate": 3.0e-5},
    "TrRa's objective, alpha 1": {"method": "trra"},
}


def trained_parameters(checkpoint: Path, parameters: InRa) -> int:
    """How many numbers the training changed."""
    from realign_pipes.paper.inra import InRaForCausalLM

    layers = InRaForCausalLM.from_pretrained(checkpoint).adapter_layers
    if parameters.adapter == "full":
        return sum(p.numel() for layer in layers for p in layer.parameters())
    return sum(parameters.lora.rank * sum(p.shape) for layer in layers for p in layer.parameters() if p.ndim == 2)


def main(env: str) -> None:
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.datasets.arrow import folder_of
    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.pipelines.inra.job import TrainAdapter
    from realign_pipes.reporting.tables import Cells, markdown_table
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        reference, aligned = (catalog.load(name) for name in ("reference_model", "aligned_model"))
        work = catalog.load("params:folders").work / "ablations"
        sources = ("short_solutions", "preference_pairs", "calibration_set")
        data = {name: folder_of(catalog.load(name)) for name in sources}
        teacher_cache = catalog.load("teacher_cache")
        base = catalog.load("params:inra").model_dump()
        teachers = catalog.load("params:teachers")
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        problems = catalog.load("evaluation_set")
    rows = []
    for number, (name, changes) in enumerate(VARIANTS.items()):
        parameters = InRa.model_validate({**base, **changes})
        start = time.perf_counter()
        job = TrainAdapter(
            parameters=parameters,
            teachers=teachers,
            reference=reference,
            aligned=aligned,
            **data,
            teacher_cache=teacher_cache,
            work=work / f"{number}" / "inra",
        )
        checkpoint = job.run().checkpoint
        seconds = time.perf_counter() - start
        evaluator = Evaluator(
            problems,
            tasks,
            fingerprints={checkpoint: fingerprint_model(checkpoint)},
            tokenizer=check_pair(reference, aligned),
            work=work / f"{number}" / "sweep",
        )
        candidates = [
            Candidate(f"inra-{alpha:g}", "inra", alpha, (checkpoint,), plausibility=parameters.plausibility)
            for alpha in ALPHAS
        ]
        frames = [pd.read_parquet(file) for file in evaluator.evaluate(candidates, sampling).values()]
        row = {"adapter": name, "trained": f"{trained_parameters(checkpoint, parameters):,}"}
        for alpha, frame in zip(ALPHAS, frames, strict=True):
            by_task = frame.groupby("task")[["correct", "completion_tokens"]].mean().mean()
            row[f"alpha {alpha:g}"] = f"{100 * by_task['correct']:.1f} / {by_task['completion_tokens']:.1f}"
        rows.append(row)
        print(row, f"{seconds:.0f} s", flush=True)
    lines = [
        "# InRa: ablations on the demo",
        "",
        "Made by `python benchmarks/inra_ablations.py` after `make run`; cells are pass@1 in percent / mean tokens",
        f"over the {len(problems)} problems of the sweep, {sampling.samples} samples each, on the same random numbers.",
        "`trained` counts the parameters that move. All variants train for the same steps with the same learning",
        "rate (1e-3). Only DPO has a smaller one (3e-5).",
        "",
        markdown_table(Cells(list(rows[0]), [list(row.values()) for row in rows], left=1), None),
    ]
    if env == "base":
        (PROJECT / "docs" / "inra_ablations.md").write_text("\n".join(lines), encoding="utf-8")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    main(parser.parse_args().env)
