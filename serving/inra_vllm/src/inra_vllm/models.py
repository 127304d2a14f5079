"""The stock models of vLLM with a second stream.

Stream A runs through the adapter layers, stream R around them. Both go through the base's layers as 2N rows of one
batch (N tokens are scheduled): only attention tells them apart, for each has a KV cache of its own. Neither depends on
alpha, so a cached prefix serves every alpha. An adapter on top leaves the streams equal below it: N rows run there.

Tokens of requests that stay at alpha 0 or 1 need one stream. Where `front` salts the cache, the other one leaves them
out: of everything but attention, whose metadata are those of the whole batch, and of that too where it is left none.

`forward` returns, for each token, both streams' final hidden states and how to mix them: vLLM picks rows from it, and
`compute_logits` mixes those as `realign_pipes.paper.objective.mix_streams` does, once they are logits or before.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from inra_vllm.config import read_inra_config
from inra_vllm.requests import Requests, Rows
from realign_pipes.paper.objective import mix_streams


@dataclass
class Step:
    """The tokens that are scheduled, and those of them that each stream runs for."""

    tokens: int = 0
    """N."""
    aligned: Rows = None
    reference: Rows = None


def attend(
    attention: Attention, tokens: int, rows: Rows, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of one stream for `rows` of the `tokens`: from [n, …] to [n, m].

    vLLM's attention takes the whole batch. The other tokens get zeros, in the cache too, where nothing reads them.
    """
    if rows is None:
        return attention(query, key, value)
    if not len(rows):
        return query
    whole = (one.new_zeros(tokens, one.shape[1]).index_copy_(0, rows, one) for one in (query, key, value))
    return attention(*whole)[rows]


class OneStream(nn.Module):
    """Attention of an adapter layer, which only stream A runs through."""

    def __init__(self, attention: nn.Module, step: Step) -> None:
        """`attention` is a layer's `self_attn`, with its projections and its `attn`."""
        super().__init__()
        self.aligned: Attention = attention.attn
        self.step = step

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Of stream A's rows, [n, …] to [n, m]."""
        return attend(self.aligned, self.step.tokens, self.step.aligned, query, key, value)


class TwoStreams(OneStream):
    """Attention for the rows of stream A, then those of stream R, each with a KV cache of its own."""

    def __init__(self, attention: nn.Module, step: Step, vllm_config: VllmConfig) -> None:
        super().__init__(attention, step)
        self.reference = Attention(
            attention.num_heads,
            attention.head_dim,
            attention.scaling,
            num_kv_heads=attention.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=self.aligned.layer_name.removesuffix("attn") + "reference.attn",
        )

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[n_A + n_R, …] of queries, keys and values to [n_A + n_R, m]."""
        count = self.step.tokens if self.step.aligned is None else len(self.step.aligned)
        aligned = super().forward(query[:count], key[:count], value[:count])
        rest = query[count:], key[count:], value[count:]
        return torch.cat([aligned, attend(self.reference, self.step.tokens, self.step.reference, *rest)])


class _InRa(nn.Module):
    """What makes two streams of a stock model; it stands before the stock class among the bases."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        inra = read_inra_config(vllm_config.model_config.model)
        count, layers = inra.num_adapter_layers, list(self.model.layers)
        self.on_top = inra.placement == "top"
        # plain tuples: the layers stay where vLLM looks for their weights
        self.adapter = tuple(layers[-count:] if self.on_top else layers[:count])
        self.base = tuple(layers[:-count] if self.on_top else layers[count:])
        self.attention_name = layers[0].self_attn.attn.layer_name
        self.step = Step()
        for layer in self.adapter:
            layer.self_attn.attn = OneStream(layer.self_attn, self.step)
        if not self.on_top:
            for layer in self.base:
                layer.self_attn.attn = TwoStreams(layer.self_attn, self.step, vllm_config)
        self.requests = Requests.in_process

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The final hidden states of both streams, and alpha and plausibility: [N, 2d and two float32]."""
        embedded = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        mixing, rows_a, rows_r = self.requests.per_token(positions, self.attention_name)
        if self.on_top:
            rows_r = None  # it is what the adapter starts from
        self.step.tokens, self.step.aligned, self.step.reference = len(positions), rows_a, rows_r
        # vLLM's layers write into their arguments, so the streams must not share memory.
        if self.on_top:
            hidden, residual = _run(self.base, positions, embedded)
            above = _run(self.adapter, *(_take(one, rows_a).clone() for one in (positions, hidden, residual)))
            hidden, residual = torch.cat([above[0], hidden]), torch.cat([above[1], residual])
        else:
            positions_a, positions_r = _take(positions, rows_a), _take(positions, rows_r)
            hidden, residual = _run(self.adapter, positions_a, _take(embedded, rows_a).clone())
            both = torch.cat([hidden + residual, _take(embedded, rows_r)])
            hidden, residual = _run(self.base, torch.cat([positions_a, positions_r]), both)
        final = self.model.norm(hidden, residual)[0]
        count = len(positions) if rows_a is None else len(rows_a)
        aligned, reference = _put(final[:count], rows_a, len(positions)), _put(final[count:], rows_r, len(positions))
        # As bits: a bfloat16 would round alpha.
        return torch.cat([aligned, reference, mixing.view(aligned.dtype)], dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """z(alpha) of rows of what `forward` returned."""
        size = self.config.hidden_size
        aligned, reference = hidden_states[:, :size].contiguous(), hidden_states[:, size : 2 * size].contiguous()
        alphas, plausibilities = hidden_states[:, 2 * size :].contiguous().view(torch.float32).split(1, dim=-1)
        if not self.requests.any_plausible:
            # The head is linear: hidden states are mixed, and projected once.
            return super().compute_logits(mix_streams(reference, aligned, alphas).to(aligned.dtype))
        reference, aligned = (super(_InRa, self).compute_logits(stream) for stream in (reference, aligned))
        logits = torch.empty_like(aligned, dtype=torch.float32)
        for plausibility in plausibilities.unique():
            rows = plausibilities[:, 0] == plausibility
            logits[rows] = mix_streams(reference[rows], aligned[rows], alphas[rows], float(plausibility))
        return logits


def _take(states: torch.Tensor, rows: Rows) -> torch.Tensor:
    return states if rows is None else states[rows]


def _put(states: torch.Tensor, rows: Rows, tokens: int) -> torch.Tensor:
    """`states` [n, d] at their rows of [N, d]; the others have zeros, which alpha 0 or 1 leaves out of the mixture."""
    return states if rows is None else states.new_zeros(tokens, states.shape[1]).index_copy_(0, rows, states)


def _run(
    layers: Iterable[nn.Module], positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layers make of the hidden states, as vLLM's layers hand it on: the sum of both is the state."""
    if not len(hidden):  # which kernels do not take
        return hidden, hidden
    for layer in layers:
        hidden, residual = layer(positions, hidden, residual)
    assert residual is not None, "there is at least one layer"  # noqa: S101
    return hidden, residual


class InRaLlamaForCausalLM(_InRa, LlamaForCausalLM):
    """Llama with two streams."""


class InRaMistralForCausalLM(_InRa, MistralForCausalLM):
    """Mistral with two streams."""


class InRaQwen2ForCausalLM(_InRa, Qwen2ForCausalLM):
    """Qwen2 with two streams."""


class InRaQwen3ForCausalLM(_InRa, Qwen3ForCausalLM):
    """Qwen3 with two streams."""
