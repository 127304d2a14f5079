"""What every parameter model builds on; the models themselves are next to the code that uses them.

Kedro builds them from the merged YAML before a pipeline starts: a wrong value stops the run, with its name and the
reason, before anything is computed. Light on purpose: nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a parameter (`what`) that does not exist: its name, and the nearest of the `known` ones."""
    known = sorted(known)
    nearest = get_close_matches(str(name), known, n=1)
    return f"there is no {what} {name!r}: " + (
        f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
    )


class Parameters(BaseModel):
    """Unknown keys, NaN and infinities are refused; values cannot be changed by a node."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        """Pydantic itself would say only "extra inputs are not permitted", not which name was probably meant."""
        if isinstance(values, dict) and (strange := [name for name in values if name not in cls.model_fields]):
            raise ValueError("; ".join(unknown("parameter", name, cls.model_fields) for name in strange))
        return values


Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Plausibility = Annotated[float, Field(ge=0, lt=1)]
"""Beta of the mask on implausible tokens: 0 is the paper, which masks none."""
SomeAlphas = Annotated[list[int | float], BeforeValidator(lambda alphas: [] if alphas is None else alphas)]
"""A list of alphas; null for none, whatever base names."""


def check_distinct(alphas: Sequence[float]) -> None:
    """Alphas name checkpoints and candidates, by six digits."""
    names = [f"{alpha:g}" for alpha in alphas]
    if len(set(names)) != len(names):
        raise ValueError(f"alphas {alphas} contain a value twice")


LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank. An adapter may have any rank up to that."""


def check_rank(rank: int, what: str = "rank") -> int:
    """`rank`. ValueError, naming it as `what`, for a LoRA rank that vLLM does not serve."""
    if rank > LORA_RANKS[-1]:
        raise ValueError(
            f"{what} is {rank}, and vLLM serves no LoRA adapter above {LORA_RANKS[-1]} (its --max-lora-rank is one of "
            f"{', '.join(map(str, LORA_RANKS))})"
        )
    return rank


ServedRank = Annotated[PositiveInt, AfterValidator(check_rank)]
"""Of LoRA matrices that vLLM is to serve."""

DEFAULT_OPTIM = "adamw_torch_fused"


class Training(Parameters):
    """A training by Transformers' Trainer."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Examples in an optimizer step."""
    micro_batch_size: PositiveInt
    """Examples in a forward pass of one process; gradients are accumulated. batch_size is a multiple of it times the
    number of processes."""
    learning_rate: PositiveFloat
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps over which the learning rate rises, before it falls with a cosine."""
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    gradient_checkpointing: bool
    save_steps: PositiveInt
    """An interrupted training resumes from the last multiple of these steps."""
    seed: Seed
    optim: str = DEFAULT_OPTIM
    """The optimizer, by any name that `TrainingArguments.optim` of Transformers knows: adafactor, adamw_bnb_8bit, …"""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Of the weights that are trained: float32 are masters for `bf16`; `auto` is the checkpoint's. In bfloat16, updates
    below about 1/256 of a weight are lost to rounding. LoRA's matrices are float32 whatever this says."""
    bf16: bool | None = None
    """Compute in bfloat16 by autocast, whatever the weights' dtype; null: on a GPU that has it."""
    padding_free: bool = False
    """Lay the examples of a micro-batch end to end in one row, without padding. Flash attention then computes no token
    too many. With sdpa or eager attention, the mask has the square of the row's tokens: for short examples only."""

    @field_validator("optim")
    @classmethod
    def _known_to_transformers(cls, optim: str) -> str:
        if optim == DEFAULT_OPTIM:  # without Transformers, which takes seconds to import
            return optim
        from transformers.training_args import OptimizerNames

        known = [name.value for name in OptimizerNames]
        if optim not in known:
            raise ValueError(unknown("optimizer", optim, known))
        return optim

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of "
                             f"micro_batch_size {self.micro_batch_size}")  # fmt: skip
        return self


class FineTuning(Parameters):
    """SFT of a whole model on a CPU or one accelerator, as `runtime.sft.fine_tune` does it."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    save_steps: PositiveInt
    """An interrupted training resumes from the last multiple of these steps."""
    seed: Seed
