"""The program `realign-pipes`, or `python -m realign_pipes`: `run` and `init`, called in the project's folder."""

import sys
from importlib.util import find_spec


def main() -> None:
    """The console script."""
    if find_spec("kedro") is None:  # only the library is installed
        sys.exit("realign-pipes runs Kedro's pipelines, which are not installed: pip install 'realign_pipes[pipeline]'")
    from realign_pipes.cli import program

    program()


if __name__ == "__main__":
    main()
