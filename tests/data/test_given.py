"""Given replies and preference pairs, and calibration and evaluation on chats: each row against what was written."""

import pytest

from realign_pipes.data.given import Reading, read_pairs, read_replies
from realign_pipes.data.parameters import GivenPairs, GivenReplies
from realign_pipes.data.schemas import PAIR_COLUMNS, SAMPLE_COLUMNS, SOLUTION_COLUMNS
from realign_pipes.errors import InputError
from realign_pipes.pipelines.data_prep import nodes
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.tasks.completion import THINK


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"prompt": "Hi", "chosen": [user("Hi"), assistant("Hello.")], "rejected": [user("Hi"), assistant("Go away.")]}
LONG = [user("a"), assistant("b"), user("c"), assistant("dd")]
ASKED = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"


@pytest.fixture
def reading(tiny_tokenizer):
    """`reading(thinking="none", positions=512, …)`"""

    def make(thinking="none", positions=512, tokenizer=tiny_tokenizer, instruction=None):
        return Reading(tokenizer, THINK, thinking, positions, seed=1, instruction=instruction)

    return make


@pytest.fixture
def replies(tmp_path, write_jsonl):
    """`replies(rows, …)`: the parameters for a file of chats."""

    def make(rows, **changes):
        path = str(write_jsonl(tmp_path / "replies.jsonl", rows))
        return GivenReplies(source="dataset", path=path, **{"messages_column": "messages", **changes})

    return make


@pytest.fixture
def pairs(tmp_path, write_jsonl):
    """`pairs(rows, …)`: the parameters for a file of pairs."""

    def make(rows, **changes):
        return GivenPairs(source="dataset", path=str(write_jsonl(tmp_path / "pairs.jsonl", rows)), **changes)

    return make


def test_replies_of_chats_of_several_turns(replies, reading, tiny_tokenizer) -> None:
    rows = [{"messages": LONG, "prompt_id": "x"}, {"messages": PAIR["chosen"], "prompt_id": "y"}]
    made = read_replies(replies(rows), reading())
    assert made.features == SOLUTION_COLUMNS
    first = made[0]
    assert first["prompt"] == ASKED + "<|im_start|>assistant\n"
    assert tiny_tokenizer.decode(first["prompt_ids"]) == first["prompt"]
    assert tiny_tokenizer.decode(first["completion_ids"]) == "dd<|im_end|>"
    assert (first["prompt_tokens"], first["completion_tokens"]) == (len(first["prompt_ids"]), 3)
    assert made["completion"][:] == ["dd", "Hello."] and set(made["source"]) == {"dataset"}
    with_instruction = read_replies(replies(rows), reading(instruction="Be brief."))
    assert "user\nc\n\nBe brief.<|im_end|>" in with_instruction[0]["prompt"]
    short = read_replies(replies(rows, max_tokens=first["prompt_tokens"] + 2), reading())
    assert short["completion"][:] == ["Hello."]
    with pytest.raises(InputError, match=r"short_solutions.max_tokens: no example fits into 3 tokens"):
        read_replies(replies(rows, max_tokens=3), reading())


def test_replies_in_a_column_of_text(replies, reading) -> None:
    rows = [{"prompt": "a", "reply": "b"}, {"prompt": " ", "reply": "b"}, {"prompt": "a", "reply": "\n"}]
    columns = {"messages_column": None, "question_column": "prompt", "completion_column": "reply"}
    with pytest.raises(InputError, match=r"2 of 3 rows .*row 2: the prompt is empty; row 3: the reply is empty"):
        read_replies(replies(rows, **columns), reading())
    made = read_replies(replies(rows, **columns, skip_unusable=True), reading())
    assert made["completion"][:] == ["b"]
    with pytest.raises(InputError, match=r"no column question \(for question\), completion .* It has: prompt, reply"):
        read_replies(replies(rows, messages_column=None), reading())
    with pytest.raises(InputError, match="prompt holds string, and not chats"):
        read_replies(replies(rows, messages_column="prompt"), reading())


def test_replies_think_as_the_parameter_says(replies, reading, thinking_tokenizer) -> None:
    def read(reply, **options):
        return read_replies(replies([{"messages": [user("a"), assistant(reply)]}]), reading(**options))

    with pytest.raises(InputError, match=r"row 1: the reply thinks otherwise than data_prep.thinking=required"):
        read("b", thinking="required")
    with pytest.raises(InputError, match="that it has neither <think> nor </think>"):
        read("<think>a</think>b")
    assert read("<think>a</think>b", thinking="optional")["completion"][:] == ["<think>a</think>b"]
    opened = {"thinking": "optional", "tokenizer": thinking_tokenizer}
    assert read("<think>\na</think>b", **opened)["completion"][:] == ["a</think>b"]
    assert read("b", **opened)["completion"][:] == ["</think>\n\nb"]  # the template has opened the thinking


def test_pairs_of_chats_and_of_text(pairs, reading, tiny_tokenizer) -> None:
    made = read_pairs(pairs([{**PAIR, "score_chosen": 8.0, "score_rejected": 1.5}]), reading())
    assert made.features == PAIR_COLUMNS
    (row,) = made
    assert row["prompt"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_tokenizer.decode(row["prompt_ids"]) == row["prompt"]
    for part, text in (("chosen", "Hello."), ("rejected", "Go away.")):
        assert (row[part], tiny_tokenizer.decode(row[f"{part}_ids"])) == (text, text + "<|im_end|>")
        assert row[f"{part}_tokens"] == len(row[f"{part}_ids"])
    assert row["rejected_correct"] is None and row["source"] == "dataset"
    texts = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}]
    assert read_pairs(pairs(texts, question_column="prompt"), reading())[:] == made[:]
    assert read_pairs(pairs([PAIR] * 9, limit=4), reading())["id"][:] == [
        f"preference_pairs-00000{n}" for n in range(4)
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rejected": PAIR["chosen"]}, "chosen and rejected are equal"),
        ({"rejected": [user("Ho"), assistant("x")]}, "chosen and rejected answer different prompts"),
        ({"chosen": [user("Hi")]}, "the chat ends with the user"),
        ({"chosen": [user("Hi"), assistant(" ")]}, "message 2 of the chat .assistant. is empty"),
        ({"chosen": [user("Hi"), assistant("a" * 600)]}, "prompt and reply have 6.. tokens, and the reference 512"),
    ],
)
def test_pairs_that_cannot_be_used(pairs, reading, change, why) -> None:
    rows = [PAIR, {**PAIR, **change}]
    with pytest.raises(InputError, match=f"data_prep.preference_pairs: .*1 of 2 rows cannot be used .row 2: {why}"):
        read_pairs(pairs(rows), reading())
    assert len(read_pairs(pairs(rows, skip_unusable=True), reading())) == 1
    if "600" in why or "reference" in why:
        assert len(read_pairs(pairs(rows, max_tokens=100), reading())) == 1  # which is what max_tokens is for


def dialogue(raw, path, **changes) -> DataPrep:
    """Calibration, SFT, DPO and evaluation from files of chats and pairs in the folder `path`."""
    chats = {"path": str(path / "replies.jsonl"), "messages_column": "messages"}
    return DataPrep.model_validate(
        {
            **raw,
            "thinking": "none",
            "calibration": {
                "source": "dataset", **chats, "verifier": "none", "keep": "all", "min_tokens": 1, "max_tokens": 50
            },
            "short_solutions": {"source": "dataset", **chats},
            "preference_pairs": {"source": "dataset", "path": str(path / "pairs.jsonl")},
            "tasks": {
                "chats": {"kind": "dataset", **chats, "verifier": "none"},
                "prompts": {
                    "kind": "dataset", "path": str(path / "pairs.jsonl"), "question_column": "prompt",
                    "verifier": "none",
                },
            },
            **changes,
        }
    )  # fmt: skip


def test_the_whole_stage_on_dialogues(
    tmp_path, make_checkpoint, collect, sampled, models, replies, pairs, script, scripted_engine, monkeypatch
) -> None:
    reference = make_checkpoint(tmp_path / "reference")
    replies([{"messages": [user(f"q{n}"), assistant("a"), user("more"), assistant("b" * n)]} for n in range(1, 5)])
    pairs(
        [
            PAIR,
            {**PAIR, "prompt": "Ho", "chosen": [user("Ho"), assistant("x")], "rejected": [user("Ho"), assistant("y")]},
        ]
    )
    parameters = dialogue(sampled().model_dump(), tmp_path)
    samples = collect(parameters, reference, tmp_path / "work")
    assert samples.features == SAMPLE_COLUMNS and samples["correct"][:] == samples["answer"][:] == [None] * 4
    assert samples["completion"][:] == ["b", "bb", "bbb", "bbbb"]
    assert samples["question"][0] == "user: q1\n\nassistant: a\n\nuser: more"
    chosen = nodes.select_calibration(parameters, samples)
    assert chosen["id"][:] == samples["id"][:]
    assert len(nodes.make_short_solutions(parameters, models(), reference, samples)) == 4
    assert nodes.make_preference_pairs(parameters, models(), reference, samples)["chosen"][:] == ["Hello.", "x"]
    with pytest.raises(InputError, match=r"data_prep.tasks.chats: 1 distinct problems are wanted, and only 0 are left"):
        nodes.make_evaluation_set(parameters, models(), reference, samples)  # they are the calibration's
    other = samples.map(lambda row: {"question": "other"})
    rows = nodes.make_evaluation_set(parameters, models(), reference, other)
    assert rows["task"][:] == ["chats"] * 4 + ["prompts"] * 2 and set(rows["answer"]) == {None}
    assert rows["messages"][0] == [user("q1"), assistant("a"), user("more")]
    assert rows["messages"][4] == [user("Hi")] and rows["question"][4] == "Hi"
    assert rows["prompt"][0].endswith("user\nmore<|im_end|>\n<|im_start|>assistant\n")

    # Nothing is sampled before pairs that cannot be used are refused; a set that the model draws is not graded.
    task = {"kind": "dataset", "path": str(tmp_path / "pairs.jsonl"), "messages_column": "chosen", "verifier": "none"}
    sampling = {**sampled().calibration.sampling.model_dump(), "samples": 1}
    drawn = {"source": "sampled", "drawn_by": "aligned", "task": task, "sampling": sampling}
    calibration = {**drawn, "keep": "all", "min_tokens": 1, "max_tokens": 50}
    tasks = {"chats": parameters.tasks["chats"].model_dump()}  # the prompts are the calibration's
    parameters = dialogue(sampled().model_dump(), tmp_path, calibration=calibration, tasks=tasks)
    engine = scripted_engine(lambda prompt, sample: "hm<|im_end|>")
    monkeypatch.setattr("realign_pipes.generation.transformers_engine.TransformersEngine.of_checkpoint",
                        lambda path, **_: engine.open())  # fmt: skip
    samples = collect(parameters, reference, tmp_path / "work")
    assert samples["completion"][:] == ["hm", "hm"] and samples["correct"][:] == [None, None]
    assert len(nodes.make_preference_pairs(
        dialogue(sampled().model_dump(), tmp_path, preference_pairs={"source": "samples"}), models(), reference, samples
    )) == 0  # fmt: skip
    pairs([{**PAIR, "rejected": PAIR["chosen"]}])
    engine.asked.clear()
    with pytest.raises(InputError, match="chosen and rejected are equal"):
        collect(parameters, reference, tmp_path / "work2")
    assert not engine.asked


def test_no_thinking_and_a_template_that_opens_it(
    tmp_path, make_checkpoint, thinking_tokenizer, collect, sampled, replies, pairs
) -> None:
    replies([{"messages": LONG}])
    pairs([PAIR])
    reference = make_checkpoint(tmp_path / "thinking", tokenizer=thinking_tokenizer)
    with pytest.raises(
        InputError, match=r"data_prep.thinking is none, but the chat template opens each reply with <th"
    ):
        collect(dialogue(sampled().model_dump(), tmp_path), reference, tmp_path / "work")


def test_thinking_that_is_required_and_missing(tmp_path, make_checkpoint, collect, sampled, replies, pairs) -> None:
    replies([{"messages": LONG}])
    pairs([PAIR])
    parameters = dialogue(sampled().model_dump(), tmp_path, thinking="required")
    with pytest.raises(InputError, match="none of the 1 completions is finished and has </think> exactly once"):
        collect(parameters, make_checkpoint(tmp_path / "reference"), tmp_path / "work")


def test_a_prompt_that_is_too_long_for_the_calibration(
    tmp_path, make_checkpoint, collect, sampled, replies, pairs
) -> None:
    pairs([PAIR])
    replies([{"messages": [user("a" * 500), assistant("b" * 40)]}])
    parameters = dialogue(sampled().model_dump(), tmp_path, tasks=sampled().model_dump()["tasks"])
    with pytest.raises(InputError, match=r"row 1: prompt and reply have 5.. tokens, and the reference 512 positions"):
        collect(parameters, make_checkpoint(tmp_path / "reference"), tmp_path / "work")


def test_a_row_of_the_hubs_shape_is_read_from_json(tmp_path, replies, reading) -> None:
    """The order of a message's keys does not matter, nor do further ones."""
    row = {"messages": [{"content": "a", "role": "user", "id": 1}, {"content": "b", "role": "assistant", "id": 2}]}
    assert read_replies(replies([row]), reading())["completion"][:] == ["b"]
