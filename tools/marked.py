"""Tables between markers in a page: `<!-- KIND:NAME -->` and `<!-- /KIND -->`."""

import re
from collections.abc import Callable, Mapping


def marker(kind: str) -> re.Pattern[str]:
    """What is between the markers of a kind; its groups are the first marker, NAME, and the second."""
    return re.compile(rf"(<!-- {kind}:([\w-]+) -->\n).*?(<!-- /{kind} -->)", re.DOTALL)


def fill_marked(text: str, marked: re.Pattern[str], tables: Mapping[str, Callable[..., str]], *results: object) -> str:
    """`text` with every table between markers made anew from `results`. KeyError for one that is not in `tables`."""
    return marked.sub(lambda found: found[1] + tables[found[2]](*results) + found[3], text)
