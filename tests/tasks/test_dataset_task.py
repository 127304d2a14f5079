"""Reading problems and completions from disk: every form, and every way in which it can be wrong."""

import json

import datasets
import pyarrow
import pytest
from pydantic import ValidationError

from realign_pipes.errors import InputError
from realign_pipes.tasks.dataset_task import make_problems, read_rows, verify
from realign_pipes.tasks.parameters import DatasetSource, DatasetTask

ROWS = [{"problem": "1 + 1", "solution": 2, "note": None}, {"problem": "2 + 2", "solution": 4, "note": "x"}]
COLUMNS = {"question": "problem", "answer": "solution"}


def write(path, rows) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows"])
def test_reads_each_form(name, tmp_path) -> None:
    rows = read_rows(DatasetSource(path=write(tmp_path / name, ROWS)), COLUMNS, "data_prep.calibration")
    assert list(rows) == [{"question": "1 + 1", "answer": 2}, {"question": "2 + 2", "answer": 4}]


@pytest.mark.parametrize("source", [{"path": "rows.jsonl"}, {"hub": "org/maths", "split": "test", "revision": "v2"}])
def test_a_source_survives_the_json_in_which_a_job_gets_to_its_processes(source) -> None:
    task = DatasetTask(kind="dataset", **source)
    assert DatasetTask.model_validate_json(task.model_dump_json()) == task


def test_make_problems(tmp_path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    task = DatasetTask(kind="dataset", path=path, question_column="problem", answer_column="solution")
    assert make_problems(task, "key") == [
        {"question": "1 + 1", "answer": "2", "metadata": "{}"},
        {"question": "2 + 2", "answer": "4", "metadata": "{}"},
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_decimal_numbers_are_not_compared_as_text(name, tmp_path) -> None:
    """One 2.5 makes 3 of the other row 3.0, which the reply 3 would not equal."""
    rows = [{"question": "1 + 2", "answer": 3}, {"question": "1 + 1.5", "answer": 2.5}]
    task = DatasetTask(kind="dataset", path=write(tmp_path / name, rows))
    assert verify("math", "\\boxed{3}", make_problems(task, "key")[0]["answer"])
    with pytest.raises(InputError, match=rf"key: .*{name}: the answers are decimal numbers.* verifier: math"):
        make_problems(task.model_copy(update={"verifier": "exact"}), "key")
    file = write(tmp_path / f"text-{name}", [{**row, "answer": str(row["answer"])} for row in rows])
    exact = DatasetTask(kind="dataset", path=file, verifier="exact")
    assert [problem["answer"] for problem in make_problems(exact, "key")] == ["3", "2.5"]


def refused(path, columns=COLUMNS) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        read_rows(DatasetSource(path=str(path)), columns, "data_prep.calibration")
    message = str(refusal.value)
    assert "data_prep.calibration" in message and str(path) in message
    return message


def test_missing_path(tmp_path) -> None:
    assert "does not exist" in refused(tmp_path / "rows.jsonl")


def test_unknown_form(tmp_path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    assert "neither .jsonl, .parquet" in refused(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_unreadable_file(name, tmp_path) -> None:
    (tmp_path / name).write_text('{"problem": ')
    assert "cannot be read" in refused(tmp_path / name)


def test_folder_that_datasets_did_not_save(tmp_path) -> None:
    assert "cannot be read" in refused(tmp_path)


def test_folder_of_splits(tmp_path) -> None:
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    assert "splits ['train']" in refused(tmp_path / "splits")


def test_missing_columns(tmp_path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    message = refused(path, {"question": "question", "answer": "solution"})
    assert "no column question (for question)" in message and "problem, solution" in message


def test_a_column_that_is_named_twice(tmp_path) -> None:
    """One of the two was lost, and reading a row was a KeyError."""
    path = write(tmp_path / "rows.parquet", ROWS)
    task = DatasetTask(
        kind="dataset", path=path, question_column="problem", answer_column="solution", metadata_columns=["problem"]
    )
    with pytest.raises(InputError, match=r"key: the column problem is named twice, for question and problem"):
        make_problems(task, "key")


@pytest.mark.parametrize("text", [pyarrow.string(), pyarrow.large_string()])
def test_chats_may_hold_either_kind_of_text_and_no_null(tmp_path, text) -> None:
    chats = pyarrow.list_(pyarrow.struct([("role", text), ("content", text)]))
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = pyarrow.table({"messages": pyarrow.array([said, [None, *said]], chats), "note": ["x", "y"]})
    datasets.Dataset(table).save_to_disk(tmp_path / "rows")
    task = DatasetTask(kind="dataset", path=str(tmp_path / "rows"), messages_column="messages", verifier="none")
    with pytest.raises(InputError, match=r"1 of 2 rows cannot be used \(row 2: message 1 of the chat "):
        make_problems(task, "key")
    [problem] = make_problems(task.model_copy(update={"skip_unusable": True}), "key")
    assert (problem["question"], problem["messages"]) == ("a", said[:1])


def test_missing_values(tmp_path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    assert "no value for note in 1 of its 2 rows" in refused(path, {"question": "problem", "answer": "note"})


def test_no_rows(tmp_path) -> None:
    assert "no rows" in refused(write(tmp_path / "empty.jsonl", []))
    datasets.Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "empty.parquet")
    assert "no rows" in refused(tmp_path / "empty.parquet")
    datasets.Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "empty")
    assert "no rows" in refused(tmp_path / "empty")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The working folder holds `org/maths` in the hub's format, so that `datasets` finds it without the hub."""
    (tmp_path / "org" / "maths" / "data").mkdir(parents=True)
    rows = [{**row, "replies": ["<think>a</think>2", "3"]} for row in ROWS]
    for split, some in (("train", rows), ("test", rows[:1])):
        datasets.Dataset.from_list(some).to_parquet(tmp_path / "org/maths/data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("published")
class TestHub:
    @pytest.mark.parametrize(("given", "count"), [({}, 2), ({"split": "test", "subset": "default"}, 1)])
    def test_reads_a_split_by_name(self, given, count):
        rows = read_rows(DatasetSource(hub="org/maths", **given), COLUMNS, "key")
        assert list(rows) == [{"question": "1 + 1", "answer": 2}, {"question": "2 + 2", "answer": 4}][:count]

    def test_some_columns_may_hold_lists_of_texts(self):
        columns = {"question": "problem", "completion": "replies"}
        rows = read_rows(DatasetSource(hub="org/maths"), columns, "key", lists=["completion"])
        assert rows["completion"][1] == ["<think>a</think>2", "3"]
        with pytest.raises(InputError, match=r"the completions .the column replies. are list.*not text"):
            read_rows(DatasetSource(hub="org/maths"), columns, "key")

    @pytest.mark.parametrize(
        "given", [{"split": "validation"}, {"subset": "other"}, {"hub": "org/nothing"}, {"hub": "not a name"}]
    )
    def test_what_is_not_there_is_named(self, given):
        source = DatasetSource(**{"hub": "org/maths", **given})
        with pytest.raises(InputError, match=rf"key: {source.hub} .* could not be loaded from the hub: "):
            read_rows(source, COLUMNS, "key")

    def test_the_revision_is_asked_for(self, monkeypatch):
        asked = {}
        monkeypatch.setattr(
            "datasets.load_dataset", lambda *names, **given: asked.update(names=names, **given) or 1 / 0
        )
        with pytest.raises(InputError, match="division"):
            read_rows(DatasetSource(hub="org/maths", revision="v2"), COLUMNS, "key")
        assert (asked["names"], str(asked["split"]), asked["revision"]) == (("org/maths", None), "train", "v2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "either path"),
        ({"path": "a", "hub": "b/c"}, "either path"),
        ({"path": "a", "split": "test"}, "split: these"),
    ],
)
def test_a_dataset_is_on_disk_or_of_the_hub(given, message):
    with pytest.raises(ValidationError, match=message):
        DatasetSource(**given)
