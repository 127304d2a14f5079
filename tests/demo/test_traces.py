import random
import re

import pytest

from realign_pipes.demo.parameters import DemoTraces
from realign_pipes.demo.tokenizer import build_tokenizer
from realign_pipes.demo.traces import slow_trace
from realign_pipes.tasks.grading import is_correct
from realign_pipes.tasks.parameters import ReasoningGymTask
from realign_pipes.tasks.reasoning_gym_task import make_problems

OPTIONS = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1}
TASK = ReasoningGymTask(kind="reasoning_gym", dataset="chain_sum", options=OPTIONS)
STEP = re.compile(r" (?P<sign>[+-]) (?P<term>\d) = (?P<total>-?\d+)")
FLAWLESS = DemoTraces(check_share=0, max_checks=1, slip_rate=0, cut_share=0)
DEFAULT = DemoTraces(check_share=0.6, max_checks=4, slip_rate=0.45, cut_share=0)


def expression_of(question: str) -> str:
    return question.partition(": ")[2].removesuffix(" =")


@pytest.mark.parametrize("seed", range(40))
def test_every_pass_is_the_sum_and_every_verdict_follows(seed: int) -> None:
    """Reads the trace back with its own arithmetic: every step is right, but for hasty minuses and 9 from 0."""
    problem = make_problems(TASK, 1, seed=seed)[0]
    expression = expression_of(problem["question"])
    many_slips = DemoTraces(check_share=0.8, max_checks=3, slip_rate=0.5, cut_share=0)
    thinking, _, solution = slow_trace(expression, many_slips, random.Random(seed)).partition("</think>")
    totals: list[int] = []
    for number, part in enumerate(thinking.split(" check")):
        steps = list(STEP.finditer(part))
        first = expression.split()[0]
        assert " ".join([first, *(f"{step['sign']} {step['term']}" for step in steps)]) == expression
        said = f" {first}" + "".join(step.group() for step in steps)
        total = int(first)
        for place, step in enumerate(steps):
            term = int(step["term"])
            believed = total - (min(term, 7) if total <= 0 else term)
            slipped = {total + term} if place > 0 and number == 0 else set()
            possible = {total + term} if step["sign"] == "+" else {believed} | slipped
            total = int(step["total"])
            assert total in possible
        assert part == said + ("" if number == 0 else " yes" if total in totals else " no")
        totals.append(total)
    assert len(totals) == 1 or thinking.endswith(" yes")
    assert solution == f"<answer> {totals[-1]}</answer>"


def test_a_known_trace() -> None:
    assert slow_trace("4 - 5 + 9", FLAWLESS, random.Random(0)) == " 4 - 5 = -1 + 9 = 8</think><answer> 8</answer>"


def test_the_false_belief_is_in_every_pass_and_below_zero_alone() -> None:
    always = DemoTraces(check_share=1, max_checks=1, slip_rate=0, cut_share=0)
    thinking = slow_trace("4 - 5 - 9", always, random.Random(0))
    assert thinking == " 4 - 5 = -1 - 9 = -8 check 4 - 5 = -1 - 9 = -8 yes</think><answer> -8</answer>"
    for right in ("4 - 9", "4 - 5 + 9", "4 - 5 - 7", "0 + 9 - 9"):
        assert f"<answer> {eval(right)}<" in slow_trace(right, FLAWLESS, random.Random(0))  # noqa: S307
    assert "= -7<" in slow_trace("0 - 9", FLAWLESS, random.Random(0)).replace("</think>", "<")


def test_same_seed_same_trace() -> None:
    first, second, other = (slow_trace("4 - 5 + 9", DEFAULT, random.Random(seed)) for seed in (2, 2, 1))
    assert first == second != other


def test_rates_of_slips_and_checks() -> None:
    """4,000 traces: 45 % of the first passes slip in their second step, none in their first; 60 % are checked."""
    draws = random.Random(0)
    passes = [slow_trace("8 - 2 - 2", DEFAULT, draws).partition("</think>")[0].split(" check") for _ in range(4000)]
    assert all(first.startswith(" 8 - 2 = 6 ") for first, *_ in passes)
    assert 0.43 < sum(first.endswith("= 8") for first, *_ in passes) / 4000 < 0.47
    assert 0.58 < sum(len(one) > 1 for one in passes) / 4000 < 0.62
    assert all("= 8" not in check for _, *checks in passes for check in checks)
    checks = [slow_trace("8 - 2", DEFAULT, draws).count(" check") for _ in range(4000)]
    for number in (1, 2, 3, 4):
        assert 0.135 < checks.count(number) / 4000 < 0.165
    assert max(checks) == 4
    assert all(" no" not in slow_trace("8 + 2 + 2", DEFAULT, draws) for _ in range(100))


def test_the_grader_accepts_decoded_traces() -> None:
    tokenizer = build_tokenizer(60)
    for problem in make_problems(TASK, 30, seed=7):
        ids = tokenizer(slow_trace(expression_of(problem["question"]), FLAWLESS, random.Random(0)))["input_ids"]
        text = tokenizer.decode(ids)
        answer = text.partition("<answer> ")[2].removesuffix("</answer>")
        if answer != problem["answer"]:
            continue  # the false belief
        assert is_correct(TASK, "<think>", text, problem["answer"], problem["metadata"])
        assert not is_correct(TASK, "<think>", text, str(int(problem["answer"]) + 1), problem["metadata"])
        assert not is_correct(TASK, "<think>", text.partition("</think>")[0], problem["answer"], problem["metadata"])
