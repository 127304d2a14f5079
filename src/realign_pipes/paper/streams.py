"""The two streams of InRa, inference-time realignment, of "Flexible Realignment of Language Models"
(https://arxiv.org/abs/2506.12704), and their mixture by Eq. 5.

Stream A runs through the layer adapter, stream R around it. Both are rows of one batch, and share its KV cache.
"""

import copy

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from realign_pipes.paper.objective import mix_streams


class Streams:
    """Which rows of the batch run through the adapter and which around it (a row may do both), and how they are mixed.

    The rows of the streams are one batch: stream A's, then stream R's.
    """

    def __init__(
        self, aligned: torch.Tensor, reference: torch.Tensor, alphas: torch.Tensor, device: torch.device
    ) -> None:
        """`aligned` and `reference` are row numbers, int64, ascending; `alphas` is float32 [B]. All are on the CPU."""
        self.aligned, self.reference, self.alphas, self.device = aligned, reference, alphas, device
        self.single = min(len(aligned), len(reference)) == 0
        """One stream has all rows, in order: there is nothing to gather or mix."""
        self.number: float | None = None
        """The alpha that all rows share, where one number was given."""
        if self.single:
            return
        of_aligned = torch.full((len(alphas),), -1)
        of_aligned[aligned] = torch.arange(len(aligned))
        of_reference = of_aligned.clone()
        of_reference[reference] = len(aligned) + torch.arange(len(reference))
        # A row of one stream is mixed with itself, at alpha 0 or 1, which leaves it unchanged; no other row touches it.
        of_aligned = torch.where(of_aligned < 0, of_reference, of_aligned)
        self.rows = torch.cat([aligned, reference]).to(device)
        self.places = (of_reference.to(device), of_aligned.to(device))
        self.weights = alphas[:, None, None].to(device)

    def at(self, alphas: torch.Tensor) -> "Streams":
        """The same streams, both present, mixed at other alphas."""
        other = copy.copy(self)
        other.alphas, other.weights = alphas, alphas[:, None, None].to(self.device)
        return other

    def gather(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """The streams' rows of an input [B, ...]. An input that all rows share is left unchanged."""
        if self.single or tensor is None or tensor.shape[0] != len(self.alphas):
            return tensor
        return tensor[self.rows]

    def mix(self, states: torch.Tensor, plausibility: float = 0.0) -> torch.Tensor:
        """Eq. 5: (1 - alpha) R + alpha A [B, T, n] of the streams' hidden states or logits, as `mix_streams` mixes.

        With a `plausibility` above 0 the states must be logits.
        """
        if self.single:
            return states
        reference, aligned = (states[place] for place in self.places)
        return mix_streams(reference, aligned, self.weights, plausibility)


class StreamsCache(DynamicCache):
    """The KV cache of both streams' rows: the base's layers, then the adapter's, which hold only stream A's rows."""

    streams: Streams

    def __init__(self, config: PreTrainedConfig, adapter_layers: list[CacheLayerMixin]) -> None:
        """`config` is the base model's; `adapter_layers` are empty layers of a cache."""
        super().__init__(config=config)
        self.adapter_layers = adapter_layers
        self.layers += adapter_layers

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, in each stream that they run through."""
        old, keep = self.streams, indices.tolist()
        kept, places, first = [], [], 0
        for stream in (old.aligned, old.reference):
            place = {row: first + number for number, row in enumerate(stream.tolist())}
            kept.append(torch.tensor([new for new, row in enumerate(keep) if row in place], dtype=torch.long))
            places.append([place[row] for row in keep if row in place])
            first += len(stream)
        both = torch.tensor(places[0] + places[1], dtype=torch.long, device=indices.device)
        for layer in self.layers:
            layer.batch_select_indices(both[: len(places[0])] if layer in self.adapter_layers else both)
        self.streams = Streams(kept[0], kept[1], old.alphas[keep], old.device)
