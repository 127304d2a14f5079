"""Problems from a dataset on disk (JSONL, Parquet, a folder saved by `datasets`) or of the Hugging Face hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realign_pipes.errors import InputError, MissingFileError
from realign_pipes.tasks.chats import chat_text, question_turn, read_usable, split_reply
from realign_pipes.tasks.parameters import DatasetSource, DatasetTask, Verifier

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

BOXED = "\\boxed"
METADATA = "metadata/"
"""Before the name of a metadata column, which may be any."""


def read_rows(
    source: DatasetSource,
    columns: dict[str, str],
    key: str,
    *,
    lists: Collection[str] = (),
    chats: Collection[str] = (),
) -> Dataset:
    """The dataset with only our columns (`columns` maps our name to theirs), memory-mapped.

    Those of our columns that are among `lists` may hold several texts a row, those among `chats` hold a list of
    messages with `role` and `content`. `key` is the parameter that named the dataset; messages quote it. Raises
    MissingFileError for a missing path, and InputError for a format that is unknown or cannot be read, for columns that
    are missing, named twice, lack a value in some row or are not text (answers may be numbers) or chats, and for a
    dataset without rows.
    """
    rows = _read_hub(source, key) if source.path is None else _read_path(source.path, key)
    name = source.named()
    missing = [f"{theirs} (for {ours})" for ours, theirs in columns.items() if theirs not in rows.column_names]
    if missing:
        raise InputError(f"{key}: {name} has no column {', '.join(missing)}. It has: "
                         f"{', '.join(rows.column_names)}. Name the right ones in the parameters.")  # fmt: skip
    if twice := [theirs for theirs, uses in Counter(columns.values()).items() if uses > 1]:
        uses = " and ".join(ours.removeprefix(METADATA) for ours, theirs in columns.items() if theirs == twice[0])
        raise InputError(f"{key}: the column {twice[0]} is named twice, for {uses}. Name a column of its own for each.")
    if len(rows) == 0:
        raise InputError(f"{key}: {name} has no rows.")
    table = rows.with_format("arrow").select_columns(list(columns.values()))[:]
    for ours, theirs in columns.items():
        cells = table[theirs]
        if ours in chats:
            _check_chats(cells, f"{key}: {name}", theirs)
            continue
        _check_column(cells, ours, f"{key}: {name}", theirs, may_be_list=ours in lists)
    return rows.select_columns(list(columns.values())).rename_columns({v: k for k, v in columns.items() if v != k})


def _read_hub(source: DatasetSource, key: str) -> Dataset:
    import datasets

    try:
        return datasets.load_dataset(
            str(source.hub), source.subset, split=datasets.Split(source.split), revision=source.revision
        )
    except Exception as error:  # each format has its own, and none of them names the parameter
        raise InputError(f"{key}: {source.named()} could not be loaded from the hub: "
                         f"{error.__cause__ or error}") from error  # fmt: skip


def _read_path(path: str, key: str) -> Dataset:
    import datasets

    source = Path(path)
    if not source.exists():
        raise MissingFileError(f"{key}: {source} does not exist. Give the path of a .jsonl or .parquet file, or of a "
                                "folder written by datasets.Dataset.save_to_disk.")  # fmt: skip
    if source.is_dir():
        read = datasets.load_from_disk
    elif source.suffix == ".jsonl":
        read = datasets.Dataset.from_json
    elif source.suffix == ".parquet":
        read = datasets.Dataset.from_parquet
    else:
        raise InputError(f"{key}: {source} is neither .jsonl, .parquet nor a folder saved by `datasets`.")
    try:
        if source.suffix == ".jsonl" and source.is_file():
            _check_lines(source)
        rows = read(str(source))
    except Exception as error:  # each reader has its own, and none of them names the parameter
        raise InputError(f"{key}: {source} cannot be read, or has no rows: {error.__cause__ or error}") from error
    if isinstance(rows, datasets.DatasetDict):
        raise InputError(f"{key}: {source} holds the splits {sorted(rows)}. Point to one split's folder.")
    return rows


def _check_column(
    cells: pyarrow.ChunkedArray, ours: str, source: str, theirs: str, *, may_be_list: bool = False
) -> None:
    """Raise InputError unless every row has text there, or a list of texts; an answer may be a number."""
    import pyarrow
    import pyarrow.compute

    kind = cells.type
    if may_be_list and (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)) and not cells.null_count:
        cells = pyarrow.compute.list_flatten(cells)
        kind = cells.type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    if cells.null_count:
        raise InputError(f"{source} has no value for {theirs} in {cells.null_count} of its {len(cells)} rows. "
                         "Drop those rows.")  # fmt: skip
    if pyarrow.types.is_nested(kind) or (ours != "answer" and not is_text):
        raise InputError(f"{source}: the {ours}s (the column {theirs}) are {kind}, not text.")
    try:
        cells.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{source} cannot be read: {theirs} is damaged: {error}") from error


def _check_chats(cells: pyarrow.ChunkedArray, source: str, theirs: str) -> None:
    """Raise InputError unless every row has a list of messages whose `role` and `content` are texts."""
    import pyarrow

    kind = cells.type
    fields: dict[str, pyarrow.DataType] = {}
    if (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)) and pyarrow.types.is_struct(kind.value_type):
        fields = {field.name: field.type for field in kind.value_type}
    texts = [name for name, one in fields.items() if pyarrow.types.is_string(one) or pyarrow.types.is_large_string(one)]
    if not {"role", "content"} <= set(texts):
        raise InputError(f"{source}: {theirs} holds {kind}, and not chats: lists of messages, each with a role and a "
                         "content.")  # fmt: skip
    if cells.null_count:
        raise InputError(f"{source} has no value for {theirs} in {cells.null_count} of its {len(cells)} rows. "
                         "Drop those rows.")  # fmt: skip


def _check_lines(file: Path) -> None:
    """Raise ValueError, naming the line, unless each is a JSON object.

    Arrow's reader crashes the whole process on some other lines: `null`, or 100,000 nested brackets.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise ValueError(f"line {number} is nested too deeply") from None
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")


def check_exact(rows: Dataset, verifier: Verifier, source: str) -> None:
    """InputError for answers that are decimal numbers, if they are to be compared as text: 3 would be 3.0.

    One 2.5 among whole numbers makes all of a JSONL file's answers such numbers.
    """
    if verifier == "exact" and rows.features["answer"].dtype.startswith("float"):
        raise InputError(f"{source}: the answers are decimal numbers, and for verifier: exact, which compares texts, 3 "
                         "and 3.0 would differ. Write the answers as text, or choose verifier: math.")  # fmt: skip


def make_problems(task: DatasetTask, key: str) -> list[dict[str, Any]]:
    """The dataset's problems, each with `question`, `answer` (None where the task has none) and `metadata`: its
    metadata columns as JSON text.

    Those that are chats have `messages` too, up to the turn that is to be answered; their `question` is the chat's
    text. InputError as `read_rows`, `check_exact` and `chats.read_usable`.
    """
    asked = {"question": task.question_column} if task.messages_column is None else {"messages": task.messages_column}
    answers = {} if task.verifier == "none" else {"answer": task.answer_column}
    further = {f"{METADATA}{name}": name for name in task.metadata_columns}
    rows = read_rows(task, asked | answers | further, key, chats=["messages"])
    check_exact(rows, task.verifier, f"{key}: {task.named()}")

    def build(row: dict[str, Any]) -> dict[str, Any]:
        common = {
            "answer": str(row["answer"]) if answers else None,
            "metadata": json.dumps({name: row[column] for column, name in further.items()}, ensure_ascii=False),
        }
        if task.messages_column is None:
            question_turn(row["question"])
            return {"question": row["question"], **common}
        chat, _ = split_reply(row["messages"])
        return {"question": chat_text(chat), "messages": chat, **common}

    return read_usable(rows, range(len(rows)), build, task, key)


def verify(verifier: Verifier, answered: str, answer: str) -> bool:
    """Whether the text after the thinking gives `answer`.

    `math` compares the content of the last `\\boxed{}` (without one: in other LaTeX) with the answer, as mathematics.
    Only LaTeX is parsed: math-verify's plain-text parser goes through sympy.parse_expr, which evaluates what it
    reads. `exact` requires the whole text to equal the answer. ValueError for `none`.
    """
    if verifier == "exact":
        return answered.strip() == answer.strip()
    if verifier == "none":
        raise ValueError("a task without answers is not graded")
    from math_verify import LatexExtractionConfig, parse
    from math_verify import verify as verify_math

    latex = [LatexExtractionConfig(boxed_match_priority=0)]
    # Without math-verify's time-outs: they use the signal that the worker of `grading.grade` needs for its own.
    gold = parse(f"{BOXED}{{{answer}}}", latex, raise_on_error=False, parsing_timeout=None)
    # Here the last box is the answer; math-verify would take several boxes of a sentence as a set.
    given = parse(answered[max(answered.rfind(BOXED), 0) :], latex, raise_on_error=False, parsing_timeout=None)
    return verify_math(gold, given, timeout_seconds=None)
