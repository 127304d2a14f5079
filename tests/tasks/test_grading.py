"""Verifiers on completions made by hand, and on completions that would do harm if anything executed them."""

import inspect
import json
import re

import pytest

from realign_pipes.errors import InputError
from realign_pipes.tasks import dataset_task, reasoning_gym_task
from realign_pipes.tasks.completion import ThinkingTags, answer_part
from realign_pipes.tasks.grading import Attempt, grade, is_correct, looked_for
from realign_pipes.tasks.parameters import UNSAFE_VERIFIERS, DatasetTask, ReasoningGymTask

SUMS = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options={"min_terms": 2, "max_terms": 3})
MATHS = DatasetTask(kind="dataset", path="unused", verifier="math")
EXACT = DatasetTask(kind="dataset", path="unused", verifier="exact")
PAYLOADS = [
    "__import__('os').system('touch X')",
    "[__import__('os').system('touch X')]",
    "open('X', 'w')",
    '__import__("pathlib").Path("X").touch()',
    "9**9**9**9",
]


@pytest.mark.parametrize(
    ("prompt", "completion", "part"),
    [
        ("user: 1 + 1", "<think> 2? </think> it is 2 ", "it is 2"),
        ("user: 1 + 1 <think>\n", "2? </think> it is 2", "it is 2"),
        ("user: 1 + 1", "<think> a </think> 2 <think> b </think> 3", "3"),  # the last thinking counts
        ("user: 1 + 1", "it is 2", "it is 2"),  # no thinking at all
        ("user: 1 + 1", "<think> it is 2", None),  # cut off while thinking
        ("user: 1 + 1 <think>\n", "it is 2", None),  # the same, opened by the template
        ("user: 1 + 1 <think>\n", "", None),
        ("user: what is <think>? assistant:", "a tag", "a tag"),  # the question's own tag opens nothing
    ],
)
def test_answer_part(prompt: str, completion: str, part: str | None) -> None:
    assert answer_part(prompt, completion) == part


@pytest.mark.parametrize("tags", [("[THINK]", "[/THINK]"), ("<|begin_of_thought|>", "<|end_of_thought|>")])
@pytest.mark.parametrize(
    ("prompt", "completion", "part"),
    [
        ("1 + 1", "OPEN 2? CLOSE it is 2 ", "it is 2"),
        ("1 + 1 OPEN\n", "2? CLOSE it is 2", "it is 2"),
        ("1 + 1", "OPEN a CLOSE 2 OPEN b CLOSE 3", "3"),
        ("1 + 1", "OPEN it is 2", None),
        ("1 + 1 OPEN\n", "it is 2", None),
        ("1 + 1 OPEN\n", "2? </think> it is 2", None),  # the tag of others
        ("1 + 1", "<think> 2? </think> it is 2", "<think> 2? </think> it is 2"),
    ],
)
def test_answer_part_between_other_tags(prompt: str, completion: str, part: str | None, tags: tuple[str, str]) -> None:
    prompt, completion = (text.replace("OPEN", tags[0]).replace("CLOSE", tags[1]) for text in (prompt, completion))
    assert answer_part(prompt, completion, ThinkingTags(open=tags[0], close=tags[1])) == part


def test_an_attempt_is_graded_with_its_own_tags() -> None:
    tags = ThinkingTags(open="[THINK]", close="[/THINK]")
    text = "Rome[/THINK]Paris"
    attempts = [
        Attempt("p", EXACT, "[THINK]", text, "Paris", "{}", tags),
        Attempt("p", EXACT, "[THINK]", text, text, "{}"),
    ]
    assert list(grade(attempts)) == [True, True]
    assert is_correct(EXACT, "[THINK]", text, "Paris", "{}", tags) and not is_correct(
        EXACT, "[THINK]", text, "Paris", "{}"
    )


@pytest.mark.parametrize("task", [SUMS, MATHS, EXACT])
def test_what_a_verifier_is_said_to_look_for_is_what_it_accepts(task) -> None:
    said = looked_for(task, "6").removesuffix(" and nothing else").strip("'")
    assert is_correct(task, "", f"<think>x</think>{said}", "6", "{}")
    assert not is_correct(task, "", f"<think>x</think>{said.replace('6', '7')}", "6", "{}")


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("4 + 2 = 6 </think> so <answer> 6 </answer>", True),
        ("4 + 2 = 6 </think> so <answer>6</answer>", True),
        ("4 + 2 = 7 </think> so <answer>7</answer>", False),
        ("4 + 2 = 6 so <answer>6</answer>", False),  # never stopped thinking
        ("4 + 2 = 6 </think> so <answer>6", False),  # cut off inside the answer
        ("<answer>6</answer> </think> so 6", False),  # answered inside the thinking only
        ("4 + 2 = 6 </think> so 6", False),  # no answer tag
        ("</think> <answer>6</answer> wait <answer>7</answer>", False),  # the last answer counts
        ("</think> <answer>7</answer> wait <answer>6</answer>", True),
        ("</think> <answer>7</answer> </think> <answer>6</answer>", True),
        ("</think> <answer></answer>", False),
    ],
)
def test_sums(completion: str, correct: bool) -> None:
    assert is_correct(SUMS, "4 + 2 = <think>\n", completion, "6", "{}") is correct


@pytest.mark.parametrize(
    ("answered", "answer", "correct"),
    [
        ("so \\boxed{4}", "4", True),
        ("so \\boxed{\\frac{1}{2}}", "0.5", True),
        ("so \\boxed{0.5}", "\\frac{1}{2}", True),
        ("so \\boxed{x = 4}", "4", True),
        ("so \\boxed{(1, 2)}", "(1,2)", True),
        ("so \\boxed{\\text{Yes}}", "Yes", True),
        ("so \\boxed{5}", "4", False),
        ("so \\boxed{}", "4", False),
        ("so \\boxed{4", "4", False),  # cut off inside the box
        ("so 4", "4", False),  # not LaTeX
        ("so $4$", "4", True),
        ("first \\boxed{3}, no: \\boxed{4}", "4", True),  # the last box counts
        ("first \\boxed{4}, no: \\boxed{3}", "4", False),
        ("", "4", False),
    ],
)
def test_maths(answered: str, answer: str, correct: bool) -> None:
    assert is_correct(MATHS, "<think>", f"so so </think> {answered}", answer, "{}") is correct


def test_exact() -> None:
    assert is_correct(EXACT, "", "<think> x </think>  Paris ", "Paris", "{}")
    assert not is_correct(EXACT, "", "<think> x </think> in Paris", "Paris", "{}")
    assert not is_correct(EXACT, "", "<think> Paris", "Paris", "{}")


def test_verifier_knows_the_options_and_the_metadata() -> None:
    # decimal_arithmetic accepts an error of one unit in the last place that its options name.
    rough = ReasoningGymTask(
        kind="reasoning_gym",
        dataset="decimal_arithmetic",
        options={"min_num_decimal_places": 1, "max_num_decimal_places": 1, "precision": 6},
    )
    fine = ReasoningGymTask(kind="reasoning_gym", dataset="decimal_arithmetic")
    assert reasoning_gym_task.verify(rough, "<answer>2.55</answer>", "2.5", "{}")
    assert not reasoning_gym_task.verify(fine, "<answer>2.55</answer>", "2.5", "{}")
    # bitwise_arithmetic reads the problem from the metadata.
    bits = ReasoningGymTask(kind="reasoning_gym", dataset="bitwise_arithmetic")
    problem = reasoning_gym_task.make_problems(bits, size=1, seed=3)[0]
    answered = f"<answer>{problem['answer']}</answer>"
    assert reasoning_gym_task.verify(bits, answered, problem["answer"], problem["metadata"])
    assert not reasoning_gym_task.verify(bits, "<answer>0x1</answer>", problem["answer"], problem["metadata"])


def test_a_dataset_whose_answers_would_all_be_wrong_is_refused() -> None:
    """Its verifier compares tuples, and JSON has lists."""
    task = ReasoningGymTask(kind="reasoning_gym", dataset="rearc")
    with pytest.raises(InputError, match="verifier of rearc counts the dataset's own answers as wrong"):
        reasoning_gym_task.make_problems(task, size=1, seed=3)


def test_metadata_may_hold_what_json_has_not() -> None:
    """Problem 35 of this seed has a fraction, which its verifier does not read."""
    stories = ReasoningGymTask(kind="reasoning_gym", dataset="gsm_symbolic")
    problem = reasoning_gym_task.make_problems(stories, size=36, seed=7)[35]
    assert re.search(r'"\d+/\d+"', problem["metadata"])
    answered = f"<answer>{problem['answer']}</answer>"
    assert reasoning_gym_task.verify(stories, answered, problem["answer"], problem["metadata"])


def test_answer_that_a_verifier_cannot_read_is_wrong() -> None:
    primes = ReasoningGymTask(kind="reasoning_gym", dataset="prime_factorization")
    problem = reasoning_gym_task.make_problems(primes, size=1, seed=3)[0]
    assert not reasoning_gym_task.verify(primes, "<answer>x</answer>", problem["answer"], problem["metadata"])


@pytest.mark.parametrize("payload", PAYLOADS)
def test_mathematics_never_executes_the_answer(payload, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for answered in (payload, f"\\boxed{{{payload}}}", f"${payload}$", f"$$x = {payload}$$"):
        assert not dataset_task.verify("math", answered, "4")
        dataset_task.verify("math", "\\boxed{4}", answered)
        assert not dataset_task.verify("exact", answered, "4")
    assert not list(tmp_path.iterdir())


def test_no_allowed_reasoning_gym_verifier_executes_the_answer(tmp_path, monkeypatch) -> None:
    import reasoning_gym.factory

    monkeypatch.chdir(tmp_path)
    refused = set()
    for name in reasoning_gym.factory.DATASETS.keys() - UNSAFE_VERIFIERS:
        task = ReasoningGymTask(kind="reasoning_gym", dataset=name)
        try:
            problem = reasoning_gym_task.make_problems(task, size=1, seed=1)[0]
        except InputError:
            refused.add(name)
            continue
        for payload in PAYLOADS[:-1]:
            answered = f"<answer>{payload}</answer>"
            reasoning_gym_task.verify(task, answered, problem["answer"], problem["metadata"])
    assert not list(tmp_path.iterdir())
    assert refused == {"arc_agi", "rearc"}


def test_list_of_unsafe_verifiers_is_complete() -> None:
    """Read from the source, so that a new version of reasoning-gym with another such verifier fails here."""
    import reasoning_gym.factory

    evaluating = {
        name
        for name, (dataset, _) in reasoning_gym.factory.DATASETS.items()
        if re.search(r"\b(eval|exec|parse_expr|sympify)\(", inspect.getsource(dataset.score_answer))
    }
    assert evaluating - {"number_sorting"} == UNSAFE_VERIFIERS - {"composite"}  # the former evaluates its own answer


@pytest.mark.parametrize("name", sorted(UNSAFE_VERIFIERS))
def test_unsafe_verifiers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){name}.*evaluating them as Python.*Choose another"):
        ReasoningGymTask(kind="reasoning_gym", dataset=name)


@pytest.mark.parametrize("options", [{"seed": 1}, {"size": 3}])
def test_options_that_the_stage_sets_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="cannot be given here"):
        ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=options)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("chain_summ", {}, "chain_summ.*not registered"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "max_terms must be >= min_terms"),
        ("chain_sum", {"terms": 5}, "terms"),
    ],
)
def test_reasoning_gym_refusals_are_passed_on(dataset: str, options: dict, message: str) -> None:
    task = ReasoningGymTask(kind="reasoning_gym", dataset=dataset, options=options)
    with pytest.raises(ValueError, match=message):
        reasoning_gym_task.make_problems(task, size=2, seed=0)


def test_reasoning_gym_problems_depend_on_the_seed_alone() -> None:
    first = reasoning_gym_task.make_problems(SUMS, size=5, seed=1)
    assert first == reasoning_gym_task.make_problems(SUMS, size=5, seed=1)
    assert first != reasoning_gym_task.make_problems(SUMS, size=5, seed=100)
    assert json.loads(first[0]["metadata"])["expression"] in first[0]["question"]
