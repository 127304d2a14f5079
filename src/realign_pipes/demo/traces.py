"""Slow traces of sums: the sum is worked out, and then perhaps gone through again, once or several times.

4 + 3 = 7 - 9 = 16 check 4 + 3 = 7 - 9 = -2 no check 4 + 3 = 7 - 9 = -2 yes</think><answer> -2</answer>
"""

import random

from realign_pipes.demo.parameters import DemoTraces
from realign_pipes.demo.tokenizer import ANSWER_CLOSE, ANSWER_OPEN, CHECK, RIGHT, THINK_CLOSE, WRONG


def slow_trace(expression: str, traces: DemoTraces, rng: random.Random) -> str:
    """A completion for a chain_sum `expression` such as "4 + 3 - 9": what follows `<think>`, up to the end of the turn.

    The first pass is hasty: after its first step it takes each minus for a plus with probability `slip_rate`, so sums
    of two terms have no slips. With probability `check_share`, one to `max_checks` more passes check it, without slips.
    Each says "yes" if an earlier pass found the same total, else "no", and after a "no" comes another pass. The answer
    is what the last pass found. It stands alone: a model that has not thought has to find it in its head.
    """
    first, *rest = expression.split()
    checks = rng.randint(1, traces.max_checks) if rng.random() < traces.check_share else 0
    thinking, totals = "", list[int]()
    while len(totals) <= checks or thinking.endswith(WRONG):
        thinking += f"{CHECK} {first}" if totals else f" {first}"
        total = int(first)
        for step, (sign, term) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
            slips = not totals and step > 0 and sign == "-" and rng.random() < traces.slip_rate
            total += int(term) if sign == "+" or slips else -_taken_away(int(term), total)
            thinking += f" {sign} {term} = {total}"
        if totals:
            thinking += RIGHT if total in totals else WRONG
        totals.append(total)
    return f"{thinking}{THINK_CLOSE}{ANSWER_OPEN} {total}{ANSWER_CLOSE}"


def _taken_away(term: int, total: int) -> int:
    """What the slow thinker believes it takes away from a total: at most 7, where there is nothing left to take.

    It believes so in every pass, so no check finds these mistakes: there is no ceiling to reach by thinking more.
    """
    return min(term, 7) if total <= 0 else term
