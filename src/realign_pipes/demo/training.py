"""Training the demo's two models: a slow thinker from scratch, and one aligned to think less by rejection sampling."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.demo.traces import SLIPS, slow_trace
from realign_pipes.evaluation.sampling import sample_completions
from realign_pipes.parameters import ChainSum, DemoArchitecture, DemoModels, DemoTraining, ReasoningGymTask
from realign_pipes.progress import progress_bar
from realign_pipes.realignment.checkpoints import default_device, fingerprint_model, load_model, load_tokenizer
from realign_pipes.realignment.training import CURVES, train
from realign_pipes.resume import atomic_path, open_work
from realign_pipes.tasks.completion import THINK_CLOSE
from realign_pipes.tasks.grading import Attempt, grade
from realign_pipes.tasks.reasoning_gym_task import make_problems

IGNORED = -100
"""Label of tokens that are not in the loss."""


def train_reference(parameters: DemoModels, work: Path) -> Path:
    """Train the slow thinker from scratch on slow traces; the folder of its checkpoint, inside `work`.

    A finished model of the same parameters is taken as it is; an interrupted training goes on.
    """
    recipe = parameters.model_dump(mode="json", exclude={"aligned"})
    work = open_work(work, {"what": "demo reference", "parameters": recipe})
    checkpoint = work / "checkpoint"
    if checkpoint.exists():
        return checkpoint
    tokenizer = build_tokenizer(_largest_number(parameters.problems))
    training = parameters.reference
    problems = _problems(parameters.problems, training)
    draws = random.Random(training.seed)
    traces = [slow_trace(_expression(problem), parameters.traces, draws) for problem in problems]
    completions = tokenizer([trace + tokenizer.eos_token for trace in traces])["input_ids"]
    examples = [
        cut_thinking(prompt, completion, tokenizer.convert_tokens_to_ids(THINK_CLOSE), draws)
        if draws.random() < parameters.traces.cut_share
        else (prompt, completion)
        for prompt, completion in zip(_prompts(tokenizer, problems), completions, strict=True)
    ]
    torch.manual_seed(training.seed)
    model = Qwen2ForCausalLM(_model_config(parameters.architecture, tokenizer))
    _train(model, tokenizer, examples, training, work / "trainer", "training the reference model")
    _save(model, tokenizer, checkpoint)
    return checkpoint


def cut_thinking(
    prompt: list[int], completion: list[int], think_close: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """The example with its thinking in the prompt, cut short and closed, and the solution alone to be learnt.

    Half of the examples keep no thinking at all, the others up to a random token. So the model can answer after as
    much thought as it was given, as models with hybrid thinking can; one that only ever saw finished thinking copies
    its solution from there, and has nothing to say without. When to close it does not learn: that is in the prompt.
    """
    closed = completion.index(think_close)
    kept = rng.choice([0, rng.randint(0, closed)])
    return prompt + completion[:kept] + [think_close], completion[closed + 1 :]


def train_aligned(parameters: DemoModels, reference: Path, work: Path) -> Path:
    """Align `reference` to think less; the folder of the new checkpoint, inside `work`.

    Rejection sampling: of the completions that the reference draws for each problem, the shortest correct one is
    kept, and a copy of the reference is fine-tuned on these.
    """
    training = parameters.aligned
    recipe = {"problems": parameters.problems.model_dump(), "aligned": training.model_dump()}
    work = open_work(work, {"what": "demo aligned", "parameters": recipe, "reference": fingerprint_model(reference)})
    checkpoint = work / "checkpoint"
    if checkpoint.exists():
        return checkpoint
    tokenizer = load_tokenizer(reference)
    model = load_model(reference, device=default_device())
    chosen = work / "chosen.json"
    if not chosen.exists():
        examples = shortest_correct(model, tokenizer, parameters)
        with atomic_path(chosen) as temporary:
            temporary.write_text(json.dumps(examples))
    examples = json.loads(chosen.read_text())
    _train(model, tokenizer, examples, training, work / "trainer", "training the aligned model")
    _save(model, tokenizer, checkpoint)
    return checkpoint


def shortest_correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, parameters: DemoModels
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of the shortest correct completion of each problem that the model solves at all."""
    aligned = parameters.aligned
    task = _task(parameters.problems)
    problems = make_problems(task, aligned.problems, seed=aligned.problem_seed)
    prompts = _prompts(tokenizer, problems)
    best: dict[int, list[int]] = {}
    with progress_bar("sampling the reference model", len(problems) * aligned.sampling.samples) as advance:
        for batch in sample_completions(
            model,
            prompts,
            [problem["question"] for problem in problems],
            aligned.sampling,
            pad_token_id=tokenizer.pad_token_id,
        ):
            finished = [drawn for drawn in batch if drawn.finished]
            attempts = [
                Attempt(
                    f"problem {drawn.prompt_index}",
                    task,
                    tokenizer.decode(prompts[drawn.prompt_index]),
                    tokenizer.decode(drawn.token_ids[:-1]),
                    problems[drawn.prompt_index]["answer"],
                    problems[drawn.prompt_index]["metadata"],
                )
                for drawn in finished
            ]
            for drawn, correct in zip(finished, grade(attempts), strict=True):
                index = drawn.prompt_index
                if correct and (index not in best or len(drawn.token_ids) < len(best[index])):
                    best[index] = drawn.token_ids
            advance(len(batch))
    if not best:
        raise ValueError("demo_models: the reference solved none of the problems for the aligned model. Give "
                         "demo_models.reference more steps.")  # fmt: skip
    return [(prompts[index], best[index]) for index in sorted(best)]


def _problems(problems: ChainSum, training: DemoTraining) -> list[dict[str, str]]:
    """A new problem for each example of the training."""
    return make_problems(_task(problems), training.steps * training.batch_size, seed=training.problem_seed)


def _expression(problem: dict[str, str]) -> str:
    return json.loads(problem["metadata"])["expression"]


def _largest_number(problems: ChainSum) -> int:
    """No running total, slipped or not, is further from zero."""
    return problems.max_terms * (10**problems.max_digits - 1) + max(SLIPS)


def _task(problems: ChainSum) -> ReasoningGymTask:
    return ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=problems.model_dump())


def _prompts(tokenizer: PreTrainedTokenizerFast, problems: Sequence[dict[str, str]]) -> list[list[int]]:
    conversations = [[{"role": "user", "content": problem["question"]}] for problem in problems]
    texts = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _model_config(architecture: DemoArchitecture, tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.width,
        intermediate_size=architecture.mlp_width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[tuple[list[int], list[int]]],
    training: DemoTraining,
    folder: Path,
    description: str,
) -> None:
    """Minimise the cross-entropy of completion tokens over `examples` (prompt ids, completion ids), in place."""
    rows = [
        {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}
        for prompt, completion in examples
    ]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        padding = [width - len(row["input_ids"]) for row in batch]
        # No attention mask: with padding on the right and causal attention, no real token sees any.
        return {
            name: torch.tensor([row[name] + [fill] * n for row, n in zip(batch, padding, strict=True)])
            for name, fill in (("input_ids", tokenizer.pad_token_id), ("labels", IGNORED))
        }

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=training.warmup_ratio,
        adam_beta2=0.98,  # the usual 0.999 remembers more than a short training has
        save_steps=training.save_steps,
        save_total_limit=1,
        logging_steps=max(1, training.steps // 100),
        include_num_input_tokens_seen="all",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=training.seed,
    )
    train(Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate), description)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, checkpoint: Path) -> None:
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with atomic_path(checkpoint) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.copytree(checkpoint.with_name(CURVES), temporary / CURVES)
