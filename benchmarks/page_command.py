"""The command of a benchmark whose result is a page of the docs."""

import argparse
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def write_page(doc: str, name: str, make: Callable[[str, int | None], str]) -> None:
    """`make(environment, problems)`: docs/`name` when it is of base and of all problems, else printed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="base", help="environment of conf/ (default: base)")
    parser.add_argument("--problems", type=int, help="of each task (default: all)")
    given = parser.parse_args()
    page = make(given.env, given.problems)
    if given.env == "base" and given.problems is None:
        (PROJECT / "docs" / name).write_text(page, encoding="utf-8")
    else:
        print(page)
