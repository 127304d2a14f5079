"""On-policy TrRa on the demo: students that draw their own completions, beside students that learn from given ones.

    python benchmarks/on_policy.py
    python benchmarks/on_policy.py --env smoke --alphas 3 --steps 6

Needs the data of a finished run in that environment. For each alpha and teacher (forward KL with and without the mask
on implausible tokens, and reverse KL, which allows none) it trains a student off-policy, one on-policy for as many
steps, and one on-policy for as many steps as take the time of the first; then it decodes the evaluation set with each,
with the reference, and with the teachers themselves (DeRa).
The default run's tables go to docs/on_policy.md. Finished students are kept in the folder `on_policy` of the run's work
folder, with the CPU seconds that they took.
"""

import argparse
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

PROJECT = Path(__file__).parents[1]
ALPHAS = [1.5, 3.0, 5.0]
TEACHERS = [("forward_kl", 0.1), ("forward_kl", 0.0), ("reverse_kl", 0.0)]
PAGE = """# On-policy TrRa on the demo

Made by `{command}` after `make run`: pass@1 in percent and mean tokens over
{problems} problems, {samples} samples each, with the same random numbers for all. A difference is on-policy less
off-policy, with its paired 95 % interval from {resamples:,} resamples of the problems. beta is the plausibility of the
teacher's mask (0: none). An on-policy student draws all of its completions (`trra.on_policy: 1`), at temperature
{temperature:g}; everything else is as in `conf/base/parameters_trra.yml`, with online teachers for both. On-policy,
training took {ratio:.1f} times the CPU seconds. The reference has {reference}; `teacher` is the mixture itself, decoded
with both models (DeRa). A student that follows its
teacher more closely is right more often only where the teacher is.

Of the {pairs} pairs, pass@1 is higher on-policy in {better} and lower in {worse}, with the interval on one side of 0.
By chance alone about one interval in twenty would be on one side of 0.
[What on-policy training is](explanation/method.md#on-policy-students)

## As many steps: {steps}

{same_steps}
## As much time: {fewer} steps on-policy, {steps} off-policy

{same_time}"""

Case = tuple[float, str, float]
"""Alpha, divergence and plausibility."""


class Students:
    """Trains the students of one environment's run, and notes how long each of them took."""

    def __init__(self, catalog: Any) -> None:
        from realign_pipes.datasets.arrow import folder_of

        self.models = [catalog.load(name) for name in ("reference_model", "aligned_model")]
        self.examples = folder_of(catalog.load("calibration_set"))
        self.base = catalog.load("params:trra").model_dump()
        self.teachers = catalog.load("params:teachers").model_copy(update={"mode": "online"})
        self.work = catalog.load("params:folders").work / "on_policy"
        self.work.mkdir(parents=True, exist_ok=True)

    def train(self, case: Case, steps: int, on_policy: float) -> Path:
        """The checkpoint of a student, trained now or found finished."""
        from realign_pipes.pipelines.trra.job import TrainStudents
        from realign_pipes.pipelines.trra.parameters import TrRa

        alpha, divergence, plausibility = case
        name = self.name(case, steps, on_policy)
        changes = {"divergence": divergence, "plausibility": plausibility, "steps": steps, "on_policy": on_policy}
        alone = {
            "alphas": [alpha],
            "iterations": 0,
            "iteration_alphas": [],
            "ablation_alphas": [],
            "scaled_lora": False,
        }
        job = TrainStudents(
            parameters=TrRa.model_validate({**self.base, **alone, **changes}),
            teachers=self.teachers,
            reference=self.models[0],
            aligned=self.models[1],
            examples=self.examples,
            teacher_cache=self.work,
            work=self.work / name,
        )
        seconds, start = self.seconds(), time.process_time()
        (checkpoint,) = job.run().checkpoints.values()
        seconds.setdefault(name, time.process_time() - start)
        (self.work / "seconds.json").write_text(json.dumps(seconds))
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
        return checkpoint

    def name(self, case: Case, steps: int, on_policy: float) -> str:
        """Of a student's folder."""
        alpha, divergence, plausibility = case
        return f"{'on' if on_policy else 'off'}-{divergence}-{plausibility:g}-alpha-{alpha:g}-steps-{steps}"

    def seconds(self) -> dict[str, float]:
        """CPU seconds of each student's training, by name: other work on the machine would count as wall time."""
        file = self.work / "seconds.json"
        return json.loads(file.read_text()) if file.exists() else {}


Measured = dict[str, Any]
"""Task -> [2, problems]: the share of a problem's samples that are right, and their mean tokens."""


def open_measure(students: Students, catalog: Any, checkpoints: list[Path]) -> Callable[..., Measured]:
    """What measures a candidate: `measure(name, kind, alpha, checkpoints, plausibility)`."""
    import pandas as pd

    from realign_pipes.models.fingerprint import fingerprint_model
    from realign_pipes.models.load import check_pair
    from realign_pipes.sweep.evaluate import Evaluator
    from realign_pipes.sweep.kinds import Candidate

    evaluator = Evaluator(
        catalog.load("evaluation_set"),
        catalog.load("params:data_prep").tasks,
        fingerprints={path: fingerprint_model(path) for path in [*students.models, *checkpoints]},
        tokenizer=check_pair(*students.models),
        work=students.work / "sweep",
    )
    sampling = catalog.load("params:alpha_sweep").sampling

    def measure(name: str, kind: str, alpha: float, checkpoints: list[Path], plausibility: float = 0.0) -> Measured:
        candidate = Candidate(name, kind, alpha, tuple(checkpoints), plausibility=plausibility)
        (file,) = evaluator.evaluate([candidate], sampling).values()
        by_problem = pd.read_parquet(file).groupby(["task", "problem_id"])[["correct", "completion_tokens"]].mean()
        return {task: frame.to_numpy(float).T for task, frame in by_problem.groupby(level="task")}

    return measure


def means_of(measured: Measured) -> Any:
    """pass@1 and tokens, means over the tasks: [2]."""
    return sum(values.mean(axis=1) for values in measured.values()) / len(measured)


def text_of(measured: Measured) -> str:
    """pass@1 in percent / mean tokens."""
    right, tokens = means_of(measured)
    return f"{100 * right:.1f} / {tokens:.1f}"


def compare(off: Measured, on: Measured, resamples: int, seed: int) -> tuple[list[str], int]:
    """Cells of a table for two students, and 1 (-1) if the one on-policy is surely right more (less) often, else 0."""
    import numpy as np

    from realign_pipes.reporting.tables import percent
    from realign_pipes.sweep.bounds import bootstrap_means

    differences = [
        bootstrap_means(on[task] - off[task], resamples, [seed, zlib.crc32(task.encode())]) for task in sorted(off)
    ]
    (low, low_tokens), (high, high_tokens) = np.quantile(np.mean(differences, axis=0), [0.025, 0.975], axis=1)
    right, tokens = means_of(on) - means_of(off)
    cells = [
        text_of(off),
        text_of(on),
        f"{percent(right)} [{percent(low)}, {percent(high)}]",
        f"{tokens:.1f} [{low_tokens:.1f}, {high_tokens:.1f}]".replace("-", "−"),
    ]
    return cells, int(low > 0) - int(high < 0)


def main(env: str, alphas: list[float], steps: int | None) -> None:
    bootstrap_project(PROJECT)  # settings.py sets up OpenMP, which has to come before torch is imported
    from realign_pipes.reporting.tables import Cells, markdown_table

    with KedroSession.create(PROJECT, env=env) as session:
        catalog = session.load_context().catalog
        students, sweep = Students(catalog), catalog.load("params:alpha_sweep")
    to_docs = env == "base" and alphas == ALPHAS and steps is None
    steps = steps or students.base["steps"]
    cases = [(alpha, *teacher) for alpha in alphas for teacher in TEACHERS]
    off = [students.train(case, steps, 0.0) for case in cases]
    on = [students.train(case, steps, 1.0) for case in cases]
    seconds = students.seconds()
    ratio = statistics.median(
        seconds[students.name(case, steps, 1.0)] / seconds[students.name(case, steps, 0.0)] for case in cases
    )
    fewer = max(1, round(steps / ratio))
    briefly = [students.train(case, fewer, 1.0) for case in cases]
    measure = open_measure(students, catalog, [*off, *on, *briefly])
    reference = measure("reference", "reference", math.nan, students.models[:1])
    teachers = {
        (alpha, beta): measure(f"dera-{alpha:g}-{beta:g}", "dera", alpha, students.models, beta)
        for alpha, _, beta in cases
    }
    tables, signs = [], []
    for its_steps, ours in ((steps, on), (fewer, briefly)):
        rows = []
        for case, without, with_own in zip(cases, off, ours, strict=True):
            alpha, divergence, beta = case
            pair = [
                measure(students.name(case, count, share), "trra", alpha, [path], beta)
                for path, count, share in ((without, steps, 0.0), (with_own, its_steps, 1.0))
            ]
            cells, sign = compare(*pair, sweep.bootstrap_samples, sweep.bootstrap_seed)
            teacher = text_of(teachers[alpha, beta])
            rows.append([f"{alpha:g}", divergence.replace("_kl", " KL"), f"{beta:g}", teacher, *cells])
            signs.append(sign)
        header = ["alpha", "loss", "beta", "teacher", "off-policy", "on-policy", "difference", "difference in tokens"]
        tables.append(markdown_table(Cells(header, rows, left=2), None))
    options = "" if to_docs else f" --env {env} --alphas {' '.join(f'{alpha:g}' for alpha in alphas)} --steps {steps}"
    page = PAGE.format(
        command=f"python benchmarks/on_policy.py{options}",
        problems=len(catalog.load("evaluation_set")), samples=sweep.sampling.samples, resamples=sweep.bootstrap_samples,
        temperature=students.base["on_policy_sampling"]["temperature"], ratio=ratio, steps=steps, fewer=fewer,
        reference=text_of(reference), pairs=len(signs),
        better=signs.count(1), worse=signs.count(-1), same_steps=tables[0], same_time=tables[1],
    )  # fmt: skip
    if to_docs:
        (PROJECT / "docs" / "on_policy.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--alphas", type=float, nargs="+", default=ALPHAS, help="default: 1.5 3 5")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: trra.steps)")
    given = parser.parse_args()
    main(given.env, given.alphas, given.steps)
