"""How the commands show their help, and what they say of an option that they do not have: one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

# `-1` is a value.
OPTION = re.compile(r"--?[a-zA-Z]")


class Command(TyperCommand):
    """A command whose help shows a switch as one, not as an option that takes a <bool>."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def get_help_option_names(self, ctx: Any) -> list[str]:
        return ["--help", "-h"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = [name for param in self.get_params(ctx) for name in (*param.opts, *param.secondary_opts)]
        before_dashes = args[: args.index("--")] if "--" in args else args
        for index, arg in enumerate(before_dashes):
            if OPTION.match(arg) and arg.partition("=")[0] not in known:
                options = ", ".join(sorted(name for name in known if name.startswith("--")))
                problem = (
                    f"there is no option {arg.partition('=')[0]}{self.advice(args[index:], known)}: there are {options}"
                )
                line = f"[bold red]error:[/bold red] {escape(problem)}"
                Console(stderr=True, highlight=False).print(line, soft_wrap=True)
                raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def advice(self, args: Sequence[str], known: Sequence[str]) -> str:
        """What may have been meant by the first of these arguments, which is none of the known options."""
        return ""
