"""`rl-engine COMMAND …`, or `python -m rl_engine COMMAND …`: every command under one name."""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path

from datafiles.leaving import leave_while_loading

# Name → (module, what it does). `rl-engine train …` runs `python -m rl_engine.train …`.
COMMANDS = {
    "train": ("rl_engine.train", "train an adapter with RL"),
    "plan": ("rl_engine.plan", "what a run will need: memory, time"),
    "doctor": ("rl_engine.doctor", "check that this machine can run it"),
    "evals": ("evals", "score a model and its adapters"),
    "report": ("rl_engine.report", "an HTML report of one or more runs"),
    "inspect": ("rl_engine.inspect", "what adapters have learned"),
    "merge": ("rl_engine.merge", "merge an adapter into its base"),
    "push": ("rl_engine.push", "publish an adapter on the hub"),
    "sft": ("rl_engine.sft", "train an adapter on given answers"),
    "sweep": ("rl_engine.sweep", "run a grid of configurations"),
    "forgetting": ("evals.forgetting", "measure what an adapter forgot"),
    "check": ("rewards.check", "check problems before training"),
    "audit": ("rewards.audit", "list verdicts others dispute"),
}


def main() -> None:
    """Run the command named by the first argument; without arguments, list all commands."""
    leave_while_loading()
    _, *arguments = sys.argv
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        show_commands()
        return
    name, *rest = arguments
    if name not in COMMANDS:
        from rewards.command import print_error  # imported here to keep start-up fast
        from rl_engine.config.hints import near

        found = near(name, COMMANDS)
        hint = f"; did you mean {found}?" if found else f": they are {', '.join(COMMANDS)}"
        print_error(f"there is no command {name!r}{hint}", 2)
        sys.exit(2)
    # A user's reward function is found in the current directory, as with `python -m`.
    with contextlib.suppress(FileNotFoundError):  # it was deleted: the command says so
        sys.path.append(str(Path.cwd()))
    sys.argv = [f"rl-engine {name}", *rest]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


def show_commands() -> None:
    """Print one line per command."""
    from rich.console import Console
    from rich.table import Table

    from rewards.streams import escape_unencodable, lasting

    escape_unencodable()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for name, (module, purpose) in COMMANDS.items():
        table.add_row(name, purpose, f"[dim]python -m {module}[/dim]")
    console = Console(highlight=False, file=lasting("stdout"))
    console.print("rl-engine COMMAND [OPTIONS] [KEY.SUB=VALUE]…    each command has --help\n")
    console.print(table)


if __name__ == "__main__":
    main()
