"""Inside a token budget: does TokenBudget gain anything over closing the thinking by force?

    python benchmarks/budgets.py
    python benchmarks/budgets.py --ramps 0.25 0.5 0.75 --env smoke

Needs the data of a finished run in that environment. At every budget of parameters_alpha_sweep.yml, the reference with
its thinking closed by force and InRa with TokenBudget, closed by force at the same token, answer the evaluation set
with the same random numbers. Prints Markdown: pass@1 by task with paired 95 % intervals, and how the completions read:
the share that finished, whose answer is well formed (one closing tag, then one <answer>), whose thinking was closed by
force, and the mean tokens. Completions are kept in the folder `budgets` of the run's work folder.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
ANSWER = re.compile(r"((?!<answer>).)*<answer>[^<]*</answer>", re.DOTALL)
HEADER = [
    "budget",
    "task",
    "method",
    "pass@1 %",
    "less forced closing [95 %]",
    "finished",
    "well formed",
    "forced",
    "tokens",
]


def how_they_read(frame: Any, tokenizer: Any, close: str, close_at: int) -> list[str]:
    """Shares of a candidate's completions that finished, are well formed, were closed by force; and mean tokens.

    Plain means over tasks, as pass@1.
    """
    from realign_pipes.reporting.tables import percent, tokens_text

    parts = [text.partition(close) for text in frame["completion"]]
    read = frame.assign(
        formed=[
            finished and close not in answer and ANSWER.fullmatch(answer.strip()) is not None
            for finished, (_, _, answer) in zip(frame["finished"], parts, strict=True)
        ],
        forced=[bool(tag) and len(tokenizer(thought)["input_ids"]) >= close_at for thought, tag, _ in parts],
    )
    means = read.groupby("task")[["finished", "formed", "forced", "completion_tokens"]].mean().mean()
    shares = [f"{percent(means[name])} %" for name in ("finished", "formed", "forced")]
    return [*shares, tokens_text(means["completion_tokens"])]


def main(env: str, ramps: list[float]) -> None:
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import load_tokenizer
    from realign_pipes.paper.schedules import TokenBudget
    from realign_pipes.reporting.tables import Cells, forced_difference_text, markdown_table, percent
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate
    from realign_pipes.sweep.metrics import summarise_budgets

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        reference, inra = (catalog.load(name) for name in ("reference_model", "inra_checkpoint"))
        work = catalog.load("params:folders").work / "budgets"
        parameters = catalog.load("params:alpha_sweep")
        tasks = catalog.load("params:data_prep").tasks
        problems = catalog.load("evaluation_set")
    tokenizer, budgets = load_tokenizer(reference), parameters.budgets
    evaluator = Evaluator(
        problems,
        tasks,
        fingerprints={path: fingerprint_model(path) for path in (reference, inra)},
        tokenizer=tokenizer,
        work=work,
    )
    closed = [(budget, budget - budgets.answer_tokens) for budget in budgets.tokens]
    ramps = ramps or [budgets.ramp]
    candidates = [
        *(Candidate(f"truncation-{b}", "truncation", math.nan, (reference,), b) for b, _ in closed),
        *(Candidate(f"forced-{b}", "forced_close", math.nan, (reference,), b, close_at=at) for b, at in closed),
        *(
            Candidate(f"ramp-{r:g}-{b}", "token_budget", math.nan, (inra,), b, TokenBudget(b, r), close_at=at)
            for r in ramps
            for b, at in closed
        ),
    ]
    files = evaluator.evaluate(candidates, parameters.sampling)
    frames = {name: pd.read_parquet(file) for name, file in files.items()}
    rows = []
    for budget, close_at in closed:
        for task in [*sorted(tasks), None]:
            one = {name: frame if task is None else frame[frame["task"] == task] for name, frame in frames.items()}
            for method in ["forced", *(f"ramp-{ramp:g}" for ramp in ramps)]:
                names = {f"truncation-{budget}", f"forced-{budget}", f"{method}-{budget}"}
                results = summarise_budgets(
                    {name: one[name] for name in names},
                    bootstrap_samples=parameters.bootstrap_samples,
                    bootstrap_seed=parameters.bootstrap_seed,
                )
                [found] = results[results["candidate"] == f"{method}-{budget}"].itertuples()
                label = "forced closing" if method == "forced" else f"TokenBudget, {method.replace('-', ' ')}"
                read = how_they_read(one[found.candidate], tokenizer, problems["think_close"][0], close_at)
                pass_at_1 = percent(found.pass_at_1)
                rows.append([str(budget), task or "all", label, pass_at_1, forced_difference_text(found), *read])
    print(markdown_table(Cells(HEADER, rows, left=3), None))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--ramps", type=float, nargs="+", default=[], help="ramps of TokenBudget (default: the run's)")
    given = parser.parse_args()
    main(given.env, given.ramps)
