"""parameters_trra.yml: training-time realignment."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from realign_pipes.paper import Divergence
from realign_pipes.runtime.parameters import Parameters, Training, check_distinct


class Distillation(Parameters):
    """The divergence from the fused teacher."""

    divergence: Divergence
    temperature: PositiveFloat
    """Temperature of student and teacher inside the divergence."""
    chunk_tokens: PositiveInt
    """Tokens whose logits are in memory at a time."""


class Lora(Parameters):
    """PEFT's LoRA matrices, which are trained instead of the weights that they are added to."""

    rank: PositiveInt
    alpha: PositiveInt
    """Their scale is alpha / rank."""


class StudentLora(Lora):
    """LoRA on all linear layers of the student's body."""

    merge: bool
    """Save a plain checkpoint, the matrices added to the weights; else PEFT's adapter, which needs the reference."""


class TrRa(Training, Distillation):
    """parameters_trra.yml: training-time realignment."""

    alphas: Annotated[list[int | float], Field(min_length=1)]
    """The paper's lambda: how far to move. One checkpoint each, in a folder named as YAML spells the alpha."""
    only_alpha: int | float | None
    """Train this one of `alphas` alone: DVC runs one stage for each."""
    iterations: NonNegativeInt
    """TrRa-iter: further rounds after the first, each with the last one's result as the aligned model."""
    iteration_alphas: Annotated[list[int | float], BeforeValidator(lambda alphas: [] if alphas is None else alphas)]
    """Which of `alphas` TrRa-iter continues with; null for none, whatever base names."""
    adapter: Literal["full", "lora"]
    """What is trained in the student: all its weights, or LoRA matrices on them."""
    lora: StudentLora

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_distinct(self.alphas)
        if missing := sorted(set(self.iteration_alphas) - set(self.alphas)):
            raise ValueError(f"iteration_alphas {missing} are not among alphas {self.alphas}")
        if self.only_alpha is not None and self.only_alpha not in self.alphas:
            raise ValueError(f"only_alpha {self.only_alpha} is not among alphas {self.alphas}")
        return self

    def checkpoint_names(self, alpha: float) -> list[str]:
        """One of `alphas` -> `trra-1.5` and, for each further round, `trra-iter1-1.5`, all in the alpha's folder."""
        names = [f"trra-{alpha:g}"]
        if alpha in self.iteration_alphas:
            names += [f"trra-iter{iteration}-{alpha:g}" for iteration in range(1, 1 + self.iterations)]
        return [f"{alpha}/{name}" for name in names]
