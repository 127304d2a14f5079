"""One kind of progress bar for everything that takes long."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Called with the number of steps done since the last call."""

    def __call__(self, steps: int = 1) -> None: ...


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """A bar of `total` steps on standard error; the block calls what it is given as steps are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar = progress.add_task(description, total=total)

        def advance(steps: int = 1) -> None:
            progress.advance(bar, steps)

        yield advance
