"""parameters_inra.yml: inference-time realignment, the layer adapter and its training."""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from realign_pipes.pipelines.trra.parameters import Distillation, Lora, check_divergence
from realign_pipes.runtime.parameters import Parameters, Plausibility, Training


class Dpo(Parameters):
    """Direct preference optimisation."""

    beta: PositiveFloat
    """Weight of the divergence from the base model (the paper: 0.005 to 0.01)."""


class AdapterDistillation(Distillation):
    """TrRa's objective for the adapter."""

    alpha: float
    """Alpha of the fused teacher that stream A learns to follow."""


class InRa(Training):
    """parameters_inra.yml: inference-time realignment, the layer adapter and its training."""

    num_adapter_layers: PositiveInt
    init: Literal["identity", "random"]
    placement: Literal["bottom", "top"]
    """Below layer 0 (the paper), or above the last layer (its ablation, Table 3)."""
    method: Literal["sft", "dpo", "trra"]
    """`sft` on short solutions, `dpo` on preference pairs, or the fused-teacher objective of the stage trra."""
    adapter: Literal["full", "lora"]
    """What is trained in the adapter layers: all their weights, or LoRA matrices on their projections."""
    lora: Lora
    """Merged into the adapter layers after training."""
    dpo: Dpo
    trra: AdapterDistillation
    plausibility: Plausibility
    """Beta of the mask where InRa's two streams are mixed, and of the teacher's where `method` is trra."""
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the reference's own weights during the training, which they pass through unchanged: `dtype` is the adapter's.
    Where the two differ, `bf16` has to be true."""

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.method == "dpo" and self.padding_free:
            raise ValueError("padding_free is not available for method dpo: TRL's DPOTrainer pads. Set it to false")
        if self.method == "trra":
            check_divergence(
                self.trra.divergence, self.plausibility, names=("inra.trra.divergence", "inra.plausibility")
            )
        return self
