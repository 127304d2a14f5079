"""Nodes of data_prep: completions to calibrate on, the training sets made from them, and the evaluation set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.data.parameters import GivenPairs, GivenReplies, Models
from realign_pipes.generation.parameters import Generation
from realign_pipes.pipelines.data_prep.parameters import DataPrep, SampledCalibration
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep

if TYPE_CHECKING:
    from datasets import Dataset

    from realign_pipes.data.given import Reading
else:
    Dataset = Any  # Kedro evaluates these annotations; importing `datasets` for them would take a second


def collect_samples(
    parameters: DataPrep,
    alpha_sweep: AlphaSweep,
    models: Models,
    generation: Generation,
    folders: Folders,
    reference_model: Path,
    aligned_model: Path,
) -> Dataset:
    """Completions of the calibration problems, sampled from one of the models or read from disk, graded if they can be.

    This is the first node of a realignment. So it also checks that the two models fit together, that there are problems
    for the evaluation besides the calibration's, and that the models have room for the completions of the sweep: these
    two and the sweep's others, which are there from here on. Before anything is sampled, replies and pairs that are
    given are read once.
    """
    from realign_pipes.data import given, samples
    from realign_pipes.data.problems import draw_problems, normalise
    from realign_pipes.data.prompts import check_thinking, render_prompt, thinking_tags
    from realign_pipes.generation.graded import check_length
    from realign_pipes.generation.servers import engine_of_checkpoint
    from realign_pipes.models.hub import find_checkpoint
    from realign_pipes.models.load import check_pair, load_chat_tokenizer, max_positions

    check_pair(reference_model, aligned_model)
    tokenizer = load_chat_tokenizer(reference_model, models.chat_template)
    tags = models.thinking or thinking_tags(tokenizer)
    check_thinking(tokenizer, tags, parameters.thinking)
    others = [find_checkpoint(checkpoint) for checkpoint in alpha_sweep.others.values()]
    for path in others:
        check_pair(reference_model, path)
    calibration, seed = parameters.calibration, parameters.seed
    calibrated: set[str] = set()  # what a dataset holds is read below, and costs no sampling
    if isinstance(calibration, SampledCalibration):
        calibrated = {normalise(one.question) for one in samples.calibration_problems(calibration.task, seed)}
    for name, task in parameters.tasks.items():
        problems = draw_problems(f"data_prep.tasks.{name}", name, task, seed, calibrated)
        prompt_ids = [
            render_prompt(tokenizer, problem.chat, parameters.instruction, instruction)[1]
            for problem in problems
            for instruction in (None, *alpha_sweep.prompts.values())
        ]
        for path in (reference_model, aligned_model, *others):
            for parameter, tokens in alpha_sweep.longest_completions():
                check_length(prompt_ids, tokens, max_positions(path), parameter=parameter, model=str(path))
    if isinstance(calibration, SampledCalibration):
        reading = _reading(parameters, models, reference_model)
        if isinstance(parameters.short_solutions, GivenReplies):
            given.read_replies(parameters.short_solutions, reading)
        if isinstance(parameters.preference_pairs, GivenPairs):
            given.read_pairs(parameters.preference_pairs, reading)
        checkpoint = reference_model if calibration.drawn_by == "reference" else aligned_model
        drawn_by, open_engine = engine_of_checkpoint(
            checkpoint, generation, folders.work / "data_prep_served", models.attn_implementation
        )
        return samples.draw_samples(
            open_engine,
            calibration.task,
            calibration.sampling,
            tokenizer,
            tags,
            checkpoint=checkpoint,
            thinking=parameters.thinking,
            seed=seed,
            drawn_by=drawn_by,
            work=folders.work / "data_prep",
            instruction=parameters.instruction,
        )
    return samples.read_samples(
        calibration,
        answer_column=calibration.answer_column,
        verifier=calibration.verifier,
        max_tokens=calibration.max_tokens,
        positions=max_positions(reference_model),
        tokenizer=tokenizer,
        tags=tags,
        thinking=parameters.thinking,
        seed=seed,
        instruction=parameters.instruction,
    )


def select_calibration(parameters: DataPrep, calibration_samples: Dataset) -> Dataset:
    """The usable completions of the lengths asked for: the longest of each problem, or all of them."""
    from realign_pipes.data import calibration

    wanted = parameters.calibration
    return calibration.select_calibration(
        calibration_samples, keep=wanted.keep, min_tokens=wanted.min_tokens, max_tokens=wanted.max_tokens
    )


def make_short_solutions(
    parameters: DataPrep, models: Models, reference_model: Path, calibration_samples: Dataset
) -> Dataset:
    """For the SFT of InRa's adapter: solutions of the usable completions without their thinking, or given replies."""
    from realign_pipes.data import adapter_data, given
    from realign_pipes.models.load import load_chat_tokenizer

    if isinstance(parameters.short_solutions, GivenReplies):
        return given.read_replies(parameters.short_solutions, _reading(parameters, models, reference_model))
    return adapter_data.make_short_solutions(
        load_chat_tokenizer(reference_model, models.chat_template),
        calibration_samples,
        cut_share=parameters.short_solutions.cut_share,
        seed=parameters.seed,
        max_tokens=parameters.short_solutions.max_tokens,
    )


def make_preference_pairs(
    parameters: DataPrep, models: Models, reference_model: Path, calibration_samples: Dataset
) -> Dataset:
    """For the DPO of InRa's adapter: short right completions against long or wrong ones, or given pairs."""
    from realign_pipes.data import adapter_data, given
    from realign_pipes.models.load import load_chat_tokenizer

    if isinstance(parameters.preference_pairs, GivenPairs):
        return given.read_pairs(parameters.preference_pairs, _reading(parameters, models, reference_model))
    tokenizer = load_chat_tokenizer(reference_model, models.chat_template)
    return adapter_data.make_preference_pairs(tokenizer, calibration_samples)


def make_evaluation_set(
    parameters: DataPrep, models: Models, reference_model: Path, calibration_samples: Dataset
) -> Dataset:
    """Problems of every evaluation task, none of which the calibration has seen."""
    from realign_pipes.data import evaluation_set
    from realign_pipes.data.prompts import thinking_tags
    from realign_pipes.models.load import load_chat_tokenizer

    tokenizer = load_chat_tokenizer(reference_model, models.chat_template)
    return evaluation_set.make_evaluation_set(
        parameters.tasks,
        tokenizer,
        models.thinking or thinking_tags(tokenizer),
        calibration_samples,
        seed=parameters.seed,
        instruction=parameters.instruction,
    )


def _reading(parameters: DataPrep, models: Models, reference_model: Path) -> "Reading":
    """How given data are read for the reference."""
    from realign_pipes.data.given import Reading
    from realign_pipes.data.prompts import thinking_tags
    from realign_pipes.models.load import load_chat_tokenizer, max_positions

    tokenizer = load_chat_tokenizer(reference_model, models.chat_template)
    return Reading(
        tokenizer,
        models.thinking or thinking_tags(tokenizer),
        parameters.thinking,
        positions=max_positions(reference_model),
        seed=parameters.seed,
        instruction=parameters.instruction,
    )
