"""Scoring a sweep: every grader that parameters name, on every candidate's completions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from realign_pipes.graders import judge, refusal, rules
from realign_pipes.graders.answered import Answered, read_answered
from realign_pipes.graders.parameters import Judge, Refusal, Reward, Rules, Scores
from realign_pipes.graders.reward import RewardModel
from realign_pipes.graders.text import distinct, words_of
from realign_pipes.sweep.metrics import Answers, Generations, load_frame
from realign_pipes.sweep.schemas import JUDGE_RESULTS, SCORES, VERDICTS, conform

Score = Callable[[str, Sequence[Answered]], Iterator[Mapping[str, float]]]
"""(candidate, its completions) -> the metrics of each of them."""


@dataclass
class Scored:
    """What scoring a sweep makes."""

    scores: list[pd.DataFrame] = field(default_factory=list)
    """With the columns SCORES."""
    verdicts: dict[str, list[pd.DataFrame]] = field(default_factory=dict)
    """By judge, with the columns VERDICTS."""
    judges: list[dict[str, Any]] = field(default_factory=list)
    """Rows of JUDGE_RESULTS."""

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Scores, verdicts and what the judges' verdicts say, as frames with their columns."""
        verdicts = [one.assign(judge=name) for name, frames in self.verdicts.items() for one in frames]
        return (
            conform(pd.concat(self.scores, ignore_index=True), SCORES),
            _framed(verdicts, {"judge": "str"} | VERDICTS),
            conform(pd.DataFrame(self.judges, columns=list(JUDGE_RESULTS)), JUDGE_RESULTS),
        )


def score_sweep(
    parameters: Scores, generations: Generations, answers: Answers, problems: Dataset, work: Path
) -> Scored:
    """Score every candidate of a sweep; what an interrupted run finished in the folder `work` is kept.

    `answers` are those of `generations`, which have been checked, and `problems` the evaluation set.

    InputError, before anything is scored, for a task that no problem has, for a judge's key that the environment lacks,
    for a reward model that cannot be used; and what the graders refuse.
    """
    parameters.check_tasks(answers.problems)
    parameters.check_keys()
    partitions = {load_frame(loaded)["candidate"].iloc[0]: loaded for loaded in generations.values()}
    names = answers.about["candidate"].tolist()
    reference = names[answers.reference]
    theirs = read_answered(load_frame(partitions[reference]), problems)
    scored = Scored()
    graders: dict[str, Score] = {}
    for name, grader in parameters.graders.items():
        match grader:
            case Rules():
                graders[name] = _of_rules(name, grader)
            case Refusal():
                graders[name] = _of_refusal(name, grader)
            case Reward():
                graders[name] = _of_reward(name, grader, work)
            case Judge():
                graders[name] = _of_judge(name, grader, reference, theirs, scored, work)
    for candidate in names:
        frame = load_frame(partitions[candidate])
        rows = _always(frame, read := read_answered(frame, problems), parameters.distinct_n)
        for name, score in graders.items():
            tasks = parameters.graders[name].tasks
            applies = [one for one in read if tasks is None or one.task in tasks]
            rows += [
                (one.task, one.problem_id, one.sample, metric, value)
                for one, metrics in zip(applies, score(candidate, applies), strict=True)
                for metric, value in metrics.items()
            ]
        made = pd.DataFrame(rows, columns=["task", "problem_id", "sample", "metric", "score"])
        scored.scores.append(made.assign(candidate=candidate))
    return scored


def _always(frame: pd.DataFrame, read: Sequence[Answered], n: int) -> list[tuple[str, str, int, str, float]]:
    """pass@1, tokens, words and distinct-n of each completion; no pass@1 where nothing says what is correct."""
    rows = []
    for row, one in zip(frame[["correct", "completion_tokens"]].itertuples(index=False), read, strict=True):
        key = (one.task, one.problem_id, one.sample)
        if not pd.isna(row.correct):
            rows.append((*key, "pass_at_1", float(row.correct)))
        rows.append((*key, "tokens", float(row.completion_tokens)))
        rows.append((*key, "words", float(len(words_of(one.answer)))))
        rows.append((*key, "distinct", distinct(one.completion, n)))
    return rows


def _of_rules(name: str, grader: Rules) -> Score:
    return lambda candidate, answers: rules.score(name, grader, answers)


def _of_refusal(name: str, grader: Refusal) -> Score:
    return lambda candidate, answers: refusal.score(name, grader, answers)


def _of_reward(name: str, grader: Reward, work: Path) -> Score:
    model = RewardModel(name, grader)

    def score(candidate: str, answers: Sequence[Answered]) -> Iterator[Mapping[str, float]]:
        return ({name: one} for one in model.score(candidate, answers, work / name / candidate))

    return score


def _of_judge(
    name: str, grader: Judge, reference: str, theirs: Sequence[Answered], scored: Scored, work: Path
) -> Score:
    scored.verdicts[name] = []

    def score(candidate: str, answers: Sequence[Answered]) -> Iterator[Mapping[str, float]]:
        pairs = judge.make_pairs(grader, answers, theirs)
        if candidate == reference:  # which is as good as itself
            found = {(pair.task, pair.problem_id, pair.sample): 0.5 for pair in pairs}
        else:
            verdicts = judge.collect_verdicts(grader, candidate, pairs, work / name / candidate)
            scored.verdicts[name].append(verdicts)
            about = judge.summarise_verdicts(verdicts, pairs)
            scored.judges.append({"judge": name, "candidate": candidate, **about})
            found = judge.scores_of(verdicts)
        keys = ((one.task, one.problem_id, one.sample) for one in answers)
        return ({name: found[key]} if key in found else {} for key in keys)

    return score


def _framed(frames: Sequence[pd.DataFrame], columns: Mapping[str, str]) -> pd.DataFrame:
    made = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))
    return conform(made, columns)
