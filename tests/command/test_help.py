"""`--help` of every command: flags shown as flags, an example that the command's own parser accepts, the shipped
files."""

from __future__ import annotations

import importlib
import re
import shlex
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rl_engine.__main__ import COMMANDS
from rl_engine.config.file import shipped

MODULES = sorted({module for module, _ in COMMANDS.values()} | {"evals.crosscheck"})
CONFIGURED = [f"rl_engine.{name}" for name in ("train", "sft", "sweep", "plan", "doctor")]


def app_of(module: str) -> Any:
    try:
        return importlib.import_module(f"{module}.__main__").app
    except ModuleNotFoundError:
        return importlib.import_module(module).app


def help_of(module: str, columns: int = 200) -> str:
    result = CliRunner().invoke(app_of(module), ["--help"], env={"COLUMNS": str(columns), "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("module", MODULES)
def test_help_shows_switches_as_such_and_an_example(module: str) -> None:
    text = help_of(module)
    assert "bool>" not in text
    assert CliRunner().invoke(app_of(module), ["-h"]).exit_code == 0
    (example,) = re.findall(rf"Example: python -m {module} (.*)", text)
    # The command's own parser accepts it.
    get_command(app_of(module)).make_context(module, shlex.split(example), resilient_parsing=False)


@pytest.mark.parametrize("module", MODULES)
def test_help_is_whole_on_a_narrow_terminal(module: str) -> None:
    """A word wider than its column is cut off, and a paragraph of several lines keeps their breaks."""
    text = help_of(module, columns=80)
    assert max(len(line) for line in text.splitlines() if not line.startswith("Example: ")) <= 80
    assert "…" not in text.replace("ADAPTER…", "")
    paragraphs = (app_of(module).registered_commands[0].callback.__doc__ or "").strip().split("\n\n")
    assert all("\n" not in paragraph.strip() for paragraph in paragraphs[1:])


@pytest.mark.parametrize("module", CONFIGURED)
def test_help_names_the_configurations_that_ship(module: str) -> None:
    text = " ".join(help_of(module).split())
    assert all(name in text for name in shipped(module))
    assert "KEY.SUB=VALUE" in text


@pytest.mark.parametrize("module", MODULES)
def test_an_option_that_is_not_there_is_one_line(module: str) -> None:
    result = CliRunner().invoke(app_of(module), ["--no-such-thing"])
    assert result.exit_code == 2
    assert result.output.startswith("error: there is no option --no-such-thing")
    assert result.output.count("\n") == 1
