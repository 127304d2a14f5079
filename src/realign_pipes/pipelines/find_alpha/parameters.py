"""parameters_find_alpha.yml: a wish, and how the alpha that fulfils it is searched and confirmed."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from realign_pipes.errors import InputError
from realign_pipes.runtime.parameters import Parameters, Seed
from realign_pipes.sweep.search import LoseAtMost, Save, Wish

EXAMPLE = "kedro run --pipelines find_alpha --params find_alpha.save=0.4 (or find_alpha.lose_at_most=0.01)"


class Knob(Parameters):
    """Where alphas are tried before a student is trained, and how far. Alpha 0 is the reference: it costs nothing."""

    kind: Literal["merge", "inra", "dera"]
    """`inra` only serves where `inra.method` is trra, as only then its alpha is that of TrRa. `merge` only serves the
    wish `save`: it has no mask, and loses pass@1 at alphas where a student does not."""
    lowest: Annotated[float, Field(le=0)]
    highest: Annotated[float, Field(ge=0)]


class Measurement(Parameters):
    """On how many problems alphas are measured; temperature, top_p and lengths are those of alpha_sweep.sampling."""

    share: PositiveFloat
    """How many problems of each task, as a share of those that the sweep has. Of a task with a dataset at most half of
    what there is are searched on."""
    samples: PositiveInt
    """Completions per problem."""
    seed: Seed


class FindAlpha(Parameters):
    """parameters_find_alpha.yml: a wish, and how the alpha that fulfils it is searched and confirmed."""

    save: Annotated[float, Field(gt=-10, lt=1)] | None
    """Share of the reference's tokens to save; negative to write more."""
    lose_at_most: Annotated[float, Field(ge=0, lt=1)] | None
    """Save as much as possible, and lose at most this much pass@1 against the reference: 0.01 is a point."""
    knobs: Annotated[list[Knob], Field(min_length=1)]
    """In this order: the first whose ends lie on both sides of the wish is taken."""
    tolerance: PositiveFloat
    """Share of the tokens: the bisection ends when the knob saves the wished share to within this, or when no more
    than this can still be saved."""
    steps: PositiveInt
    """Most halvings of a knob's range."""
    retrain: PositiveFloat
    """A second student is trained, at a corrected alpha, if the first one misses the wish by more than this."""
    seed: Seed
    """Seed of the problems; completions have their own."""
    search: Measurement
    confirm: Measurement

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.save is not None and self.lose_at_most is not None:
            raise ValueError("save and lose_at_most are both given. Give one of them: the other one follows from it")
        if self.save == 0:
            raise ValueError("save is 0, which alpha 0 fulfils: the reference itself. Wish for another share")
        if self.search.seed == self.confirm.seed:
            raise ValueError(f"search and confirm have the same seed {self.search.seed}")
        return self

    def wish(self) -> Wish:
        """The wish of this run. InputError if there is none: other runs need none, so that the model lets it pass."""
        if self.save is not None:
            return Save(self.save)
        if self.lose_at_most is not None:
            return LoseAtMost(self.lose_at_most)
        raise InputError(f"find_alpha needs a wish: find_alpha.save or find_alpha.lose_at_most. {EXAMPLE}")
