"""A judge: a language model on an OpenAI-compatible server says which of two answers is better.

Each answer of a candidate is compared with the reference's answer to the same problem, twice: each of them comes first
once, as judges prefer a place. A win is 1, a tie 0.5, and the score is the mean of both orders. A verdict that cannot
be read counts as a tie, and is counted; so does a pair that the server refuses. Every verdict is kept as it comes, with
the text that it was read from, so an interrupted run asks only for those that are missing.

Judges also prefer long answers (https://arxiv.org/abs/2404.04475): beside a win rate, read both mean lengths.
"""

import asyncio
import json
import queue
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
import pandas as pd
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from realign_pipes.generation.vllm_engine import (
    InAnotherThread,
    RefusedError,
    ServerError,
    make_client,
    post,
    shortened,
)
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.parameters import Judge, read_key
from realign_pipes.graders.text import words_of
from realign_pipes.models.fingerprint import fingerprint
from realign_pipes.runtime.files import append_line, whole_lines
from realign_pipes.runtime.progress import progress_bar
from realign_pipes.runtime.work import do_once
from realign_pipes.serving.foreground import LOOPBACK
from realign_pipes.sweep.schemas import VERDICTS, conform

VERDICT = re.compile(r"^\W*verdict\W*(A|B|tie)\W*$", re.IGNORECASE | re.MULTILINE)
PLACE = re.compile(r"\{(question|first|second)\}")
WINS = {"candidate": 1.0, "tie": 0.5, "unreadable": 0.5, "reference": 0.0}
ADVICE = "Give the judge's url, model and key_variable in parameters_scores.yml as its server wants them."

REFUSED = "Refused: "
"""Begins the text of a verdict on a pair that the server refused."""
OF_A_PAIR = frozenset((400, 413, 422))
"""Refusals that a pair may be the reason of: a content filter, or a limit of length."""
ANSWERING = 600.0
"""Seconds for the judge to answer."""

Key = tuple[str, str, int]
"""Task, problem, sample."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one problem, in an order."""

    task: str
    problem_id: str
    sample: int
    candidate_first: bool
    question: str
    candidate: str
    reference: str

    @property
    def key(self) -> tuple[str, str, int, bool]:
        """What tells it from all others of a candidate."""
        return self.task, self.problem_id, self.sample, self.candidate_first


@dataclass(frozen=True)
class Verdict:
    """What the judge said of a pair."""

    task: str
    problem_id: str
    sample: int
    candidate_first: bool
    winner: str
    """candidate, reference, tie or unreadable."""
    text: str
    """The judge's whole answer, with its reason; or REFUSED and what the server said."""
    prompt_tokens: int
    completion_tokens: int


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage


def make_pairs(grader: Judge, answers: Sequence[Answered], reference: Sequence[Answered]) -> list[Pair]:
    """Both orders of each pair of answers of the first `grader.samples` samples."""
    theirs = {(one.task, one.problem_id, one.sample): one.answer for one in reference}
    kept = sorted({one.sample for one in reference})[: grader.samples]
    return [
        Pair(one.task, one.problem_id, one.sample, first, one.question, one.answer,
             theirs[one.task, one.problem_id, one.sample])
        for one in answers
        if one.sample in kept
        for first in (True, False)
    ]  # fmt: skip


def name_of(pair: Pair) -> str:
    """For an error."""
    first = "the candidate's" if pair.candidate_first else "the reference's"
    return f"{pair.task}, problem {pair.problem_id}, sample {pair.sample}, {first} answer first"


def render(template: str, pair: Pair) -> str:
    """The judge's prompt for a pair. What the texts hold in braces stays as it is."""
    texts = (pair.candidate, pair.reference) if pair.candidate_first else (pair.reference, pair.candidate)
    places = {"question": pair.question, "first": texts[0], "second": texts[1]}
    return PLACE.sub(lambda place: places[place[1]], template)


def read_verdict(text: str, candidate_first: bool) -> str:
    """Who won: the last line of the form `Verdict: A`, `Verdict: B` or `Verdict: tie` counts; else unreadable."""
    found = VERDICT.findall(text)
    if not found:
        return "unreadable"
    said = found[-1].lower()
    if said == "tie":
        return "tie"
    return "candidate" if (said == "a") == candidate_first else "reference"


def collect_verdicts(grader: Judge, candidate: str, pairs: Sequence[Pair], folder: Path) -> pd.DataFrame:
    """The judge's verdicts on all pairs of a candidate, in their order (VERDICTS); those kept in `folder` are read.

    ServerError for a server that is lost or refuses every pair, that does not answer within ANSWERING, or whose answer
    is no chat completion.
    """
    template = Path(grader.prompt).read_text(encoding="utf-8")
    description = {
        "judge": grader.model_dump(include={"url", "model", "temperature", "max_tokens"}),
        "prompt": template,
        "pairs": fingerprint([asdict(pair) for pair in pairs]),
    }

    def do(work: Path) -> Callable[[Path], None]:
        verdicts = _ask(grader, read_key(grader), template, candidate, pairs, work / "verdicts.jsonl")
        frame = pd.DataFrame([asdict(verdicts[pair.key]) for pair in pairs]).assign(candidate=candidate)
        return lambda path: conform(frame, VERDICTS).to_parquet(path)

    return pd.read_parquet(do_once(folder, "verdicts.parquet", description, do))


def scores_of(verdicts: pd.DataFrame) -> dict[Key, float]:
    """The score of each judged answer: the mean of both orders."""
    won = verdicts["winner"].map(WINS).groupby([verdicts[name] for name in ("task", "problem_id", "sample")])
    return {(task, problem, sample): score for (task, problem, sample), score in won.mean().items()}


def summarise_verdicts(verdicts: pd.DataFrame, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What there is to know about a candidate's verdicts, as the columns of JUDGE_RESULTS.

    The judge's agreement with itself is the share of pairs in which both orders have the same winner, of those in which
    both can be read; NaN if none can.
    """
    both = verdicts.pivot(index=["task", "problem_id", "sample"], columns="candidate_first", values="winner")
    readable = both[(both != "unreadable").all(axis=1)]
    first = (verdicts["winner"] == "candidate") == verdicts["candidate_first"]
    decided = verdicts["winner"].isin(["candidate", "reference"])
    length = {
        who: sum(len(words_of(getattr(pair, who))) for pair in pairs) / len(pairs) for who in ("candidate", "reference")
    }
    return {
        "win_rate": verdicts["winner"].map(WINS).mean(),
        "ties": (verdicts["winner"] == "tie").mean(),
        "unreadable": (verdicts["winner"] == "unreadable").mean(),
        "agreement": (readable[True] == readable[False]).mean(),
        "first_preferred": first[decided].mean(),
        "words": length["candidate"],
        "reference_words": length["reference"],
        "requests": len(verdicts),
        "prompt_tokens": verdicts["prompt_tokens"].sum(),
        "completion_tokens": verdicts["completion_tokens"].sum(),
    }


def _ask(
    grader: Judge, key: str | None, template: str, candidate: str, pairs: Sequence[Pair], file: Path
) -> Mapping[tuple[str, str, int, bool], Verdict]:
    """All verdicts by pair: those in `file`, and new ones, which are added to it as they come.

    What was refused is asked for again. ServerError if all is: then it is not the pairs.
    """
    kept = [one for one in _kept(file) if not one.text.startswith(REFUSED)]
    found = {(one.task, one.problem_id, one.sample, one.candidate_first): one for one in kept}
    todo = [pair for pair in pairs if pair.key not in found]
    came: queue.SimpleQueue[Verdict | BaseException] = queue.SimpleQueue()
    with progress_bar(f"judging {candidate}", len(pairs)) as advance:
        advance(len(found))
        asking = InAnotherThread(partial(_ask_for_all, grader, key, template, todo, came.put), came.put)
        try:
            for _ in todo:
                one = came.get()
                if isinstance(one, BaseException):
                    raise one
                append_line(file, json.dumps(asdict(one), ensure_ascii=False))
                found[one.task, one.problem_id, one.sample, one.candidate_first] = one
                advance()
        finally:
            asking.stop()
    refused = [one.text for one in found.values() if one.text.startswith(REFUSED)]
    if refused and len(refused) == len(found):
        raise ServerError(f"{grader.url} refused all {len(found)} pairs of {candidate}. {refused[0]} {ADVICE}")
    return found


async def _ask_for_all(
    grader: Judge, key: str | None, template: str, todo: Iterable[Pair], put: Callable[[Verdict], None]
) -> None:
    """Ask for every verdict and `put` them as they come, `max_in_flight` at a time."""
    waiting = iter(todo)
    async with make_client(ANSWERING, proxies=urlsplit(grader.url).hostname not in LOOPBACK) as client:

        async def work() -> None:
            for pair in waiting:
                body = {
                    "model": grader.model,
                    "messages": [{"role": "user", "content": render(template, pair)}],
                    "temperature": grader.temperature,
                    "max_tokens": grader.max_tokens,
                }
                url = f"{grader.url}/v1/chat/completions"
                try:
                    answer = await post(client, url, body, advice=ADVICE, key=key)
                except RefusedError as error:
                    if error.status not in OF_A_PAIR:
                        raise
                    put(Verdict(*pair.key, "unreadable", f"{REFUSED}{error.reason}", 0, 0))
                    continue
                except httpx2.ReadTimeout as error:
                    raise ServerError(f"{url} did not answer within {ANSWERING:g} s about {name_of(pair)}. See what it "
                                      "does; the run resumes.") from error  # fmt: skip
                put(_read(answer, url, pair))

        working = [asyncio.create_task(work()) for _ in range(grader.max_in_flight)]
        try:
            await asyncio.gather(*working)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


def _read(answer: Any, url: str, pair: Pair) -> Verdict:
    """The verdict in an answer, which is not trusted."""
    try:
        read = _Answer.model_validate_json(answer.content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ServerError(f"{url} answered what is no chat completion ({place}: {problem['msg']}): "
                          f"{shortened(answer.text)}") from error  # fmt: skip
    text = read.choices[0].message.content or ""
    winner = read_verdict(text, pair.candidate_first)
    usage = read.usage
    return Verdict(*pair.key, winner, text, usage.prompt_tokens, usage.completion_tokens)


def _kept(file: Path) -> list[Verdict]:
    """What an interrupted run kept; an incomplete last line is removed from the file."""
    return [Verdict(**json.loads(line)) for line in whole_lines(file)]
