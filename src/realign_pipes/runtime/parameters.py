"""What every parameter model builds on; the models themselves are next to the code that uses them.

Kedro builds them from the merged YAML before a pipeline starts: a wrong value stops the run, with its name and the
reason, before anything is computed. Light on purpose: nothing here imports torch.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
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
    bf16: bool | None = None
    """Whether products are computed in bfloat16 (autocast); the weights stay in float32. null: where CUDA has it. True
    pays on a CPU with AVX512-BF16 or AMX too."""

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
