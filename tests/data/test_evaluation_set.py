"""The evaluation set, and that the calibration has seen none of it."""

import json

import pytest
from datasets import Dataset

from realign_pipes.data import evaluation_set as module
from realign_pipes.data.problems import normalise
from realign_pipes.data.schemas import EVALUATION_COLUMNS
from realign_pipes.pipelines.data_prep import nodes
from realign_pipes.pipelines.data_prep.parameters import DataPrep


@pytest.fixture
def make_evaluation_set(make_checkpoint, tmp_path, models):
    """`make_evaluation_set(parameters, calibration_samples, **models)` runs the node."""
    reference = make_checkpoint(tmp_path / "reference")
    return lambda parameters, samples, **given: nodes.make_evaluation_set(
        parameters, models(**given), reference, samples
    )


def calibrated(*questions: str) -> Dataset:
    return Dataset.from_dict({"question": list(questions)})


def test_tasks_and_columns(make_evaluation_set, tiny_tokenizer, sampled) -> None:
    rows = make_evaluation_set(sampled(), calibrated("1 + 1"))
    assert rows.features == EVALUATION_COLUMNS
    assert rows["id"][:] == [f"short-{n:05d}" for n in range(5)] + [f"long-{n:05d}" for n in range(4)]
    assert rows["task"][:] == ["short"] * 5 + ["long"] * 4
    for row in rows:
        expression = json.loads(row["metadata"])["expression"]
        assert f"user\n{row['question']}<|im_end|>" in row["prompt"]
        assert len(expression.split()) == (5 if row["task"] == "short" else 11)
        assert row["prompt_tokens"] == len(row["prompt_ids"])
        assert tiny_tokenizer.decode(row["prompt_ids"]) == row["prompt"]
    assert not any(rows["in_calibration"])
    assert set(zip(rows["think_open"], rows["think_close"], strict=True)) == {("<think>", "</think>")}
    assert rows.to_dict() == make_evaluation_set(sampled(), calibrated("1 + 1")).to_dict()


def test_problems_of_the_calibration_are_replaced(make_evaluation_set, sampled) -> None:
    first = make_evaluation_set(sampled(), calibrated("1 + 1"))
    seen = first["question"][1].upper().replace(" ", "  ")  # the same problem, written otherwise
    rows = make_evaluation_set(sampled(), calibrated(seen, first["question"][6]))
    assert len(rows) == 9
    assert not {normalise(seen), normalise(first["question"][6])} & {normalise(q) for q in rows["question"]}
    assert set(first["question"]) - set(rows["question"]) == {first["question"][1], first["question"][6]}
    assert not any(rows["in_calibration"])


def test_overlap_is_found_independently_of_the_drawing(make_evaluation_set, monkeypatch, sampled) -> None:
    """If drawing ever let a problem of the calibration through, the column would say so."""
    first = make_evaluation_set(sampled(), calibrated("1 + 1"))
    draw = module.draw_problems
    monkeypatch.setattr(module, "draw_problems", lambda key, name, task, seed, excluded: draw(key, name, task, seed))
    rows = make_evaluation_set(sampled(), calibrated(first["question"][2].lower()))
    assert rows["in_calibration"][:] == [number == 2 for number in range(9)]


def test_problems_from_a_dataset(make_evaluation_set, tmp_path, sampled, write_jsonl) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": f"{n} + 1 =", "answer": n + 1} for n in range(6)])
    raw = sampled().model_dump()
    raw["tasks"] = {"maths": {"kind": "dataset", "path": str(path)}}
    rows = make_evaluation_set(DataPrep.model_validate(raw), calibrated("2 + 1 ="))
    assert rows["question"][:] == [f"{n} + 1 =" for n in (0, 1, 3, 4, 5)]
    assert rows["answer"][:] == ["1", "2", "4", "5", "6"]
    raw["tasks"]["maths"]["problems"] = 6
    with pytest.raises(ValueError, match=r"data_prep.tasks.maths: 6 distinct problems are wanted, and only 5 are left"):
        make_evaluation_set(DataPrep.model_validate(raw), calibrated("2 + 1 ="))


def test_thinking_tags_and_chat_template_of_the_parameters(make_evaluation_set, tmp_path, sampled) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}[THINK]")
    rows = make_evaluation_set(sampled(), calibrated("1 + 1"), chat_template=tmp_path / "t.jinja")
    assert set(zip(rows["think_open"], rows["think_close"], strict=True)) == {("[THINK]", "[/THINK]")}
    assert all(row["prompt"] == row["question"] + "[THINK]" for row in rows)
    tags = {"open": "<a>", "close": "</a>"}
    rows = make_evaluation_set(sampled(), calibrated("1 + 1"), chat_template=tmp_path / "t.jinja", thinking=tags)
    assert set(zip(rows["think_open"], rows["think_close"], strict=True)) == {("<a>", "</a>")}
