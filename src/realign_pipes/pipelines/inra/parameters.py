"""parameters_inra.yml: inference-time realignment, the layer adapter and its training."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from realign_pipes.pipelines.trra.parameters import Distillation, Lora, check_divergence
from realign_pipes.runtime.parameters import Parameters, Plausibility, Training


class Dpo(Parameters):
    """Direct preference optimisation, with TRL's names. Without its term `sft` it may ruin stream A."""

    beta: PositiveFloat
    """Weight of the divergence from the base model (the paper: 0.005 to 0.01)."""
    loss_type: Annotated[tuple[Literal["sigmoid", "sft"], ...], Field(min_length=1)]
    """The terms of the loss: `sigmoid` is DPO's, `sft` the mean cross-entropy of the chosen replies' tokens."""
    loss_weights: tuple[PositiveFloat, ...] | None
    """Of the terms; null: 1 each."""
    steps: PositiveInt | None
    """Optimizer steps of the DPO; null: inra.steps."""
    learning_rate: PositiveFloat | None
    """Of the DPO (the paper: 5e-7 to 5e-6); null: inra.learning_rate."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if len(set(self.loss_type)) != len(self.loss_type):
            raise ValueError(f"loss_type {self.loss_type} names one term twice")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"there are {len(self.loss_weights)} loss_weights for the {len(self.loss_type)} terms "
                             f"{self.loss_type}")  # fmt: skip
        return self


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
    method: Literal["sft", "dpo", "trra", "sft_dpo"]
    """`sft` on short_solutions, `dpo` on preference_pairs, `sft_dpo` one after the other (the paper's for dialogue), or
    the fused-teacher objective of the stage trra."""
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
        if self.method in ("dpo", "sft_dpo") and self.padding_free:
            raise ValueError(f"padding_free is not available for method {self.method}: TRL's DPOTrainer pads. Set it "
                             "to false")  # fmt: skip
        if self.method == "trra":
            check_divergence(
                self.trra.divergence, self.plausibility, names=("inra.trra.divergence", "inra.plausibility")
            )
        # LoRA's matrices are float32. `auto`, and bf16 null, are known only with the checkpoint and the device.
        dtypes = {"float32" if self.adapter == "lora" else self.dtype, self.frozen_dtype}
        if len(dtypes) == 2 and "auto" not in dtypes and self.bf16 is False:
            raise ValueError(f"the trained weights and the frozen ones are {' and '.join(sorted(dtypes))}, which only "
                             "meet under bf16. Set bf16 to true, or frozen_dtype and dtype alike")  # fmt: skip
        return self

    def of_dpo(self) -> Self:
        """The parameters of the DPO: its own steps and learning rate, where it has them."""
        own = {"steps": self.dpo.steps, "learning_rate": self.dpo.learning_rate}
        given = {name: value for name, value in own.items() if value is not None}
        return self.model_copy(update={"method": "dpo", **given})

    def of_sft(self) -> Self:
        """The parameters of the SFT."""
        return self.model_copy(update={"method": "sft"})
