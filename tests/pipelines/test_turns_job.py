"""Conversations whose alpha changes by turn: their replies, their figures, and what is refused."""

import json
import math
from contextlib import suppress

import pytest
import torch
from pydantic import ValidationError

from realign_pipes.data.parameters import Models
from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.models.load import load_tokenizer
from realign_pipes.paper.inra import InRaForCausalLM
from realign_pipes.paper.turns import converse
from realign_pipes.pipelines.turns import job as module
from realign_pipes.pipelines.turns.job import MeasureTurns
from realign_pipes.pipelines.turns.parameters import Turns

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5, "seed": 3}
OWL, NO_OWL = '[{"kind": "keywords", "present": ["owl"]}]', [{"kind": "keywords", "absent": ["owl"]}]


@pytest.fixture
def conversations(tmp_path):
    rows = [{"turns": [f"Name {number} birds.", "Once more."], "expected": [OWL, NO_OWL]} for number in range(4)]
    file = tmp_path / "conversations.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def make_job(tmp_path, make_checkpoint, conversations):
    InRaForCausalLM.from_base(make_checkpoint(tmp_path / "reference", seed=1)).save_pretrained(tmp_path / "inra")
    load_tokenizer(tmp_path / "reference").save_pretrained(tmp_path / "inra")

    def make(alphas=((0.0, 0.0), (1.0, -0.5)), models=None, **changes):
        values = {"conversations": conversations, "alphas": [list(one) for one in alphas], "sampling": SAMPLING}
        return MeasureTurns(
            Turns.model_validate(values | changes),
            tmp_path / "inra",
            0.0,
            Models.model_validate({"chat_template": None, "thinking": None} | (models or {})),
            tmp_path / "work" / "turns",
        )

    return make


def test_the_replies_are_those_of_converse_and_are_kept(make_job, monkeypatch):
    job = make_job()
    job.run()
    model, tokenizer = InRaForCausalLM.from_pretrained(job.inra), load_tokenizer(job.inra)
    for name, alphas in (("0_0", [0.0, 0.0]), ("1_-0.5", [1.0, -0.5])):
        kept = json.loads((job.work / name / "replies.json").read_text())
        for number, replies in enumerate(kept):
            torch.manual_seed(3 + number)
            turns = [f"Name {number} birds.", "Once more."]
            assert replies == converse(
                model, tokenizer, turns, alphas, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=5
            )
    monkeypatch.setattr(module, "converse", lambda *arguments, **options: pytest.fail("it was drawn again"))
    again = make_job()
    again.run()
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        make_job(alphas=[(0.5, 0.5)]).run()


def test_an_interrupted_run_resumes_after_its_last_whole_conversation(make_job, monkeypatch):
    whole = make_job(alphas=[(0.0, 0.0)])
    whole.run()
    file = whole.work / "0_0" / "replies.json"
    replies = file.read_text()
    file.unlink()
    held = []

    def hold(model, tokenizer, turns, alphas, **options):
        held.append(turns[0])
        if len(held) == 3:
            raise KeyboardInterrupt
        return converse(model, tokenizer, turns, alphas, **options)

    monkeypatch.setattr(module, "converse", hold)
    with suppress(KeyboardInterrupt):
        make_job(alphas=[(0.0, 0.0)]).run()
    with (file.parent / "replies.jsonl").open("a") as kept:
        kept.write('["cut')
    make_job(alphas=[(0.0, 0.0)]).run()
    assert held == [f"Name {number} birds." for number in (0, 1, 2, 2, 3)]
    assert file.read_text() == replies and not (file.parent / "replies.jsonl").exists()


def test_the_checkpoints_stops_and_template_count_and_nothing_else_of_its_generation_config(make_job, monkeypatch):
    first = make_job(alphas=[(1.0, -0.5)])
    first.run()
    file = first.work / "1_-0.5" / "replies.json"
    replies = file.read_text()
    config = json.loads((first.inra / "generation_config.json").read_text())

    def drawn_again():
        monkeypatch.setattr(module, "converse", lambda *arguments, **options: pytest.fail("it was drawn again"))
        with pytest.raises(pytest.fail.Exception, match="drawn again"):
            make_job(alphas=[(1.0, -0.5)]).run()
        monkeypatch.undo()

    (first.inra / "generation_config.json").write_text(json.dumps(config | {"repetition_penalty": 50.0, "min_p": 0.9}))
    file.unlink()
    make_job(alphas=[(1.0, -0.5)]).run()
    assert file.read_text() == replies
    (first.inra / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [3, 100]}))
    drawn_again()
    make_job(alphas=[(1.0, -0.5)]).run()
    with (first.inra / "chat_template.jinja").open("a") as template:
        template.write(" ")
    drawn_again()


def test_attention_is_computed_as_the_models_parameters_say(make_job, monkeypatch):
    found = []

    def scripted(model, *arguments, **options):
        found.append(model.config._attn_implementation)
        return ["an owl", "an owl"]

    monkeypatch.setattr(module, "converse", scripted)
    for attention in ("eager", "sdpa"):
        make_job(alphas=[(0.0, 0.0)], models={"attn_implementation": attention}).run()
    assert found == ["eager"] * 4 + ["sdpa"] * 4


def test_shares_words_and_differences_follow_from_the_replies(make_job, monkeypatch):
    def scripted(model, tokenizer, turns, alphas, **options):
        number = int(turns[0].split()[1])
        if alphas == [0.0, 0.0]:
            return ["an owl" if number < 2 else "an emu", "an owl or two"]
        return ["an owl" if number < 3 else "no", "an emu" if number else "an owl"]

    monkeypatch.setattr(module, "converse", scripted)
    found = make_job().run()
    rows = found.set_index(["alphas", "turn"])
    assert list(rows.index) == [("0, 0", 1), ("0, 0", 2), ("1, -0.5", 1), ("1, -0.5", 2), ("0, 0", 0), ("1, -0.5", 0)]
    assert list(rows["followed"]) == [0.5, 0.0, 0.75, 0.75, 0.0, 0.5]  # of numbers 1 and 2 both replies are as expected
    assert list(rows["difference"]) == [0.0, 0.0, 0.25, 0.75, 0.0, 0.5]
    assert list(rows["words"]) == [2.0, 4.0, 1.75, 2.0, 6.0, 3.75]
    assert (rows["conversations"] == 4).all()
    one = rows.loc["1, -0.5", 1]
    deviation = math.sqrt(0.75 * 0.25 / 4)
    assert 0 < one["low"] < 0.75 - deviation / 2 and 0.75 + deviation / 2 < one["high"] <= 1
    assert rows.loc["0, 0", 1]["difference_low"] == rows.loc["0, 0", 1]["difference_high"] == 0


@pytest.mark.parametrize(("tokenizer", "start"), [("tiny_tokenizer", "<think>"), ("thinking_tokenizer", "")])
def test_thinking_is_no_part_of_the_reply(make_job, monkeypatch, request, tmp_path, tokenizer, start):
    """Nor is what was thought without an end, where the template opens the thinking as where the reply does."""
    template = tmp_path / "chat_template.jinja"
    template.write_text(request.getfixturevalue(tokenizer).chat_template)
    replies = [f"{start}No owl?</think>\n\nan emu, say", f"{start}an emu"]
    monkeypatch.setattr(module, "converse", lambda *arguments, **options: replies)
    found = make_job(alphas=[(0.0, 0.0)], models={"chat_template": template}).run().set_index("turn")
    assert list(found.loc[[1, 2]]["words"]) == [3.0, 0.0]
    assert list(found.loc[[1, 2]]["followed"]) == [0.0, 0.0]  # the owl was only thought of, and then nothing was said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 1 of \S+ is no conversation"),
        ('{"turns": ["a", "b"]}', r"is no conversation: KeyError\('expected'\)"),
        ('{"turns": ["a"], "expected": [[]]}', "has 1 turns and 1 expected, and turns.alphas 2"),
        ('{"turns": ["a", " "], "expected": [[], []]}', "None may be empty"),
        ("", "has no lines"),
    ],
)
def test_conversations_that_cannot_be_used_are_refused(make_job, conversations, line, message):
    conversations.write_text(line)
    job = make_job()
    with pytest.raises(InputError, match=message):
        job.run()
    assert not job.work.exists()


def test_a_line_may_hold_any_line_separator_but_its_own(conversations):
    """JSON escapes only some of them, and other tools write the rest as they are."""
    said = "An owl\u2028or\u2029an\u0085emu?"
    row = {"turns": [said, said], "expected": [OWL, NO_OWL]}
    conversations.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 2)
    assert [one.turns for one in module.read_conversations(conversations, 2)] == [[said, said]] * 2


def test_no_file_and_wrong_instructions_are_refused(make_job, conversations):
    with pytest.raises(MissingFileError, match=r"turns.conversations: there is no file None"):
        make_job(conversations=None).run()
    conversations.write_text('{"turns": ["a", "b"], "expected": [[{"kind": "words"}], []]}')
    job = make_job()
    with pytest.raises(InputError, match="conversation 1, turn 1"):
        job.run()
    assert not job.work.exists()


@pytest.mark.parametrize(
    ("alphas", "message"),
    [([[0.0], [1.0, 1.0]], "equal length"), ([[]], "for each turn"), ([[math.inf]], "finite"), ([[1], [1]], "twice")],
)
def test_wrong_alphas_are_refused(alphas, message):
    with pytest.raises(ValidationError, match=message):
        Turns.model_validate({"conversations": None, "alphas": alphas, "sampling": SAMPLING})
