"""The judge: a scripted server on loopback, which reads the pairs and answers by a rule of its own."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from realign_pipes.errors import InputError
from realign_pipes.generation.vllm_engine import ServerError
from realign_pipes.graders import judge as module
from realign_pipes.graders.answered import Answered
from realign_pipes.graders.judge import (
    Pair,
    collect_verdicts,
    make_pairs,
    read_verdict,
    render,
    scores_of,
    summarise_verdicts,
)
from realign_pipes.graders.parameters import Judge, read_key

TEMPLATE = "Q {question}\nA<{first}>\nB<{second}>"
PROMPT = Path(__file__).parents[2] / "conf/base/prompts/judge.txt"


@pytest.fixture
def server(scripted_judge):
    return scripted_judge


@pytest.fixture
def make_judge(server, tmp_path: Path):
    (tmp_path / "prompt.txt").write_text(TEMPLATE)

    def make(**changes) -> Judge:
        url = f"http://127.0.0.1:{server.server_port}"
        values = {"kind": "judge", "url": url, "model": "m", "prompt": str(tmp_path / "prompt.txt"), "max_in_flight": 2}
        return Judge(**values | changes)

    return make


def answers(texts: list[str], samples: int = 1) -> list[Answered]:
    return [Answered("chat", f"chat-{number}", sample, f"question {number}", {}, text, text, [])
            for number, text in enumerate(texts) for sample in range(samples)]  # fmt: skip


REFERENCE = answers(["four", "four", "four", "four"])
OURS = answers(["longer", "no", "five", "what?"])
"""Against the reference's: wins in both orders, loses in both, wins where it is first, cannot be read."""


def test_both_orders_are_asked_and_every_verdict_is_kept(server, make_judge, tmp_path):
    judge = make_judge(temperature=0.5, max_tokens=7)
    pairs = make_pairs(judge, OURS, REFERENCE)
    verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert len(server.asked) == len(verdicts) == 8
    assert all((one["model"], one["temperature"], one["max_tokens"]) == ("m", 0.5, 7) for one in server.asked)
    assert "Q question 1\nA<no>\nB<four>" in [one["messages"][0]["content"] for one in server.asked]
    by_problem = verdicts.groupby("problem_id")["winner"].agg(list)
    assert by_problem.tolist() == [["candidate"] * 2, ["reference"] * 2, ["candidate", "reference"], ["unreadable"] * 2]
    assert set(verdicts["text"]) == {"Because.\nVerdict: A", "Because.\nVerdict: B", "Both are fine. Verdict: maybe"}
    assert scores_of(verdicts) == {
        ("chat", f"chat-{number}", 0): score for number, score in enumerate([1, 0, 0.5, 0.5])
    }
    about = summarise_verdicts(verdicts, pairs)
    assert (about["win_rate"], about["ties"], about["unreadable"]) == (0.5, 0, 0.25)
    assert about["agreement"] == pytest.approx(2 / 3)  # two of the three problems that can be read
    assert about["first_preferred"] == pytest.approx(4 / 6)
    assert (about["words"], about["reference_words"]) == (1, 1)
    assert (about["requests"], about["prompt_tokens"], about["completion_tokens"]) == (8, 80, 24)


def test_an_interrupted_run_asks_only_for_what_is_missing(server, make_judge, tmp_path):
    judge = make_judge(max_in_flight=1)
    pairs = make_pairs(judge, OURS, REFERENCE)
    server.breaks_after = 3
    with pytest.raises(ServerError, match="no chat completion"):
        collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    kept = tmp_path / "work" / "verdicts.jsonl"
    assert len(kept.read_text().splitlines()) == 3
    kept.write_text(kept.read_text() + '{"task": "ch')  # killed while it wrote
    server.breaks_after = None
    server.asked.clear()
    verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert len(server.asked) == 5 and len(verdicts) == 8
    collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert len(server.asked) == 5  # found finished
    elsewhere = make_judge(url=f"{judge.url}/another")
    collect_verdicts(elsewhere, "trra-1", pairs, tmp_path / "elsewhere")
    assert len(server.asked) == 13
    collect_verdicts(judge, "trra-1", pairs, tmp_path / "elsewhere")
    assert len(server.asked) == 21  # another server's model of that name is another judge
    server.asked.clear()
    other = make_pairs(judge, answers(["a", "b", "c", "d"]), REFERENCE)
    collect_verdicts(judge, "trra-1", other, tmp_path / "work")
    assert len(server.asked) == 8  # other answers are other work


def test_the_key_goes_with_each_request_and_nowhere_else(server, make_judge, tmp_path, monkeypatch):
    judge = make_judge(key_variable="KEY_OF_THE_JUDGE")
    with pytest.raises(InputError, match="no variable KEY_OF_THE_JUDGE"):
        read_key(judge)
    monkeypatch.setenv("KEY_OF_THE_JUDGE", "abc123")
    collect_verdicts(judge, "trra-1", make_pairs(judge, OURS[:1], REFERENCE[:1]), tmp_path / "work")
    assert server.keys == ["Bearer abc123"] * 2
    assert not any(b"abc123" in file.read_bytes() for file in (tmp_path / "work").iterdir())


def test_a_refusal_of_the_server_says_what_to_do(server, make_judge, tmp_path):
    server.refuses = True
    judge = make_judge()
    with pytest.raises(ServerError, match=r"refused the request for 'm' .*no such model.*parameters_scores\.yml"):
        collect_verdicts(judge, "trra-1", make_pairs(judge, OURS, REFERENCE), tmp_path / "work")


def test_only_a_judge_elsewhere_is_asked_through_the_environment_s_proxy(server, make_judge, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    judge = make_judge()
    pairs = make_pairs(judge, OURS[:1], REFERENCE[:1])
    monkeypatch.setenv("http_proxy", judge.url)  # the server takes the part of the proxy
    collect_verdicts(make_judge(url="http://judge.invalid"), "trra-1", pairs, tmp_path / "elsewhere")
    assert len(server.asked) == 2
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    collect_verdicts(judge, "trra-1", pairs, tmp_path / "here")
    assert len(server.asked) == 4


def test_a_pair_that_the_server_refuses_is_counted_as_unreadable(server, make_judge, tmp_path):
    judge = make_judge()
    pairs = make_pairs(judge, answers(["longer", "too long, too long"]), REFERENCE[:2])
    verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert verdicts["winner"].tolist() == ["candidate", "candidate", "unreadable", "candidate"]
    assert verdicts["text"][2] == 'Refused: status 400: {"error": "too long"}'
    assert scores_of(verdicts) == {("chat", "chat-0", 0): 1, ("chat", "chat-1", 0): 0.75}
    about = summarise_verdicts(verdicts, pairs)
    assert (about["unreadable"], about["requests"], about["prompt_tokens"]) == (0.25, 4, 30)


def test_a_server_that_refuses_all_pairs_is_asked_again_by_the_next_run(server, make_judge, tmp_path):
    """Whatever it refuses them for is not in the pairs."""
    server.too_long = "A<"
    judge = make_judge()
    pairs = make_pairs(judge, OURS[:2], REFERENCE[:2])
    with pytest.raises(
        ServerError, match=r"refused all 4 pairs of trra-1\. Refused: status 400: .*parameters_scores\.yml"
    ):
        collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    server.too_long = "nothing"
    verdicts = collect_verdicts(judge, "trra-1", pairs, tmp_path / "work")
    assert set(verdicts["winner"]) == {"candidate", "reference"} and len(server.asked) == 8


def test_a_judge_that_says_nothing_is_asked_once(server, make_judge, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWERING", 0.2)
    server.silent = True
    judge = make_judge(max_in_flight=1)
    with pytest.raises(
        ServerError,
        match=rf"{judge.url}/v1/.* did not answer within 0.2 s about chat, problem chat-0, sample 0, the cand",
    ):
        collect_verdicts(judge, "trra-1", make_pairs(judge, OURS, REFERENCE), tmp_path / "work")
    server.silent = False
    assert len(server.asked) == 1


def test_only_the_first_samples_are_judged(make_judge):
    ours, reference = answers(["a", "b"], samples=3), answers(["c", "d"], samples=3)
    pairs = make_pairs(make_judge(samples=2), ours, reference)
    assert sorted({pair.sample for pair in pairs}) == [0, 1] and len(pairs) == 8


def test_braces_in_the_texts_stay_as_they_are():
    pair = Pair("chat", "chat-0", 0, False, "{first}?", "{second}", "{question}")
    assert render(TEMPLATE, pair) == "Q {first}?\nA<{question}>\nB<{second}>"


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("Verdict: A", "candidate", "reference"),
        ("**Verdict: B**", "reference", "candidate"),
        ("A is bad.\nverdict: tie.", "tie", "tie"),
        ("Verdict: A\nNo:\nVerdict: B", "reference", "candidate"),
        ("I prefer A", "unreadable", "unreadable"),
        ("My verdict: A is better", "unreadable", "unreadable"),
    ],
)
def test_verdicts_are_read_from_a_line_of_their_own(text, first, second):
    assert (read_verdict(text, True), read_verdict(text, False)) == (first, second)


def test_wrong_prompts_are_refused(make_judge, tmp_path):
    make_judge(prompt=str(PROMPT))
    (tmp_path / "no.txt").write_text("{question} {first}")
    with pytest.raises(ValidationError, match=r"has to have \{second\} once"):
        make_judge(prompt=str(tmp_path / "no.txt"))
    with pytest.raises(ValidationError, match="does not exist"):
        make_judge(prompt=str(tmp_path / "none.txt"))
