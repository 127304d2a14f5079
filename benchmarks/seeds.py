"""The default run again with other seeds: whether the demo's claims are those of one lucky seed.

    python benchmarks/seeds.py --seeds 2 3

Seed 1 is the default run. For seed s, every seed of the demo's problems, trainings and samples is moved by s - 1, and
the whole pipeline runs in data/seeds/<s>. A finished or interrupted run is resumed. docs/seeds.md gets the sweep's main
rows and what `make claims` says of each seed whose run is finished.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from realign_pipes.reporting.tables import Cells, alpha_text, interval_text, markdown_table, reduction_text, tokens_text

PROJECT = Path(__file__).parents[1]
ROWS = ["reference", "aligned", "dera--1", "dera-3", "dera-10", "merge-1.5", "trra-1.5", "trra-3", "trra-5",
        "inra--0.5", "inra--0.25", "inra-0.5", "inra-1"]  # fmt: skip
PROBLEMS_APART = 1_000_003
"""reasoning-gym's problem i of seed s is problem 0 of seed s + i, so seeds of problems move by more than any size."""
PAGE = PROJECT / "docs" / "seeds.md"
INTRODUCTION = """# Other seeds

What the [demo](explanation/demo.md) shows, on more than one seed: of its problems, its trainings and its samples.
Seed 1 is the default run. Made by `python benchmarks/seeds.py --seeds 2 3` after `make run`; each claim is what
`make claims` checks.
"""


def moved(values: Any, by: int) -> Any:
    """The seeds in a mapping of parameters moved by `by`, in mappings of the same shape; None if there is none."""
    if not isinstance(values, dict):
        return None
    found = {}
    for name, value in values.items():
        if name == "problem_seed":
            found[name] = value + by * PROBLEMS_APART
        elif name == "seed":
            found[name] = value + by
        elif (below := moved(value, by)) is not None:
            found[name] = below
    return found or None


def run(seed: int) -> None:
    """The whole default pipeline with this seed, in data/seeds/<seed>."""
    files = [yaml.safe_load(file.read_text()) for file in sorted((PROJECT / "conf" / "base").glob("parameters_*.yml"))]
    parameters = {name: value for file in files for name, value in (moved(file, seed - 1) or {}).items()}
    parameters["data_prep"]["seed"] += (seed - 1) * PROBLEMS_APART
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "conf"
        shutil.copytree(PROJECT / "conf", conf, ignore=shutil.ignore_patterns("local"))
        (conf / "local").mkdir()
        (conf / "seed").mkdir()
        (conf / "seed" / "globals.yml").write_text(yaml.safe_dump({"data": f"data/seeds/{seed}"}))
        (conf / "seed" / "parameters.yml").write_text(yaml.safe_dump(parameters))
        command = [Path(sys.executable).with_name("kedro"), "run", "--conf-source", conf, "--env", "seed"]
        subprocess.run(command, cwd=PROJECT, check=True)


def section(seed: int, data: Path) -> str:
    """The main rows of a finished run, and its claims."""
    table = pd.read_csv(data / "08_reporting" / "sweep_table.csv").set_index("candidate", drop=False)
    cells = [
        [row.candidate, alpha_text(row.alpha), interval_text(row), tokens_text(row.mean_tokens), reduction_text(row)]
        for row in table.loc[[name for name in ROWS if name in table.index]].itertuples()
    ]
    header = ["candidate", "alpha", "pass@1 % [95 %]", "tokens", "reduction"]
    claims = subprocess.run(
        [sys.executable, PROJECT / "tools" / "claims.py", data], capture_output=True, text=True, check=False
    ).stdout
    return f"## Seed {seed}\n\n{markdown_table(Cells(header, cells, left=1), None)}\n```\n{claims}```\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3])
    for seed in parser.parse_args().seeds:
        run(seed)
    runs = {1: PROJECT / "data"} | {int(path.name): path for path in sorted((PROJECT / "data" / "seeds").iterdir())}
    finished = {seed: data for seed, data in runs.items() if (data / "08_reporting" / "sweep_table.csv").exists()}
    PAGE.write_text("\n".join([INTRODUCTION, *(section(*item) for item in finished.items())]), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(PROJECT)}: seeds {', '.join(map(str, finished))}")
