"""parameters_ladder.yml: LoRA adapters that stock vLLM serves side by side, one for each alpha."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from realign_pipes.runtime.parameters import Parameters, ServedRank, check_distinct


class Ladder(Parameters):
    """parameters_ladder.yml: LoRA adapters that stock vLLM serves side by side, one for each alpha."""

    method: Literal["trained", "scaled", "svd"]
    """trained: a LoRA student of TrRa at each alpha. scaled: one, at alpha 1, whose matrices are scaled by alpha. svd:
    the difference of the two models' linear layers cut to a rank, without any training. Students have `trra.lora`."""
    alphas: Annotated[list[int | float], Field(min_length=1)]
    """The rungs. A request names one as its model: `alpha-1.5`."""
    rank: ServedRank
    """Of the method svd: singular values that are kept of each layer's difference."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct(self.alphas)
        return self

    def rungs(self) -> dict[str, float]:
        """The rungs' names, which are those of their folders -> alphas."""
        return {f"alpha-{alpha:g}": float(alpha) for alpha in self.alphas}
