"""Training SmolLM2 to think slowly, and an aligned model to think less."""

import random
from collections.abc import Callable, Collection
from itertools import islice
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.generation.graded import Question, check_length
from realign_pipes.generation.rejection import cut_thinking, shortest_completions
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import default_device, load_model, load_tokenizer, max_positions, render_prompts
from realign_pipes.runtime.sft import Examples, fine_tune
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.work import do_once
from realign_pipes.smollm2.parameters import ProblemSets, ReferenceTraining, Smollm2Models
from realign_pipes.smollm2.word_problems import WordProblem, draw_problems, slow_trace
from realign_pipes.tasks.completion import THINK
from realign_pipes.tasks.parameters import DatasetTask
from realign_pipes.tasks.splits import Split

TASK = DatasetTask(kind="dataset", path="", verifier="math")


def written_problems(split: Split, sets: ProblemSets) -> list[dict[str, str]]:
    """The problems of a split that data_prep reads: `question` and `answer`."""
    size = {"calibration": sets.calibration, "evaluation": sets.evaluation}[split]
    problems = islice(draw_problems(split, sets.seed), size)
    return [{"question": problem.question, "answer": str(problem.answer)} for problem in problems]


def train_reference(
    parameters: Smollm2Models, base: Path, unseen: Collection[str], work: Path, tracking: Tracking = NOT_TRACKED
) -> Path:
    """Train `base` to think slowly; the folder of the new checkpoint, inside `work`.

    A finished model with the same parameters is reused; an interrupted training is resumed. InputError, before anything
    is trained, if one of the questions in `unseen` is among the examples, or if completions would be too long.
    """
    training = parameters.reference
    tokenizer = load_tokenizer(base)
    aligned_questions(parameters, tokenizer, base)  # fails now rather than after this training
    size = training.steps * training.batch_size
    problems = list(islice(draw_problems("training", training.problem_seed), size))
    _check_unseen(problems, unseen)

    def do(folder: Path) -> Callable[[Path], None]:
        examples = slow_examples(parameters, tokenizer, problems)
        return _fine_tune(base, tokenizer, examples, training, folder, "training the reference model", tracking)

    recipe = parameters.model_dump(mode="json", include={"traces", "reference"})
    return do_once(
        work,
        "checkpoint",
        {"what": "smollm2 reference", "parameters": recipe, "base": fingerprint_model(base)},
        do,
    )


def slow_examples(
    parameters: Smollm2Models, tokenizer: PreTrainedTokenizerFast, problems: list[WordProblem]
) -> Examples:
    """Each problem with its slow trace; some prompts hold a part of the trace, as `cut_thinking` makes them.

    Those traces have no mistakes: what is learnt after them is always right.
    """
    traces = parameters.traces
    flawless = traces.model_copy(update={"slip_rate": 0.0})
    draws = random.Random(parameters.reference.seed)
    think_close = tokenizer.convert_tokens_to_ids(THINK.close)
    prompts = render_prompts(tokenizer, [problem.question for problem in problems])
    examples = []
    for problem, prompt in zip(problems, prompts, strict=True):
        is_cut = draws.random() < traces.cut_share
        trace = slow_trace(problem, flawless if is_cut else traces, draws)
        completion = tokenizer(trace + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        examples.append(cut_thinking(prompt, completion, think_close, draws) if is_cut else (prompt, completion))
    return examples


def train_aligned(
    parameters: Smollm2Models, reference: Path, unseen: Collection[str], work: Path, tracking: Tracking = NOT_TRACKED
) -> Path:
    """Align `reference` to think less; the folder of the new checkpoint, inside `work`.

    By rejection sampling, as the demo's: the reference draws completions of each problem, the shortest one is kept (of
    a share of the problems, the shortest correct one), and a copy of the reference is fine-tuned on these.
    """
    training = parameters.aligned
    tokenizer = load_tokenizer(reference)
    questions = aligned_questions(parameters, tokenizer, reference)
    _check_unseen(_aligned_problems(parameters), unseen)

    def do(folder: Path) -> Callable[[Path], None]:
        examples = shortest_completions(
            lambda: TransformersEngine.of_checkpoint(reference),
            questions,
            tokenizer,
            training.sampling,
            folder / "completions.jsonl",
            verified={question.id for question in questions[: round(training.verified_share * len(questions))]},
        )
        if not examples:
            raise InputError("smollm2_models: the reference finished none of the completions for the aligned model. "
                             "Give smollm2_models.reference more steps.")  # fmt: skip
        return _fine_tune(reference, tokenizer, examples, training, folder, "training the aligned model", tracking)

    recipe = training.model_dump(mode="json")
    description = {"what": "smollm2 aligned", "parameters": recipe, "reference": fingerprint_model(reference)}
    return do_once(work, "checkpoint", description, do)


def aligned_questions(
    parameters: Smollm2Models, tokenizer: PreTrainedTokenizerFast, checkpoint: Path
) -> list[Question]:
    """The problems that the aligned model learns from. InputError if their completions would be too long."""
    problems = _aligned_problems(parameters)
    prompts = render_prompts(tokenizer, [problem.question for problem in problems])
    questions = [
        Question(f"alignment-{number:05d}", TASK, tokenizer.decode(prompt), prompt, str(problem.answer), "{}")
        for number, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
    ]
    check_length(
        [question.prompt_ids for question in questions],
        parameters.aligned.sampling.max_new_tokens,
        max_positions(checkpoint),
        parameter="smollm2_models.aligned.sampling.max_new_tokens",
        model=str(checkpoint),
    )
    return questions


def _aligned_problems(parameters: Smollm2Models) -> list[WordProblem]:
    return list(islice(draw_problems("alignment", parameters.aligned.problem_seed), parameters.aligned.problems))


def _check_unseen(problems: list[WordProblem], unseen: Collection[str]) -> None:
    if seen := {problem.question for problem in problems} & set(unseen):
        raise InputError(f"smollm2_models: {len(seen)} problems of the calibration or evaluation would be trained on, "
                         f"such as {min(seen)!r}. They have to be of other splits.")  # fmt: skip


def _fine_tune(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    examples: Examples,
    training: ReferenceTraining,
    folder: Path,
    description: str,
    tracking: Tracking,
) -> Callable[[Path], None]:
    """`fine_tune` from the checkpoint `start`, with weights in float32 that are saved in bfloat16 if `bf16` says so."""
    return fine_tune(
        load_model(start, device=default_device(), dtype=torch.float32),
        tokenizer,
        examples,
        training,
        folder,
        description,
        bf16=training.bf16,
        micro_batch_size=training.micro_batch_size,
        saved_in=torch.bfloat16 if training.bf16 else None,
        tracking=tracking,
    )
