"""Rows of any kind from JSONL and Parquet: read as they are, or refused with the parameter and the file's name."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from realign_pipes.data.parameters import Models
from realign_pipes.data.problems import draw_problems
from realign_pipes.pipelines.data_prep.nodes import collect_samples
from realign_pipes.pipelines.data_prep.parameters import DataPrep
from realign_pipes.runtime.launch import Folders
from realign_pipes.sweep.parameters import AlphaSweep
from realign_pipes.tasks.parameters import DatasetProblems

KEY = "data_prep.tasks.x"
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=30),  # surrogates and control characters too
    st.sampled_from(
        ["", " ", "\0", "\ud800", "\udcff\ud800", "\u2028", "\u202e", "<|im_end|>", "</think>", "x" * 100_000]
    ),
    st.sampled_from(["\\boxed{4}", "<think>" * 1000, "{{ 7*7 }}", "<script>alert(1)</script>", "\r\n", "\ufeff"]),
)
CELLS = st.one_of(
    TEXTS,
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(),
    st.lists(st.integers(0, 9), max_size=2) | st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), max_size=2),
)
COLUMNS = ("question", "answer", "completion")
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=3), max_size=5)
TEXT_ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, TEXTS)), min_size=1, max_size=4)

SWEEP = AlphaSweep.model_validate(
    yaml.safe_load((Path(__file__).parents[2] / "conf/base/parameters_alpha_sweep.yml").read_text())["alpha_sweep"]
)


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def problems_or_refused(path) -> None:
    try:
        problems = draw_problems(KEY, "x", DatasetProblems(kind="dataset", path=str(path)), seed=0)
    except ValueError as error:
        assert KEY in str(error) and (str(path) in str(error) or "distinct problems are wanted" in str(error))
    else:
        for problem in problems:
            assert problem.messages is None  # the rows are no chats
            assert all(type(text) is str for name, text in vars(problem).items() if name != "messages")
            json.dumps(vars(problem)).encode()
            problem.question.encode(), problem.answer.encode()


@given(rows=ROWS)
def test_problems_from_jsonl(rows, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
    problems_or_refused(tmp_path / "rows.jsonl")


@given(data=st.data(), rows=TEXT_ROWS)
def test_problems_from_broken_jsonl(data, rows, tmp_path, broken_bytes):
    (tmp_path / "rows.jsonl").write_bytes(data.draw(broken_bytes(jsonl(rows))))
    problems_or_refused(tmp_path / "rows.jsonl")


@given(data=st.data())
def test_problems_from_broken_parquet(data, tmp_path, broken_bytes):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table(
        {"question": ["1 + 1", "2 + 2", "ä"], "answer": ["2", "4", "x"], "completion": ["a", "b", "c"]}
    )
    pyarrow.parquet.write_table(table, path)
    path.write_bytes(data.draw(broken_bytes(path.read_bytes())))
    problems_or_refused(path)


@given(rows=TEXT_ROWS)
def test_completions_of_any_text(rows, tmp_path, make_checkpoint, make_generation, tiny_tokenizer):
    reference = tmp_path / "reference"
    if not reference.exists():
        make_checkpoint(reference, max_position_embeddings=10**7)  # room for any text
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(rows))
    parameters = DataPrep.model_validate(
        {
            "seed": 0,
            "instruction": None,
            "thinking": "required",
            "calibration": {
                "source": "dataset",
                "path": str(path),
                "keep": "all",
                "min_tokens": 1,
                "max_tokens": 10,
                "verifier": "exact",
            },
            "short_solutions": {"source": "samples", "cut_share": 0.5, "max_tokens": None},
            "preference_pairs": {"source": "samples"},
            "tasks": {"x": {"kind": "dataset", "path": str(path), "verifier": "exact"}},
        }
    )
    try:
        models = Models(chat_template=None, thinking=None)
        folders = Folders(work=tmp_path, logs=tmp_path, validation=tmp_path)
        samples = collect_samples(parameters, SWEEP, models, make_generation(), folders, reference, reference)
    except ValueError as error:
        assert "data_prep." in str(error)
        return
    for row in samples:
        text = tiny_tokenizer.decode(row["prompt_ids"])
        assert text == row["prompt"]
        assert row["completion_ids"][-1] == tiny_tokenizer.eos_token_id


# -- what was found ---------------------------------------------------------------------------------------------------
def refused(path) -> str:
    with pytest.raises(ValueError, match=KEY) as refusal:
        draw_problems(KEY, "x", DatasetProblems(kind="dataset", path=str(path)), seed=0)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"question": ' + '{"a": ' * 100_000, '{"question": "\\\\", "answer": ' + "[" * 10**6]
)
def test_lines_nested_without_end(tmp_path, line):
    """They ended the whole process: a stack overflow in Arrow's reader."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n' + line + "\n")
    assert "line 2 is nested too deeply" in refused(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("line", ["null", "3", '"x"', "[]", "true"])
def test_lines_that_are_no_objects(tmp_path, line):
    """`null` alone ended the whole process as well."""
    (tmp_path / "rows.jsonl").write_text(line)
    assert "line 1 is not a JSON object" in refused(tmp_path / "rows.jsonl")


def test_brackets_in_text_are_no_nesting(tmp_path):
    text = '\\frac{"' * 2000 + "[" * 2000
    (tmp_path / "rows.jsonl").write_bytes(jsonl([{"question": text, "answer": "2"}]))
    [problem] = draw_problems(KEY, "x", DatasetProblems(kind="dataset", path=str(tmp_path / "rows.jsonl")), seed=0)
    assert problem.question == text


def test_text_that_is_no_unicode(tmp_path):
    """Arrow's reader takes it, and only reading a row failed, without the file's name."""
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "1 + 1", "answer": "\x80"}\n')
    assert "cannot be read" in refused(tmp_path / "rows.jsonl")
    text = pyarrow.array([b"\x80"]).view(pyarrow.binary()).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"question": ["1 + 1"], "answer": text}), tmp_path / "rows.parquet")
    assert "answer is damaged" in refused(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("column", "value"), [("question", 3), ("question", ["a"]), ("answer", [4]), ("answer", {"a": 4})]
)
def test_cells_that_are_no_text(tmp_path, column, value):
    """Problems had questions such as "['a']", before."""
    (tmp_path / "rows.jsonl").write_bytes(jsonl([{"question": "1 + 1", "answer": "2", column: value}]))
    assert f"the {column}s (the column {column}) are" in refused(tmp_path / "rows.jsonl")
