"""What commands share: errors as one line, quiet libraries, a console, and vLLM started late."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from evals.launch.limits import thread_settings
from rewards.command import say_error, to_stderr
from rollout.files.ownership import is_json, replaced
from rollout.stopping import Stopped, StopRequest


def exit_with_error(message: str, code: int) -> NoReturn:
    """End the command with a message for people; the code is 2 for what they can correct, else 1; 128 and more is that
    of a request to stop."""
    say_error(message, code)
    raise typer.Exit(code)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block a request to stop ends the command, which tidies up, in one line."""
    stop = StopRequest()
    try:
        with stop.heard():
            yield
    except Stopped:
        exit_with_error("stopped", stop.exit_code)


def check_output(
    output: Path, *, overwrite: bool, companions: Sequence[Path] = (), unfinished: bool = False
) -> list[str]:
    """What a person is told of earlier results that a report and its `companions` replace.

    `unfinished`: an interrupted measurement is there to go on. It may have written a companion, and where a report is
    there too it was begun to replace that.
    Raises `ValueError` where a report is there and `overwrite` is not asked for, or where anything else is.
    """
    if output in companions:
        raise ValueError(f"--output: {output} is where the tables go, beside the report: give {output.stem}.json")
    if output.exists() and not overwrite and not unfinished:
        raise ValueError(f"--output: {output} already exists; --overwrite replaces it")
    is_report = is_json(("format", "versions"))
    begun = unfinished or (output.is_file() and is_report(output))
    return replaced({output: is_report, **{path: lambda _: begun for path in companions}}, "--output")


def new_console(*, quiet: bool = False, file: IO[str] | None = None) -> Console:
    """A console that does not fold lines to 80 columns when it writes into a file or a pipe."""
    console = Console(highlight=False, quiet=quiet, file=file)
    return console if console.is_terminal else Console(highlight=False, quiet=quiet, file=file, width=200)


def settle_torch() -> None:
    """To be called before torch is loaded: it reads then how many threads it may use. vLLM's C++ side would report the
    memory binding it chose on every start."""
    os.environ.update(thread_settings())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quiet_libraries() -> None:
    """Warnings in our own style; no progress bars of libraries."""
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # about what DeepSpeed calls
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def say_loading(what: str) -> None:
    """A line before seconds of silence. On stderr, so that the output in a pipe is the command's own."""
    if sys.flags.optimize > 1 and "transformers" in what:
        exit_with_error(
            f"PYTHONOPTIMIZE is {sys.flags.optimize} (python -OO), which leaves docstrings out, and transformers does "
            "not load without its own: unset it, or set it to 1",
            2,
        )
    if os.environ.get("RANK", "0") == "0":
        to_stderr(f"[dim]loading {what} …[/dim]")


def start_vllm(settings: Any) -> Any:
    from rollout.vllm import start_engine

    return start_engine(settings)
