"""docs/benchmarks.md from benchmarks/results/*.json.

python benchmarks/page.py
"""

import json
from pathlib import Path

from realign_pipes.reporting.tables import Cells, markdown_table

PROJECT = Path(__file__).parents[1]
INTRODUCTION = """# Benchmarks

Made from `benchmarks/results/`, to which each script of `make bench` adds what it found (after `make run`); the options
of that run are above its table. A time by itself means nothing on a shared machine: every ratio is the median, over
repetitions, of two variants' times in the same repetition, the variants run in turn.
Peak memory is what a variant needed above what was held before it (resident, or of the GPU). Each script in
`benchmarks/` says at its head what it compares.
"""


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def section(found: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    given = " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in found["arguments"].items()
    )
    lines = [f"### {found['title']}", "", f"`{given}`; {found['threads']} threads; {versions}.", ""]
    figures = [
        [
            row["case"],
            row["figure"],
            number(row["value"]),
            "" if row["met"] is None else f"{'≤' if row['comparison'] == '<=' else '≥'} {row['target']:.3g}",
            {None: "", True: "yes", False: "**no**"}[row["met"]],
        ]
        for row in found["figures"]
    ]
    lines.append(markdown_table(Cells(["case", "figure", "value", "target", "met"], figures, left=2), None))
    if found["timings"]:
        timings = [
            [row["case"], row["variant"], *(number(row[name]) for name in ("median_s", "min_s", "max_s", "peak_mib"))]
            for row in found["timings"]
        ]
        header = ["case", "variant", "median s", "min s", "max s", "peak MiB"]
        lines.append(markdown_table(Cells(header, timings, left=2), None))
    return lines


if __name__ == "__main__":
    lines = [INTRODUCTION]
    for file in sorted((PROJECT / "benchmarks" / "results").glob("*.json")):
        lines += [f"## {file.stem}", ""]
        for found in json.loads(file.read_text()).values():
            lines += section(found)
    (PROJECT / "docs" / "benchmarks.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
