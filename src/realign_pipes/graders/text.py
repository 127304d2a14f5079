"""The length of an answer in words, and how little a completion repeats itself."""

import re

WORD = re.compile(r"\w+(?:['’]\w+)*")
"""A run of letters and digits, with apostrophes inside."""


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def distinct(text: str, n: int) -> float:
    """Distinct-n of one text (https://arxiv.org/abs/1510.03055): different n-grams of words over all of them.

    In [0, 1]; 1 for a text too short to have any, as it repeats nothing.
    """
    words = words_of(text)
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0
