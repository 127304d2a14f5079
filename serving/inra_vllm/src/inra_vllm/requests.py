"""Which request each token of a batch belongs to, and how that request wants it mixed.

vLLM tells its logits processors which request is at which place of the batch before each forward pass, in the process
that runs it. This one changes no logits: it keeps a table of the requests, which `models` reads.
"""

from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.forward_context import get_forward_context
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from inra_vllm.config import SALTED, read_inra_config
from inra_vllm.parameters import Realignment, read_realignment

Rows = torch.Tensor | None
"""Places of tokens in the batch, [n]; None: all of them."""


class Requests(LogitsProcessor):
    """The requests of the batch, by their place in it."""

    in_process: "Requests"
    """The one of the model that this process runs. vLLM makes it before it makes the model."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        inra = read_inra_config(vllm_config.model_config.model)
        self.default_alpha = 1.0 if inra.default_alpha is None else inra.default_alpha
        self.one_stream = bool(vllm_config.additional_config.get(SALTED))
        """Whether requests at alpha 0 or 1 run through one stream: their cached prefixes then need a salt."""
        self.places: dict[int, tuple[Realignment, int]] = {}
        """The realignment of each request, and how many tokens its prompt has."""
        Requests.in_process = self

    # -- as vLLM's logits processor ------------------------------------------------------------------------------------
    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request (400) whose `vllm_xargs` do not say how to mix."""
        try:
            read_realignment(sampling_params.extra_args)
        except ValueError as error:
            raise VLLMValidationError(str(error)) from error

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.places, batch_update, self._read)

    def _read(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> tuple[Realignment, int]:
        assert prompt is not None, "prompts as embeddings are refused at start"  # noqa: S101
        return read_realignment(params.extra_args, self.default_alpha), len(prompt)

    # -- for the model -------------------------------------------------------------------------------------------------
    @property
    def any_plausible(self) -> bool:
        """Whether a request of the batch has a plausibility above 0."""
        return any(realignment.plausibility > 0 for realignment, _ in self.places.values())

    def per_token(self, positions: torch.Tensor, layer: str) -> tuple[torch.Tensor, Rows, Rows]:
        """Alpha and plausibility of each token of the batch, float32 [N, 2], and which tokens need stream A and R.

        `positions` [N] are the tokens' in their requests, and `layer` names one that attends. The token at the prompt's
        last position is the one that writes token 0 of the completion, so a schedule is at step 0 there; for those
        before it, whose logits only prompt_logprobs shows, too. So a token's alpha depends on its request and its
        position alone, however vLLM cuts or repeats the computation.
        """
        metadata: Any = get_forward_context().attn_metadata
        if metadata is None:  # vLLM measures its memory
            return torch.zeros(len(positions), 2, device=positions.device), None, None
        starts = metadata[layer].query_start_loc
        requests = [self.places[place] for place in range(len(self.places))]
        if len(starts) != len(requests) + 1:
            raise RuntimeError(f"the batch has {len(starts) - 1} requests, and InRa knows of {len(requests)}")
        schedules = {place: one for place, (one, _) in enumerate(requests) if callable(one.alpha)}
        per_request = torch.tensor(
            [[0.0 if place in schedules else one.alpha, one.plausibility] for place, (one, _) in enumerate(requests)],
            dtype=torch.float32,
        ).to(positions.device)
        tokens = torch.arange(len(positions), dtype=starts.dtype, device=positions.device)
        place_of = torch.searchsorted(starts[1:].contiguous(), tokens, right=True).clamp_(max=len(requests) - 1)
        per_token = per_request[place_of]
        if schedules:
            bounds = starts.tolist()
            for place, realignment in schedules.items():
                prompt = requests[place][1]
                rows = slice(bounds[place], bounds[place + 1])
                steps = ((positions[rows] - (prompt - 1)).clamp_(min=0) + realignment.begun).tolist()
                per_token[rows, 0] = torch.tensor([realignment.alpha(step, 0) for step in steps]).to(per_token)
        aligned = self._rows([one.needs_aligned for one, _ in requests], place_of)
        return per_token, aligned, self._rows([one.needs_reference for one, _ in requests], place_of)

    def _rows(self, needed: list[bool], place_of: torch.Tensor) -> Rows:
        """The tokens of the requests that need a stream."""
        if all(needed) or not self.one_stream:
            return None
        return torch.tensor(needed, device=place_of.device)[place_of].nonzero()[:, 0]
