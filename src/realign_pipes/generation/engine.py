"""Drawing completions: the interface between the code that asks for them and the code that runs the model.

    engine: Engine = TransformersEngine.of_checkpoint(path)
    for completions in engine.draw(prompts, sampling):
        ...

Callers pass token ids and get token ids; they don't need to know about Transformers or a server.
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from realign_pipes.generation.parameters import Sampling
from realign_pipes.paper.schedules import Schedule

Alpha = float | Schedule
"""A number, or a schedule f(step, row) -> alpha such as `paper.TokenBudget`.

`step` counts the tokens of one completion from 0. An engine always calls a schedule with row 0: a completion must not
depend on its row in a batch, which is the engine's own business.
"""


@dataclass(frozen=True)
class Closing:
    """What acts on the tag that closes a completion's thinking, and how thinking is found among the tokens.

    Thinking is open once the opening tag has been written, by the prompt or by the completion, until the closing tag
    has. A tag is the token ids that the tokenizer gives for the tag alone.
    """

    open_ids: tuple[int, ...]
    close_ids: tuple[int, ...]
    opened: bool
    """The prompt has opened the thinking."""
    at: int | None = None
    """From this token of the completion on (counted from 0), thinking that is open is closed: the ids of the closing
    tag follow one after the other, whatever their probabilities. None: it is never forced."""
    bias: float = 0.0
    """Added to the logit of the closing tag's first id while thinking is open."""


@dataclass(frozen=True)
class Prompt:
    """What a completion is drawn for."""

    key: str
    """Names the prompt for its random numbers: same key, seed and sample, same numbers."""
    token_ids: list[int]
    alpha: Alpha | None = None
    """For a model that takes alpha as an argument (InRa); None for any other."""
    closing: Closing | None = None
    """None: nothing acts on the closing tag."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion of one prompt."""

    key: str
    """The prompt's."""
    sample: int
    """From 0 to `sampling.samples` - 1."""
    token_ids: list[int]
    """Generated tokens, the end-of-sequence token included if it came."""
    finished: bool
    """False if the token limit cut it off."""

    @classmethod
    def of_tokens(cls, key: str, sample: int, tokens: list[int], stops: Collection[int]) -> Self:
        """Cut after the first token that ends a completion; what follows it is padding."""
        end = next((position + 1 for position, token in enumerate(tokens) if token in stops), None)
        return cls(key, sample, tokens[:end], finished=end is not None)


@dataclass(frozen=True)
class Description:
    """What draws, beside the model, the prompts and the sampling: of other engines other completions come."""

    engine: str
    """transformers or vllm."""
    version: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.engine} {self.version} {self.dtype}"


class Engine(Protocol):
    """Draws completions."""

    @property
    def description(self) -> Description:
        """What it is, for those who read its completions, and to tell them from another engine's."""
        ...

    def close(self) -> None:
        """Give back the memory that it took, or stop its server. It cannot draw after that."""
        ...

    def draw(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: Collection[tuple[str, int]] = ()
    ) -> Generator[list[Completion], None, None]:
        """Yield the completions of `prompts`, `sampling.samples` each, in groups as they finish.

        The keys of `prompts` are distinct. `done` has the key and sample of the completions that an interrupted run has
        already drawn: these are left out, and the others are the same as without the interruption.
        """
        ...
