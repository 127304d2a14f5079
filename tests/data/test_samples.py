"""Collecting completions: token counts, grading, resuming, and refusals before a model runs."""

import os
from pathlib import Path

import pytest

from realign_pipes.data.problems import draw_problems
from realign_pipes.data.schemas import SAMPLE_COLUMNS
from realign_pipes.pipelines.data_prep.nodes import collect_samples
from realign_pipes.validation.suites import samples as module


@pytest.fixture
def reference(make_checkpoint, tmp_path) -> Path:
    return make_checkpoint(tmp_path / "reference")


@pytest.fixture
def no_model(monkeypatch) -> None:
    """Loading a model fails the test."""
    monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def test_scripted_completions(reference, script, tiny_tokenizer, tmp_path, caplog, sampled, four_kinds) -> None:
    asked = script(four_kinds)
    with caplog.at_level("INFO"):
        rows = collect_samples(sampled(), reference, tmp_path / "work")
    assert rows.features == SAMPLE_COLUMNS
    assert rows["id"][:5] == [f"calibration-00000-{n}" for n in range(4)] + ["calibration-00001-0"]
    assert len(rows) == len(set(rows["id"])) == 24
    assert rows["correct"][:4] == [True, True, False, False]
    assert rows["finished"][:4] == [True, True, True, False]
    # <think>a</think>so<answer>…</answer><|im_end|> is 8 tokens and one for each character of the answer
    right, wrong = len(rows["answer"][0]), len(str(int(rows["answer"][0]) + 1))
    assert rows["completion_tokens"][:4] == [8 + right, 11 + right, 8 + wrong, 9]
    assert set(rows["source"]) == {"sampled"}
    end = tiny_tokenizer.eos_token_id
    for row in rows:
        assert row["prompt_tokens"] == len(row["prompt_ids"])
        assert row["completion_tokens"] == len(row["completion_ids"])
        assert tiny_tokenizer.decode(row["prompt_ids"]) == row["prompt"]
        assert (row["completion_ids"][-1] == end) == row["finished"]
        text = row["completion"] + ("<|im_end|>" if row["finished"] else "")
        assert tiny_tokenizer(text, add_special_tokens=False)["input_ids"] == row["completion_ids"]
        assert "<|im_end|>" not in row["completion"]
    # batches of 8 completions are 2 problems of 4 samples, the longest prompts first
    assert [len(batch) for batch in asked] == [2, 2, 2]
    lengths = [len(text) for batch in asked for text in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert "24 completions of 6 problems: 12 right (50.0%), 6 cut off" in caplog.text


def test_random_model_resumes_where_it_was_killed(reference, tmp_path, monkeypatch, sampled) -> None:
    monkeypatch.setattr(module, "grade", lambda attempts: [True] * len(attempts))
    whole = collect_samples(sampled(), reference, tmp_path / "whole")
    assert len(whole) == 24
    assert all(len(ids) == 24 or ids[-1] == 3 for ids in whole["completion_ids"])

    sample, calls = module.sample_completions, []

    def killed_in_third_batch(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*arguments, **named)

    work = tmp_path / "work"
    monkeypatch.setattr(module, "sample_completions", killed_in_third_batch)
    with pytest.raises(KeyboardInterrupt):
        collect_samples(sampled(), reference, work)
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("batch-*.json")}
    assert sorted(finished) == ["batch-00000.json", "batch-00001.json"]
    resumed = collect_samples(sampled(), reference, work)
    assert len(calls) == 4  # one more batch, and not the first two again
    assert {name: (work / name).stat().st_mtime_ns for name in finished} == finished
    assert resumed.to_dict() == whole.to_dict()


def test_finished_samples_need_no_model(reference, script, tmp_path, request, sampled, four_kinds) -> None:
    script(four_kinds)
    first = collect_samples(sampled(), reference, tmp_path / "work")
    request.getfixturevalue("no_model")
    assert collect_samples(sampled(), reference, tmp_path / "work").to_dict() == first.to_dict()


@pytest.mark.parametrize("changed", ["sampling", "problems", "model", "stop tokens"])
def test_other_work_is_done_afresh(changed, reference, make_checkpoint, script, tmp_path, sampled, four_kinds) -> None:
    asked = script(four_kinds)
    collect_samples(sampled(), reference, tmp_path / "work")
    parameters = sampled()
    if changed == "sampling":
        sampling = {**parameters.calibration.sampling.model_dump(), "temperature": 0.5}
        parameters = sampled(sampling=sampling)
    elif changed == "problems":
        parameters = sampled(problems=7)
    elif changed == "model":
        reference = make_checkpoint(tmp_path / "another", seed=1)
    else:
        config = reference / "generation_config.json"
        config.write_text(config.read_text().replace('"eos_token_id": 3', '"eos_token_id": 5'))
    before = len(asked)
    collect_samples(parameters, reference, tmp_path / "work")
    assert len(asked) >= before + 3


def test_more_samples_than_a_batch_holds(reference, script, tmp_path, sampled, four_kinds) -> None:
    asked = script(four_kinds)
    sampling = {**sampled().calibration.sampling.model_dump(), "batch_size": 1}
    assert len(collect_samples(sampled(sampling=sampling), reference, tmp_path / "work")) == 24
    assert [len(batch) for batch in asked] == [1] * 6


def test_template_that_opens_the_thinking(
    make_checkpoint, thinking_tokenizer, script, tmp_path, sampled, four_kinds
) -> None:
    reference = make_checkpoint(tmp_path / "reference", tokenizer=thinking_tokenizer)
    script(lambda result, sample: four_kinds(result, sample).removeprefix("<think>"))
    rows = collect_samples(sampled(), reference, tmp_path / "work")
    assert all(prompt.endswith("<think>\n") for prompt in rows["prompt"])
    assert rows["correct"][:4] == [True, True, False, False]  # the one cut off has no </think>, and no answer


DATASET = [
    {"question": "4 + 2 =", "completion": "<think>\n6? 6</think>6", "answer": 6},
    {"question": "1 + 1 =", "completion": "<think>2</think>3", "answer": 2},
    {"question": " 4  + 2 =", "completion": "6</think>6", "answer": 6},
    {"question": "3 + 3 =", "completion": "6", "answer": 6},
]


def test_dataset_under_a_plain_template(
    reference, no_model, tiny_tokenizer, tmp_path, from_dataset, write_jsonl
) -> None:
    rows = collect_samples(from_dataset(write_jsonl(tmp_path / "d.jsonl", DATASET)), reference, tmp_path / "work")
    assert rows["id"][:] == ["calibration-00000-0", "calibration-00000-1", "calibration-00001-0", "calibration-00002-0"]
    assert rows["completion"][0] == "<think>\n6? 6</think>6"  # the tag stays
    assert rows["correct"][:] == [True, True, False, True]
    assert rows["completion_tokens"][:] == [9, 4, 5, 2]
    assert set(rows["source"]) == {"dataset"}
    assert all(rows["finished"])
    assert all(ids[-1] == tiny_tokenizer.eos_token_id for ids in rows["completion_ids"])
    assert all(ids.count(tiny_tokenizer.eos_token_id) == 1 for ids in rows["completion_ids"])


def test_dataset_under_a_template_that_opens_the_thinking(
    make_checkpoint, thinking_tokenizer, no_model, tmp_path, from_dataset, write_jsonl
) -> None:
    reference = make_checkpoint(tmp_path / "reference", tokenizer=thinking_tokenizer)
    rows = collect_samples(from_dataset(write_jsonl(tmp_path / "d.jsonl", DATASET)), reference, tmp_path / "work")
    assert rows["completion"][0] == "6? 6</think>6"  # the template's tag is the one there is
    assert rows["completion_tokens"][0] == 7
    for row in rows:
        ids = row["prompt_ids"] + row["completion_ids"]
        assert ids.count(thinking_tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert rows["correct"][:] == [True, True, False, False]  # the last never stops the thinking that was opened


def test_limit_reads_some_rows_with_the_seed(reference, no_model, tmp_path, from_dataset, write_jsonl) -> None:
    rows = [{"question": f"{n} + 0 =", "completion": f"<think>0</think>{n}", "answer": n} for n in range(50)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    first = collect_samples(from_dataset(path, limit=10), reference, tmp_path / "work")
    assert len(first) == 10
    assert first["question"][:] != [row["question"] for row in rows[:10]]
    again = collect_samples(from_dataset(path, limit=10), reference, tmp_path / "work")
    assert again.to_dict() == first.to_dict()
    assert len(collect_samples(from_dataset(path, limit=100), reference, tmp_path / "work")) == 50


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    def refused(self, parameters, reference, tmp_path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            collect_samples(parameters, reference, tmp_path / "work")
        return str(refusal.value)

    def test_no_checkpoint(self, tmp_path, sampled) -> None:
        message = self.refused(sampled(), tmp_path / "nowhere", tmp_path)
        assert "nowhere is not a folder" in message

    def test_no_safetensors(self, reference, tmp_path, sampled) -> None:
        os.remove(reference / "model.safetensors")
        assert "has no *.safetensors" in self.refused(sampled(), reference, tmp_path)

    def test_no_chat_template(self, make_checkpoint, tiny_tokenizer, tmp_path, sampled) -> None:
        tiny_tokenizer.chat_template = None
        assert "no chat template" in self.refused(sampled(), make_checkpoint(tmp_path / "reference"), tmp_path)

    def test_missing_dataset(self, reference, tmp_path, from_dataset) -> None:
        message = self.refused(from_dataset(tmp_path / "no.jsonl"), reference, tmp_path)
        assert "data_prep.calibration" in message and "no.jsonl does not exist" in message

    def test_missing_columns(self, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", DATASET)
        message = self.refused(from_dataset(path, completion_column="generation"), reference, tmp_path)
        assert "no column generation (for completion)" in message and "question, completion, answer" in message

    def test_empty_dataset(self, reference, tmp_path, from_dataset, write_jsonl) -> None:
        assert "no rows" in self.refused(from_dataset(write_jsonl(tmp_path / "d.jsonl", [])), reference, tmp_path)

    def test_completions_that_are_not_text(self, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", [{**DATASET[0], "completion": ["a", "b"]}])
        assert "the completions (the column completion) are" in (
            message := self.refused(from_dataset(path), reference, tmp_path)
        )
        assert "not text" in message

    def test_only_wrong_completions(self, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", DATASET[1:2])
        message = self.refused(from_dataset(path), reference, tmp_path)
        assert "1 completions of 1 problems: 0 right" in message
        assert "for the answer '2', ends in '<think>2</think>3'" in message

    def test_evaluation_tasks_are_looked_at_first(self, reference, tmp_path, sampled) -> None:
        """An evaluation set that is missing must not come up after hours of sampling."""
        raw = sampled().model_dump()
        raw["tasks"]["maths"] = {"kind": "dataset", "path": str(tmp_path / "no.jsonl")}
        message = self.refused(type(sampled()).model_validate(raw), reference, tmp_path)
        assert "data_prep.tasks.maths" in message and "does not exist" in message

    def test_too_few_problems(self, reference, tmp_path, sampled) -> None:
        few = {
            "kind": "reasoning_gym",
            "dataset": "chain_sum",
            "problems": 201,
            "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        }
        message = self.refused(sampled(task=few), reference, tmp_path)
        assert "data_prep.calibration.task: 201 distinct problems are wanted, and only 200" in message


def test_samples_that_are_all_wrong(reference, script, tmp_path, sampled, four_kinds) -> None:
    script(lambda result, sample: four_kinds(result, 2))
    with pytest.raises(ValueError, match=r"24 completions of 6 problems: 0 right \(0.0%\).*the form"):
        collect_samples(sampled(), reference, tmp_path / "work")


def test_calibration_problems_are_those_of_the_seed(reference, script, tmp_path, sampled, four_kinds) -> None:
    script(four_kinds)
    parameters = sampled()
    problems = draw_problems("data_prep.calibration.task", "calibration", parameters.calibration.task, parameters.seed)
    rows = collect_samples(parameters, reference, tmp_path / "work")
    assert rows["question"][::4] == [problem.question for problem in problems]
    assert rows["problem_id"][::4] == [problem.id for problem in problems]
