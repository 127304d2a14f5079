"""Instructions that a program can check, in the manner of IFEval (https://arxiv.org/abs/2311.07911).

No package of IFEval's own checks is on PyPI, and lm-evaluation-harness's need data that NLTK downloads when they run.
So these are few and simple; only the language comes from a library. They read what a model wrote, so they run in the
worker with its limits.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from realign_pipes.errors import InputError
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.parameters import (
    Begins,
    Bullets,
    Case,
    Ends,
    Instruction,
    JSONFormat,
    Keywords,
    Language,
    Rules,
    Sentences,
    Words,
)
from realign_pipes.graders.text import words_of
from realign_pipes.tasks.grading import run_limited

BULLET = re.compile(r"^\s*(?:[-*•]|\d+\.)\s+\S", re.MULTILINE)
FENCED = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)

_INSTRUCTIONS: TypeAdapter[list[Instruction]] = TypeAdapter(list[Instruction])


def score(name: str, grader: Rules, answers: Sequence[Answered]) -> Iterator[dict[str, float]]:
    """`<name>` of each answer, 1 if it follows all of its instructions, and `<name>_each`, the share that it follows.

    InputError for a problem without instructions, or with wrong ones, before anything is checked. An answer whose check
    exceeds its time or memory follows nothing.
    """
    items = read_instructions(name, grader, answers)
    nothing: list[bool] = []
    for item, followed in zip(items, run_limited(_followed, items, nothing), strict=True):
        each = followed or [False] * len(item.instructions)
        yield {name: float(all(each)), f"{name}_each": sum(each) / len(each)}


def read_instructions(name: str, grader: Rules, answers: Sequence[Answered]) -> list["_Item"]:
    """The answers with their instructions. InputError for a problem without any, or with wrong ones."""
    return [_Item(one.problem_id, one.answer, tuple(_instructions(name, grader, one))) for one in answers]


def follows(answer: str, instruction: Instruction) -> bool:
    """Whether an answer follows an instruction. An empty answer follows none."""
    answer = answer.strip()
    match instruction:
        case Words():
            followed = _within(len(words_of(answer)), instruction)
        case Sentences():
            followed = _within(count_sentences(answer), instruction)
        case Bullets():
            followed = _within(len(BULLET.findall(answer)), instruction)
        case Keywords():
            followed = all(_has(answer, word) for word in instruction.present) and not any(
                _has(answer, word) for word in instruction.absent
            )
        case Begins():
            followed = answer.startswith(instruction.text)
        case Ends():
            followed = answer.endswith(instruction.text)
        case Case():
            followed = answer == (answer.lower() if instruction.letters == "lower" else answer.upper())
        case JSONFormat():
            followed = _is_json(answer)
        case Language():
            import py3langid

            followed = bool(py3langid.classify(answer)[0] == instruction.code)
    return bool(answer) and followed


def count_sentences(text: str) -> int:
    """Runs of text that end in `.`, `!` or `?` before a space, or with their line; `3.5` ends none."""
    return len([part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if re.search(r"\w", part)])


def _within(count: int, bounds: Words | Sentences | Bullets) -> bool:
    return (bounds.at_least or 0) <= count and (bounds.at_most is None or count <= bounds.at_most)


def _has(answer: str, phrase: str) -> bool:
    """Whether a word or phrase is in the answer, whatever its case, and not inside a longer word."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", answer, re.IGNORECASE) is not None


def _is_json(answer: str) -> bool:
    fenced = FENCED.match(answer)
    try:
        json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return False
    return True


def _instructions(name: str, grader: Rules, one: Answered) -> list[Instruction]:
    own = [] if grader.field is None else one.metadata.get(grader.field, [])
    try:
        instructions = _INSTRUCTIONS.validate_python(json.loads(own) if isinstance(own, str) else own)
    except (ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise InputError(f"scores.graders.{name}: problem {one.problem_id} has wrong instructions in {grader.field}: "
                         f"{reason}") from None  # fmt: skip
    if not (together := [*grader.instructions, *instructions]):
        raise InputError(f"scores.graders.{name}: problem {one.problem_id} has no instructions: its metadata has no "
                         f"{grader.field}. data_prep.tasks.<task>.metadata_columns names the dataset's column, and "
                         f"scores.graders.{name}.tasks the tasks that have it.")  # fmt: skip
    return together


@dataclass(frozen=True)
class _Item:
    problem_id: str
    answer: str
    instructions: tuple[Instruction, ...]


def _followed(item: _Item) -> list[bool]:
    return [follows(item.answer, instruction) for instruction in item.instructions]
