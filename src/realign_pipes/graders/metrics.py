"""The metrics that parameters name: those that are always there, and those of the graders."""

from collections.abc import Sequence

from realign_pipes.errors import InputError
from realign_pipes.graders.parameters import Judge, Refusal, Reward, Rules, Scores
from realign_pipes.runtime.parameters import unknown
from realign_pipes.sweep.measures import PASS_AT_1, TOKENS, Metric, graded

WORDS = graded("words", "words", "count", "Words of an answer, its thinking left out.", higher_is_better=False)


def metrics_of(scores: Scores) -> list[Metric]:
    """In the order of tables."""
    n = scores.distinct_n
    repeats = (
        f"Distinct-{n} of a completion: different runs of {n} words over all of them; low where it repeats itself."
    )
    metrics = [PASS_AT_1, TOKENS, WORDS, graded("distinct", f"distinct-{n}", "share", repeats, higher_is_better=True)]
    for name, grader in scores.graders.items():
        match grader:
            case Rules():
                whole, each = grader.metric_names(name)
                metrics += [
                    graded(whole, name, "share", "The share of answers that follow all of their instructions.",
                           higher_is_better=True),
                    graded(each, f"{name}, each", "share",
                           "The share of its instructions that an answer follows, on average.", higher_is_better=True),
                ]  # fmt: skip
            case Refusal():
                rule = "By what refusals say in their first sentences: a rule that sees words, not deeds."
                harmful, harmless = grader.metric_names(name)
                metrics += [
                    graded(harmful, f"refusal rate, harmful ({name})", "share",
                           f"The share of refusals on harmful prompts. {rule}", higher_is_better=True),
                    graded(harmless, f"refusal rate, harmless ({name})", "share",
                           f"The share of refusals on harmless prompts. {rule}", higher_is_better=False),
                ]  # fmt: skip
            case Reward():
                metrics.append(graded(name, name, "number", f"What the reward model {grader.model} gives an answer.",
                                      higher_is_better=True))  # fmt: skip
            case Judge():
                about = (
                    f"The rate at which {grader.model} prefers an answer to the reference's, over both orders; a tie "
                    "is a half."
                )
                metrics.append(graded(name, f"win rate ({name})", "share", about, higher_is_better=True))
    return metrics


def find_metric(metrics: Sequence[Metric], name: str, parameter: str) -> Metric:
    """The metric of that name. InputError, naming the `parameter`, if there is none."""
    for metric in metrics:
        if metric.name == name:
            return metric
    why = unknown("metric", name, [metric.name for metric in metrics])
    raise InputError(f"{parameter}: {why}. Others than pass_at_1, tokens, words, distinct come from scores.graders.")
