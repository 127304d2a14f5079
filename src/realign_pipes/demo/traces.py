"""Slow traces of sums: the sum is worked out, and then perhaps gone through again, once or several times.

4 + 3 = 7 - 9 = 16 check 4 + 3 = 7 - 9 = -2 no check 4 + 3 = 7 - 9 = -2 yes</think><answer> -2</answer>
"""

import random

from realign_pipes.demo.parameters import DemoTraces
from realign_pipes.demo.tokenizer import ANSWER_CLOSE, ANSWER_OPEN, CHECK, RIGHT, THINK_CLOSE, WRONG


def slow_trace(expression: str, traces: DemoTraces, rng: random.Random) -> str:
    """A completion for a chain_sum `expression` such as "4 + 3 - 9": what follows `<think>`, up to the end of the turn.

    A pass works the sum out step by step, and takes each minus for a plus with probability `slip_rate`. With
    probability `check_share`, one to `max_checks` more passes check the first. Each says "yes" if an earlier pass found
    the same total, else "no"; after a "no" comes another pass, however many there were. The answer is what the last
    pass found: a total found twice, or the first pass's if nothing was checked. It stands alone: a model that has not
    thought has to find it in its head.
    """
    first, *rest = expression.split()
    thinking, found, total = "", set[int](), 0
    checks = rng.randint(1, traces.max_checks) if rng.random() < traces.check_share else 0
    passes, agreed = 0, True
    while passes <= checks or not agreed:
        thinking += f"{CHECK} {first}" if passes else f" {first}"
        total = int(first)
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            slips = sign == "-" and rng.random() < traces.slip_rate
            total += int(term) if sign == "+" or slips else -int(term)
            thinking += f" {sign} {term} = {total}"
        agreed = not passes or total in found
        if passes:
            thinking += RIGHT if agreed else WRONG
        found.add(total)
        passes += 1
    return f"{thinking}{THINK_CLOSE}{ANSWER_OPEN} {total}{ANSWER_CLOSE}"
