"""Who draws completions: the seam between what asks for them and what runs the model.

    engine: Engine = TransformersEngine(model, pad_token_id)
    for completions in engine.draw(prompts, sampling):
        ...

Callers hand over token ids and get token ids; they know neither Transformers nor a server.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from realign_pipes.generation.parameters import Sampling
from realign_pipes.paper.schedules import Schedule

Alpha = float | Schedule
"""A number, or a schedule f(step, row) -> alpha such as `paper.TokenBudget`, whose steps are a completion's tokens."""


@dataclass(frozen=True)
class Prompt:
    """What a completion is drawn for."""

    key: str
    """Names the prompt for its random numbers: same key, seed and sample, same numbers."""
    token_ids: list[int]
    alpha: Alpha | None = None
    """For a model whose alpha is an argument (InRa); None for any other."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion of one prompt."""

    key: str
    """Of its prompt."""
    sample: int
    """From 0 to `sampling.samples` - 1."""
    token_ids: list[int]
    """Generated tokens, the end-of-sequence token included if it came."""
    finished: bool
    """False where the token limit cut it off."""


class Engine(Protocol):
    """Draws completions."""

    def draw(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: Collection[tuple[str, int]] = ()
    ) -> Iterator[list[Completion]]:
        """Yield the completions of `prompts`, `sampling.samples` each, in groups as they finish.

        `done` has the key and sample of completions that an interrupted run has already drawn. The others come out as
        they would have without the interruption. Keys are distinct.
        """
        ...
