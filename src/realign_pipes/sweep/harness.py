"""Candidates as models of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), and its tasks.

Importing this module registers InRa and DeRa with the harness, by these names:

    import realign_pipes.sweep.harness
    lm_eval.simple_evaluate("inra", "pretrained=data/06_models/inra,alpha=0.5", tasks=["gsm8k"])
    lm_eval.simple_evaluate("dera", {"reference": "…", "aligned": "…", "alpha": 1.5}, tasks=["gsm8k"])
"""

import inspect
import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from realign_pipes.errors import InputError
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.models.load import check_pair, default_device, load_model, load_tokenizer
from realign_pipes.paper.dera import DeRaForCausalLM
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.runtime.parameters import unknown
from realign_pipes.sweep.kinds import Candidate

DEFAULT_NEW_TOKENS = 256
"""What the harness generates at most for a task that does not say."""


class CandidateLM(HFLM):
    """HFLM on a model in memory, whose `forward` and `generate` get further `arguments`. It draws no bars."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, arguments: dict[str, Any], **options: Any
    ) -> None:
        """`options` are HFLM's, such as `batch_size`; the model stays on its device, in its dtype."""
        super().__init__(pretrained=model, tokenizer=tokenizer, **options)
        self.arguments = arguments

    @torch.inference_mode()
    def _model_call(self, inps: torch.Tensor, attn_mask: None = None, labels: None = None) -> torch.Tensor:
        """Logits [B, T, V] of ids [B, T], padded on the right: no token sees its row's padding."""
        logits: torch.Tensor = self.model(inps, use_cache=False, **self.arguments).logits
        return logits

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        return super()._model_generate(context, max_length, stop, **generation_kwargs, **self.arguments)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As HFLM does, but a line break at the end of the context stays there.

        HFLM moves it into the continuation. Chat templates end with one, which models are trained to read and not to
        write: a plausibility mask may forbid it, and with it every continuation.
        """
        if not context.endswith("\n"):
            return super()._encode_pair(context, continuation)
        return self.tok_encode(context), self.tok_encode(continuation, add_special_tokens=False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return super().generate_until(requests, disable_tqdm=True)


@register_model("inra")
class InRaLM(CandidateLM):
    """InRa at one alpha. `pretrained` is a checkpoint directory, or the model itself with its tokenizer."""

    def __init__(
        self,
        pretrained: str | Path | InRaForCausalLM,
        alpha: float,
        plausibility: float = 0.0,
        tokenizer: PreTrainedTokenizerFast | None = None,
        **options: Any,
    ) -> None:
        if isinstance(pretrained, InRaForCausalLM):
            model = pretrained
        else:
            model = InRaForCausalLM.from_pretrained(pretrained).to(default_device())
            tokenizer = load_tokenizer(Path(pretrained)) if tokenizer is None else tokenizer
        arguments = {"alpha": float(alpha), "plausibility": float(plausibility)}
        super().__init__(model, tokenizer, arguments=arguments, **options)


@register_model("dera")
class DeRaLM(CandidateLM):
    """DeRa at one alpha, of two checkpoint directories with one tokenizer."""

    def __init__(
        self, reference: str | Path, aligned: str | Path, alpha: float, plausibility: float = 0.0, **options: Any
    ) -> None:
        paths = Path(reference), Path(aligned)
        tokenizer = check_pair(*paths)
        first, second = (load_model(path, device=default_device()) for path in paths)
        pair = DeRaForCausalLM(first, second, float(alpha), len(tokenizer), float(plausibility))
        super().__init__(pair, tokenizer, arguments={}, **options)


def candidate_lm(
    candidate: Candidate, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> CandidateLM:
    """The `candidate` for the harness, whose `model` its kind has opened."""
    if isinstance(model, InRaForCausalLM):
        return InRaLM(model, candidate.alpha, candidate.plausibility, tokenizer, batch_size=batch_size)
    return CandidateLM(model, tokenizer, arguments={}, batch_size=batch_size)


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness with its data, or a group of them."""

    name: str
    loaded: Any
    """The harness's own tasks and groups, as its `evaluate` takes them."""
    description: dict[str, Any]
    """What tells it from another version of itself: settings and a fingerprint of the problems, by task."""


def load_tasks(
    names: Sequence[str], include_path: Path | None, *, num_fewshot: int | None, limit: int | None
) -> list[HarnessTask]:
    """The tasks, with their data: from the YAML files in `include_path`, or else the harness's own.

    `num_fewshot` examples stand before each problem; None: as many as the task says. A task that says 0 keeps it. Only
    the first `limit` problems of each task are described; None: all.

    InputError for a folder or a name that does not exist, and for a task whose data cannot be had or that would run
    what a model wrote.
    """
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"tax.include_path: there is no folder {include_path} in {Path.cwd()}. Give one with tasks in "
                         "YAML, or null.")  # fmt: skip
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):  # reading the harness's own 14,000 files takes its time
        manager = TaskManager(include_path=include_path)
    if wrong := [unknown("task", name, manager.all_tasks) for name in names if name not in manager.all_tasks]:
        raise InputError(f"tax.tasks: {'; '.join(wrong)}. `lm_eval ls tasks` lists those of lm-evaluation-harness.")
    tasks = []
    for name in names:
        with redirect_stderr(io.StringIO()):  # the bars of downloads
            try:
                loaded = manager.load([name])
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise InputError(
                    f"the task {name} of tax.tasks cannot be loaded: {str(error).splitlines()[0]} Its data may have to "
                    "be downloaded first, where the hub can be reached."
                ) from error
        for leaf, task in loaded["tasks"].items():
            if task.config.unsafe_code:
                raise InputError(f"tax.tasks: {leaf} executes what a model wrote, which this project never does.")
            shots = task.config.num_fewshot
            task.set_config("num_fewshot", (shots or 0) if num_fewshot is None or shots == 0 else num_fewshot)
        leaves = {leaf: _describe(task, limit) for leaf, task in loaded["tasks"].items()}
        tasks.append(HarnessTask(name, loaded, leaves))
    return tasks


def _describe(task: Any, limit: int | None) -> dict[str, Any]:
    problems = [task.eval_docs[number] for number in range(min(len(task.eval_docs), limit or len(task.eval_docs)))]
    settings = task.config.to_dict(keep_callable=True)  # the harness would leave addresses of some functions in it
    settings.pop("metadata", None)  # which has paths
    return {"settings": json.loads(json.dumps(settings, default=_source)),
            "problems": fingerprint(json.dumps(problems, default=str, sort_keys=True))}  # fmt: skip


def _source(value: Any) -> Any:
    """For JSON: what a function or class does, the same in every process. Without its source, its name."""
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if not callable(value):
        return str(value)
    subject = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    try:
        return inspect.getsource(subject)
    except (OSError, TypeError):  # of a module that is not in a file, or not in Python
        return f"{subject.__module__}.{subject.__qualname__}"


def check_new_tokens(task: HarnessTask, positions: int | None) -> None:
    """InputError if completions of the task may be as long as all `positions` of a model, or longer."""
    for leaf, one in task.loaded["tasks"].items():
        if one.OUTPUT_TYPE != "generate_until" or positions is None:
            continue
        tokens = (one.config.generation_kwargs or {}).get("max_gen_toks", DEFAULT_NEW_TOKENS)
        if tokens >= positions:
            raise InputError(f"tax.tasks: {leaf} generates up to {tokens} tokens (max_gen_toks), and the models have "
                             f"{positions} positions, for its prompts too.")  # fmt: skip


def measure(
    lm: HFLM, task: HarnessTask, *, limit: int | None, apply_chat_template: bool, seed: int
) -> dict[str, dict[str, Any]]:
    """What the harness found, by task or group and metric: `value`, `stderr` (None where it has none), `problems`.

    A group without a mean of its own gives those of its tasks. `limit` is of the problems of each task. The examples
    before each problem are drawn with `seed`.
    """
    for one in task.loaded["tasks"].values():  # each time: every model is asked with the same examples
        one.set_fewshot_seed(seed)
    with redirect_stderr(io.StringIO()):  # its bars, one for each task and step: the run's own bar says how far it is
        found = evaluate(
            lm,
            task.loaded,
            limit=limit,
            log_samples=False,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )
    results, counts = found["results"], {name: count["effective"] for name, count in found["n-samples"].items()}
    names = [task.name] if _metrics(results.get(task.name, {})) else list(task.loaded["tasks"])
    return {
        name: {
            metric: {"value": value, "stderr": stderr, "problems": counts.get(name, sum(counts.values()))}
            for metric, (value, stderr) in _metrics(results[name]).items()
        }
        for name in names
    }


def _metrics(found: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """`acc,none` and `acc_stderr,none` -> acc: (value, standard error). A filter other than `none` is named too."""
    metrics = {}
    for key, value in found.items():
        metric, comma, of_filter = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = found.get(f"{metric}_stderr,{of_filter}")
        name = metric if of_filter == "none" else f"{metric}/{of_filter}"
        metrics[name] = (float(value), float(stderr) if isinstance(stderr, int | float) else None)
    return metrics
