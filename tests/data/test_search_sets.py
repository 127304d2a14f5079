"""The problems of find_alpha are fresh: in one of two sets alone, and not the calibration's."""

import json

import pytest
from datasets import Dataset

from realign_pipes.data.problems import normalise
from realign_pipes.data.search_sets import make_search_sets
from realign_pipes.errors import InputError
from realign_pipes.tasks.completion import THINK
from realign_pipes.tasks.parameters import DatasetProblems, ReasoningGymProblems

OPTIONS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
MADE = ReasoningGymProblems(kind="reasoning_gym", dataset="chain_sum", problems=10, options=OPTIONS)


@pytest.fixture
def make(tiny_tokenizer):
    def run(tasks, calibrated, search, confirm, seed=1):
        samples = Dataset.from_dict({"question": calibrated})
        return make_search_sets(tasks, tiny_tokenizer, THINK, samples, search=search, confirm=confirm, seed=seed)

    return run


def questions(rows):
    return {normalise(question) for question in rows["question"]}


def test_made_problems_are_in_one_set_alone(make):
    """Of 2 terms with one digit there are some 160 problems, so that independent sets of 60 would overlap."""
    seen = list(make({"sums": MADE}, ["none"], 4.0, 1.0, seed=9)[0]["question"])
    search, confirm = make({"sums": MADE}, seen, 5.0, 6.0)
    assert (len(questions(search)), len(questions(confirm))) == (50, 60)
    calibrated = {normalise(question) for question in seen}
    assert not (questions(search) & questions(confirm) or (questions(search) | questions(confirm)) & calibrated)
    assert not any([*search["in_calibration"], *confirm["in_calibration"]])


@pytest.mark.parametrize(
    ("search", "confirm", "sizes"), [(1.5, 2.0, (3, 4)), (3.0, 1.5, (4, 3)), (4.5, 4.5, (4, 5)), (0.1, 0.2, (1, 1))]
)
def test_a_dataset_is_split(make, tmp_path, search, confirm, sizes):
    """Ten problems, one of which is the calibration's; the sweep has two."""
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps({"question": f"q{n}", "answer": str(n)}) + "\n" for n in range(10)))
    task = DatasetProblems(kind="dataset", path=str(file), problems=2)
    first, second = make({"mine": task}, ["Q7"], search, confirm)
    assert (len(questions(first)), len(questions(second))) == sizes
    assert not questions(first) & questions(second)
    assert "q7" not in questions(first) | questions(second)


def test_a_dataset_of_one_problem_is_refused(make, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": "1"}) + "\n")
    with pytest.raises(InputError, match=r"data_prep.tasks.mine: .* two problems are needed .* there is 1"):
        make({"mine": DatasetProblems(kind="dataset", path=str(file))}, ["none"], 1.0, 1.0)
