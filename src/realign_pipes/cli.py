"""The commands `run` (of `kedro` and `realign-pipes`), `init`, `serve`, `playground`; what a run says on the console.

Kedro takes `cli` from here and uses its `run` instead of its own.
"""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import configure_project
from kedro.framework.project import pipelines as registered_pipelines
from kedro.io import DatasetError
from kedro.validation import DataValidationError
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from realign_pipes.errors import InputError, UserError
from realign_pipes.runtime.parameters import unknown

KEDROS_RUN: Callable[..., Any] = kedro_run.callback  # type: ignore[assignment]

MAX_LINES = 10
"""Of an error that the user can mend, including those that say where its traceback is."""


class Console(logging.Handler):
    """Prints to the current `sys.stderr`: while a bar is drawn, rich puts the lines that arrive there above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def set_up_console(*, verbose: bool) -> None:
    """Print what this package logs, or everything that is logged if `verbose`. The rest is kept for the run's log file.

    Tracebacks go to the file: an error is printed once, by the command that it ends.
    """
    console = Console()
    if verbose:
        console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    console.addFilter(
        lambda record: record.exc_info is None and (verbose or record.name.partition(".")[0] == __package__)
    )
    waiting = MemoryHandler(capacity=10_000, flushLevel=sys.maxsize)  # realign_pipes.runtime.run_log empties it
    for handler in (console, waiting):
        logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_of_data(error: BaseException) -> bool:
    """Whether a catalog entry is invalid, or its data cannot be read or written."""
    return isinstance(error, DatasetError) and (
        not str(error).startswith("Failed while") or isinstance(error.__cause__, OSError | ValueError)
    )


def _is_of_options(error: BaseException) -> bool:
    """Whether it is one of Kedro's own ValueErrors: there is no node or tag with the given name, and the like."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith("kedro.")


def explain(error: BaseException) -> str | None:
    """What to tell the user, if they can fix it; None for anything unexpected."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, UserError):
            return str(one)
    for one in chain:
        if isinstance(one, MissingConfigException | YAMLError | OmegaConfBaseException | DataValidationError):
            return str(one)
        if _is_of_data(one) or _is_of_options(one):
            return str(one)
    return None


def report(error: Exception, *, verbose: bool) -> None:
    """Print what to do about `error`, and where its traceback is; or the traceback, if nothing else helps."""
    text = explain(error)
    if text is None or verbose:
        traceback.print_exception(error)
    if text is None:
        return
    lines = [line for line in f"Error: {text}".splitlines() if line.strip()]
    notes = getattr(error, "__notes__", ["Full traceback: the same command with --verbose."])
    room = MAX_LINES - len(notes)
    if len(lines) > room:
        lines[room - 1 :] = [f"… and {len(lines) - room + 1} more lines"]
    print(*lines, *notes, sep="\n", file=sys.stderr)


def _run(*, verbose: bool, pipeline: str | None, pipelines: list[str], **options: Any) -> Any:
    if pipeline and pipelines:
        raise click.UsageError("--pipeline and --pipelines cannot be used together")
    set_up_console(verbose=verbose)
    names = [pipeline] if pipeline else pipelines
    try:
        if strange := [name for name in names if name not in registered_pipelines]:
            raise InputError("; ".join(unknown("pipeline", name, registered_pipelines) for name in strange))
        return KEDROS_RUN(pipeline=None, pipelines=names, **options)
    except click.ClickException:
        raise
    except Exception as error:
        report(error, verbose=verbose)
        sys.exit(1)


run = click.Command(
    "run",
    callback=_run,
    help="Run the pipelines.",
    params=[
        *kedro_run.params,
        click.Option(["--verbose", "-v"], is_flag=True, help="Show all that is logged, and every traceback."),
    ],
)


@click.group()
def cli() -> None:
    """What Kedro adds to its commands."""


cli.add_command(run)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def program() -> None:
    """Realign language models, in the folder of a project."""
    configure_project(__package__)


program.add_command(run)


FILE = click.Path(exists=True, path_type=Path)


@program.command()
@click.argument("name")
@click.option(
    "--reference", required=True, help="The model to start from: a folder, or `org/name@revision` of the hub."
)
@click.option("--aligned", required=True, help="The model that was aligned further: the same.")
@click.option("--calibration", type=FILE, help="Problems to calibrate on.")
@click.option("--evaluation", type=FILE, help="Problems to measure on.")
@click.option("--chat-template", type=FILE, help="A chat template in Jinja, for a reference that has none.")
def init(name: str, reference: str, aligned: str, **files: Path | None) -> None:
    """Write the environment conf/NAME, which realigns two checkpoints of your own."""
    from realign_pipes.environments import write_environment

    try:
        click.echo(write_environment(Path.cwd(), name, reference, aligned, **files))
    except UserError as error:
        raise click.ClickException(str(error)) from error


@program.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Another needs an API key in VLLM_API_KEY.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--environment", default=".venv-serve", show_default=True, type=click.Path(path_type=Path),
              help="The virtual environment of `make serve-setup`.")  # fmt: skip
@click.option("--max-model-len", type=click.IntRange(min=2), help="Tokens of a prompt and its completion, at most.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of a completion, at most.")
@click.option("--max-n", default=16, show_default=True, type=click.IntRange(min=1),
              help="Completions of one prompt, at most.")  # fmt: skip
@click.option("--log-requests", is_flag=True, help="Log each request, with its prompt.")
def serve(
    model: Path,
    host: str,
    port: int,
    environment: Path,
    max_model_len: int | None,
    max_tokens: int | None,
    max_n: int,
    log_requests: bool,
) -> None:
    """Serve the InRa model in the folder MODEL with vLLM: alpha is an argument of each request."""
    from realign_pipes.serving.foreground import Address, Limits, serve_inra

    set_up_console(verbose=False)
    logging.getLogger(__package__).setLevel(logging.INFO)
    limits = Limits(max_model_len, max_tokens, max_n)
    try:
        serve_inra(model, environment, Address(host, port), limits, log_requests=log_requests)
    except UserError as error:
        raise click.ClickException(str(error)) from error


@program.command()
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--server", help="An OpenAI-compatible server of an InRa model or a ladder: http://127.0.0.1:8000.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Another needs a password in PLAYGROUND_PASSWORD.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--max-tokens", default=1024, show_default=True, type=click.IntRange(min=1),
              help="Tokens of an answer, at most.")  # fmt: skip
def playground(model: Path | None, server: str | None, host: str, port: int, max_tokens: int) -> None:
    """A page with a slider for alpha, for the InRa model in the folder MODEL, or for a server.

    With --server, only the thinking tags are read from MODEL: without it they are <think> and </think>.
    """
    from realign_pipes.serving.foreground import Address
    from realign_pipes.serving.playground import serve_playground

    set_up_console(verbose=False)
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        serve_playground(model, server, Address(host, port), max_tokens)
    except UserError as error:
        raise click.ClickException(str(error)) from error
