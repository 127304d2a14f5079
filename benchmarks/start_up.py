"""What `kedro run` and `dvc repro` cost when there is nothing to do.

    python benchmarks/start_up.py

It sets up a temporary folder: a git repository with this project's code, its conf/base with the values of conf/smoke,
and the outputs of one `dvc repro` (about two minutes, not measured). Then it runs, in turn: `kedro run
--only-missing-outputs`, which skips every node; `dvc repro`, which skips every stage; and as baselines what Kedro and
DVC take by themselves: importing Kedro's command line, `kedro info`, `kedro registry list` (which reads this project's
settings and pipelines), `dvc --version`, and `dvc status`, which compares as much as `dvc repro` has to.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml
from harness import Results, arguments

PROJECT = Path(__file__).parents[1]
COPIED = ("src", "conf/base", "dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", ".telemetry",
          "pyproject.toml")  # fmt: skip


def merge(values: dict, changes: dict) -> dict:
    return values | {
        name: merge(values[name], change) if isinstance(change, dict) and isinstance(values.get(name), dict) else change
        for name, change in changes.items()
    }


def copy_project(root: Path) -> None:
    """The project's code with smoke-sized parameters in conf/base, which is all that DVC reads."""
    for name in COPIED:
        source, target = PROJECT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    for folder in ("conf/local", "data/01_raw"):
        (root / folder).mkdir(parents=True)
        (root / folder / ".gitkeep").touch()
    smoke = yaml.safe_load((PROJECT / "conf" / "smoke" / "parameters.yml").read_text())
    for file in (root / "conf" / "base").glob("parameters_*.yml"):
        values = yaml.safe_load(file.read_text())
        changes = {name: change for name, change in smoke.items() if name in values}
        file.write_text(yaml.safe_dump(merge(values, changes), sort_keys=False))


def main() -> None:
    given = arguments(__doc__, repetitions=5)
    results = Results("start_up", "Start-up and nothing to do", given)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        copy_project(root)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root / "src"),
        }

        def run(*command: str) -> None:
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")

        run("git", "init", "--quiet")
        run("git", "add", ".")
        name = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
        run("git", *name, "commit", "--quiet", "--message", "code")  # DVCLive and the run's log ask for the commit
        results.console.print("making a project with finished outputs: dvc repro")
        run("dvc", "repro")
        commands = {
            "import kedro.framework.cli": ("python", "-c", "import kedro.framework.cli"),
            "kedro info": ("kedro", "info"),
            "kedro registry list": ("kedro", "registry", "list"),
            "kedro run, nothing to do": ("kedro", "run", "--only-missing-outputs"),
            "dvc --version": ("dvc", "--version"),
            "dvc status": ("dvc", "status"),
            "dvc repro, nothing to do": ("dvc", "repro"),
        }
        case = "smoke-sized project"
        times = results.time(
            case, {name: partial(run, *command) for name, command in commands.items()}, given.repetitions
        )
        for measured, baselines in (
            ("kedro run, nothing to do", ("import kedro.framework.cli", "kedro info", "kedro registry list")),
            ("dvc repro, nothing to do", ("dvc --version", "dvc status")),
        ):
            for baseline in baselines:
                results.figure(case, f"{measured} / {baseline}", times.ratio(measured, baseline))
    results.save()


if __name__ == "__main__":
    main()
