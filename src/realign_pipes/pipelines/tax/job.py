"""The job of the pipeline tax: lm-evaluation-harness on the candidates of the sweep."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.data.prompts import encode_completion, end_of_turn_id
from realign_pipes.errors import InputError
from realign_pipes.generation.transformers_engine import TransformersEngine
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.models.load import (
    check_pair,
    default_device,
    load_chat_tokenizer,
    load_model,
    load_tokenizer,
    max_positions,
)
from realign_pipes.pipelines.alpha_sweep.job import MeasureCandidates
from realign_pipes.pipelines.tax.parameters import Tax
from realign_pipes.runtime.launch import AbsolutePath
from realign_pipes.runtime.parameters import unknown
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import do_once
from realign_pipes.sweep.divergence import kl_per_token
from realign_pipes.sweep.harness import (
    CandidateLM,
    HarnessTask,
    candidate_lm,
    check_new_tokens,
    load_tasks,
    measure,
)
from realign_pipes.sweep.kinds import KINDS, Candidate, model_of
from realign_pipes.sweep.metrics import Generations, load_frame
from realign_pipes.sweep.schemas import TAX_RESULTS, conform

logger = logging.getLogger(__name__)

Examples = list[tuple[list[int], list[int]]]
"""Prompt and completion ids."""


class MeasureTax:
    """Measure the candidates of a `sweep` on the harness's tasks, or find them measured in `work`.

    It runs in this process: one model is in memory at a time, and candidates that share it follow one another.
    """

    def __init__(self, parameters: Tax, sweep: MeasureCandidates, work: AbsolutePath) -> None:
        self.parameters, self.sweep, self.work = parameters, sweep, work
        self._opened: tuple[Any, TransformersEngine] | None = None

    def run(self, generations: Generations, evaluation_set: Dataset) -> pd.DataFrame:
        """One row for each candidate, task and metric: TAX_RESULTS. Tasks of the sweep, whose completions
        `generations` has, are in it as `KL <task>`, with the metric `nats`: KL per token from the reference.

        InputError or MissingFileError, before a model is loaded, for a candidate or a task that does not exist, for
        data that cannot be had, for a candidate that the sweep has not drawn, and for a checkpoint that is missing or
        was trained from another reference.
        """
        parameters, reference = self.parameters, self.sweep.reference
        candidates = self.candidates()
        for path in (self.sweep.aligned, *self.sweep.others.values()):
            check_pair(reference, path)
        fingerprints = self.sweep.fingerprints(candidates)
        template = self.sweep.chat_template
        chat = parameters.apply_chat_template
        tokenizer = load_chat_tokenizer(reference, template) if chat else load_tokenizer(reference)
        tasks = load_tasks(
            parameters.tasks,
            parameters.include_path,
            num_fewshot=parameters.num_fewshot,
            limit=parameters.limit,
        )
        for task in tasks:
            check_new_tokens(task, max_positions(reference))
        examples = self._examples(candidates, generations, evaluation_set, tokenizer)
        models = [model_of(candidate) for candidate in candidates]
        found: dict[str, dict[str, dict[str, Any]]] = {candidate.name: {} for candidate in candidates}
        with progress_bar("alignment tax", len(candidates) * (len(tasks) + bool(parameters.kl_completions))) as advance:
            for place in sorted(range(len(candidates)), key=lambda place: models.index(models[place])):
                candidate = candidates[place]
                described = {
                    **asdict(candidate),
                    "checkpoints": [fingerprints[path] for path in candidate.checkpoints],
                }
                for task in tasks:
                    found[candidate.name] |= self._measure(candidate, described, task, tokenizer)
                    advance()
                if parameters.kl_completions:
                    found[candidate.name] |= self._diverge(
                        candidate, described, examples[candidate.name], tokenizer, fingerprints[reference]
                    )
                    advance()
        self._close()
        return conform(pd.DataFrame(_rows(candidates, found)), TAX_RESULTS)

    def candidates(self) -> list[Candidate]:
        """Those that are measured: the reference, and the sweep's or those of them that the parameters name.

        The sweep's rows that only draw in another way from a model that is a row itself are not: with a min-p, a bias
        on the closing tag, or an instruction. InputError for one of these that is named.
        """
        everything = {candidate.name: candidate for candidate in self.sweep.sweep_candidates()}
        own = {name: one for name, one in everything.items() if _is_model(one)}
        if self.parameters.candidates is None:
            if left := everything.keys() - own.keys():
                logger.info("not measured, as they are the reference or the aligned model drawn from in another way: "
                            "%s", ", ".join(sorted(left)))  # fmt: skip
            return list(own.values())
        named = dict.fromkeys(["reference", *self.parameters.candidates])
        for name in named:
            if name not in everything:
                raise InputError(f"tax.candidates: {unknown('candidate of the sweep', name, everything)}")
            if name not in own:
                raise InputError(
                    f"tax.candidates: {name} is another row's model, and only draws from it in another way. Remove it."
                )
        return [everything[name] for name in named]

    def _measure(
        self,
        candidate: Candidate,
        described: dict[str, Any],
        task: HarnessTask,
        tokenizer: PreTrainedTokenizerFast,
    ) -> dict[str, Any]:
        """The candidate's figures on a task, measured now or found in the work folder."""
        parameters = self.parameters
        description = {
            "candidate": described,
            "task": task.description,
            "limit": parameters.limit,
            "chat_template": tokenizer.chat_template if parameters.apply_chat_template else None,
            "seed": parameters.seed,
            "attn_implementation": self.sweep.attn_implementation,
            "lm_eval": version("lm_eval"),
        }

        return self._kept(
            candidate,
            task.name,
            description,
            tokenizer,
            lambda lm: measure(
                lm,
                task,
                limit=parameters.limit,
                apply_chat_template=parameters.apply_chat_template,
                seed=parameters.seed,
            ),
        )

    def _examples(
        self,
        candidates: list[Candidate],
        generations: Generations,
        evaluation_set: Dataset,
        tokenizer: PreTrainedTokenizerFast,
    ) -> dict[str, dict[str, Examples]]:
        """Of each candidate and task, prompt and completion ids of the first `kl_completions`; without, nothing."""
        if not self.parameters.kl_completions:
            return {}
        prompts = dict(zip(evaluation_set["id"], evaluation_set["prompt_ids"], strict=True))
        end = end_of_turn_id(load_chat_tokenizer(self.sweep.reference, self.sweep.chat_template))
        examples: dict[str, dict[str, Examples]] = {}
        for candidate in candidates:
            if candidate.name not in generations:
                raise InputError(f"tax.kl_completions: the sweep has no completions of {candidate.name}. Run "
                                 "alpha_sweep first, or set it to null.")  # fmt: skip
            frame = load_frame(generations[candidate.name])
            examples[candidate.name] = {
                task: [
                    (
                        prompts[row.problem_id],
                        encode_completion(tokenizer, row.completion, end)
                        if row.finished
                        else tokenizer(row.completion, add_special_tokens=False)["input_ids"],
                    )
                    for row in rows.sort_values(["sample", "problem_id"])
                    .head(self.parameters.kl_completions)
                    .itertuples()
                    if row.completion_tokens > 0
                ]
                for task, rows in frame.groupby("task", sort=False)
            }
        return examples

    def _diverge(
        self,
        candidate: Candidate,
        described: dict[str, Any],
        examples: dict[str, Examples],
        tokenizer: PreTrainedTokenizerFast,
        reference: str,
    ) -> dict[str, Any]:
        """The candidate's KL from the reference on each task of the sweep, measured now or found in the work folder."""
        description = {
            "candidate": described,
            "reference": reference,
            "examples": fingerprint(json.dumps(examples)),
            "attn_implementation": self.sweep.attn_implementation,
        }

        def diverge(lm: CandidateLM) -> dict[str, Any]:
            measure_kl = partial(
                kl_per_token,
                partial(lm.model, **lm.arguments),
                self._reference,
                vocab_size=len(tokenizer),
                batch_size=self.parameters.batch_size,
                device=default_device(),
            )
            return {f"KL {task}": {"nats": _summary(measure_kl(some))} for task, some in examples.items() if some}

        return self._kept(candidate, "kl", description, tokenizer, diverge)

    def _kept(
        self,
        candidate: Candidate,
        name: str,
        description: dict[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        figures_of: Callable[[CandidateLM], dict[str, Any]],
    ) -> dict[str, Any]:
        """The figures of a candidate under a name, of its model now or as they are in the work folder."""

        def do(folder: Any) -> Any:
            lm = candidate_lm(candidate, self._model(candidate, len(tokenizer)), tokenizer, self.parameters.batch_size)
            figures = figures_of(lm)
            return lambda path: path.write_text(json.dumps(figures, indent=1))

        file = do_once(self.work / candidate.name / name, "results.json", description, do)
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    def _model(self, candidate: Candidate, vocab_size: int) -> PreTrainedModel:
        """The model of the last candidate if it is this one's too, else a new one in its place."""
        shared = model_of(candidate)
        if self._opened is None or self._opened[0] != shared:
            self._close()  # before the next one needs the memory
            engine = KINDS[candidate.kind].open(candidate, vocab_size, self.sweep.attn_implementation)
            assert isinstance(engine, TransformersEngine)  # noqa: S101  for mypy: every kind opens one
            self._opened = shared, engine
        return self._opened[1].model

    @cached_property
    def _reference(self) -> PreTrainedModel:
        """The reference, which stays in memory beside the candidates."""
        return load_model(
            self.sweep.reference, device=default_device(), attn_implementation=self.sweep.attn_implementation
        )

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None


def _is_model(candidate: Candidate) -> bool:
    """Whether it is a distribution of its own, and not another candidate's with another way of drawing from it."""
    kind = KINDS[candidate.kind]
    min_p = not kind.has_alpha and candidate.plausibility > 0
    return not (kind.biases_close or min_p or candidate.instruction is not None)


def _rows(candidates: list[Candidate], found: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "candidate": candidate.name,
            "kind": candidate.kind,
            "alpha": candidate.alpha,
            "task": task,
            "metric": metric,
            "value": one["value"],
            "stderr": math.nan if one["stderr"] is None else one["stderr"],
            "difference": one["value"] - found["reference"][task][metric]["value"],
            "problems": one["problems"],
        }
        for candidate in candidates
        for task, metrics in found[candidate.name].items()
        for metric, one in metrics.items()
    ]


def _summary(values: list[float]) -> dict[str, Any]:
    """The mean of some completions' figures, its standard error, and how many they are."""
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "stderr": stderr, "problems": len(values)}
