"""Whatever a model writes is graded: right or wrong, in order, within the limits, and never with an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realign_pipes.tasks import grading
from realign_pipes.tasks.grading import Attempt, grade
from realign_pipes.tasks.parameters import DatasetTask, ReasoningGymTask

MATHS = DatasetTask(kind="dataset", path="unused", verifier="math")
SUMS = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum")
EXACT = DatasetTask(kind="dataset", path="unused", verifier="exact")
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=5),
    st.sampled_from(
        [
            *(
                "\\boxed{",
                "\\frac{",
                "\\sqrt{",
                "\\text{",
                "\\left(",
                "\\right)",
                "{",
                "}",
                "$",
                "$$",
                "\\[",
                "\\]",
                "^",
                "_",
            ),
            *(
                "<think>",
                "</think>",
                "<answer>",
                "</answer>",
                "<answer",
                "4",
                "1/2",
                "-",
                "+",
                "=",
                ",",
                "\\%",
                "e",
                "x",
            ),
            *(
                "9" * 10_000,
                "9^{9^{9}}",
                "\\infty",
                "\\begin{pmatrix}",
                "&",
                "\\\\",
                "\\end{pmatrix}",
                "\0",
                "\ud800",
                "\u202e",
            ),
            *(
                "__import__('os').system('x')",
                "\\cdot",
                "!",
                "\\binom",
                "\\int_0^1",
                "\\sum_{n=1}^{9}",
                "\\log",
                "NaN",
                "inf",
            ),
        ]
    ),
)
TEXTS = st.builds(
    lambda pieces, times: "".join(pieces) * times, st.lists(PIECES, max_size=12), st.sampled_from([1, 1, 1, 50])
)


@pytest.fixture
def two_seconds(monkeypatch) -> None:
    monkeypatch.setattr(grading, "TIME_LIMIT", 2)


@settings(max_examples=max(settings.default.max_examples // 10, 6))  # of many completions each: a slow one takes long
@given(texts=st.lists(TEXTS, min_size=1, max_size=20), answer=st.sampled_from(["4", "\\frac{1}{2}", "Paris", "(1, 2)"]))
def test_any_text(texts, answer, two_seconds):
    texts = [*texts, f"\\boxed{{{answer}}} <answer>{answer}</answer>"]
    attempts = [Attempt("p", task, "", text, answer, "{}") for task in (EXACT, SUMS, MATHS) for text in texts]
    verdicts = list(grade(attempts))
    assert all(type(verdict) is bool for verdict in verdicts) and len(verdicts) == len(attempts)
    assert verdicts[-1] and verdicts[2 * len(texts) - 1] == (answer != "x")


BOMBS = {
    "a tower of powers": "\\boxed{9^{9^{9^9}}}",
    "a power of integers": "\\boxed{9999999^{99999999}}",
    "nested fractions": "\\boxed{" + "\\frac{1}{1+" * 3000 + "1" + "}" * 3000 + "}",
    "nested roots": "\\boxed{" + "\\sqrt{1+" * 60 + "1" + "}" * 60 + "}",
    "10,000 digits": "\\boxed{" + "7" * 10_000 + "}",
    "10,000 decimals": "\\boxed{0." + "3" * 10_000 + "}",
    "boxes that never close": "\\boxed{" * 20_000,
    "open braces": "{" * 50_000,
    "an open answer": "<answer>" * 50_000,
    "a megabyte of words": "a b c " * 200_000,
    "control characters": "\\boxed{5\0\7\x1b[2J\u202e}",
    "half of a surrogate pair": "\\boxed{\ud800}",
    "a division by zero": "\\boxed{\\frac{4}{0}}",
}


def test_bombs_are_wrong_and_what_follows_is_graded(monkeypatch):
    monkeypatch.setattr(grading, "TIME_LIMIT", 1)
    attempts = [Attempt(name, task, "", text, "4", "{}") for name, text in BOMBS.items() for task in (SUMS, MATHS)]
    after = Attempt("after", MATHS, "", "\\boxed{4}", "4", "{}")
    assert list(grade([*attempts, after])) == [False] * len(attempts) + [True]


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("\\boxed{" * 3000 + "4" + "}" * 3000, True),  # boxes in boxes: the innermost is the last
        ("</think>" * 100_000 + "\\boxed{4}", True),
        ("<think>" * 100_000 + "\\boxed{4}", False),  # never stopped thinking
        ("\\boxed{3} \\boxed{4", False),  # cut off inside the last box
        ("$4$ " * 20_000, True),
    ],
)
def test_markup_in_masses(completion, correct):
    assert list(grade([Attempt("p", MATHS, "", completion, "4", "{}")])) == [correct]
