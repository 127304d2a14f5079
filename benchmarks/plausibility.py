"""What the plausibility mask does to DeRa, and how far weights can be interpolated, on the demo.

    python benchmarks/plausibility.py
    python benchmarks/plausibility.py --env smoke --problems 2

Needs the data of a finished run in that environment. Decodes the evaluation set (or the first `--problems` of each
task) with the two models at every alpha and beta, and with their weights merged; the tables of the default run's whole
set go to docs/plausibility.md, others are printed. Finished candidates are kept in the folder `plausibility` of the
run's work folder.
"""

import math
import sys

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from page_command import PROJECT, write_page

BETAS = (0.0, 0.02, 0.1, 0.3)
ALPHAS = (-1.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
MERGE_ALPHAS = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


def main(env: str, limit: int | None) -> str:
    """The page."""
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.reporting.tables import Cells, alpha_text, markdown_table, percent, tokens_text
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        both = (catalog.load("reference_model"), catalog.load("aligned_model"))
        work = catalog.load("params:folders").work / "plausibility"
        sampling = catalog.load("params:alpha_sweep").sampling
        tasks = catalog.load("params:data_prep").tasks
        problems = catalog.load("evaluation_set")
    if limit is not None:
        places = pd.Series(problems["task"][:]).groupby(problems["task"][:]).head(limit).index
        problems = problems.select(places)
    evaluator = Evaluator(
        problems,
        tasks,
        fingerprints={path: fingerprint_model(path) for path in both},
        tokenizer=check_pair(*both),
        work=work / ("all" if limit is None else f"{limit}-problems"),
    )

    def measured(candidate: Candidate) -> str:
        """pass@1 in percent / mean tokens, each the mean over tasks."""
        [file] = evaluator.evaluate([candidate], sampling).values()
        means = pd.read_parquet(file).groupby("task")[["correct", "completion_tokens"]].mean().mean()
        cell = f"{percent(means['correct'])} / {tokens_text(means['completion_tokens'])}"
        print(f"{candidate.name}: {cell}", file=sys.stderr, flush=True)
        return cell

    def min_p(beta: float) -> list[str]:
        names = zip(("reference", "aligned"), both, strict=True)
        return [measured(Candidate(f"{name}-{beta:g}", name, math.nan, (path,), plausibility=beta))
                for name, path in names]  # fmt: skip

    models = {beta: min_p(beta) for beta in BETAS}
    masks = [
        ["reference, with beta as its min-p", *(models[beta][0] for beta in BETAS)],
        ["aligned, with beta as its min-p", *(models[beta][1] for beta in BETAS)],
        *(
            [
                f"DeRa {alpha_text(alpha)}",
                *(
                    measured(Candidate(f"dera-{alpha:g}-{beta:g}", "dera", alpha, both, plausibility=beta))
                    for beta in BETAS
                ),
            ]
            for alpha in ALPHAS
        ),
    ]
    merged = [
        [alpha_text(alpha), measured(Candidate(f"merge-{alpha:g}", "merge", alpha, both))] for alpha in MERGE_ALPHAS
    ]
    lines = [
        "# Ablation of the plausibility mask on the demo",
        "",
        "Made by `python benchmarks/plausibility.py` after `make run`; cells are pass@1 in percent / mean tokens over",
        f"{len(problems)} problems of the sweep, {sampling.samples} samples each, on the same random numbers.",
        "",
        "beta = 0 is the paper. With another beta, tokens that both models find less than beta times as likely as the",
        "likeliest token of either are never taken. The first two rows show what that mask does to one model alone.",
        "",
        markdown_table(Cells(["", *(f"beta {beta:g}" for beta in BETAS)], masks, left=1), None),
        "## Weights interpolated",
        "",
        "The kind `merge`: one model whose weights are (1 − alpha) times the reference's and alpha times the aligned",
        "model's.",
        "",
        markdown_table(Cells(["alpha", "pass@1 % / tokens"], merged, left=0), None),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    write_page(__doc__, "plausibility.md", main)
