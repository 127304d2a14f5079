"""Slow traces of sums: every step re-checked up to three times, then a short worked solution and the answer.

4 + 3 = 7 check 4 + 3 = 7 yes 7 - 9 = -1 check 7 - 9 = -2 no 7 - 9 = -2</think> 4 + 3 = 7 - 9 = -2<answer> ...
"""

import random

from realign_pipes.demo.parameters import DemoTraces
from realign_pipes.demo.tokenizer import ANSWER_CLOSE, ANSWER_OPEN, CHECK, RIGHT, THINK_CLOSE, WRONG

SLIPS = (-10, -2, -1, 1, 2, 10)
"""How far off a step can be when it slips."""


def slow_trace(expression: str, traces: DemoTraces, rng: random.Random) -> str:
    """A completion for a chain_sum `expression` such as "4 + 3 - 9": what follows `<think>`, up to the end of the turn.

    A step is "total sign term = total". Zero to `max_rechecks` re-checks follow it, each the same sum again and
    "yes". A step slips with probability `slip_rate`: then a re-check gets the right total, says "no", and the step is
    redone. The solution after the thinking has every step once.
    """
    first, *rest = expression.split()
    total = int(first)
    thinking = ""
    solution = f" {first}"
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        right = total + int(term) if sign == "+" else total - int(term)
        step = f" {total} {sign} {term} ="
        rechecks = rng.randint(0, traces.max_rechecks)
        if rng.random() < traces.slip_rate:
            thinking += f"{step} {right + rng.choice(SLIPS)}{CHECK}{step} {right}{WRONG}"
            rechecks -= 1
        thinking += f"{step} {right}" + f"{CHECK}{step} {right}{RIGHT}" * rechecks
        solution += f" {sign} {term} = {right}"
        total = right
    return f"{thinking}{THINK_CLOSE}{solution}{ANSWER_OPEN} {total}{ANSWER_CLOSE}"
