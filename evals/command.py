"""What commands share: errors as one line, an exit code, a console, and vLLM started late."""

from __future__ import annotations

from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape


def exit_with_error(message: str, code: int) -> NoReturn:
    """End the command with a message for people; the code is 2 for what they can correct, else 1 (130: Ctrl-C)."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def new_console(*, quiet: bool = False) -> Console:
    """A console that does not fold lines to 80 columns when it writes into a file or a pipe."""
    console = Console(highlight=False, quiet=quiet)
    return console if console.is_terminal else Console(highlight=False, quiet=quiet, width=200)


def start_vllm(settings: Any) -> Any:
    from rollout.vllm_engine import VllmEngine  # takes seconds to import: what can fail before has failed

    return VllmEngine(settings)
