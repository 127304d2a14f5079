"""InRa, inference-time realignment, of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704).

Stream A runs through the layer adapter, stream R around it, and their logits are mixed by Eq. 5:

    model = InRaForCausalLM.from_pretrained("data/06_models/inra")
    model.generate(**tokenizer(prompts, return_tensors="pt", padding=True), alpha=[0.0, 0.5, 1.2])

Both streams are rows of one batch that goes through the base model's own layers; only stream A's rows also go through
the adapter. So any Hugging Face decoder works, without rewriting a layer.

A linear head W gives z(alpha) = W ((1 - alpha) h_R + alpha h_A): the final hidden states are mixed, and projected once.
With any other head (soft-capping, a scale) the logits of both streams are computed and mixed. `linear_head` says which.
So they are with a `plausibility` above 0, which masks tokens that neither stream finds plausible: it needs both.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from realign_pipes.errors import InputError
from realign_pipes.models.fingerprint import fingerprint_model
from realign_pipes.models.load import read_model
from realign_pipes.models.trust import check_checkpoint, read_config
from realign_pipes.paper.expansion import (
    InRaConfig,
    base_config,
    decoder_layers,
    expanded_config,
    set_config,
    zero_output_projections,
)
from realign_pipes.paper.objective import check_plausibility
from realign_pipes.paper.schedules import Schedule
from realign_pipes.paper.streams import Streams, StreamsCache

logger = logging.getLogger(__name__)

Alpha = float | Sequence[float] | torch.Tensor | Schedule


@dataclass
class _Adapter:
    """What the adapter layers need to know about the forward pass that runs them."""

    rows: int | None = None
    """How many rows, from the first, are stream A's; None: all are."""


@dataclass
class _ScheduledAlpha:
    """A schedule on its way through `generate`, which calls `forward` once for each token."""

    schedule: Schedule
    step: int = 0


class InRaForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with a layer adapter, whose alpha is an argument of `forward` and `generate`.

    `alpha` is a number, a sequence or tensor with one number for each row, or (for `generate`) a function
    `f(step, row) -> alpha`. alpha = 0 is the base model and 1 the expanded one; rows that stay at 0 or at 1 run
    through one stream only, unless `both_streams` asks for both, so that a later call can continue from the cache at
    another alpha. With every row at 0 the logits are the base model's to the bit, in any dtype, for the same batch. A
    batch of another size or padding, or rows at other alphas beside them, may change the last bits, of the base model's
    logits too: in bfloat16 these now and then change a token.

    `config` is the base model's; `expanded` is the stock model of L + n layers that holds all weights. `linear_head`
    is True where the logits are `get_output_embeddings()` of the final hidden states and nothing else: then hidden
    states are mixed, else logits.
    """

    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, expanded: PreTrainedModel, inra: InRaConfig) -> None:
        super().__init__(base_config(expanded.config, inra))
        self.expanded = expanded
        self.inra = inra
        self.generation_config = expanded.generation_config
        self._adapter = _Adapter()
        layers = list(decoder_layers(expanded))
        count = inra.num_adapter_layers
        self.adapter_layers = layers[:count] if inra.placement == "bottom" else layers[-count:]
        others = layers[count:] if inra.placement == "bottom" else layers[:-count]
        # Places in the KV cache: the base's layers come first, as in the base model. All rows go through them, so the
        # cache's length and the masks, which come from its first layers, are right however the adapter is used.
        for place, layer in enumerate(others + self.adapter_layers):
            for module in layer.modules():
                if "layer_idx" in vars(module):
                    module.layer_idx = place  # type: ignore[assignment]
        for layer in self.adapter_layers:
            layer.forward = self._around(layer.forward)
        self.linear_head = _has_linear_head(expanded)
        if not self.linear_head:
            logger.info(
                "%s: the head is not linear, so both streams' logits are mixed, not their hidden states.",
                type(expanded).__name__,
            )

    # -- making, saving, loading ---------------------------------------------------------------------------------------
    @classmethod
    def from_base(
        cls,
        model_or_path: PreTrainedModel | str | Path,
        num_adapter_layers: int = 1,
        init: Literal["identity", "random"] = "identity",
        placement: Literal["bottom", "top"] = "bottom",
        *,
        attn_implementation: str | None = None,
    ) -> "InRaForCausalLM":
        """Add an adapter to a base model (which is copied) or checkpoint directory.

        `attn_implementation` is Transformers' name of how attention is computed, for a directory; None: its choice.

        Each adapter layer is a copy of the layer next to it. `identity` sets what its attention and MLP add to the
        hidden states to zero (output projections, weights and biases), `random` draws all its weights as the
        architecture's initialisation does, from torch's generator.

        Raises ValueError for an architecture that is not a stack of decoder layers with such projections.
        """
        if isinstance(model_or_path, PreTrainedModel):
            model, fingerprint = copy.deepcopy(model_or_path), None
        else:
            path = Path(model_or_path)
            config = read_config(path)
            if config.is_encoder_decoder:
                raise InputError(f"{path}: {type(config).__name__} is an encoder-decoder model; InRa needs a decoder.")
            check_checkpoint(path)
            model = read_model(path, attn_implementation=attn_implementation)
            fingerprint = fingerprint_model(path)
        if model.config.is_encoder_decoder:
            raise InputError(f"{type(model).__name__} is an encoder-decoder model; InRa needs a decoder.")
        if num_adapter_layers < 1:
            raise ValueError(f"num_adapter_layers must be at least 1, not {num_adapter_layers}.")
        inra = InRaConfig(num_adapter_layers, placement, fingerprint)
        layers = decoder_layers(model)
        neighbour = layers[0] if placement == "bottom" else layers[-1]
        for _ in range(num_adapter_layers):
            adapter = copy.deepcopy(neighbour)
            if init == "identity":
                zero_output_projections(adapter, type(model).__name__)
            else:
                for module in adapter.modules():
                    module._is_hf_initialized = False  # type: ignore[assignment]
                    model._init_weights(module)
            layers.insert(0 if placement == "bottom" else len(layers), adapter)
        set_config(model, expanded_config(model.config, inra))
        expanded = cls(model.eval(), inra)
        if init == "identity":
            expanded._check_identity()
        return expanded

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base: str | Path | None = None,
        dtype: torch.dtype | str = "auto",
        attn_implementation: str | None = None,
    ) -> "InRaForCausalLM":
        """Load an expanded checkpoint: from `save_pretrained`, or any other with an extra layer at the bottom.

        `attn_implementation` is Transformers' name of how attention is computed; None: its choice.

        `base`, if given, is the checkpoint that the adapter is for: ValueError if it was made from another.
        """
        inra = InRaConfig.load(Path(path))
        if (
            base is not None
            and inra.base_fingerprint is not None
            and fingerprint_model(Path(base)) != inra.base_fingerprint
        ):
            raise InputError(
                f"the adapter in {path} was trained from another base than {base}: their fingerprints differ."
            )
        check_checkpoint(Path(path))
        return cls(read_model(Path(path), dtype, attn_implementation=attn_implementation).eval(), inra)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the expanded checkpoint: L + n layers of a stock architecture. Stock tools load stream A from it."""
        self.expanded.save_pretrained(save_directory, **kwargs)
        self.inra.save(Path(save_directory))

    def base_model_view(self) -> PreTrainedModel:
        """Stream R alone: the base model as a stock model whose weights are this model's own, not copies."""
        shared = {id(tensor): tensor for tensor in (*self.expanded.parameters(), *self.expanded.buffers())}
        base = copy.deepcopy(self.expanded, shared)
        layers, count = decoder_layers(base), self.inra.num_adapter_layers
        del layers[slice(0, count) if self.inra.placement == "bottom" else slice(-count, None)]
        set_config(base, copy.deepcopy(self.config))
        return base

    # -- running -------------------------------------------------------------------------------------------------------
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        alpha: Alpha | _ScheduledAlpha = 1.0,
        plausibility: float = 0.0,
        both_streams: bool = False,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Logits z(alpha) [B, T, V] and the cache of all streams.

        The mixture is formed in float32. Where the head is linear and `plausibility` 0 (the paper), it is rounded to
        the model's dtype before it is projected, and the logits have that dtype; mixed logits stay in float32.

        `plausibility` is beta in [0, 1), ValueError outside: tokens that neither stream finds plausible get the logit
        -inf (`objective.implausible`), but in rows whose alpha is exactly 0 or 1.

        Several sequences may share a row, by `position_ids` that start again at 0 in each, `use_cache` False (with a
        cache, Transformers does not look for them) and no `attention_mask`. ValueError for both streams of such a row
        with flash attention, which knows them only in a batch of one.

        A cache remembers which streams it holds. Continuing from it at an `alpha` that needs another stream raises
        ValueError.
        """
        check_plausibility(plausibility)
        if use_cache is False:
            past_key_values = None
        elif use_cache and past_key_values is None:
            past_key_values = self._new_cache()
        streams = self._streams(alpha, input_ids, past_key_values, both_streams)
        if not streams.single and attention_mask is None and position_ids is not None:
            self._check_packing(position_ids)
        inputs = {
            "input_ids": streams.gather(input_ids),
            "attention_mask": streams.gather(attention_mask),
            "position_ids": streams.gather(position_ids),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        self._adapter.rows = len(streams.aligned)
        try:
            if streams.single:
                return self.expanded(**inputs, logits_to_keep=logits_to_keep)
            if self.linear_head and plausibility == 0:
                hidden = self.expanded.get_decoder()(**inputs).last_hidden_state
                mixed = slice_logits_to_keep(streams.mix(hidden).to(hidden.dtype), logits_to_keep)
                logits = self.expanded.get_output_embeddings()(mixed)
            else:
                logits = streams.mix(self.expanded(**inputs, logits_to_keep=logits_to_keep).logits, plausibility)
        finally:
            self._adapter.rows = None
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def generate(
        self, *args: Any, alpha: Alpha = 1.0, plausibility: float = 0.0, both_streams: bool = False, **kwargs: Any
    ) -> Any:
        """Transformers' `generate` at `alpha`: sampling or greedy, optionally with `num_return_sequences`.

        `plausibility` is that of `forward`.

        With one alpha for each prompt, all sequences of a prompt share it. The row that a schedule sees counts the
        returned sequences.
        """
        if kwargs.get("num_beams", 1) > 1:
            raise ValueError("InRa generates by sampling or greedily; beam search is not supported.")
        if callable(alpha):
            passed: Any = _ScheduledAlpha(alpha)
        else:
            passed = torch.as_tensor(alpha, dtype=torch.float32, device="cpu")
            passed = passed if passed.ndim else float(passed)
        if kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = self._new_cache()
        return super().generate(*args, alpha=passed, plausibility=plausibility, both_streams=both_streams, **kwargs)

    def _alphas(self, alpha: Alpha | _ScheduledAlpha, batch: int) -> torch.Tensor:
        """One float32 alpha for each row [B], on the CPU. Raises ValueError if there are more or fewer than that."""
        if isinstance(alpha, _ScheduledAlpha):
            alphas = torch.tensor([float(alpha.schedule(alpha.step, row)) for row in range(batch)])
            alpha.step += 1
        elif callable(alpha):
            raise ValueError("a schedule is for generate(); give forward() numbers.")
        else:
            alphas = torch.as_tensor(alpha, dtype=torch.float32, device="cpu")
            alphas = alphas.expand(batch) if alphas.ndim == 0 else alphas
        if alphas.shape != (batch,):
            raise ValueError(
                f"alpha must be one number, or one for each of the {batch} rows; got {list(alphas.shape)}."
            )
        return alphas

    def _check_packing(self, position_ids: torch.Tensor) -> None:
        flash = (self.expanded.config._attn_implementation or "").startswith("flash")
        if flash and find_packed_sequence_indices(position_ids) is not None:
            raise ValueError(
                "flash attention cannot tell the sequences of a row apart where two streams run: give each sequence a "
                "row of its own, or load the model with attn_implementation sdpa."
            )

    def _new_cache(self) -> StreamsCache:
        return StreamsCache(self.config, self._adapter_cache_layers())

    def _adapter_cache_layers(self) -> list[CacheLayerMixin]:
        layers: list[CacheLayerMixin] = DynamicCache(config=self.expanded.config).layers
        count = self.inra.num_adapter_layers
        return layers[:count] if self.inra.placement == "bottom" else layers[-count:]

    def _streams(
        self, alpha: Alpha | _ScheduledAlpha, input_ids: torch.Tensor, cache: DynamicCache | None, both: bool
    ) -> Streams:
        """The rows of each stream: what the cache holds, or for a new one what `alpha` needs."""
        held: Streams | None = None
        if cache is not None and cache.get_seq_length() > 0:
            held = cache.streams
            if isinstance(alpha, float) and alpha == held.number and len(input_ids) == len(held.alphas):
                return held  # the tensors below would take as long as a layer of a small model
        alphas = self._alphas(alpha, input_ids.shape[0])
        if held is not None and torch.equal(alphas, held.alphas):
            return held
        if not torch.isfinite(alphas).all():
            raise ValueError(f"alpha must be finite, not {alphas.tolist()}.")
        every = torch.arange(len(alphas))
        if held is not None:
            for name, wanted, there in (("A", alphas != 0, held.aligned), ("R", alphas != 1, held.reference)):
                if missing := every[wanted & ~torch.isin(every, there)].tolist():
                    raise ValueError(
                        f"rows {missing} need stream {name}, which the cache that they continue from does not hold: it "
                        "was started at an alpha that did not need it. Start with both_streams=True."
                    )
            streams = held.at(alphas)
        else:
            both = both or isinstance(alpha, _ScheduledAlpha)
            needed = (every, every) if both else (every[alphas != 0], every[alphas != 1])
            streams = Streams(*needed, alphas, input_ids.device)
        streams.number = alpha if isinstance(alpha, float) else None
        if cache is not None:
            cache.streams = streams
            if len(cache.layers) == self.config.num_hidden_layers:  # the caller's own, without the adapter
                cache.layers += self._adapter_cache_layers()
        return streams

    def _around(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The adapter layer's forward for stream A's rows, which come first; the others skip it."""

        def of_rows(value: Any, total: int, count: int) -> Any:
            if isinstance(value, torch.Tensor) and value.shape[0] == total:
                return value[:count]
            if isinstance(value, tuple):
                return tuple(of_rows(part, total, count) for part in value)
            return value

        def adapter_forward(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            total, count = hidden_states.shape[0], self._adapter.rows
            if count is None or count == total:
                return forward(hidden_states, **kwargs)
            if count == 0:
                return hidden_states
            for name in ("attention_mask", "position_ids", "position_embeddings"):
                kwargs[name] = of_rows(kwargs.get(name), total, count)
            return torch.cat([forward(hidden_states[:count], **kwargs), hidden_states[count:]])

        return adapter_forward

    @torch.inference_mode()
    def _check_identity(self) -> None:
        """The fresh adapter must change nothing: a layer with more outputs than the two projections is refused."""
        tokens = torch.tensor([[0, 1, 2]], device=self.device)
        with_adapter, without = (self(tokens, alpha=alpha).logits for alpha in (1.0, 0.0))
        if not torch.equal(with_adapter, without):
            raise ValueError(
                f"{type(self.expanded).__name__}: a layer with zeroed output projections is not the identity."
            )


@torch.no_grad()
def _has_linear_head(model: PreTrainedModel) -> bool:
    """Whether the logits are exactly the output embeddings' product with the final hidden states (and its bias).

    Tested on three tokens: a scale or soft-capping would change at least the logits' last bits.
    """
    states: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    logits = model(input_ids=torch.tensor([[0, 1, 2]], device=model.device), use_cache=False).logits
    hook.remove()
    return torch.equal(logits, model.get_output_embeddings()(states[0]))
