"""Collecting completions: token counts, grading, resuming, and refusals before a model runs."""

import os
import re
from pathlib import Path

import pytest

from realign_pipes.data import samples as module
from realign_pipes.data.problems import draw_problems
from realign_pipes.data.schemas import SAMPLE_COLUMNS
from realign_pipes.generation import graded
from realign_pipes.generation.transformers_engine import TransformersEngine


@pytest.fixture
def reference(make_checkpoint, tmp_path) -> Path:
    return make_checkpoint(tmp_path / "reference")


@pytest.fixture
def no_model(monkeypatch) -> None:
    """Loading a model fails the test."""
    monkeypatch.setattr(TransformersEngine, "of_checkpoint", lambda path, **_: pytest.fail("a model was loaded"))


def test_scripted_completions(
    collect, reference, script, tiny_tokenizer, tmp_path, caplog, sampled, four_kinds
) -> None:
    engine = script(four_kinds)
    with caplog.at_level("INFO"):
        rows = collect(sampled(), reference, tmp_path / "work")
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
    assert (rows["think_open"][0], rows["think_close"][0]) == ("<think>", "</think>")
    assert engine.opened == 1
    assert sorted(asked for group in engine.asked for asked in group) == sorted(
        (row["prompt"], row["sample"]) for row in rows
    )
    assert "24 completions of 6 problems: 12 right (50.0%), 6 cut off" in caplog.text


def test_random_model_resumes_where_it_was_killed(collect, reference, tmp_path, monkeypatch, sampled) -> None:
    """To the bit, also if the process died in the middle of a line."""
    monkeypatch.setattr(graded, "grade", lambda attempts: [True] * len(attempts))
    monkeypatch.setattr(module, "usable_rows", lambda samples: [0])  # of random tokens none is
    whole = collect(sampled(), reference, tmp_path / "whole")
    assert len(whole) == 24
    assert all(len(ids) == 24 or ids[-1] == 3 for ids in whole["completion_ids"])

    batches = []
    draw = TransformersEngine.draw

    def killed_in_third_batch(*arguments, **named):
        for group in draw(*arguments, **named):
            batches.append(group)
            if len(batches) == 3:
                raise KeyboardInterrupt
            yield group

    monkeypatch.setattr(TransformersEngine, "draw", killed_in_third_batch)
    with pytest.raises(KeyboardInterrupt):
        collect(sampled(), reference, tmp_path / "work")
    file = tmp_path / "work" / "data_prep" / "completions.jsonl"
    finished = file.read_bytes()
    assert finished.count(b"\n") == 2
    file.write_bytes(finished + finished[:100])
    resumed = collect(sampled(), reference, tmp_path / "work")
    assert len(batches) == 4 and batches[2] == batches[3], "the third batch again, and not the first two"
    assert file.read_bytes().startswith(finished)
    assert resumed.to_dict() == whole.to_dict()


def test_finished_samples_need_no_model(collect, reference, script, tmp_path, request, sampled, four_kinds) -> None:
    script(four_kinds)
    first = collect(sampled(), reference, tmp_path / "work")
    request.getfixturevalue("no_model")
    assert collect(sampled(), reference, tmp_path / "work").to_dict() == first.to_dict()


@pytest.mark.parametrize(
    "changed", ["sampling", "problems", "model", "stop tokens", "tags", "chat template", "verifier", "answers"]
)
def test_other_work_is_done_afresh(
    collect, changed, reference, make_checkpoint, script, tmp_path, sampled, models, write_jsonl
) -> None:
    def problems(verifier="exact", answer=""):
        file = write_jsonl(
            tmp_path / "p.jsonl",
            [{"question": f": {n} + 1 =", "answer": f"{n + 1}{answer * (n == 3)}"} for n in range(6)],
        )
        return {"kind": "dataset", "path": str(file), "verifier": verifier}

    def write(result, sample):
        return f"<think>a</think>{result}<|im_end|>"

    parameters, given = sampled(task=problems()), models()
    script(write)
    collect(parameters, reference, tmp_path / "work")
    if changed == "sampling":
        sampling = {**parameters.calibration.sampling.model_dump(), "temperature": 0.5}
        parameters = sampled(task=problems(), sampling=sampling)
    elif changed == "problems":
        parameters = sampled(task={**problems(), "problems": 5})
    elif changed == "model":
        reference = make_checkpoint(tmp_path / "another", seed=1)
    elif changed == "stop tokens":
        config = reference / "generation_config.json"
        config.write_text(config.read_text().replace('"eos_token_id": 3', '"eos_token_id": 5'))
    elif changed == "tags":
        given = models(thinking={"open": "<t>", "close": "</think>"})
    elif changed == "chat template":
        (tmp_path / "t.jinja").write_text((reference / "chat_template.jinja").read_text() + "\n")
        given = models(chat_template=tmp_path / "t.jinja")
    elif changed == "verifier":
        parameters = sampled(task=problems("math"))
    else:
        problems(answer=".")
    engine = script(write)
    try:
        rows = collect(parameters, reference, tmp_path / "work", given)
    except ValueError as error:
        assert changed == "verifier" and "\\boxed{" in str(error)
    else:
        assert rows["correct"].count(False) == (4 if changed == "answers" else 0)
    assert sum(map(len, engine.asked)) == (20 if changed == "problems" else 24)


def test_unchanged_work_is_not_done_again(collect, reference, script, tmp_path, sampled, four_kinds, no_model) -> None:
    """Whatever was drawn is there, and so is the verdict that nothing is right."""
    engine = script(lambda result, sample: four_kinds(result, 2))
    for _ in range(2):
        with pytest.raises(ValueError, match="none of 24 completions of 6 problems is right"):
            collect(sampled(), reference, tmp_path / "work")
    assert engine.opened == 1


def test_template_that_opens_the_thinking(
    collect, make_checkpoint, thinking_tokenizer, script, tmp_path, sampled, four_kinds
) -> None:
    reference = make_checkpoint(tmp_path / "reference", tokenizer=thinking_tokenizer)
    script(lambda result, sample: four_kinds(result, sample).removeprefix("<think>"))
    rows = collect(sampled(), reference, tmp_path / "work")
    assert all(prompt.endswith("<think>\n") for prompt in rows["prompt"])
    assert rows["correct"][:4] == [True, True, False, False]  # the one cut off has no </think>, and no answer


DATASET = [
    {"question": "4 + 2 =", "completion": "<think>\n6? 6</think>6", "answer": 6},
    {"question": "1 + 1 =", "completion": "<think>2</think>3", "answer": 2},
    {"question": " 4  + 2 =", "completion": "6</think>6", "answer": 6},
    {"question": "3 + 3 =", "completion": "6", "answer": 6},
]


def test_dataset_under_a_plain_template(
    collect, reference, no_model, tiny_tokenizer, tmp_path, from_dataset, write_jsonl
) -> None:
    rows = collect(from_dataset(write_jsonl(tmp_path / "d.jsonl", DATASET)), reference, tmp_path / "work")
    assert rows["id"][:] == ["calibration-00000-0", "calibration-00000-1", "calibration-00001-0", "calibration-00002-0"]
    assert rows["completion"][0] == "<think>\n6? 6</think>6"  # the tag stays
    assert rows["correct"][:] == [True, True, False, True]
    assert rows["completion_tokens"][:] == [9, 4, 5, 2]
    assert set(rows["source"]) == {"dataset"}
    assert all(rows["finished"])
    assert all(ids[-1] == tiny_tokenizer.eos_token_id for ids in rows["completion_ids"])
    assert all(ids.count(tiny_tokenizer.eos_token_id) == 1 for ids in rows["completion_ids"])


def test_dataset_under_a_template_that_opens_the_thinking(
    collect, make_checkpoint, thinking_tokenizer, no_model, tmp_path, from_dataset, write_jsonl
) -> None:
    reference = make_checkpoint(tmp_path / "reference", tokenizer=thinking_tokenizer)
    rows = collect(from_dataset(write_jsonl(tmp_path / "d.jsonl", DATASET)), reference, tmp_path / "work")
    assert rows["completion"][0] == "6? 6</think>6"  # the template's tag is the one there is
    assert rows["completion_tokens"][0] == 7
    for row in rows:
        ids = row["prompt_ids"] + row["completion_ids"]
        assert ids.count(thinking_tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert rows["correct"][:] == [True, True, False, False]  # the last never stops the thinking that was opened


def test_a_row_may_hold_several_completions_and_questions_an_instruction(
    collect, reference, no_model, tmp_path, from_dataset, write_jsonl
) -> None:
    one_each = write_jsonl(tmp_path / "d.jsonl", DATASET)
    questions = {row["question"]: row for row in DATASET}
    lists = write_jsonl(
        tmp_path / "lists.jsonl",
        [
            {**row, "completion": [one["completion"] for one in DATASET if one["question"] == question]}
            for question, row in questions.items()
        ],
    )
    expected = collect(from_dataset(one_each), reference, tmp_path / "work").to_pandas().sort_values("id")
    parameters = from_dataset(lists).model_copy(update={"instruction": "Box it."})
    rows = collect(parameters, reference, tmp_path / "work").to_pandas().sort_values("id")
    columns = ["id", "question", "completion", "correct", "completion_tokens"]
    assert rows[columns].values.tolist() == expected[columns].values.tolist()
    assert [text.replace("\n\nBox it.<|im_end|>", "<|im_end|>") for text in rows["prompt"]] == list(expected["prompt"])
    assert rows["prompt"].str.contains("\n\nBox it.<|im_end|>", regex=False).all()


def test_limit_reads_some_rows_with_the_seed(collect, reference, no_model, tmp_path, from_dataset, write_jsonl) -> None:
    rows = [{"question": f"{n} + 0 =", "completion": f"<think>0</think>{n}", "answer": n} for n in range(50)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    first = collect(from_dataset(path, limit=10), reference, tmp_path / "work")
    assert len(first) == 10
    assert first["question"][:] != [row["question"] for row in rows[:10]]
    again = collect(from_dataset(path, limit=10), reference, tmp_path / "work")
    assert again.to_dict() == first.to_dict()
    assert len(collect(from_dataset(path, limit=100), reference, tmp_path / "work")) == 50


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    def refused(self, collect, parameters, reference, tmp_path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as refusal:
            collect(parameters, reference, tmp_path / "work")
        return str(refusal.value)

    def test_no_checkpoint(self, collect, tmp_path, sampled) -> None:
        message = self.refused(collect, sampled(), tmp_path / "nowhere", tmp_path)
        assert "nowhere is not a folder" in message

    def test_no_safetensors(self, collect, reference, tmp_path, sampled) -> None:
        os.remove(reference / "model.safetensors")
        assert "has no *.safetensors" in self.refused(collect, sampled(), reference, tmp_path)

    def test_no_chat_template(self, collect, make_checkpoint, tiny_tokenizer, tmp_path, sampled) -> None:
        tiny_tokenizer.chat_template = None
        message = self.refused(collect, sampled(), make_checkpoint(tmp_path / "reference"), tmp_path)
        assert "has no chat template" in message
        assert "`models: {chat_template: conf/<environment>/chat_template.jinja}`" in message

    def test_missing_dataset(self, collect, reference, tmp_path, from_dataset) -> None:
        message = self.refused(collect, from_dataset(tmp_path / "no.jsonl"), reference, tmp_path)
        assert "data_prep.calibration" in message and "no.jsonl does not exist" in message

    def test_missing_columns(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", DATASET)
        message = self.refused(collect, from_dataset(path, completion_column="generation"), reference, tmp_path)
        assert "no column generation (for completion)" in message and "question, completion, answer" in message

    def test_empty_dataset(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        assert "no rows" in self.refused(
            collect, from_dataset(write_jsonl(tmp_path / "d.jsonl", [])), reference, tmp_path
        )

    def test_empty_completions(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        """They were examples that end the turn at once, where completions need not think."""
        rows = [{**DATASET[0], "completion": "6"}, {**DATASET[2], "completion": [" \n"]}]
        rows[0]["completion"] = [rows[0]["completion"]]
        path = write_jsonl(tmp_path / "d.jsonl", rows)
        parameters = from_dataset(path).model_copy(update={"thinking": "none"})
        message = self.refused(collect, parameters, reference, tmp_path)
        assert "data_prep.calibration" in message and "row 2: the reply is empty" in message

    def test_completions_that_are_not_text(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", [{**DATASET[0], "completion": [1, 2]}])
        assert "the completions (the column completion) are" in (
            message := self.refused(collect, from_dataset(path), reference, tmp_path)
        )
        assert "not text" in message

    def test_answers_that_are_decimal_numbers(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", [{**DATASET[0], "answer": 2.5}])
        message = self.refused(collect, from_dataset(path), reference, tmp_path)
        assert f"data_prep.calibration: {path}: the answers are decimal numbers" in message

    def test_only_wrong_completions(self, collect, reference, tmp_path, from_dataset, write_jsonl) -> None:
        path = write_jsonl(tmp_path / "d.jsonl", DATASET[1:2])
        message = self.refused(collect, from_dataset(path), reference, tmp_path)
        assert "none of 1 completions of 1 problems is right" in message
        assert "first completion: '<think>2</think>3'" in message
        assert "looked for, in the text after the last </think>: '2' and nothing else" in message

    def test_evaluation_tasks_are_looked_at_first(self, collect, reference, tmp_path, sampled) -> None:
        """An evaluation set that is missing must not come up after hours of sampling."""
        raw = sampled().model_dump()
        raw["tasks"]["maths"] = {"kind": "dataset", "path": str(tmp_path / "no.jsonl")}
        message = self.refused(collect, type(sampled()).model_validate(raw), reference, tmp_path)
        assert "data_prep.tasks.maths" in message and "does not exist" in message

    def test_too_few_problems_besides_the_calibration_s(self, collect, reference, tmp_path, sampled) -> None:
        """Of 200 sums, 150 are the calibration's."""
        sums = {
            "kind": "reasoning_gym",
            "dataset": "chain_sum",
            "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        }
        raw = sampled(task={**sums, "problems": 150}).model_dump()
        raw["tasks"] = {"sums": {**sums, "problems": 51}}
        message = self.refused(collect, type(sampled()).model_validate(raw), reference, tmp_path)
        assert "data_prep.tasks.sums: 51 distinct problems are wanted, and only 50 are left" in message

    def test_too_few_problems(self, collect, reference, tmp_path, sampled) -> None:
        few = {
            "kind": "reasoning_gym",
            "dataset": "chain_sum",
            "problems": 201,
            "options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        }
        message = self.refused(collect, sampled(task=few), reference, tmp_path)
        assert "data_prep.calibration.task: 201 distinct problems are wanted, and only 200" in message


def test_a_verifier_that_never_matches_is_found_after_the_first_batches(
    collect, reference, script, tmp_path, sampled, four_kinds
) -> None:
    """The model writes a box, and the verifier of sums reads <answer>."""
    engine = script(lambda result, sample: f"<think>a</think>so \\boxed{{{result}}}<|im_end|>")
    with pytest.raises(ValueError) as refusal:
        collect(sampled(problems=100), reference, tmp_path / "work")
    message = str(refusal.value)
    assert sum(map(len, engine.asked)) == 17 * 8, "32 problems, and the group in which the next one came"
    assert re.search(r"none of 129 completions of 33 problems is right, and 0 of them are cut off", message)
    shown = re.search(r"the first completion: '<think>a</think>so \\\\boxed\{(-?\d+)\}'", message)
    wanted = re.search(r"looked for, in the text after the last </think>: <answer>(-?\d+)</answer>", message)
    assert shown[1] == wanted[1], "of one problem"
    assert len(message.splitlines()) <= 5


def test_tags_that_the_model_does_not_write_are_found_after_the_first_batches(
    collect, reference, script, tmp_path, sampled, four_kinds, models
) -> None:
    """Every answer is right, and none can be learned from: the thinking is not told from the answer."""
    engine = script(lambda result, sample: four_kinds(result, 0))
    given = models(thinking={"open": "[THINK]", "close": "[/THINK]"})
    with pytest.raises(ValueError) as refusal:
        collect(sampled(problems=100), reference, tmp_path / "work", given)
    assert sum(map(len, engine.asked)) == 17 * 8
    message = str(refusal.value)
    assert "129 of 129 completions are right, but none of them is finished and has [/THINK] exactly once" in message
    assert "the first right completion: '<think>a</think>so<answer>" in message
    assert "name them in models.thinking" in message


def test_one_right_completion_is_enough_to_go_on(collect, reference, script, tmp_path, sampled, four_kinds) -> None:
    """Rare ones are for the expectation suite to judge, which knows the share that is asked for."""
    written = []

    def write(result, sample):
        written.append(sample)
        return four_kinds(result, 0 if len(written) == 120 else 2)

    script(write)
    rows = collect(sampled(problems=50), reference, tmp_path / "work")
    assert len(rows) == 200 and sum(rows["correct"]) == 1


def test_completions_on_disk_are_all_read_before_they_are_refused(
    collect, reference, no_model, tmp_path, from_dataset, write_jsonl
) -> None:
    """Reading costs no model, and files may be sorted: the only right ones come last here."""
    rows = [
        {"question": f"{n} + 1 =", "completion": f"<think>a</think>{n + (n >= 70)}", "answer": n + 1} for n in range(80)
    ]
    found = collect(from_dataset(write_jsonl(tmp_path / "d.jsonl", rows)), reference, tmp_path / "work")
    assert found["correct"][:] == [n >= 70 for n in range(80)]


def test_a_long_completion_is_shown_with_its_end(
    collect, reference, no_model, tmp_path, from_dataset, write_jsonl
) -> None:
    rows = [{"question": "1 + 1 =", "completion": f"<think>start{'a' * 9000}</think>{'b' * 100} so 3", "answer": 2}]
    with pytest.raises(ValueError) as refusal:
        collect(from_dataset(write_jsonl(tmp_path / "d.jsonl", rows)), reference, tmp_path / "work")
    assert "'<think>start" in str(refusal.value) and "so 3'" in str(refusal.value)
    assert len(str(refusal.value)) < 1200


def test_completions_longer_than_the_model_s_positions_are_refused(
    collect, make_checkpoint, no_model, tmp_path, sampled
) -> None:
    draws = draw_problems("data_prep.calibration.task", "calibration", sampled().calibration.task, 5)
    longest = max(len(problem.question) for problem in draws) + len(
        "<user\n>\n<assistant\n"
    )  # one token a byte, tags one
    reference = make_checkpoint(tmp_path / "short", max_position_embeddings=longest + 23)
    with pytest.raises(ValueError) as refusal:
        collect(sampled(), reference, tmp_path / "work")
    assert str(refusal.value).startswith(
        f"data_prep.calibration.sampling.max_new_tokens is 24 and the longest prompt has {longest} tokens. Together "
        f"they are {longest + 24} tokens, but max_position_embeddings of {reference} is {longest + 23}."
    )


@pytest.mark.parametrize(
    ("sweep", "name"),
    [
        ({"max_new_tokens": 400}, "sampling.max_new_tokens is 400"),
        ({"budgets": [16, 400]}, "budgets.tokens is 400"),
        ({"prompts": {"brief": "x" * 300}}, r"sampling.max_new_tokens is 8 and the longest prompt has 3\d\d"),
    ],
)
def test_a_sweep_longer_than_the_model_s_positions_is_refused_before_anything_is_drawn(
    sweep, name, collect, make_checkpoint, no_model, tmp_path, sampled
) -> None:
    """Found only when the sweep starts, it would cost the trainings."""
    reference = make_checkpoint(tmp_path / "short", max_position_embeddings=300)
    with pytest.raises(ValueError, match=rf"alpha_sweep\.{name}.* max_position_embeddings of .* is 300"):
        collect(sampled(), reference, tmp_path / "work", **sweep)


# -- thinking between other tags, and chat templates from a file -------------------------------------------------------
BRACKETS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BRACKETS += "{% if add_generation_prompt %}<|im_start|>assistant\n[THINK]{% endif %}"


@pytest.mark.parametrize("named_by", ["template", "parameter"])
def test_thinking_tags_of_the_template_or_the_parameters(
    named_by, collect, make_checkpoint, tiny_tokenizer, script, tmp_path, sampled, models
) -> None:
    given = models()
    if named_by == "template":
        tiny_tokenizer.chat_template = BRACKETS
    else:
        given = models(thinking={"open": "[THINK]", "close": "[/THINK]"})
    reference = make_checkpoint(tmp_path / "reference")
    opened = "" if named_by == "template" else "[THINK]"
    script(
        lambda result, sample: (
            opened
            + (f"a[/THINK]<answer>{result}</answer><|im_end|>", f"a</think><answer>{result}</answer><|im_end|>")[
                sample % 2
            ]
        )
    )
    rows = collect(sampled(), reference, tmp_path / "work", given)
    assert set(rows["think_open"]) == {"[THINK]"} and set(rows["think_close"]) == {"[/THINK]"}
    assert rows["correct"][:4] == [True, False, True, False]


def test_a_chat_template_from_a_file(
    collect, make_checkpoint, tiny_tokenizer, script, tmp_path, sampled, four_kinds, models
) -> None:
    """It is what prompts go through, and where the thinking tags are read."""
    tiny_tokenizer.chat_template = None
    reference = make_checkpoint(tmp_path / "reference")
    script(lambda result, sample: f"a[/THINK]<answer>{result}</answer><|im_end|>")
    (tmp_path / "brackets.jinja").write_text(BRACKETS)
    rows = collect(sampled(), reference, tmp_path / "work", models(chat_template=tmp_path / "brackets.jinja"))
    assert rows["prompt"][0] == f"<|im_start|>user\n{rows['question'][0]}<|im_end|>\n<|im_start|>assistant\n[THINK]"
    assert set(rows["think_close"]) == {"[/THINK]"} and all(rows["correct"])


def test_a_chat_template_that_is_not_there(models, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"(?s)chat_template.*there is no file .*no.jinja in .*Give the path"):
        models(chat_template=tmp_path / "no.jinja")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("assistant:", "leaves out what the user says"),
        ("\udcff", "UnicodeDecode"),
    ],
)
def test_a_chat_template_that_fails_is_refused_by_the_name_of_its_file(
    template, reason, collect, reference, no_model, tmp_path, sampled, models
) -> None:
    (tmp_path / "bad.jinja").write_bytes(template.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"bad.jinja .*{reason}"):
        collect(sampled(), reference, tmp_path / "work", models(chat_template=tmp_path / "bad.jinja"))


def test_calibration_problems_are_those_of_the_seed(collect, reference, script, tmp_path, sampled, four_kinds) -> None:
    script(four_kinds)
    parameters = sampled()
    problems = draw_problems("data_prep.calibration.task", "calibration", parameters.calibration.task, parameters.seed)
    rows = collect(parameters, reference, tmp_path / "work")
    assert rows["question"][::4] == [problem.question for problem in problems]
    assert rows["problem_id"][::4] == [problem.id for problem in problems]
