"""DeRa, "Decoding-time Realignment of Language Models" (https://arxiv.org/abs/2402.02992): two models decode together.

The baseline of "Flexible Realignment of Language Models" (https://arxiv.org/abs/2506.12704): its Eq. 5 at every token.

    pair = DeRaForCausalLM(reference, aligned, alpha=1.5)
    pair.generate(**tokenizer("...", return_tensors="pt"))
"""

from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from realign_pipes.paper.objective import check_plausibility, fuse_logits


class PairCache(DynamicCache):
    """The reference's KV cache, which also carries the aligned model's."""

    aligned: DynamicCache

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch in both caches."""
        super().batch_select_indices(indices)
        self.aligned.batch_select_indices(indices)


class DeRaForCausalLM(PreTrainedModel, GenerationMixin):
    """Decodes from softmax(z(alpha)), with both models and both KV caches in memory.

    `alpha` is a number, or a float tensor [B] with one number for each row of the batch; `forward` raises ValueError if
    the batch has a different number of rows. `vocab_size` cuts off padded ids of the heads (None: the smaller head's
    size). `plausibility` is beta in [0, 1), beyond either paper: tokens that neither model finds plausible get the
    logit -inf (`objective.implausible`), at every alpha; 0 is Eq. 5. The second cache travels as an attribute of the
    first.
    """

    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(
        self,
        reference: PreTrainedModel,
        aligned: PreTrainedModel,
        alpha: float | torch.Tensor,
        vocab_size: int | None = None,
        plausibility: float = 0.0,
    ) -> None:
        check_plausibility(plausibility)
        super().__init__(reference.config)
        self.reference = reference
        self.aligned = aligned
        self.alpha = alpha
        self.vocab_size = vocab_size
        self.plausibility = plausibility
        self.generation_config = reference.generation_config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits z(alpha) [B, T, V] in float32, and the reference's cache, which carries the aligned model's."""
        if isinstance(self.alpha, torch.Tensor) and self.alpha.shape != input_ids.shape[:1]:
            raise ValueError(f"alpha has {list(self.alpha.shape)} numbers, and the batch {len(input_ids)} rows.")
        caches: tuple[DynamicCache | None, DynamicCache | None] = (None, None)
        if use_cache:
            first = past_key_values if past_key_values is not None else PairCache(config=self.reference.config)
            if first.get_seq_length() == 0:
                first.aligned = DynamicCache(config=self.aligned.config)
            caches = (first, first.aligned)
        z_reference, z_aligned = (
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            ).logits[..., : self.vocab_size]
            for model, cache in zip((self.reference, self.aligned), caches, strict=True)
        )
        alpha = self.alpha[:, None, None] if isinstance(self.alpha, torch.Tensor) else self.alpha
        logits = fuse_logits(z_reference, z_aligned, alpha, self.plausibility)
        return CausalLMOutputWithPast(logits=logits, past_key_values=caches[0])

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `generate`."""
        if kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = PairCache(config=self.reference.config)
        return super().generate(*args, **kwargs)
