"""Parameters of the sweep: which candidates are measured, and how."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from realign_pipes.generation.parameters import Sampling
from realign_pipes.runtime.parameters import Parameters, Plausibility, Seed, ServedRank, SomeAlphas, check_distinct


class Budgets(Parameters):
    """Thinking inside a token budget: InRa with the schedule TokenBudget, against closing the reference's thinking by
    force and against cutting the reference off."""

    tokens: list[PositiveInt]
    """The budgets: tokens of a whole completion."""
    ramp: Annotated[float, Field(ge=0, le=1)]
    """Share of a budget after which alpha rises from 0 to 1."""
    answer_tokens: PositiveInt
    """Thinking is closed by force when this many tokens of a budget are left: the closing tag and the answer have to
    fit into them."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"tokens {self.tokens} name one budget twice")
        return self

    @model_validator(mode="after")
    def _some_thinking(self) -> Self:
        if self.tokens and self.answer_tokens >= min(self.tokens):
            raise ValueError(
                f"answer_tokens is {self.answer_tokens}, which leaves nothing of the budget {min(self.tokens)} for "
                "thinking. Set answer_tokens to less, as many tokens as an answer has, or remove that budget."
            )
        return self


class Ties(Parameters):
    """Merging with the difference of the weights thinned out first, as TIES does."""

    alphas: SomeAlphas
    density: Annotated[float, Field(gt=0, lt=1)]
    """Share of each tensor's difference that is kept: the entries of the largest magnitude."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct(self.alphas)
        return self


class Svd(Parameters):
    """The difference of the two models' linear layers cut to a low rank, as a LoRA adapter."""

    alphas: SomeAlphas
    rank: ServedRank
    """Singular values that are kept of each layer's difference."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct(self.alphas)
        return self


CandidateName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class AlphaSweep(Parameters):
    """parameters_alpha_sweep.yml: which candidates are measured, and how."""

    dera_alphas: list[float]
    """Alphas at which the two models decode together (DeRa)."""
    inra_alphas: list[float]
    """Alphas of the InRa model, which is loaded once."""
    merge_alphas: SomeAlphas
    """Alphas at which the weights of the two models are interpolated."""
    ties: Ties
    svd: Svd | None
    """None: it is not measured."""
    lora_scale_alphas: SomeAlphas
    """By what the matrices of TrRa's LoRA student are scaled. It needs `trra.scaled_lora`."""
    plausibility: Plausibility
    """Beta of the mask where DeRa mixes, and of the min-p with which both models are measured once more."""
    close_biases: list[float]
    """Biases on the logit of the tag that closes the reference's thinking, while it thinks."""
    others: dict[CandidateName, str]
    """Checkpoints that were made elsewhere, by the name of their candidate: a folder, or `org/name` of the hub with an
    optional `@revision`. Their tokenizer is the reference's."""
    prompts: dict[
        CandidateName,
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)],
    ]
    """Instructions for the reference, such as to be brief, by the name of their candidate. One is added to the end of
    each question, so it needs a model that follows instructions."""
    budgets: Budgets
    sampling: Sampling
    bootstrap_samples: PositiveInt
    bootstrap_seed: Seed

    def longest_completions(self) -> list[tuple[str, int]]:
        """The parameters that say how many tokens a completion may have, and their values."""
        budgets = [("alpha_sweep.budgets.tokens", tokens) for tokens in self.budgets.tokens]
        return [("alpha_sweep.sampling.max_new_tokens", self.sampling.max_new_tokens), *budgets]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for alphas in (self.dera_alphas, self.inra_alphas, self.merge_alphas, self.lora_scale_alphas):
            check_distinct(alphas)
        check_distinct(self.close_biases)
        return self
