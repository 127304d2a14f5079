"""Drawing distinct problems outside of another set."""

import json

import pytest

from realign_pipes.data.problems import draw_problems, normalise
from realign_pipes.tasks.parameters import DatasetProblems, ReasoningGymProblems


def sums(problems: int, **options: int) -> ReasoningGymProblems:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, **options}
    return ReasoningGymProblems(kind="reasoning_gym", dataset="chain_sum", problems=problems, options=options)


def test_normalise() -> None:
    assert normalise("  What is\n２ +  2?") == normalise("what IS 2 + 2?")
    assert normalise("2 + 2") != normalise("2 - 2")


def test_problems_are_distinct_and_seeded() -> None:
    problems = draw_problems("data_prep.tasks.sums", "sums", sums(150), seed=1)  # of 200 that there are
    assert len({normalise(problem.question) for problem in problems}) == 150
    assert [problem.id for problem in problems][:2] == ["sums-00000", "sums-00001"]
    assert {problem.task for problem in problems} == {"sums"}
    assert problems == draw_problems("data_prep.tasks.sums", "sums", sums(150), seed=1)
    assert problems != draw_problems("data_prep.tasks.sums", "sums", sums(150), seed=2)
    assert problems != draw_problems("data_prep.calibration.task", "sums", sums(150), seed=1)


def test_neighbouring_seeds_share_no_run_of_problems() -> None:
    """reasoning-gym's problem i of seed s is problem 0 of seed s + i."""
    first, second = (
        [problem.question for problem in draw_problems("key", "sums", sums(50, max_terms=8, max_digits=4), seed=seed)]
        for seed in (1, 2)
    )
    assert not set(first) & set(second)


def test_excluded_problems_are_replaced() -> None:
    without = draw_problems("key", "sums", sums(100), seed=1)
    excluded = {normalise(problem.question) for problem in without[::2]}
    problems = draw_problems("key", "sums", sums(100), seed=1, excluded=excluded)
    assert len(problems) == 100
    assert not excluded & {normalise(problem.question) for problem in problems}


def test_too_few_problems() -> None:
    with pytest.raises(
        ValueError, match=r"data_prep.tasks.sums: 500 distinct problems are wanted, and only 200 are left"
    ):
        draw_problems("data_prep.tasks.sums", "sums", sums(500), seed=1)


def test_refused_options_name_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"data_prep.tasks.sums: .*max_terms must be >= min_terms"):
        draw_problems("data_prep.tasks.sums", "sums", sums(5, min_terms=3), seed=1)


def test_dataset_problems(tmp_path) -> None:
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"q {number % 8}", "answer": number % 8} for number in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = DatasetProblems(kind="dataset", path=str(path))
    problems = draw_problems("key", "maths", task, seed=1, excluded={"q 3"})
    assert [problem.question for problem in problems] == [f"q {number}" for number in (0, 1, 2, 4, 5, 6, 7)]
    assert problems[3].answer == "4" and problems[3].id == "maths-00003"
    some = task.model_copy(update={"problems": 3})
    drawn = [problem.question for problem in draw_problems("key", "maths", some, seed=1)]
    assert len(set(drawn)) == 3
    assert drawn == [problem.question for problem in draw_problems("key", "maths", some, seed=1)]
    with pytest.raises(ValueError, match="key: 9 distinct problems are wanted, and only 8 are left of 16"):
        draw_problems("key", "maths", task.model_copy(update={"problems": 9}), seed=1)
    with pytest.raises(ValueError, match="key: 1 distinct problems are wanted, and only 0"):
        draw_problems("key", "maths", task, seed=1, excluded={f"q {number}" for number in range(8)})
