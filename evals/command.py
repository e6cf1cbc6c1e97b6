"""What all commands share: errors as one line, quiet libraries, a console, and a late start of vLLM."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evals.launch.limits import thread_settings
from rewards.command import exit_code, print_error, to_stderr
from rewards.streams import lasting
from rollout.files.ownership import is_json, replaced
from rollout.stopping import Stopped, StopRequest


def exit_with_error(message: str, code: int) -> NoReturn:
    """End the command with a message for the user. The code is 2 for errors that the user can correct, 128 and above
    for a request to stop, and 1 otherwise."""
    print_error(message, code)
    raise typer.Exit(code)


def exit_explained(error: ValueError | OSError) -> NoReturn:
    """End the command with an error's message. The code is 2 for a value or a file that the user can correct, 1 for
    what the system refuses, such as space on a disk."""
    exit_with_error(str(error), exit_code(error))


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A context in which a request to stop ends the command with one line, after it has cleaned up."""
    stop = StopRequest()
    try:
        with stop.listening():
            yield
    except Stopped:
        exit_with_error("stopped", stop.exit_code)


def check_output(
    output: Path, *, overwrite: bool, companions: Sequence[Path] = (), unfinished: bool = False
) -> list[str]:
    """Messages about earlier results that a report and its `companions` will replace.

    With `unfinished`, an interrupted evaluation is there to be continued. It may have written a companion, and if there
    is also a report, it was started in order to replace that.
    Raises `ValueError` if there is a report and `overwrite` is not set, or if there is any other file.
    """
    if output in companions:
        raise ValueError(f"--output: {output} is where the tables go, beside the report: give {output.stem}.json")
    if output.exists() and not overwrite and not unfinished:
        raise ValueError(f"--output: {output} already exists; --overwrite replaces it")
    is_report = is_json(("format", "versions"))
    begun = unfinished or (output.is_file() and is_report(output))
    return replaced({output: is_report, **{path: lambda _: begun for path in companions}}, "--output")


def lasting_console(*, quiet: bool = False) -> Console:
    """The console of a command, which goes on where nobody hears it: it may have work to lose. Written to a file or
    pipe, lines are not wrapped at 80 columns."""
    file = lasting("stdout")
    console = Console(highlight=False, quiet=quiet, file=file)
    return console if console.is_terminal else Console(highlight=False, quiet=quiet, file=file, width=200)


def print_table(table: Table, console: Console) -> None:
    """Print a table of text cells. Where it is too wide for the terminal its headings wrap and its columns move closer,
    but no cell is cut off, as rich would do."""
    for column in table.columns:
        shown = [*str(column.header).split(), *map(str, column.cells)]
        column.min_width = max(Text.from_markup(text).cell_len for text in ("", *shown))
    if Measurement.get(console, console.options.update(max_width=10_000), table).minimum > console.width:
        table.padding = (0, 1)
    console.print(table, crop=False)


def settle_torch() -> None:
    """Set the environment for torch. Call it before torch is imported, which is when torch reads its number of threads.
    The log level keeps vLLM's C++ code from reporting its memory binding at every start."""
    os.environ.update(thread_settings())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quiet_libraries() -> None:
    """Show warnings in our own style, and no progress bars of libraries."""
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about DeepSpeed's calls
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=lasting_console(), show_path=False)]
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def print_loading(what: str) -> None:
    """Print a line before seconds of silence. It goes to stderr, so that a pipe gets only the command's own output."""
    if sys.flags.optimize > 1 and "transformers" in what:
        exit_with_error(
            f"PYTHONOPTIMIZE is {sys.flags.optimize} (python -OO), which leaves docstrings out, and transformers does "
            "not load without its own: unset it, or set it to 1",
            2,
        )
    if os.environ.get("RANK", "0") == "0":
        to_stderr(f"[dim]loading {what} …[/dim]")
