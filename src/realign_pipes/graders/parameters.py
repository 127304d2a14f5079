"""parameters_scores.yml: which graders score the sweep's completions."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, StringConstraints, field_validator, model_validator

from realign_pipes.errors import InputError
from realign_pipes.runtime.parameters import Parameters, unknown

MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


ALWAYS = frozenset({"pass_at_1", "tokens", "words", "distinct"})
"""The metrics that need no grader."""

RESERVED = frozenset(
    ["alpha", "candidate", "chosen_on", "completion_tokens", "confidence", "confirmed_on", "correct", "difference",
     "difference_low", "finished", "graded_tasks", "kind", "margin", "mean_tokens", "overall", "problems_needed",
     "sentence", "smallest_task", "steps", "survived", "tasks", "token_reduction"]
)  # fmt: skip
"""What the recommendation and the sweep's values call other figures."""


class _Grader(Parameters):
    tasks: Annotated[list[str], Field(min_length=1)] | None = None
    """The tasks whose completions it scores; null: all."""

    def metric_names(self, name: str) -> tuple[str, ...]:
        """The metrics of a grader called `name`."""
        return (name,)


class _Bounds(Parameters):
    at_least: PositiveInt | None = None
    at_most: PositiveInt | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        return self


class Words(_Bounds):
    """The answer has so many words."""

    kind: Literal["words"]


class Sentences(_Bounds):
    """The answer has so many sentences: runs of text that end in `.`, `!` or `?`, or with their line."""

    kind: Literal["sentences"]


class Bullets(_Bounds):
    """The answer has so many lines that start with `-`, `*`, `•` or a number and a dot."""

    kind: Literal["bullets"]


class Keywords(Parameters):
    """These words or phrases are in the answer, or are not, whatever their case."""

    kind: Literal["keywords"]
    present: list[str] = Field(default_factory=list)
    absent: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.present and not self.absent:
            raise ValueError("give words in present, absent or both")
        return self


class Begins(Parameters):
    """The answer begins with this text."""

    kind: Literal["begins"]
    text: str


class Ends(Parameters):
    """The answer ends with this text."""

    kind: Literal["ends"]
    text: str


class Case(Parameters):
    """All letters of the answer are of one case."""

    kind: Literal["case"]
    letters: Literal["lower", "upper"]


class JSONFormat(Parameters):
    """The whole answer is JSON, alone or inside one Markdown fence."""

    kind: Literal["json"]


class Language(Parameters):
    """The answer is in this language, by py3langid."""

    kind: Literal["language"]
    code: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]
    """ISO 639-1, such as en or de."""


Instruction = Annotated[
    Words | Sentences | Bullets | Keywords | Begins | Ends | Case | JSONFormat | Language, Field(discriminator="kind")
]


class Rules(_Grader):
    """Instructions that a program can check. Its metrics are `<name>`, whether an answer follows all of its
    instructions, and `<name>_each`, the share that it follows."""

    kind: Literal["rules"]
    instructions: list[Instruction] = Field(default_factory=list)
    """For every problem."""
    field: str | None = None
    """The field of a problem's metadata that holds instructions for it alone: a list, or JSON text of one."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.instructions and self.field is None:
            raise ValueError("give instructions, or the field of the problems' metadata that has them")
        return self

    def metric_names(self, name: str) -> tuple[str, ...]:
        """Of whole answers, and of each instruction."""
        return name, f"{name}_each"


class Refusal(_Grader):
    """Whether an answer refuses. Its metrics are `<name>_harmful`, of which more is better, and `<name>_harmless`."""

    kind: Literal["refusal"]
    field: str
    """The field of a problem's metadata that says `harmful` or `harmless`."""
    phrases: list[str] | None = None
    """What a refusal says in its first sentences, as regular expressions, whatever their case; null: those of
    `graders.refusal.PHRASES`."""

    @field_validator("phrases")
    @classmethod
    def _regular(cls, phrases: list[str] | None) -> list[str] | None:
        for phrase in phrases or []:
            try:
                re.compile(phrase)
            except re.error as error:
                raise ValueError(f"{phrase!r} is not a regular expression: {error}") from None
        return phrases

    def metric_names(self, name: str) -> tuple[str, ...]:
        """On harmful prompts, and on harmless ones."""
        return f"{name}_harmful", f"{name}_harmless"


class Reward(_Grader):
    """A reward model: the logit of a sequence classifier with one label."""

    kind: Literal["reward"]
    model: str
    """A checkpoint's folder, or `org/name@revision` of the hub."""
    input: Literal["chat", "pair"]
    """How the model reads: question and answer through its own chat template, or as a pair of texts."""
    batch_size: PositiveInt
    tokens: PositiveInt
    """The most that question and answer may have together; a candidate with a longer one stops the run before any of
    its answers is scored."""


class Judge(_Grader):
    """A language model that compares each answer with the reference's, on an OpenAI-compatible server. Its metric is
    the win rate: 1 for a win, 0.5 for a tie, the mean over both orders."""

    kind: Literal["judge"]
    url: Annotated[str, StringConstraints(pattern=r"^https?://\S+[^/\s]$")]
    """Of the server, without /v1 and without a slash at the end."""
    model: str
    """The name that the server knows it by."""
    prompt: str
    """A text file with the places {question}, {first} and {second}."""
    samples: PositiveInt = 1
    """Of each problem's completions, this many are judged."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 512
    """Of a verdict with its reason."""
    max_in_flight: PositiveInt = 8
    key_variable: str | None = None
    """The environment variable that holds the server's key, which is written nowhere; null for none."""

    @field_validator("prompt")
    @classmethod
    def _places(cls, prompt: str) -> str:
        path = Path(prompt)
        if not path.is_file():
            raise ValueError(f"{prompt} does not exist in {Path.cwd()}")
        text = path.read_text(encoding="utf-8")
        if missing := [place for place in ("{question}", "{first}", "{second}") if text.count(place) != 1]:
            raise ValueError(f"{prompt} has to have {', '.join(missing)} once")
        return prompt


def read_key(grader: Judge) -> str | None:
    """The server's key. InputError if the environment has no variable of that name."""
    if grader.key_variable is None:
        return None
    if not (key := os.environ.get(grader.key_variable)):
        raise InputError(
            f"the environment has no variable {grader.key_variable}, which the judge's key_variable names."
        )
    return key


Grader = Annotated[Rules | Refusal | Reward | Judge, Field(discriminator="kind")]


class Scores(Parameters):
    """parameters_scores.yml: which graders score the sweep's completions."""

    graders: dict[MetricName, Grader]
    distinct_n: PositiveInt
    """The n of distinct-n, how little a completion repeats itself."""

    def check_tasks(self, tasks: Collection[str]) -> None:
        """InputError for a grader of a task that is not among the evaluation set's `tasks`."""
        for name, grader in self.graders.items():
            for task in grader.tasks or []:
                if task not in tasks:
                    raise InputError(f"scores.graders.{name}.tasks: {unknown('task', task, tasks)}")

    def check_keys(self) -> None:
        """InputError for a judge whose key the environment lacks."""
        for grader in self.graders.values():
            if isinstance(grader, Judge):
                read_key(grader)

    @model_validator(mode="after")
    def _free_names(self) -> Self:
        given = [metric for name, grader in self.graders.items() for metric in grader.metric_names(name)]
        for metric in given:
            if metric in ALWAYS:
                raise ValueError(f"{metric}: a metric of that name is always there. Name the grader otherwise.")
            if metric in RESERVED or metric.startswith("reference_") or metric.endswith(("_gain", "_given_away")):
                raise ValueError(f"{metric}: results have another figure of that name. Name the grader otherwise.")
            if given.count(metric) > 1:
                raise ValueError(f"{metric}: two graders have a metric of that name. Name one of them otherwise.")
        return self
