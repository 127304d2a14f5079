"""One kind of progress bar for everything that takes long."""

import os
import sys
import time
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
    """A bar of `total` steps on standard error; the block calls the yielded function as steps are done.

    If standard error is not a terminal, it is a line at the start and at each quarter instead. Of several processes
    (`accelerate launch` sets RANK), only the first shows anything.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield lambda steps=1: None
        return
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        done, start = 0, time.monotonic()
        print(f"{description}: {total} to do", file=sys.stderr, flush=True)

        def say(steps: int = 1) -> None:
            nonlocal done
            before, done = done, done + steps
            if 4 * done // total > 4 * before // total:
                seconds = time.monotonic() - start
                print(f"{description}: {done}/{total} after {seconds:.0f} s", file=sys.stderr, flush=True)

        yield say
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(description, total=total)

        def advance(steps: int = 1) -> None:
            progress.advance(bar, steps)

        yield advance
