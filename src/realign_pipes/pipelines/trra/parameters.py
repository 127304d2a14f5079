"""parameters_trra.yml: training-time realignment."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from realign_pipes.errors import InputError
from realign_pipes.paper import Divergence
from realign_pipes.runtime.parameters import Parameters, Probability, Training, check_distinct


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


class OnPolicySampling(Parameters):
    """How the student draws completions during its training. The random numbers come from the training's seed."""

    temperature: PositiveFloat
    top_p: Probability
    max_new_tokens: PositiveInt
    """What is cut off here is learned from as well: every token has its own divergence."""
    batch_size: PositiveInt
    """Completions decoded together, of one optimizer step at most."""


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
    on_policy: Annotated[float, Field(ge=0, le=1)]
    """Share of the examples whose completion the student draws itself, before each step; 0 is the paper. Above 0 it
    needs teachers.mode online, and one process."""
    on_policy_sampling: OnPolicySampling

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_distinct(self.alphas)
        if missing := sorted(set(self.iteration_alphas) - set(self.alphas)):
            raise ValueError(f"iteration_alphas {missing} are not among alphas {self.alphas}")
        if self.only_alpha is not None and self.only_alpha not in self.alphas:
            raise ValueError(f"only_alpha {self.only_alpha} is not among alphas {self.alphas}")
        return self

    def check_on_policy(self, teachers_mode: str, num_processes: int) -> None:
        """InputError for an on-policy training whose teacher is cached or that would run in several processes."""
        if self.on_policy and teachers_mode == "cached":
            raise InputError(
                f"trra.on_policy {self.on_policy:g} needs the teachers at completions that no cache can have yet. Set "
                "teachers.mode=online, or trra.on_policy=0."
            )
        if self.on_policy and num_processes > 1:
            raise InputError(
                f"trra.on_policy {self.on_policy:g} works in one process, but launcher.num_processes is "
                f"{num_processes}. Set it to 1, or trra.on_policy=0."
            )

    def checkpoint_names(self, alpha: float) -> list[str]:
        """One of `alphas` -> `trra-1.5` and, for each further round, `trra-iter1-1.5`, all in the alpha's folder."""
        names = [f"trra-{alpha:g}"]
        if alpha in self.iteration_alphas:
            names += [f"trra-iter{iteration}-{alpha:g}" for iteration in range(1, 1 + self.iterations)]
        return [f"{alpha}/{name}" for name in names]
