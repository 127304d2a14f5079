"""parameters_trra.yml: training-time realignment."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from realign_pipes.errors import InputError
from realign_pipes.paper import Divergence
from realign_pipes.runtime.parameters import Parameters, Plausibility, Probability, SomeAlphas, Training, check_distinct


class Distillation(Parameters):
    """The divergence from the fused teacher."""

    divergence: Divergence
    temperature: PositiveFloat
    """Temperature of student and teacher inside the divergence."""
    chunk_tokens: PositiveInt
    """Tokens whose logits are in memory at a time."""
    matmul_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What states and heads are rounded to before they are multiplied; sums stay in float32. `auto`: bfloat16 in a
    training that autocasts to it on a GPU, else float32."""


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


SCALED_LORA = "trra-lora-1"
"""The student whose matrices the kind lora_scale scales."""


def check_divergence(divergence: Divergence, plausibility: float, *, names: tuple[str, str]) -> None:
    """ValueError for reverse KL from a teacher with a mask, which would be infinite. `names` are the parameters'."""
    if divergence == "reverse_kl" and plausibility > 0:
        raise ValueError(
            f"{names[0]} is reverse_kl and {names[1]} is {plausibility:g}: reverse KL from a teacher that gives some "
            f"tokens no probability is infinite. Set {names[1]} to 0, or {names[0]} to forward_kl or jsd"
        )


@dataclass(frozen=True)
class StudentName:
    """One student of the stage: what it is called, and how it differs from the others."""

    name: str
    """`trra-1.5`; the candidate's name in the sweep too."""
    kind: str
    """The kind that it is measured as, a name in `sweep.kinds.KINDS`."""
    alpha: float
    plausibility: float
    iteration: int = 0
    """The round of TrRa-iter, 0 for plain TrRa."""
    lora: bool = False
    """Whether LoRA matrices are trained and kept beside the weights, whatever `adapter` is for the others."""


class TrRa(Training, Distillation):
    """parameters_trra.yml: training-time realignment."""

    alphas: SomeAlphas
    """The paper's lambda: how far to move. One checkpoint each, in a folder named as YAML spells the alpha."""
    only_alpha: int | float | None
    """Train this one of `alphas` alone: DVC runs one stage for each."""
    iterations: NonNegativeInt
    """TrRa-iter: further rounds after the first, each with the last one's result as the aligned model."""
    iteration_alphas: SomeAlphas
    """Which of `alphas` TrRa-iter continues with."""
    plausibility: Plausibility
    """Beta of the teacher's mask."""
    ablation_alphas: SomeAlphas
    """At which of `alphas` a student learns from the teacher without its mask too. Those that are not among `alphas`
    mean nothing, so that an environment may change `alphas` alone."""
    scaled_lora: bool
    """Train a LoRA student at alpha 1 too, if 1 is among `alphas`: the kind lora_scale, whose matrices are scaled."""
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
        check_divergence(self.divergence, self.plausibility, names=("trra.divergence", "trra.plausibility"))
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

    def measured_ablation(self) -> list[int | float]:
        """Those of `ablation_alphas` that are among `alphas`."""
        return [alpha for alpha in self.alphas if alpha in self.ablation_alphas]

    def students(self, alpha: int | float) -> dict[str, StudentName]:
        """One of `alphas` -> its students, by checkpoint: `1.5/trra-1.5`, in the folder of that alpha.

        Each round of TrRa-iter follows the round that it continues.
        """
        students = [StudentName(f"trra-{alpha:g}", "trra", alpha, self.plausibility)]
        if alpha in self.iteration_alphas:
            students += [
                StudentName(f"trra-iter{iteration}-{alpha:g}", "trra_iter", alpha, self.plausibility, iteration)
                for iteration in range(1, 1 + self.iterations)
            ]
        if alpha in self.ablation_alphas and self.plausibility > 0:
            students.append(StudentName(f"trra-{alpha:g}-unmasked", "trra", alpha, 0.0))
        if alpha == 1 and self.scaled_lora:
            students.append(StudentName(SCALED_LORA, "lora_scale", alpha, self.plausibility, lora=True))
        return {f"{alpha}/{student.name}": student for student in students}

    def of_student(self, student: StudentName) -> Self:
        """The parameters with which one student is trained."""
        own: dict[str, Any] = {"plausibility": student.plausibility}
        if student.lora:
            own |= {"adapter": "lora", "lora": self.lora.model_copy(update={"merge": False})}
        return self.model_copy(update=own)

    def all_students(self) -> dict[str, StudentName]:
        """Those of all `alphas`, by checkpoint."""
        return {name: student for alpha in self.alphas for name, student in self.students(alpha).items()}
