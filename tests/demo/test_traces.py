import random
import re

import pytest

from realign_pipes.demo.parameters import DemoTraces
from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.demo.traces import slow_trace
from realign_pipes.tasks.grading import is_correct
from realign_pipes.tasks.parameters import ReasoningGymTask
from realign_pipes.tasks.reasoning_gym_task import make_problems

OPTIONS = {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}
TASK = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=OPTIONS)
STEP = re.compile(r"(?P<check> check)? (?P<a>-?\d+) (?P<sign>[+-]) (?P<b>\d+) = (?P<c>-?\d+)(?P<verdict> yes| no)?")
DEFAULT = DemoTraces(max_rechecks=3, slip_rate=0.08, cut_share=0)


def expression_of(question: str) -> str:
    return question.partition(": ")[2].removesuffix(" =")


@pytest.mark.parametrize("seed", range(20))
def test_every_step_and_recheck_is_consistent(seed: int) -> None:
    """Reads the trace back with its own arithmetic: a wrong total is always a step's, found at once and redone."""
    problem = make_problems(TASK, 1, seed=seed)[0]
    trace = slow_trace(
        expression_of(problem["question"]), DemoTraces(max_rechecks=3, slip_rate=0.5, cut_share=0), random.Random(seed)
    )
    thinking, _, solution = trace.partition("</think>")
    steps = list(STEP.finditer(thinking))
    assert "".join(step.group() for step in steps) == thinking
    total = int(steps[0]["a"])
    slipped: tuple[str, str] | None = None
    for position, step in enumerate(steps):
        a, b, c = int(step["a"]), int(step["b"]), int(step["c"])
        right = a + b if step["sign"] == "+" else a - b
        if step["check"]:
            before = steps[position - 1]
            assert step.group("a", "sign", "b") == before.group("a", "sign", "b")
            assert c == right
            assert step["verdict"] == (" no" if slipped else " yes")
        else:
            assert step["verdict"] is None
            assert a == total
            if c != right:
                slipped = (step["a"], step["b"])
                assert steps[position + 1]["verdict"] == " no"
            else:
                assert slipped in (None, (step["a"], step["b"]))
                slipped, total = None, c
    assert slipped is None
    assert str(total) == problem["answer"]
    assert "check" not in solution
    assert solution.endswith(f"<answer> {problem['answer']}</answer>")


def test_a_known_trace() -> None:
    trace = slow_trace("4 - 5 + 9", DemoTraces(max_rechecks=0, slip_rate=0.0, cut_share=0), random.Random(0))
    assert trace == " 4 - 5 = -1 -1 + 9 = 8</think> 4 - 5 = -1 + 9 = 8<answer> 8</answer>"


def test_same_seed_same_trace() -> None:
    first, second, other = (slow_trace("4 - 5 + 9", DEFAULT, random.Random(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_rates_of_slips_and_rechecks() -> None:
    """4,000 steps: 8 % slip; a step without a slip is checked 1.5 times on average, and at most three times."""
    draws = random.Random(0)
    traces = [slow_trace("1 + 2", DEFAULT, draws).partition("</think>")[0] for _ in range(4000)]
    slips = [" no" in trace for trace in traces]
    checks = [trace.count(" check") for trace, slip in zip(traces, slips, strict=True) if not slip]
    assert 0.065 < sum(slips) / len(slips) < 0.095
    assert set(checks) == {0, 1, 2, 3}
    assert 1.43 < sum(checks) / len(checks) < 1.57


def test_the_grader_accepts_decoded_traces() -> None:
    tokenizer = build_tokenizer(60)
    draws = random.Random(0)
    for problem in make_problems(TASK, 30, seed=5):
        ids = tokenizer(slow_trace(expression_of(problem["question"]), DEFAULT, draws))["input_ids"]
        text = tokenizer.decode(ids)
        assert is_correct(TASK, "<think>", text, problem["answer"], problem["metadata"])
        assert not is_correct(TASK, "<think>", text, str(int(problem["answer"]) + 1), problem["metadata"])
        assert not is_correct(TASK, "<think>", text.partition("</think>")[0], problem["answer"], problem["metadata"])
