"""Drawing completions with Transformers' `generate`, so that a completion depends on its own seed and nothing else."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from realign_pipes.parameters import Sampling


@dataclass(frozen=True)
class Completion:
    """One sampled completion of one prompt."""

    prompt_index: int
    sample: int
    token_ids: list[int]
    """Generated tokens, the end-of-sequence token included if it came."""
    finished: bool
    """False where the token limit cut it off."""


class InverseCDFSampler(LogitsProcessor):
    """Samples by the inverse distribution function from uniform numbers that were drawn beforehand.

    `uniforms` is float32 [rows, steps]. Leaves one finite score in each row, so that greedy decoding picks the draw:
    which token row i takes at step t depends on that row's distribution and on `uniforms[i, t]`, not on what else is
    in the batch. Two models that agree on a distribution so take the same token (common random numbers), which also
    narrows the differences between candidates. Tokens are ordered by their id.
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


def draw_uniforms(seed: int, key: str, sample: int, steps: int) -> np.ndarray:
    """Float32 [steps] in [0, 1), a function of the seed, the problem and the number of the sample alone."""
    uniforms = np.random.default_rng([seed, zlib.crc32(key.encode()), sample]).random(steps, dtype=np.float32)
    return np.minimum(uniforms, np.float32(1 - 2**-20))  # so that the threshold stays below the cumulated total


def stop_token_ids(model: PreTrainedModel) -> list[int]:
    """The ids that end a completion, from the checkpoint's generation config."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        raise ValueError(f"{model.config._name_or_path}: generation_config.json names no eos_token_id.")
    return list(eos) if isinstance(eos, list) else [eos]


FINISHED_SHARE = float(__import__('os').environ.get('SHARE', 0.25))


class ShareFinished(StoppingCriteria):
    """Stops decoding once a share of the batch's rows has finished, so that they can be left out of what follows."""

    def __init__(self, stops: Sequence[int], rows: int, share: float) -> None:
        self.stops, self.share = stops, share
        self.finished = torch.zeros(rows, dtype=torch.bool)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        stops = torch.tensor(self.stops, device=input_ids.device)
        self.finished = self.finished.to(input_ids.device) | torch.isin(input_ids[:, -1], stops)
        return (self.finished.float().mean() >= self.share).expand(len(input_ids))


@torch.inference_mode()
def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    sampling: Sampling,
    pad_token_id: int = 0,
    arguments: Callable[[list[int], int], dict[str, Any]] = lambda prompt_indices, step: {},
) -> Iterator[list[Completion]]:
    """Yield the completions of `prompts` (token ids), `sampling.samples` each, one batch after the other.

    `arguments` gives further arguments of the model's `generate`, from the prompt index of each row and the number of
    tokens that the rows already have: it is asked again whenever finished rows were dropped.
    `keys` names each prompt for its random numbers. Prompts are left-padded; the longest are decoded first, so that
    rows of a batch are of like length and a batch that does not fit in memory fails at once.
    """
    stops = stop_token_ids(model)
    rows = [(i, s) for i in range(len(prompts)) for s in range(sampling.samples)]
    rows.sort(key=lambda row: -len(prompts[row[0]]))
    own_config = model.generation_config
    for start in range(0, len(rows), sampling.batch_size):
        batch = rows[start : start + sampling.batch_size]
        model.generation_config = GenerationConfig(eos_token_id=stops)  # the checkpoint's own values would be filled in
        try:
            tokens = _decode(model, batch, prompts, keys, sampling, pad_token_id, arguments, stops)
        finally:
            model.generation_config = own_config
        yield [_completion(i, s, tokens[row], stops) for row, (i, s) in enumerate(batch)]


def _decode(
    model: PreTrainedModel,
    batch: list[tuple[int, int]],
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    sampling: Sampling,
    pad_token_id: int,
    arguments: Callable[[list[int], int], dict[str, Any]],
    stops: list[int],
) -> list[list[int]]:
    """The generated tokens of each row of a batch; rows that have finished are dropped from it as it goes on."""
    width = max(len(prompts[i]) for i, _ in batch)
    input_ids = torch.full((len(batch), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, (i, _) in enumerate(batch):
        input_ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
        attention_mask[row, width - len(prompts[i]) :] = 1
    drawn = [draw_uniforms(sampling.seed, keys[i], s, sampling.max_new_tokens) for i, s in batch]
    input_ids, attention_mask, uniforms = (
        tensor.to(model.device) for tensor in (input_ids, attention_mask, torch.from_numpy(np.stack(drawn)))
    )
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    tokens: list[list[int]] = [[] for _ in batch]
    rows = torch.arange(len(batch), device=model.device)  # those still being decoded
    cache, step = None, 0
    while len(rows) > 0 and step < sampling.max_new_tokens:
        finished = ShareFinished(stops, len(rows), FINISHED_SHARE)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_new_tokens - step,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=pad_token_id,
                return_dict_in_generate=True,
            ),
            logits_processor=LogitsProcessorList([*warpers, InverseCDFSampler(uniforms[rows, step:])]),
            stopping_criteria=StoppingCriteriaList([finished]),
            **arguments([batch[row][0] for row in rows.tolist()], step),
        )
        new = output.sequences[:, input_ids.shape[1] :]
        for row, generated in zip(rows.tolist(), new.tolist(), strict=True):
            tokens[row] += generated
        step += new.shape[1]
        keep = (~finished.finished).nonzero()[:, 0]
        rows, input_ids, cache = rows[keep], output.sequences[keep], output.past_key_values
        attention_mask = torch.nn.functional.pad(attention_mask[keep], (0, new.shape[1]), value=1)
        if len(rows) > 0: cache.batch_select_indices(keep)
    return tokens


def _completion(prompt_index: int, sample: int, tokens: list[int], stops: list[int]) -> Completion:
    """Cut a generated row after its first stop token; what follows is padding."""
    end = next((position + 1 for position, token in enumerate(tokens) if token in stops), None)
    return Completion(prompt_index, sample, tokens[:end], finished=end is not None)
