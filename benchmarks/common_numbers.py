"""How much narrower are paired differences when both candidates draw with the same random numbers, by engine?

    python benchmarks/common_numbers.py --first data/06_models/trra/1.5/trra-1.5 --second data/06_models/trra/2.0/trra-2

Needs the evaluation set and the checkpoints of a finished run, and `make serve-setup`. Two models answer all problems
twice, with seeds 1 and 2. Common numbers: the differences between the two models at equal seeds; independent ones: at
unequal seeds, of the very same completions. Figures are the ratio of the two standard errors over problems (1: common
numbers gain nothing; 0.5: the interval is half as wide, for which independent numbers need four times the samples) of
pass@1 and of tokens, and the share of completions that are the same in both models.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import Results, arguments

# isort: split
from datasets import load_from_disk
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from transformers import PreTrainedTokenizerFast

from realign_pipes.generation.engine import Description, Engine, Prompt
from realign_pipes.generation.graded import GradedCompletion, Question, completion_text
from realign_pipes.generation.parameters import Generation, Sampling
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.generation.vllm_engine import Endpoint, VLLMEngine
from realign_pipes.models.load import load_tokenizer, read_stops
from realign_pipes.serving.server import ServedModel, start_server
from realign_pipes.sweep.evaluate import questions_of
from realign_pipes.tasks.grading import is_correct

PROJECT = Path(__file__).parents[1]
ENGINES = ("transformers", "vllm")
SEEDS = (1, 2)

Drawn = dict[tuple[str, int], GradedCompletion]


@contextmanager
def open_engine(name: str, checkpoint: Path, generation: Generation, log: Path) -> Iterator[Engine]:
    if name == "transformers":
        yield TransformersEngine.of_checkpoint(checkpoint)
        return
    with start_server(ServedModel(checkpoint), generation, log) as server:
        yield VLLMEngine(
            (Endpoint(server.url, server.model),),
            read_stops(checkpoint),
            generation.max_in_flight,
            Description("vllm", server.version, server.dtype),
        )


def draw(
    engine: Engine, questions: dict[str, Question], tokenizer: PreTrainedTokenizerFast, sampling: dict[str, Any]
) -> Drawn:
    """All completions, graded in this process: the demo's problems are safe to grade without limits."""
    prompts = [Prompt(one.id, one.prompt_ids) for one in questions.values()]
    drawn: Drawn = {}
    for group in engine.draw(prompts, Sampling(**sampling)):
        for one in group:
            question = questions[one.key]
            text = completion_text(tokenizer, one.token_ids, one.finished)
            correct = is_correct(
                question.task, question.prompt, text, question.answer, question.metadata, question.tags
            )
            drawn[one.key, one.sample] = GradedCompletion(one.key, one.sample, one.token_ids, one.finished, correct)
    return drawn


def standard_error(values: list[dict[str, list[float]]]) -> float:
    """Of the mean over problems: root mean square over `values`, each of which has the differences by problem."""
    variances = []
    for differences in values:
        means = np.array([np.mean(one) for one in differences.values()])
        variances.append(means.var(ddof=1) / len(means))
    return float(np.sqrt(np.mean(variances)))


def differences(first: Drawn, second: Drawn, read: Any) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for key, one in first.items():
        found.setdefault(one.id, []).append(read(one) - read(second[key]))
    return found


def main() -> None:
    given = arguments(
        __doc__,
        first="data/06_models/trra/1.5/trra-1.5",
        second="data/06_models/trra/2.0/trra-2",
        evaluation_set="data/05_model_input/evaluation_set",
        problems=300,
        samples=4,
        environment=".venv-serve",
    )
    bootstrap_project(PROJECT)
    with KedroSession.create(PROJECT) as session:
        catalog = session.load_context().catalog
        tasks = catalog.load("params:data_prep").tasks
        sampling = catalog.load("params:alpha_sweep").sampling.model_dump() | {"samples": given.samples}
    generation = Generation(
        engine="vllm",
        servers=None,
        environment=Path(given.environment),
        data_parallel_size=1,
        tensor_parallel_size=1,
        max_in_flight=64,
    )
    models = {"first": Path(given.first), "second": Path(given.second)}
    tokenizer = load_tokenizer(models["first"])
    rows = load_from_disk(given.evaluation_set)
    chosen = rows.select(range(0, len(rows), max(1, len(rows) // given.problems)))
    questions = {question.id: question for question in questions_of(chosen, tasks)}
    pair = f"{models['first'].name} and {models['second'].name}"
    results = Results(f"common_numbers {pair}", f"Common random numbers, {pair}", given)
    for name in ENGINES:
        drawn: dict[tuple[str, int], Drawn] = {}
        with tempfile.TemporaryDirectory() as folder:
            for which, checkpoint in models.items():
                with open_engine(name, checkpoint, generation, Path(folder) / "vllm.log") as engine:
                    for seed in SEEDS:
                        drawn[which, seed] = draw(engine, questions, tokenizer, sampling | {"seed": seed})
                        results.console.print(f"{name}: {checkpoint.name} has drawn with seed {seed}")
        for what, read in {"pass@1": lambda one: float(one.correct), "tokens": lambda one: len(one.token_ids)}.items():
            error = {
                equal: standard_error(
                    [
                        differences(drawn["first", a], drawn["second", b], read)
                        for a in SEEDS
                        for b in SEEDS
                        if (a == b) == equal
                    ]
                )
                for equal in (True, False)
            }
            results.figure(name, f"{what}: standard error of the difference, independent numbers", error[False])
            results.figure(name, f"{what}: the same, common numbers", error[True])
            results.figure(name, f"{what}: common / independent", error[True] / error[False])
        same = [
            drawn["first", seed][key].token_ids == drawn["second", seed][key].token_ids
            for seed in SEEDS
            for key in drawn["first", seed]
        ]
        results.figure(name, "completions that are the same in both models", float(np.mean(same)))
        means = {
            which: json.dumps(
                [
                    round(float(np.mean([read(one) for seed in SEEDS for one in drawn[which, seed].values()])), 4)
                    for read in (lambda one: float(one.correct), lambda one: len(one.token_ids))
                ]
            )
            for which in models
        }
        results.console.print(f"{name}: pass@1 and tokens {means}")
    results.save()


if __name__ == "__main__":
    main()
