"""Parameters of drawing completions."""

from pydantic import PositiveFloat, PositiveInt

from realign_pipes.runtime.parameters import Parameters, Probability, Seed


class Sampling(Parameters):
    """How completions are drawn."""

    samples: PositiveInt
    """Completions per problem (the paper: 8)."""
    temperature: PositiveFloat
    top_p: Probability
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    """Completions decoded together."""
    seed: Seed
