"""The engine on Transformers: a `generate` in which a completion's random numbers depend only on its own seed."""

import gc
import zlib
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from realign_pipes.errors import InputError
from realign_pipes.generation.closing import CloseThinking
from realign_pipes.generation.engine import Alpha, Completion, Description, Prompt
from realign_pipes.generation.parameters import Sampling
from realign_pipes.models.load import default_device, load_model

DROPPED_SHARE = 0.25
"""Rows are dropped from a batch when this share of it has finished. Dropping copies the KV cache once, as each token
does, and starts `generate` again, which takes as long as a token or two of a small model."""


class InverseCDFSampler(LogitsProcessor):
    """Samples by the inverse distribution function from uniform numbers that were drawn beforehand.

    `uniforms` is float32 [rows, steps]. Leaves one finite score in each row, so that greedy decoding picks the draw:
    which token row i takes at step t depends on that row's distribution and on `uniforms[i, t]`, not on what else is
    in the batch. Two models that agree on a distribution take the same token (common random numbers), which narrows
    the differences between candidates. Tokens are ordered by their id.
    """

    def __init__(self, uniforms: torch.Tensor) -> None:
        self.uniforms = uniforms
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cdf = torch.softmax(scores.float(), dim=-1).cumsum(dim=-1)
        threshold = self.uniforms[:, self.step, None] * cdf[:, -1:]
        # The first id whose cumulated probability exceeds the threshold; ids of probability 0 are never the first.
        drawn = torch.searchsorted(cdf, threshold, right=True).clamp_(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def draw_uniforms(seed: int, key: str, sample: int, steps: int) -> NDArray[np.float32]:
    """Float32 [steps] in [0, 1), which depend only on the seed, the problem and the number of the sample."""
    uniforms = np.random.default_rng([seed, zlib.crc32(key.encode()), sample]).random(steps, dtype=np.float32)
    return np.minimum(uniforms, np.float32(1 - 2**-20))  # so that the threshold stays below the cumulated total


def stop_token_ids(model: PreTrainedModel) -> list[int]:
    """The ids that end a completion, from the model's generation config. InputError if it names none."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        raise InputError(f"{model.config._name_or_path}: generation_config.json names no eos_token_id.")
    return list(eos) if isinstance(eos, list) else [eos]


class ShareFinished(StoppingCriteria):
    """Stops decoding as soon as a share of the batch's rows has finished, so that they can be dropped from it."""

    def __init__(self, stops: list[int], rows: int, share: float, device: torch.device) -> None:
        self.stops, self.share = torch.tensor(stops, device=device), share
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.finished = self.finished | torch.isin(input_ids[:, -1], self.stops)
        return (self.finished.float().mean() >= self.share).expand(len(input_ids))


class TransformersEngine:
    """Draws with the `generate` of a model in memory, in batches of `sampling.batch_size`.

    The alphas of the prompts become the argument `alpha` of the model's `generate`. With `min_p`, tokens whose
    probability at temperature 1 is below min_p times the likeliest token's are never drawn. A `plausibility` above 0
    becomes an argument of `generate` too, for a model that takes it (InRa).
    A token that a prompt's `closing` forces takes its step's random number with it, so that the tokens after it have
    their own.
    """

    def __init__(self, model: PreTrainedModel, *, min_p: float = 0.0, plausibility: float = 0.0) -> None:
        self.model = model
        self.description = describe(str(model.dtype).removeprefix("torch."))
        self.min_p = min_p
        self.options = {"plausibility": plausibility} if plausibility > 0 else {}

    @classmethod
    def of_checkpoint(cls, path: Path, *, min_p: float = 0.0) -> Self:
        """With the model of a checkpoint directory, on the accelerator if there is one."""
        return cls(load_model(path, device=default_device()), min_p=min_p)

    def close(self) -> None:
        """Let go of the model, and of the accelerator's memory that it took."""
        del self.model
        gc.collect()
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def draw(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: Collection[tuple[str, int]] = ()
    ) -> Generator[list[Completion], None, None]:
        """As `Engine.draw`; a group has the rows of a batch that have finished since the last group.

        The longest prompts come first, so the rows of a batch have similar lengths. Batches are the same whatever is
        `done`, because the other rows of a batch may change the last bits of a logit: a partly finished batch is
        decoded again as a whole. Memory grows with each token, so a batch that is too large for it may fail only when
        its completions are long: InputError, which says so.
        """
        model = self.model
        stops = stop_token_ids(model)
        rows = [(prompt, sample) for prompt in prompts for sample in range(sampling.samples)]
        rows.sort(key=lambda row: -len(row[0].token_ids))
        for start in range(0, len(rows), sampling.batch_size):
            batch = rows[start : start + sampling.batch_size]
            if all((prompt.key, sample) in done for prompt, sample in batch):
                continue
            uniforms = [draw_uniforms(sampling.seed, prompt.key, s, sampling.max_new_tokens) for prompt, s in batch]
            decoding = _decode(
                model,
                [prompt for prompt, _ in batch],
                torch.from_numpy(np.stack(uniforms)),
                stops,
                sampling,
                self.min_p,
                self.options,
            )
            for finished in decoding:
                group = [
                    Completion.of_tokens(batch[row][0].key, batch[row][1], tokens, stops)
                    for row, tokens in finished
                    if (batch[row][0].key, batch[row][1]) not in done
                ]
                if group:
                    yield group


def describe(dtype: str) -> Description:
    """This engine, with a model whose weights have `dtype`."""
    return Description("transformers", transformers.__version__, dtype)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    uniforms: torch.Tensor,
    stops: list[int],
    sampling: Sampling,
    min_p: float,
    options: dict[str, Any],
) -> Iterator[list[tuple[int, list[int]]]]:
    """Rows of a batch and their tokens, as they finish. Row r has `prompts[r]` and the random numbers `uniforms[r]`.

    `options` are further arguments of the model's `generate`.

    Prompts are padded on the left, and the mask hides the padding. Decoding is interrupted to drop rows that have
    finished, and their KV cache; otherwise all would wait for the slowest.
    """
    config = GenerationConfig(do_sample=False, eos_token_id=stops, pad_token_id=stops[0], return_dict_in_generate=True)
    width = max(len(prompt.token_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), config.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        attention_mask[row, width - len(prompt.token_ids) :] = 1
    input_ids, attention_mask, uniforms = (x.to(model.device) for x in (input_ids, attention_mask, uniforms))
    closing = CloseThinking([prompt.closing for prompt in prompts], width)
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if min_p > 0:  # before the temperature: of the model's own probabilities, as the mask where logits are mixed
        processors.insert(0, MinPLogitsWarper(min_p))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if any(prompt.closing for prompt in prompts):
        processors.insert(0, closing)
    tokens: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those still being decoded
    cache, step = None, 0
    while rows and step < sampling.max_new_tokens:
        finished = ShareFinished(config.eos_token_id, len(rows), DROPPED_SHARE, model.device)
        try:
            output = _generate(
                model,
                config,
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                max_new_tokens=sampling.max_new_tokens - step,
                logits_processor=LogitsProcessorList([*processors, InverseCDFSampler(uniforms[:, step:])]),
                stopping_criteria=StoppingCriteriaList([finished]),
                **_alpha_argument([prompts[row].alpha for row in rows], step),
                **options,
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{model.device} ran out of memory after {step} tokens or more of {len(prompts)} completions: "
                f"batch_size is {sampling.batch_size}, and max_new_tokens {sampling.max_new_tokens}. Set batch_size, "
                "beside max_new_tokens in the parameters of this sampling, to half of it or less. The run resumes "
                f"after what is finished. ({str(error).splitlines()[0]})"
            ) from error
        new = output.sequences[:, input_ids.shape[1] :]
        for row, generated in zip(rows, new.tolist(), strict=True):
            tokens[row] += generated
        step += new.shape[1]
        last = step == sampling.max_new_tokens
        ended = [place for place, one in enumerate(finished.finished.tolist()) if one or last]
        yield [(rows[place], tokens[rows[place]]) for place in ended]
        keep = (~finished.finished).nonzero()[:, 0]
        rows = [rows[place] for place in keep.tolist()]
        closing.keep(keep.tolist())
        if rows:
            input_ids, uniforms, cache = output.sequences[keep], uniforms[keep], output.past_key_values
            attention_mask = torch.nn.functional.pad(attention_mask[keep], (0, new.shape[1]), value=1)
            cache.batch_select_indices(keep)


def _generate(model: PreTrainedModel, config: GenerationConfig, **arguments: Any) -> Any:
    """`model.generate` with nothing of the model's own generation config, which it would fill gaps from."""
    own = model.generation_config
    model.generation_config = config
    try:
        return model.generate(**arguments)
    finally:
        model.generation_config = own


def _alpha_argument(alphas: list[Alpha | None], begun: int) -> dict[str, Any]:
    """The argument `alpha` of InRa's `generate` for rows that have `begun` tokens already; none for other models."""
    if alphas == [None] * len(alphas):
        return {}
    if not any(callable(alpha) for alpha in alphas):
        if alphas == alphas[:1] * len(alphas):  # InRa is faster with one number for all
            return {"alpha": alphas[0]}
        return {"alpha": alphas}

    def schedule(step: int, row: int) -> float:
        alpha = alphas[row]
        return alpha(begun + step, 0) if callable(alpha) else alpha  # type: ignore[return-value]

    return {"alpha": schedule}
