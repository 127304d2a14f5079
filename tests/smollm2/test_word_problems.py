"""The word problems' answers, computed a second time from their text; traces that say what they should; splits."""

import random
import re
from collections import Counter
from itertools import islice

import pytest

from realign_pipes.smollm2.parameters import SlowTraces
from realign_pipes.smollm2.word_problems import TEMPLATES, draw_problems, slow_trace
from realign_pipes.tasks.splits import SPLITS, split_of

TRACES = SlowTraces(checks=[10, 25, 25, 25, 15], slip_rate=0.2, cut_share=0.0)
BY_HAND = {
    "boxes": (r"has (\d+) red boxes and (\d+) blue boxes. There are (\d+)", lambda a, b, c: a * c + b * c),
    "days": (r"has (\d+) coins and earns (\d+) coins a day for (\d+) days", lambda c, a, b: c + a * b),
    "harvest": (r"picks (\d+) \w+ in the morning, (\d+) at noon and (\d+)", lambda a, b, c: sum((a, b, c))),
    "price": (r"buys (\d+) \w+, and \w+ buys (\d+) more than .* costs (\d+)", lambda a, b, c: (a + b) * c),
}


def problems(split="training", size=400, seed=1):
    return list(islice(draw_problems(split, seed), size))


def equations(text):
    """Each equation of a text, and whether it is right."""
    found = re.findall(r"(\d+) ([+*]) (\d+) = (\d+)", text)
    values = {"+": lambda a, b: a + b, "*": lambda a, b: a * b}
    return [values[sign](int(a), int(b)) == int(c) for a, sign, b, c in found]


def test_answers_are_what_the_text_asks_for():
    for problem in problems():
        pattern, solve = BY_HAND[problem.template]
        numbers = map(int, re.search(pattern, problem.question).groups())
        assert problem.answer == solve(*numbers) > 0
        assert len(re.findall(r"\d+", problem.question)) == 3


def test_templates_take_turns_and_problems_are_distinct():
    drawn = problems(size=600)
    assert Counter(problem.template for problem in drawn) == dict.fromkeys(TEMPLATES, 150)
    assert len({problem.question for problem in drawn}) == 600


def test_the_same_seed_draws_the_same_problems_and_another_one_others():
    assert problems(size=8) == problems(size=8) != problems(size=8, seed=2)


def test_no_two_splits_share_numbers_and_each_has_its_share():
    """Whatever the seed: numbers belong to a split."""
    totals = Counter()
    for name, template in TEMPLATES.items():
        split_by_numbers = {
            (a, b, c): split_of(name, a, b, c) for a in template.a for b in template.b for c in template.c
        }
        totals += (counts := Counter(split_by_numbers.values()))
        assert min(counts[split] for split in SPLITS) >= 10, name
    for split, sixteenths in SPLITS.items():
        share = totals[split] / sum(totals[one] for one in SPLITS)
        assert share == pytest.approx(len(sixteenths) / 16, abs=0.05), split  # three standard deviations of 496 draws
    assert sorted(number for sixteenths in SPLITS.values() for number in sixteenths) == list(range(16))
    drawn = {split: {(p.template, p.a, p.b, p.c) for p in problems(split)} for split in SPLITS}
    for split, numbers in drawn.items():
        assert {split_of(*one) for one in numbers} == {split}


def test_a_trace_without_slips_is_right_in_every_equation_and_checks_as_often_as_drawn():
    rng = random.Random(0)
    flawless = TRACES.model_copy(update={"slip_rate": 0.0})
    checks = Counter()
    drawn = problems(size=2000)
    for problem in drawn:
        trace = slow_trace(problem, flawless, rng)
        thinking, solution = trace.split("</think>\n")
        assert all(equations(trace))
        assert len(equations(solution)) == 2
        assert solution.endswith(rf"\boxed{{{problem.answer}}}")
        verdicts = re.findall(r"(Yes|No)", thinking)
        assert set(verdicts) <= {"Yes"}
        assert len(equations(thinking)) == 2 + 2 * len(verdicts)
        checks[len(verdicts)] += 1
    for number, weight in enumerate(TRACES.checks):
        assert checks[number] / len(drawn) == pytest.approx(weight / 100, abs=0.03)


def test_a_slip_is_in_the_first_pass_and_a_check_finds_it_and_is_itself_checked():
    rng = random.Random(0)
    always = TRACES.model_copy(update={"slip_rate": 0.999999})
    for problem in problems(size=400):
        thinking, solution = slow_trace(problem, always, rng).split("</think>\n")
        verdicts = re.findall(r"(Yes|No)", thinking)
        first_pass, *checks = re.split(r" Wait| Hmm| Let me", thinking)
        assert equations(first_pass).count(False) == 1
        assert all(all(equations(check)) for check in checks)
        if not verdicts:  # nobody looked
            assert rf"\boxed{{{problem.answer}}}" not in solution
        else:
            assert verdicts[0] == "No" and set(verdicts[1:]) == {"Yes"}
            assert f"No, it is {problem.answer}." in thinking
            assert solution.endswith(rf"\boxed{{{problem.answer}}}")


def test_the_share_of_slips_is_the_one_asked_for():
    rng = random.Random(0)
    slipped = [not all(equations(slow_trace(problem, TRACES, rng))) for problem in problems(size=2000)]
    assert sum(slipped) / 2000 == pytest.approx(0.2, abs=0.03)
