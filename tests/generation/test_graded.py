"""Sampling and grading with an engine that is not Transformers': what is kept, and resumed after an interruption."""

import json

import pytest

from realign_pipes.generation import graded as module
from realign_pipes.generation.engine import Completion
from realign_pipes.generation.graded import (
    Question,
    check_length,
    completion_text,
    read_graded,
    sample_and_grade,
    seconds_taken,
)
from realign_pipes.generation.parameters import Sampling
from realign_pipes.tasks.completion import THINK, ThinkingTags
from realign_pipes.tasks.parameters import DatasetTask

EXACT = DatasetTask(kind="dataset", path="unused", verifier="exact")
SAMPLING = Sampling(samples=2, temperature=1.0, top_p=1.0, max_new_tokens=9, batch_size=4, seed=1)


@pytest.fixture
def questions(tiny_tokenizer):
    """Five questions "0+1", "1+1", … of different lengths; the prompt opens the thinking."""
    prompts = [f"{'?' * number}{number}+1<think>" for number in range(5)]
    return [
        Question(f"q{number}", EXACT, prompt, tiny_tokenizer(prompt).input_ids, f"{number + 1}", "{}")
        for number, prompt in enumerate(prompts)
    ]


def write(prompt, sample):
    """Right in sample 0; in sample 1 wrong, and cut off."""
    number = int(prompt.strip("?")[0])
    return f"x</think>{number + 1}<|im_end|>" if sample == 0 else f"x</think>{number}"


@pytest.fixture
def draw(tmp_path, questions, tiny_tokenizer):
    """`draw(open_engine, file=…)` yields graded completions."""

    def draw(open_engine, file=tmp_path / "completions.jsonl"):
        return sample_and_grade(open_engine, questions, tiny_tokenizer, SAMPLING, file, description="test")

    return draw


def no_engine():
    pytest.fail("an engine was opened")


def test_every_completion_is_graded_and_kept(draw, tmp_path, tiny_tokenizer, scripted_engine):
    drawn = list(draw(scripted_engine(write).open))
    assert {(one.id, one.sample) for one in drawn} == {(f"q{n}", sample) for n in range(5) for sample in range(2)}
    assert len(drawn) == 10
    for one in drawn:
        assert one.correct == one.finished == (one.sample == 0)
        text = completion_text(tiny_tokenizer, one.token_ids, one.finished)
        assert text == f"x</think>{int(one.id[1]) + (one.sample == 0)}"
    assert read_graded(tmp_path / "completions.jsonl") == drawn


def test_what_is_all_there_is_read_and_no_engine_opened(draw, tmp_path, scripted_engine, monkeypatch):
    engine, file = scripted_engine(write), tmp_path / "completions.jsonl"
    first = list(draw(engine.open))
    assert engine.opened == 1
    seconds = seconds_taken(file)
    monkeypatch.setattr(module, "grade", lambda attempts: pytest.fail("graded again"))
    assert list(draw(no_engine)) == first
    assert seconds_taken(file) == seconds


@pytest.mark.parametrize("torn", [b"", b"{", b'{"seconds": 0.1, "completions": [{"id": "q0", "sam'])
def test_an_interrupted_draw_resumes_after_its_last_whole_group(draw, tmp_path, torn, scripted_engine):
    expected = list(draw(scripted_engine(write).open, tmp_path / "whole.jsonl"))
    file = tmp_path / "completions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(draw(scripted_engine(write, killed_in=2).open))
    assert len(read_graded(file)) == 8
    with file.open("ab") as stream:
        stream.write(torn)  # as much of the next line as a killed process had written
    resumed = scripted_engine(write)
    assert list(draw(resumed.open)) == expected
    assert [len(group) for group in resumed.asked] == [2], "one prompt of five was left"
    assert file.read_text().count('"sample"') == 10
    assert list(draw(no_engine)) == expected


def test_a_caller_that_stops_early_leaves_whole_groups(draw, tmp_path, scripted_engine):
    engine = scripted_engine(write)
    drawing = draw(engine.open)
    first = next(drawing)
    drawing.close()
    assert len(engine.asked) == 1
    kept = read_graded(tmp_path / "completions.jsonl")
    assert kept[0] == first and len(kept) == 4


def test_seconds_are_those_of_drawing_and_grading_summed_over_runs(draw, tmp_path, scripted_engine, monkeypatch):
    clock, file = [0.0], tmp_path / "completions.jsonl"
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def slow(prompt, sample):
        clock[0] += 1.5
        return write(prompt, sample)

    def load(engine):
        clock[0] += 1000  # does not count
        return engine

    with pytest.raises(KeyboardInterrupt):
        list(draw(lambda: load(scripted_engine(slow, killed_in=1))))
    assert seconds_taken(file) == 4 * 1.5
    for _ in draw(lambda: load(scripted_engine(slow))):
        clock[0] += 100  # what the caller does does not count either
    assert seconds_taken(file) == 10 * 1.5
    assert seconds_taken(tmp_path / "nowhere.jsonl") == 0


def test_grading_reads_the_question_s_own_tags(tmp_path, tiny_tokenizer, scripted_engine):
    tags = ThinkingTags(open="[THINK]", close="[/THINK]")
    ids = tiny_tokenizer("2+2[THINK]").input_ids
    questions = [
        Question(f"q{number}", EXACT, "2+2[THINK]", ids, "4", "{}", tags) for number, tags in enumerate((tags, THINK))
    ]
    engine = scripted_engine(lambda prompt, sample: ("x[/THINK]4", "x</think>4")[sample])
    drawn = sample_and_grade(
        engine.open, questions, tiny_tokenizer, SAMPLING, tmp_path / "completions.jsonl", description="test"
    )
    assert {(one.id, one.sample): one.correct for one in drawn} == {
        ("q0", 0): True,
        ("q0", 1): False,
        ("q1", 0): False,
        ("q1", 1): True,
    }


def test_every_prompt_has_the_alpha(tmp_path, questions, tiny_tokenizer):
    seen = []

    class Recorder:
        def draw(self, prompts, sampling, done=()):
            seen.extend((prompt.key, prompt.token_ids, prompt.alpha) for prompt in prompts)
            yield [Completion(prompt.key, sample, [9], False) for prompt in prompts for sample in range(2)]

    for alpha in (None, 0.5):
        seen.clear()
        list(
            sample_and_grade(
                Recorder, questions, tiny_tokenizer, SAMPLING, tmp_path / f"{alpha}.jsonl", description="", alpha=alpha
            )
        )
        assert seen == [(question.id, question.prompt_ids, alpha) for question in questions]


def test_the_file_is_json_lines_of_groups(draw, tmp_path, scripted_engine):
    list(draw(scripted_engine(write).open))
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [len(line["completions"]) for line in lines] == [4, 4, 2]
    assert all(line["seconds"] >= 0 for line in lines)


def test_prompt_and_completion_have_to_fit_the_positions(questions):
    prompts = [question.prompt_ids for question in questions]
    assert len(prompts[-1]) == 8  # ????4+1<think>
    for limit in (None, 28, 10_000):
        check_length(prompts, 20, limit, parameter="p.max_new_tokens", model="models/a")
    with pytest.raises(ValueError) as refusal:
        check_length(prompts, 20, 27, parameter="p.max_new_tokens", model="models/a")
    assert str(refusal.value) == (
        "p.max_new_tokens is 20 and the longest prompt has 8 tokens. Together they are 28 tokens, but "
        "max_position_embeddings of models/a is 27. Set p.max_new_tokens to 19 or less, or choose shorter problems."
    )
