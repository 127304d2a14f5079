"""Word problems of two steps, in four templates, and slow traces of their solutions.

There are 2 + 3 = 5 boxes. With 4 pens in each, that makes 5 * 4 = 20 pens. Wait, check: 2 + 3 = 5, 5 * 4 = 20. Yes,
20.</think>
2 + 3 = 5, 5 * 4 = 20. \\boxed{20}

Which numbers a template may get in a split is decided by a hash, so no two splits share a problem, whatever their
seeds: what is evaluated are numbers that the models have never seen in that template.
"""

import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from realign_pipes.smollm2.parameters import SlowTraces
from realign_pipes.tasks.completion import THINK
from realign_pipes.tasks.splits import Split, draw_distinct, split_of

NAMES = ("Mia", "Tom", "Anna", "Ben", "Sara", "Leo", "Emma", "Max", "Lily", "Sam", "Nina", "Paul", "Julia", "Adam")
THINGS = ("pens", "books", "stamps", "cards", "balls", "candles", "shells", "stickers", "cups", "toys")
FRUITS = ("apples", "plums", "pears", "cherries", "lemons", "peaches")
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "*": operator.mul}
OPENERS = (" Wait, check:", " Hmm, again:", " Let me see:")
"""Of a re-check, each as likely as the others."""
SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much a mistake misses."""


@dataclass(frozen=True)
class Template:
    """A kind of problem. Its first step is `a first b`, its second one that result `second c`."""

    question: str
    thought: str
    """The first pass, with the results `x` and `y` of the two steps."""
    first: str
    second: str
    a: range
    b: range
    c: range


TEMPLATES: Mapping[str, Template] = {
    "boxes": Template(
        "{name} has {a} red boxes and {b} blue boxes. There are {c} {things} in each box. "
        "How many {things} does {name} have?",
        "There are {a} + {b} = {x} boxes. With {c} {things} in each, that makes {x} * {c} = {y} {things}.",
        "+", "*", range(2, 6), range(2, 6), range(2, 7),
    ),
    "days": Template(
        "{name} has {c} coins and earns {a} coins a day for {b} days. How many coins does {name} have then?",
        "In {b} days {name} earns {a} * {b} = {x} coins. With the first {c} that makes {x} + {c} = {y} coins.",
        "*", "+", range(2, 7), range(2, 7), range(10, 50, 10),
    ),
    "harvest": Template(
        "{name} picks {a} {fruits} in the morning, {b} at noon and {c} in the evening. "
        "How many {fruits} does {name} pick?",
        "By noon there are {a} + {b} = {x} {fruits}. With the evening's, there are {x} + {c} = {y} {fruits}.",
        "+", "+", range(2, 8), range(2, 8), range(2, 8),
    ),
    "price": Template(
        "{friend} buys {a} {things}, and {name} buys {b} more than {friend}. Each costs {c} dollars. "
        "How many dollars does {name} pay?",
        "{name} buys {a} + {b} = {x} {things}. They cost {x} * {c} = {y} dollars.",
        "+", "*", range(2, 6), range(2, 6), range(2, 7),
    ),
}  # fmt: skip
"""Their arithmetic is what SmolLM2 mostly knows (with spaces around the signs): products up to 6 * 6, sums of single
digits. It subtracts badly."""


@dataclass(frozen=True)
class WordProblem:
    """A problem, and what it takes to write its solution."""

    template: str
    a: int
    b: int
    c: int
    words: Mapping[str, str]
    """Names and things."""

    @property
    def question(self) -> str:
        return TEMPLATES[self.template].question.format(a=self.a, b=self.b, c=self.c, **self.words)

    @property
    def answer(self) -> int:
        return self.second(self.first())

    def first(self) -> int:
        """The result of the first step."""
        return OPERATIONS[TEMPLATES[self.template].first](self.a, self.b)

    def second(self, x: int) -> int:
        """The result of the second step, if the first one's was `x`."""
        return OPERATIONS[TEMPLATES[self.template].second](x, self.c)

    def thought(self, x: int, y: int) -> str:
        """The first pass, in whole sentences."""
        return TEMPLATES[self.template].thought.format(a=self.a, b=self.b, c=self.c, x=x, y=y, **self.words)

    def steps(self, x: int, y: int) -> tuple[str, str]:
        """Both steps as equations."""
        template = TEMPLATES[self.template]
        return f"{self.a} {template.first} {self.b} = {x}", f"{x} {template.second} {self.c} = {y}"


def draw_problems(split: Split, seed: int) -> Iterator[WordProblem]:
    """Distinct problems of a split, one template after the other. InputError where no further one is found."""
    draws = random.Random(f"{split}/{seed}")

    def of_split(name: str) -> WordProblem | None:
        template = TEMPLATES[name]
        a, b, c = (draws.choice(candidates) for candidates in (template.a, template.b, template.c))
        return WordProblem(name, a, b, c, _words(draws)) if split_of(name, a, b, c) == split else None

    named = f"problems of the split {split}"
    return draw_distinct(tuple(TEMPLATES), of_split, lambda problem: problem.question, "smollm2_models", named)


def slow_trace(problem: WordProblem, traces: SlowTraces, rng: random.Random) -> str:
    """A completion: what follows `<think>` and a line break, up to the end of the turn.

    The first pass makes a mistake in one of its steps with probability `slip_rate`. Then the trace goes over its steps
    as often as `checks` lets it draw, without mistakes. Each re-check says "yes" if a pass before it had the same
    result, else "no", and after a "no" comes another one. The solution repeats the last pass.
    """
    (checks,) = rng.choices(range(len(traces.checks)), traces.checks)
    x, y = problem.first(), problem.answer
    if rng.random() < traces.slip_rate:
        x, y = _slipped(problem, rng)
    thinking, found, sure = problem.thought(x, y), {y}, True
    while checks > 0 or not sure:
        x, y = problem.first(), problem.answer
        sure = y in found
        found.add(y)
        first, second = problem.steps(x, y)
        thinking += f"{rng.choice(OPENERS)} {first}, {second}. {f'Yes, {y}.' if sure else f'No, it is {y}.'}"
        checks -= 1
    first, second = problem.steps(x, y)
    return f"{thinking}{THINK.close}\n{first}, {second}. \\boxed{{{y}}}"


def _slipped(problem: WordProblem, rng: random.Random) -> tuple[int, int]:
    """Results of the two steps, one of which is wrong."""
    x, y = problem.first(), problem.answer
    miss = rng.choice(SLIPS)
    if rng.random() < 0.5 and x + miss > 0:
        return x + miss, problem.second(x + miss)
    return x, y + miss if y + miss > 0 else y + 10


def _words(draws: random.Random) -> dict[str, str]:
    name, friend = draws.sample(NAMES, 2)
    return {"name": name, "friend": friend, "things": draws.choice(THINGS), "fruits": draws.choice(FRUITS)}
