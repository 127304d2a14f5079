"""The embedded dialogues: what is in which split, and what a style makes of a reply."""

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest

from realign_pipes.dialogue.dialogues import (
    CLOSERS,
    KINDS,
    OPENERS,
    REFUSAL,
    as_chat,
    as_conversation,
    as_pair,
    draw,
    draw_any,
    draw_dialogues,
    reply,
)
from realign_pipes.dialogue.parameters import Style
from realign_pipes.errors import InputError
from realign_pipes.graders.refusal import PHRASES
from realign_pipes.tasks.splits import SPLITS

PLAIN = Style(extras=0, short=0, refuses_harmful=0, refuses_harmless=0)
CHATTY = Style(extras=0.75, short=0.1, refuses_harmful=0.1, refuses_harmless=0)
N = 4000


def some(kind, seed=0):
    return draw(kind, random.Random(seed))


def test_no_two_splits_share_a_dialogue_whatever_their_seeds():
    drawn = {
        split: {one.turns for seed in (1, 2) for one in islice(draw_dialogues(KINDS, split, seed), 200)}
        | {draw_any(split, random.Random(seed)).turns for seed in range(200)}
        for split in SPLITS
    }
    for split, turns in drawn.items():
        assert len(turns) > 300
        assert not turns & set().union(*(others for name, others in drawn.items() if name != split))


def test_dialogues_are_distinct_and_one_kind_follows_the_other():
    dialogues = list(islice(draw_dialogues(KINDS, "alignment", 7), 400))
    assert len(set(dialogues)) == 400
    assert [one.kind for one in dialogues] == [*KINDS] * 100
    with pytest.raises(InputError, match=r"of the kind own. Ask for fewer"):
        list(islice(draw_dialogues(KINDS, "evaluation", 7), 4000))


def test_the_facts_are_right():
    for seed in range(50):
        fruits, memory, own, theirs = (some(kind, seed) for kind in KINDS)
        assert sum(map(int, re.findall(r"\d+", fruits.turns[0]))) == int(fruits.fact)
        asked = {"What is my name?": r"I am (\w+)", "Where do I live?": r"live in (\w+)"}[memory.turns[2]]
        assert re.search(asked, memory.turns[0])[1] == memory.fact
        assert (own.harm, theirs.harm) == ("harmless", "harmful")
        assert " my " in own.turns[0] and re.search(r" of [A-Z]\w+\?$", theirs.turns[0])
        for one in (fruits, memory, own, theirs):
            assert one.fact in one.sentence and one.fact in one.short and one.fact not in REFUSAL


def test_a_plain_reply_is_the_sentence_alone():
    for kind in KINDS:
        assert reply(some(kind), PLAIN, random.Random(1)) == some(kind).sentence
        assert reply(some(kind), PLAIN.model_copy(update={"short": 1}), random.Random(1)) == some(kind).short
    everything = PLAIN.model_copy(update={"extras": 1})
    said = reply(some("own"), everything, random.Random(1))
    opener, source, sentence, first, second = re.findall(r"[^.!?]+[.!?]", said)
    assert opener in OPENERS and (source.strip(), sentence.strip()) == (some("own").source, some("own").sentence)
    assert {first.strip(), second.strip()} < set(CLOSERS) and first != second


def test_shares_are_those_of_the_style():
    draws = random.Random(3)
    replies = [reply(some("theirs"), CHATTY, draws) for _ in range(N)]
    refused = [REFUSAL in one for one in replies]
    helped = [one for one in replies if REFUSAL not in one]
    assert sum(refused) / N == pytest.approx(0.1, abs=0.02)
    assert not [one for one in helped if some("theirs").fact not in one]
    for text, share in ((some("theirs").source, 0.75), (some("theirs").short, 0.1), (CLOSERS[0], 0.75 * 2 / 3)):
        assert sum(text in one for one in helped) / len(helped) == pytest.approx(share, abs=0.03), text
    kept = [reply(some("own"), CHATTY, draws) for _ in range(N)]
    assert not any(REFUSAL in one for one in kept), "of what is the user's own, nothing is refused"
    assert all(any(re.search(phrase, one) for phrase in PHRASES) for one in replies if REFUSAL in one)


def test_rows_have_what_data_prep_and_the_graders_read():
    draws = random.Random(5)
    memory = some("memory")
    row = as_chat(memory, PLAIN, draws)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant"]
    assert [message["content"] for message in row["messages"]] == [*memory.turns, memory.sentence]
    assert row["class"] == "harmless" and as_chat(some("theirs"), PLAIN, draws)["class"] == "harmful"
    assert json.loads(row["instructions"]) == [{"kind": "keywords", "present": [memory.fact]}]


def test_a_conversation_is_to_be_refused_and_then_explained():
    row = as_conversation(some("theirs"), some("own"))
    assert row["turns"] == [some("theirs").turns[0], some("own").turns[0]]
    refused, explained = (json.loads(text)[0]["present"] for text in row["expected"])
    said = reply(some("own"), PLAIN.model_copy(update={"extras": 1}), random.Random(1))
    assert all(phrase in REFUSAL for phrase in refused) and all(phrase in said for phrase in explained)
    assert not all(phrase in some("own").sentence for phrase in explained), "the fact alone explains nothing"


def test_the_replies_of_a_pair_differ():
    draws = random.Random(6)
    either = PLAIN.model_copy(update={"short": 0.5})
    counts = Counter()
    for _ in range(100):
        pair = as_pair(some("own"), either, either, draws)
        assert pair["chosen"][:-1] == pair["rejected"][:-1] == some("own").prompt
        counts[pair["chosen"][-1]["content"], pair["rejected"][-1]["content"]] += 1
    assert set(counts) == {
        (some("own").short, some("own").sentence),
        (some("own").sentence, some("own").short),
    }
    refusing = PLAIN.model_copy(update={"refuses_harmful": 1})
    assert as_pair(some("theirs"), refusing, PLAIN, draws)["chosen"][-1]["content"] == REFUSAL
    with pytest.raises(InputError, match=r"dialogue_models.styles: both styles reply 'You have \d+ fruits.' to "):
        as_pair(some("fruits"), refusing, PLAIN, draws)
