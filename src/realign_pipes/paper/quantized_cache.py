"""Stream A's keys and values in 8 bits, against the limit of InRa that its authors name: the doubled KV cache
("Flexible Realignment of Language Models", https://arxiv.org/abs/2506.12704).

Each head's key and value of each token is a group with a scale of its own (symmetric, absmax), which is how quantised
KV caches usually store values. Stream R's are stored exactly, so alpha = 0 remains the base model to the bit.
docs/inra_kv_cache.md says what it costs, and what else was tried.
"""

from typing import Literal, get_args

import torch
from transformers.cache_utils import DynamicLayer

CacheDtype = Literal["auto", "int8"]
"""How stream A is stored; `auto` is the model's dtype."""
CACHE_DTYPES: tuple[str, ...] = get_args(CacheDtype)
LIMIT = 127
"""The largest code; the smallest is its negative."""
SCALE_BYTES = 2
"""A scale is a bfloat16: it has float32's range, and its rounding moves the grid, not the values off it."""


def pack(states: torch.Tensor) -> torch.Tensor:
    """Keys or values [..., D] as uint8 [..., D + 2]: D codes, then the two bytes of their scale.

    The scale is the group's largest absolute value over 127, rounded to bfloat16. No value is off by more than half a
    scale: where the scale was rounded down, the largest code cuts off 127/255 of one at most.
    """
    scales = (states.float().abs().amax(-1, keepdim=True) / LIMIT).to(torch.bfloat16)
    steps = states.float() / torch.where(scales == 0, 1.0, scales.float())
    codes = (steps.round().clamp(-LIMIT, LIMIT) + LIMIT).to(torch.uint8)
    return torch.cat([codes, scales.view(torch.uint8)], dim=-1)


def unpack(packed: torch.Tensor, out: torch.dtype) -> torch.Tensor:
    """What `pack` stored, in the dtype `out`."""
    codes, scales = packed[..., :-SCALE_BYTES], packed[..., -SCALE_BYTES:].contiguous().view(torch.bfloat16)
    return ((codes.float() - LIMIT) * scales.float()).to(out)


class QuantizedLayer(DynamicLayer):
    """A layer whose `keys` and `values` are packed: uint8 [rows, heads, T, D + 2].

    `update` takes and returns the model's dtype. The keys and values of new tokens come back as they are stored, so a
    prompt in one piece, in chunks or token by token gives the same cache.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(pack(key_states), pack(value_states))
        return unpack(keys, key_states.dtype), unpack(values, value_states.dtype)


class HalfQuantizedLayer(DynamicLayer):
    """A layer of both streams: `keys` and `values` are stream R's rows, exactly; `aligned` holds stream A's."""

    def __init__(self) -> None:
        super().__init__()
        self.aligned = QuantizedLayer()
        self.rows = 0
        """How many rows, from the first, are stream A's; whoever starts a forward pass sets it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        aligned = self.aligned.update(key_states[: self.rows], value_states[: self.rows])
        reference = super().update(key_states[self.rows :], value_states[self.rows :])
        keys, values = (torch.cat(pair) for pair in zip(aligned, reference, strict=True))
        return keys, values

    def get_seq_length(self) -> int:
        reference: int = super().get_seq_length()
        return max(self.aligned.get_seq_length(), reference)  # a stream without rows has length 0

    def crop(self, tokens_to_remove: int) -> None:
        self.aligned.crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        self.aligned.reset()
        super().reset()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        of_aligned = indices < self.rows
        self.aligned.batch_select_indices(indices[of_aligned])
        super().batch_select_indices(indices[~of_aligned] - self.rows)
        self.rows = int(of_aligned.sum())
