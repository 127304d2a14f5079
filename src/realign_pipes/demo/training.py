"""Training the demo's two models: a slow thinker from scratch, and one aligned to think less by rejection sampling."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from realign_pipes.demo.parameters import ChainSum, DemoArchitecture, DemoModels
from realign_pipes.demo.tokenizer import THINK_CLOSE, build_tokenizer
from realign_pipes.demo.traces import slow_trace
from realign_pipes.errors import InputError
from realign_pipes.generation import rejection
from realign_pipes.generation.engine import Engine
from realign_pipes.generation.graded import Question, check_length
from realign_pipes.generation.rejection import cut_thinking
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import default_device, load_model, load_tokenizer, render_prompts
from realign_pipes.runtime.sft import Examples, fine_tune
from realign_pipes.runtime.tracking import NOT_TRACKED, Tracking
from realign_pipes.runtime.work import do_once
from realign_pipes.tasks.parameters import ReasoningGymTask
from realign_pipes.tasks.reasoning_gym_task import make_problems

MAX_POSITIONS = 1024


def train_reference(parameters: DemoModels, work: Path, tracking: Tracking = NOT_TRACKED) -> Path:
    """Train the slow thinker from scratch on slow traces; the folder of its checkpoint, inside `work`.

    A finished model with the same parameters is reused; an interrupted training is resumed. InputError, before
    anything is trained, if the completions for the aligned model would be too long.
    """
    training = parameters.reference
    tokenizer = build_tokenizer(_largest_number(parameters.problems))
    aligned_questions(parameters, tokenizer)  # fails now rather than after this training

    def do(folder: Path) -> Callable[[Path], None]:
        torch.manual_seed(training.seed)
        model = Qwen2ForCausalLM(model_config(parameters.architecture, tokenizer))
        examples = slow_examples(parameters, tokenizer)
        what = "training the reference model"
        return fine_tune(model, tokenizer, examples, training, folder, what, tracking=tracking)

    recipe = parameters.model_dump(mode="json", exclude={"aligned"})
    return do_once(work, "checkpoint", {"what": "demo reference", "parameters": recipe}, do)


def slow_examples(parameters: DemoModels, tokenizer: PreTrainedTokenizerFast) -> Examples:
    """A new problem and its slow trace for each example of the training; some prompts hold a part of the trace.

    Those traces have no slips: what is learnt after them is always right.
    """
    training = parameters.reference
    draws = random.Random(training.seed)
    size = training.steps * training.batch_size
    problems = make_problems(_task(parameters.problems), size, seed=training.problem_seed)
    cut = [draws.random() < parameters.traces.cut_share for _ in problems]
    flawless = parameters.traces.model_copy(update={"slip_rate": 0.0})
    traces = [
        slow_trace(_expression(problem), flawless if is_cut else parameters.traces, draws)
        for problem, is_cut in zip(problems, cut, strict=True)
    ]
    completions = tokenizer([trace + tokenizer.eos_token for trace in traces])["input_ids"]
    think_close = tokenizer.convert_tokens_to_ids(THINK_CLOSE)
    prompts = render_prompts(tokenizer, [problem["question"] for problem in problems])
    return [
        cut_thinking(prompt, completion, think_close, draws) if is_cut else (prompt, completion)
        for prompt, completion, is_cut in zip(prompts, completions, cut, strict=True)
    ]


def train_aligned(parameters: DemoModels, reference: Path, work: Path, tracking: Tracking = NOT_TRACKED) -> Path:
    """Align `reference` to think less; the folder of the new checkpoint, inside `work`.

    By rejection sampling: the reference draws completions of each problem, the shortest one is kept (of a share of the
    problems, the shortest correct one), and a copy of the reference is fine-tuned on these.
    """
    training = parameters.aligned

    def do(folder: Path) -> Callable[[Path], None]:
        tokenizer = load_tokenizer(reference)
        file = folder / "completions.jsonl"
        examples = shortest_completions(
            lambda: TransformersEngine.of_checkpoint(reference), tokenizer, parameters, file
        )
        model = load_model(reference, device=default_device())
        what = "training the aligned model"
        return fine_tune(model, tokenizer, examples, training, folder, what, tracking=tracking)

    recipe = {"problems": parameters.problems.model_dump(), "aligned": training.model_dump()}
    description = {"what": "demo aligned", "parameters": recipe, "reference": fingerprint_model(reference)}
    return do_once(work, "checkpoint", description, do)


def shortest_completions(
    open_engine: Callable[[], Engine], tokenizer: PreTrainedTokenizerFast, parameters: DemoModels, file: Path
) -> Examples:
    """Prompt and completion ids of the shortest completion of each problem; the shortest correct one of those verified.

    The first `verified_share` of the problems are verified; those that the model cannot solve are left out, and so are
    problems without a finished completion. `open_engine` opens the reference; `file` keeps the completions, as
    `sample_and_grade` does. InputError if nothing is left.
    """
    training, questions = parameters.aligned, aligned_questions(parameters, tokenizer)
    verified = {question.id for question in questions[: round(training.verified_share * len(questions))]}
    examples = rejection.shortest_completions(
        open_engine, questions, tokenizer, training.sampling, file, verified=verified
    )
    if not examples:
        raise InputError("demo_models: the reference solved none of the problems for the aligned model. Give "
                         "demo_models.reference more steps.")  # fmt: skip
    return examples


def aligned_questions(parameters: DemoModels, tokenizer: PreTrainedTokenizerFast) -> list[Question]:
    """The problems that the aligned model learns from. InputError if their completions would be too long."""
    task = _task(parameters.problems)
    problems = make_problems(task, parameters.aligned.problems, seed=parameters.aligned.problem_seed)
    prompts = render_prompts(tokenizer, [problem["question"] for problem in problems])
    questions = [
        Question(f"demo-{number:05d}", task, tokenizer.decode(prompt), prompt, problem["answer"], problem["metadata"])
        for number, (prompt, problem) in enumerate(zip(prompts, problems, strict=True))
    ]
    check_length(
        [question.prompt_ids for question in questions],
        parameters.aligned.sampling.max_new_tokens,
        MAX_POSITIONS,
        parameter="demo_models.aligned.sampling.max_new_tokens",
        model="the demo's reference model",
    )
    return questions


def _expression(problem: dict[str, str]) -> str:
    return json.loads(problem["metadata"])["expression"]


def _largest_number(problems: ChainSum) -> int:
    """An upper bound for the size of any running total, slipped or not."""
    return problems.max_terms * (10**problems.max_digits - 1)


def _task(problems: ChainSum) -> ReasoningGymTask:
    return ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=problems.model_dump())


def model_config(architecture: DemoArchitecture, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """A Qwen2 of this size for the tokens of `tokenizer`."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.width,
        intermediate_size=architecture.mlp_width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
