"""The sweep in numbers: pass@1 with confidence intervals, tokens and what they save against the reference.

All candidates answer the same problems, so the bootstrap resamples problems, not completions, and draws one set of
resamples for all candidates: differences between candidates are paired. Token budgets are measured the same way.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from realign_pipes.errors import InputError
from realign_pipes.sweep.bounds import Floats, bootstrap_means, interval, lower_bound, seed_of
from realign_pipes.sweep.kinds import KINDS, budget_kinds, sweep_kinds, without_alpha
from realign_pipes.sweep.schemas import BUDGET_RESULTS, SWEEP_RESULTS, conform

ALL_TASKS = "all"
"""The `task` of the rows that average over tasks."""
KEY = ["task", "problem_id", "sample"]
ABOUT = ["candidate", "kind", "alpha", "plausibility", "engine", "seconds"]
NO_COSTS: Mapping[str, Mapping[str, float | None]] = MappingProxyType({})
COSTS = ["train_seconds", "bytes"]
RUNNING_COSTS = ["models", "kv_streams", "passes"]
"""What every candidate of a kind costs."""
MEASURED = ["completion_tokens", "finished", "correct"]

Generations = Mapping[str, pd.DataFrame | Callable[[], pd.DataFrame]]
Values = Mapping[str, Floats]
"""One task: each column of MEASURED as [candidates, problems], the mean over a problem's samples."""


@dataclass(frozen=True)
class Answers:
    """What the candidates of a sweep did on the same problems. Problems are in the order of their ids."""

    about: pd.DataFrame
    """One row per candidate in the order of the table: its columns of SWEEP_RESULTS that are no figures of a task."""
    reference: int
    """The reference's row."""
    problems: dict[str, list[str]]
    """Task -> ids."""
    values: dict[str, Values]
    """Task -> what was measured; tasks are in the order of their names."""
    samples: dict[str, int]
    """Task -> completions of each problem."""


def load_frame(frame: pd.DataFrame | Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame itself, or the one that a partition of a PartitionedDataset loads."""
    return frame() if callable(frame) else frame


def is_reference(rows: Any) -> Any:
    """Whether a row is the model that all others are compared with, for a frame's rows (a Series) or for one row.

    It is the candidate of kind `reference` that has no mask: with one, it is a candidate like any other.
    """
    return (rows.kind == "reference") & (rows.plausibility == 0)


def summarise_sweep(
    generations: Generations,
    *,
    bootstrap_samples: int,
    bootstrap_seed: int,
    costs: Mapping[str, Mapping[str, float | None]] = NO_COSTS,
) -> pd.DataFrame:
    """Measure every candidate of a sweep; rates and reductions are shares in [0, 1], not percent.

    Args:
        generations: candidate -> frame with the columns GENERATIONS (or a function that loads it); the texts of the
            completions are not needed.
        bootstrap_samples: resamples of the problems of each task.
        bootstrap_seed: seed of the resamples, which depend only on it, the task's name and its number of problems.
        costs: candidate -> its `train_seconds` and `bytes`; where one is missing or None, it is not known (NaN).

    Returns:
        A frame with the columns SWEEP_RESULTS, ordered by kind, alpha and name; tasks by name, `all` last. The figures
        for all tasks are plain means over the tasks, as in the paper's tables; pass@1 and its differences over those
        that have answers.

    Raises:
        InputError: no or several references, or candidates that were not measured on the same problems and samples.
    """
    answers = read_answers(generations)
    resampled = _resampled(answers.values, bootstrap_samples, bootstrap_seed)
    of_tasks = {
        **{task: ([values], resampled[task]) for task, values in answers.values.items()},
        ALL_TASKS: (list(answers.values.values()), _mean_of_graded(list(resampled.values()))),
    }
    samples = answers.samples | {ALL_TASKS: max(answers.samples.values())}
    rows = []
    for task, (tasks, means) in of_tasks.items():
        low, high = interval(means)
        rows.append(
            answers.about.assign(
                task=task,
                problems=sum(values["correct"].shape[1] for values in tasks),
                samples=samples[task],
                **compare(tasks, answers.reference),
                pass_at_1_low=low,
                pass_at_1_high=high,
                seconds=answers.about["seconds"] if task == ALL_TASKS else np.nan,
                **{cost: [costs.get(name, {}).get(cost) for name in answers.about["candidate"]] for cost in COSTS},
            )
        )
    results = pd.concat(rows)  # a candidate has the same index in each
    return conform(results.sort_index(kind="stable").reset_index(drop=True), SWEEP_RESULTS)


def read_answers(generations: Generations) -> Answers:
    """The sweep's completions as values per candidate and problem. Takes and raises what `summarise_sweep` does."""
    frames = _checked_frames(generations, ABOUT, sweep_kinds())
    about = {name: frame.iloc[0] for name, frame in frames.items()}
    names, reference = _ordered(about)
    _check_same_problems(frames, names[reference])
    rows = {
        "candidate": names,
        "kind": [about[name]["kind"] for name in names],
        "alpha": [float(about[name]["alpha"]) for name in names],
        "plausibility": [float(about[name]["plausibility"]) for name in names],
        "engine": [about[name]["engine"] for name in names],
        "seconds": [about[name]["seconds"] for name in names],
        **{cost: [getattr(KINDS[about[name]["kind"]], cost) for name in names] for cost in RUNNING_COSTS},
    }
    ids = frames[names[reference]].groupby(["task", "problem_id"]).size()  # sorted as in _by_problem
    values = _by_problem(frames, names)
    problems = {task: ids.loc[task].index.tolist() for task in values}
    samples = frames[names[reference]].groupby("task")["sample"].nunique().to_dict()
    return Answers(pd.DataFrame(rows), reference, problems, values, samples)


def compare(tasks: Sequence[Values], reference: int) -> dict[str, Floats]:
    """Each candidate's figures and how they differ from the reference's: plain means over `tasks`, [candidates] each.

    They are `pass_at_1`, `difference`, `difference_low`, `mean_tokens`, `token_reduction` and `truncated` of
    SWEEP_RESULTS. The reference's own `difference_low` is 0. Of tasks without answers only tokens and truncation count.
    """
    means = _mean_over_tasks([_means(values) for values in tasks])
    if graded := [values["correct"] - values["correct"][reference] for values in tasks if has_answers(values)]:
        difference_low = lower_bound(graded)
        difference_low[reference] = 0
    else:
        difference_low = np.full_like(means["pass_at_1"], np.nan)
    return means | {
        "difference": means["pass_at_1"] - means["pass_at_1"][reference],
        "difference_low": difference_low,
        "token_reduction": np.mean([_reductions(_means(values)["mean_tokens"], reference) for values in tasks], axis=0),
    }


def resampled_reductions(tasks: Mapping[str, Values], reference: int, samples: int, seed: int) -> Floats:
    """Token reductions on resampled problems, the mean over tasks: [candidates, samples]."""
    tokens = _resampled(tasks, samples, seed, "completion_tokens")
    reductions: Floats = np.mean([_reductions(means, reference) for means in tokens.values()], axis=0)
    return reductions


def _reductions(mean_tokens: Floats, reference: int) -> Floats:
    return 1 - mean_tokens / mean_tokens[reference]


def _ordered(about: Mapping[str, pd.Series]) -> tuple[list[str], int]:
    """Names of a sweep's candidates by kind, alpha and name, and the reference's place. `about` has a row of each."""
    kinds, bare = sweep_kinds(), without_alpha()
    for name, row in about.items():
        if (row["kind"] in bare) != bool(np.isnan(row["alpha"])):
            raise InputError(
                f"candidate {name} of kind {row['kind']} has alpha {row['alpha']}; {', '.join(bare)} have none (NaN), "
                "all others have one."
            )
    names = sorted(
        about, key=lambda name: (kinds.index(about[name]["kind"]), np.nan_to_num(about[name]["alpha"]), name)
    )
    references = [name for name in names if is_reference(about[name])]
    if len(references) != 1:
        raise InputError(
            f"A sweep needs one candidate of kind reference; this one has {references or 'none'} with plausibility 0."
        )
    return names, names.index(references[0])


def summarise_budgets(generations: Generations, *, bootstrap_samples: int, bootstrap_seed: int) -> pd.DataFrame:
    """Measure thinking inside a budget against plain truncation and against closing the thinking by force.

    Rates and differences are shares in [0, 1].

    Args:
        generations: candidate -> frame with the columns BUDGET_GENERATIONS (or a function that loads it); `alpha`,
            `seconds` and the texts of the completions are not needed.
        bootstrap_samples: resamples of the problems of each task.
        bootstrap_seed: seed of the resamples, which equal those of `summarise_sweep` for the same problems.

    Returns:
        A frame with the columns BUDGET_RESULTS, ordered by budget and kind. No generations give no rows.

    Raises:
        InputError: a budget without its truncation or forced closing, two candidates of one kind and budget, or
            candidates that were not measured on the same problems and samples.
    """
    if not generations:
        return conform(pd.DataFrame(columns=list(BUDGET_RESULTS)), BUDGET_RESULTS)
    kinds = budget_kinds()
    frames = _checked_frames(generations, ["candidate", "kind", "plausibility", "budget"], kinds)
    about = {name: (int(frame["budget"].iloc[0]), frame["kind"].iloc[0]) for name, frame in frames.items()}
    names = sorted(frames, key=lambda name: (about[name][0], kinds.index(about[name][1])))
    places = {about[name]: place for place, name in enumerate(names)}
    for place, name in enumerate(names):
        budget, kind = about[name]
        if places[budget, kind] != place:
            raise InputError(
                f"budget {budget} has two candidates of kind {kind}: {name}, {names[places[budget, kind]]}."
            )
        for baseline in ("truncation", "forced_close"):
            if (budget, baseline) not in places:
                raise InputError(
                    f"budget {budget} of candidate {name} has no candidate of kind {baseline} to compare with; run "
                    "alpha_sweep again."
                )
    _check_same_problems(frames, names[0])

    values = _by_problem(frames, names)
    measured = _mean_over_tasks([_means(one) for one in values.values()])
    means = _mean_of_graded(list(_resampled(values, bootstrap_samples, bootstrap_seed).values()))
    low, high = interval(means)
    differences: dict[str, Floats] = {}
    for column, kind in (("difference", "truncation"), ("forced_difference", "forced_close")):
        beside = [places[about[name][0], kind] for name in names]  # at the same budget
        differences[column] = measured["pass_at_1"] - measured["pass_at_1"][beside]
        differences[f"{column}_low"], differences[f"{column}_high"] = interval(means - means[beside])
    results = pd.DataFrame(
        {
            "candidate": names,
            "kind": [about[name][1] for name in names],
            "plausibility": [frames[name]["plausibility"].iloc[0] for name in names],
            "budget": [about[name][0] for name in names],
            "pass_at_1": measured["pass_at_1"],
            "pass_at_1_low": low,
            "pass_at_1_high": high,
            **differences,
            "mean_tokens": measured["mean_tokens"],
            "truncated": measured["truncated"],
        }
    )
    return conform(results, BUDGET_RESULTS)


def saved_interval(
    reference: pd.DataFrame, candidate: pd.DataFrame, *, bootstrap_samples: int, bootstrap_seed: int
) -> tuple[float, float]:
    """95 % interval of the share of the reference's tokens that a candidate saves, the mean over the tasks.

    Frames have the columns GENERATIONS and answer the same problems. A percentile bootstrap: each resample draws one
    set of problems of each task for both, so that the saving is paired; the resamples are those of `summarise_sweep`.
    """
    values = _by_problem({"reference": reference, "candidate": candidate}, ["reference", "candidate"])
    reductions = resampled_reductions(values, 0, bootstrap_samples, bootstrap_seed)
    low, high = interval(reductions)[:, 1]
    return float(low), float(high)


def pareto_front(mean_tokens: Floats, pass_at_1: Floats) -> NDArray[np.bool_]:
    """[candidates] -> [candidates]: True where no other candidate is at least as good in both and better in one."""
    fewer_or_equal = mean_tokens[None, :] <= mean_tokens[:, None]
    better_or_equal = pass_at_1[None, :] >= pass_at_1[:, None]
    strictly = (mean_tokens[None, :] < mean_tokens[:, None]) | (pass_at_1[None, :] > pass_at_1[:, None])
    return np.asarray(~(fewer_or_equal & better_or_equal & strictly).any(axis=1))


def _by_problem(frames: Mapping[str, pd.DataFrame], names: Sequence[str]) -> dict[str, Values]:
    """Task -> column of MEASURED -> [candidates, problems]: candidates in the order of `names`, the rest sorted."""
    by_problem = {name: frame.groupby(["task", "problem_id"])[MEASURED].mean() for name, frame in frames.items()}
    values: dict[str, Values] = {
        task: {
            column: np.stack([by_problem[name].loc[task, column].to_numpy(float, na_value=np.nan) for name in names])
            for column in MEASURED
        }
        for task in sorted(set(frames[names[0]]["task"]))
    }
    for task, of_task in values.items():
        ungraded = np.isnan(of_task["correct"])
        if ungraded.any() and not ungraded.all():
            raise InputError(f"some completions of task {task} are graded and others are not; run alpha_sweep again.")
    return values


def has_answers(values: Values) -> bool:
    """Whether the completions of a task are graded: else its `correct` is NaN throughout."""
    return not bool(np.isnan(values["correct"]).any())


def _means(values: Values) -> dict[str, Floats]:
    """One task's figures, [candidates] each."""
    return {
        "pass_at_1": values["correct"].mean(axis=1),
        "mean_tokens": values["completion_tokens"].mean(axis=1),
        "truncated": (1 - values["finished"]).mean(axis=1),
    }


def _resampled(tasks: Mapping[str, Values], samples: int, seed: int, column: str = "correct") -> dict[str, Floats]:
    """Task -> means of a column on resampled problems, [candidates, samples]."""
    return {task: bootstrap_means(values[column], samples, seed_of(seed, task)) for task, values in tasks.items()}


def _mean_over_tasks(per_task: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {column: _mean_of_graded([measured[column] for measured in per_task]) for column in per_task[0]}


def _mean_of_graded(of_tasks: Sequence[Floats]) -> Floats:
    """The plain mean over the tasks without NaN, those that have such a figure; NaN if there is none."""
    mean: Floats = np.mean([of_task for of_task in of_tasks if not np.isnan(of_task).any()] or of_tasks[:1], axis=0)
    return mean


def _checked_frames(generations: Generations, about: Sequence[str], kinds: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Each candidate's frame without its texts, checked on its own. Each frame has one value in the `about` columns."""
    frames: dict[str, pd.DataFrame] = {}
    for partition, loaded in generations.items():
        frame = load_frame(loaded)
        columns = [*about, *KEY, *MEASURED]
        if missing := [column for column in columns if column not in frame.columns]:
            raise InputError(f"generations of {partition} lack the columns {missing}; run alpha_sweep again.")
        frame = frame[columns]
        if frame.empty:
            raise InputError(f"generations of {partition} hold no completion; run alpha_sweep again.")
        for column in about:
            if (values := frame[column].drop_duplicates().tolist())[1:]:
                raise InputError(f"generations of {partition} have several values of {column}: {values}.")
        name, kind = frame.iloc[0][["candidate", "kind"]]
        if kind not in kinds:
            raise InputError(f"candidate {name} is of kind {kind!r}; known kinds are {', '.join(kinds)}.")
        if name in frames:
            raise InputError(f"generations hold candidate {name} twice (again in {partition}).")
        if ALL_TASKS in set(frame["task"]):
            raise InputError(f"a task cannot be named {ALL_TASKS!r}: rows of that name average over the tasks.")
        if (repeated := frame[KEY].duplicated()).any():
            raise InputError(f"candidate {name} holds {_named(frame.loc[repeated, KEY])} more than once.")
        frames[str(name)] = frame
    return frames


def _check_same_problems(frames: Mapping[str, pd.DataFrame], reference: str) -> None:
    """Refuse candidates that did not answer exactly what the reference did."""
    wanted = pd.MultiIndex.from_frame(frames[reference][KEY])
    for name, frame in frames.items():
        found = pd.MultiIndex.from_frame(frame[KEY])
        missing, extra = wanted.difference(found), found.difference(wanted)
        if len(missing) or len(extra):
            differences = [
                f"{what} {len(keys)} ({_named(keys.to_frame())})"
                for what, keys in (("lacks", missing), ("has besides", extra))
                if len(keys)
            ]
            raise InputError(
                f"candidate {name} was not measured on the problems and samples of {reference}: of its completions it "
                f"{' and '.join(differences)}. Run alpha_sweep again for both with the same settings."
            )


def _named(keys: pd.DataFrame, most: int = 3) -> str:
    """The first few (task, problem, sample) of a frame, in words."""
    rows: list[tuple[Hashable, ...]] = list(keys.head(most).itertuples(index=False, name=None))
    named = "; ".join(f"task {task}, problem {problem}, sample {sample}" for task, problem, sample in rows)
    return named + ("; …" if len(keys) > most else "")
