"""What the benchmarks share: interleaved repetitions, peak memory, tables with targets, and the file of results.

A time by itself means nothing on a shared machine. So variants are run in turn, repetition after repetition, and what
counts is the median over repetitions of the ratio of two variants' times in the same repetition.
"""

import argparse
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import realign_pipes.settings  # noqa: F401  # how OpenMP's threads wait, which has to be set before torch is imported

# isort: split
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "kedro", "dvc")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """The name of this machine's file of results."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name().lower().replace(" ", "-")
    return f"cpu-{os.cpu_count()}-cores"


def arguments(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line of a benchmark: one flag for each of `defaults`; those with a list take several values."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        several = isinstance(default, list)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default[0] if several else default),
            nargs="+" if several else None,
            default=default,
            help=f"default: {' '.join(map(str, default)) if several else default}",
        )
    return parser.parse_args()


class Times(dict[str, list[float]]):
    """Seconds of each variant, one number for each repetition."""

    def ratio(self, variant: str, baseline: str) -> float:
        """Median over repetitions of variant / baseline, both measured in the same repetition."""
        return statistics.median(a / b for a, b in zip(self[variant], self[baseline], strict=True))


class Results:
    """The timings and figures of one benchmark: printed as tables and kept in `results/<machine>.json`."""

    def __init__(self, benchmark: str, title: str, arguments: argparse.Namespace) -> None:
        self.benchmark, self.title, self.arguments = benchmark, title, vars(arguments)
        self.timings: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []
        self.console = Console(width=140)

    def time(
        self, case: str, variants: Mapping[str, Callable[[], Any]], repetitions: int, warm_up: bool = True
    ) -> Times:
        """Run the variants in turn, `repetitions` times after one round to warm up, in which memory is measured."""
        times = Times({name: [] for name in variants})
        peaks: dict[str, float] = {}
        for repetition in range(repetitions + warm_up):
            for name, call in variants.items():
                first = repetition == 0
                if first:
                    with PeakMemory() as memory:
                        seconds = timed(call)
                    peaks[name] = memory.mib
                else:
                    seconds = timed(call)
                if not first or not warm_up:
                    times[name].append(seconds)
                self.console.print(
                    f"{case} · {name} · {'warm-up' if first and warm_up else 'measured'}: {seconds:.3f} s"
                )
        for name, seconds in times.items():
            self.timings.append(
                {
                    "case": case,
                    "variant": name,
                    "median_s": statistics.median(seconds),
                    "min_s": min(seconds),
                    "max_s": max(seconds),
                    "repetitions": repetitions,
                    "peak_mib": peaks[name],
                }
            )
        return times

    def figure(
        self,
        case: str,
        what: str,
        value: float,
        comparison: Literal["<=", ">="] | None = None,
        target: float | None = None,
    ) -> None:
        """A ratio or another figure, with the target that it should keep if there is one."""
        met = None
        if comparison is not None and target is not None:
            met = value <= target if comparison == "<=" else value >= target
        self.figures.append(
            {"case": case, "figure": what, "value": value, "comparison": comparison, "target": target, "met": met}
        )

    def save(self) -> None:
        """Print the tables, and put them into this machine's file in place of this benchmark's earlier ones."""
        timings = Table(title=f"{self.title}: times")
        for column in ("case", "variant", "median s", "min s", "max s", "peak MiB"):
            timings.add_column(column, justify="left" if column in ("case", "variant") else "right", overflow="fold")
        for row in self.timings:
            seconds = [f"{row[name]:.4g}" for name in ("median_s", "min_s", "max_s")]
            timings.add_row(row["case"], row["variant"], *seconds, f"{row['peak_mib']:.0f}")
        figures = Table(title=f"{self.title}: figures")
        for column in ("case", "figure", "value", "target", "met"):
            figures.add_column(column, justify="left" if column in ("case", "figure") else "right", overflow="fold")
        for row in self.figures:
            target = "" if row["met"] is None else f"{row['comparison']} {row['target']:.4g}"
            met = {None: "", True: "yes", False: "NO"}[row["met"]]
            figures.add_row(row["case"], row["figure"], f"{row['value']:.4g}", target, met)
        if self.timings:
            self.console.print(timings)
        self.console.print(figures)
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{machine()}.json"
        everything = json.loads(file.read_text()) if file.exists() else {}
        everything[self.benchmark] = {
            "title": self.title,
            "arguments": self.arguments,
            "versions": {name: version(name) for name in PACKAGES},
            "threads": torch.get_num_threads(),
            "timings": self.timings,
            "figures": self.figures,
        }
        file.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")


def timed(call: Callable[[], Any]) -> float:
    """Seconds that `call` takes, what it put on the GPU included."""
    start = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class PeakMemory:
    """MiB that a block needs above what was held before it: of the GPU where there is one, else resident (Linux)."""

    mib: float

    def __enter__(self) -> "PeakMemory":
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not held
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.type == "cuda" else _status("VmHWM")
        self.mib = peak - self.before


def _status(name: str) -> float:
    """A size of this process in MiB, from the kernel."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
