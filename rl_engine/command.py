"""What the commands of rl_engine share: a hint with an error of the system, the ranks."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from evals.command import exit_with_error, new_console, quiet_libraries, quiet_torch
from rewards.command import Command
from rl_engine.config.file import shipped
from rl_engine.config.hints import near
from rollout.stopping import StopRequest

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


RESUME_OR_OVERWRITE = "--resume continues the run in output_dir and --overwrite replaces it: give one of them"


UNTRAINED = "nothing was trained"


def exit_untrained(stop: StopRequest) -> NoReturn:
    """End a command that was asked to stop while it was still loading. One of a launcher's processes says so."""
    console = new_console(quiet=os.environ.get("RANK", "0") != "0")
    console.print(f"stopped as asked before training began: {UNTRAINED}")
    raise typer.Exit(stop.exit_code)


def with_hint(error: OSError, run: Path) -> str:
    """What the system said, and the way out: that depends on whether the run has saved anything."""
    saved = any((run / "checkpoints").glob("step*"))
    hints = [
        *(["Make space."] if error.errno in (errno.ENOSPC, errno.EDQUOT) else []),
        *(["What was saved before stands: --resume continues it."] if saved else []),
    ]
    return "\n".join([str(error), *([" ".join(hints)] if hints else [])])


def join_ranks_quietly() -> Ranks:
    """Enter the process group. The first thing to load torch."""
    quiet_torch()
    quiet_libraries()
    from rl_engine.learner.ranks import join_ranks

    return join_ranks()


class ConfiguredCommand(Command):
    """A command that takes `--config` and settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = [arg for arg in args[:1] if not arg.startswith("-")]
        files = [arg for arg in (*first, *args) if "=" not in arg and (arg in first or arg.endswith((".yaml", ".yml")))]
        if files and not any(arg.partition("=")[0] in ("--config", "--redraw") for arg in args):
            exit_with_error(f"a configuration is named with --config: --config {files[0]}", 2)
        return super().parse_args(ctx, args)

    def advice(self, args: Sequence[str], known: Sequence[str]) -> str:
        name, equals, value = args[0].lstrip("-").partition("=")
        if found := near(f"--{name}", known):
            return f" (did you mean {found}?)"
        value = value if equals else next(iter(args[1:]), "VALUE")
        return f" (a setting is written without dashes, {name.replace('-', '_')}={value})"


def help_end(module: str, example: str) -> str:
    """What the help of a configured command ends with: an example, and the configurations that ship."""
    return f"Example: python -m {module} {example}\n\nShipped: {', '.join(shipped(module))}."
