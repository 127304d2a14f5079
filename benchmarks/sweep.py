"""A sweep of six alphas, the whole of it: TrRa's one teacher pass and six students against six separate runs.

    python benchmarks/sweep.py

One teacher pass over the calibration set serves every alpha; distilling with three live models (or the way the released
code does it) pays for the teachers in each of the six runs. Steps are as in trra_step.py.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Results, arguments
from trra_step import Steps, cached_teacher

# isort: split

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)


def six_alphas(results: Results, size: str, steps: int, batch_size: int, tokens: int, repetitions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        of = Steps(size, batch_size, tokens, Path(folder), steps=steps)

        def six_students(step: Callable[[], None]) -> None:
            for _ in ALPHAS:
                for batch in of.batches:
                    of.batch = batch
                    step()

        def teacher_pass_and_six_students() -> None:
            with tempfile.TemporaryDirectory() as fresh:
                of.teacher = cached_teacher(of.reference, of.aligned, of.examples, Path(fresh))
                six_students(of.step(of.trra))

        case = f"{size}, {steps} steps of {batch_size} x {tokens} tokens"
        of.step(of.sft)()  # the optimizer's state does not count as a variant's memory
        times = results.time(
            case,
            {
                "TrRa: teacher pass and six students": teacher_pass_and_six_students,
                "six runs with three live models": lambda: six_students(of.step(of.three_live_models)),
                "six runs of the released way": lambda: six_students(of.step(of.released)),
            },
            repetitions,
            warm_up=False,
        )
    ours, three, released = times
    comparison = None if size == "demo" else "<="
    results.figure(case, "TrRa / three live models", times.ratio(ours, three), comparison, 0.80)
    results.figure(case, "TrRa / released", times.ratio(ours, released), comparison, 0.36)


if __name__ == "__main__":
    given = arguments(__doc__, sizes=["135m"], steps=1, batch_size=2, tokens=256, repetitions=2)
    results = Results("sweep", "A sweep of six alphas", given)
    for size in given.sizes:
        six_alphas(results, size, given.steps, given.batch_size, given.tokens, given.repetitions)
    results.save()
