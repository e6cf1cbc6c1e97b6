"""Command line → help, or a one-line error for an option that is unknown, incomplete or out of range."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from rewards.streams import escape_unencodable, lasting, open_closed_streams

# A letter must follow the dashes: `-1` is a value.
OPTION = re.compile(r"--?[a-zA-Z]")
# What the parser raises for arguments that it cannot take; typer does not export this class.
USAGE_ERROR: Any = typer.BadParameter.__base__
# Shells fill in a `~` at the beginning of a word alone. What is sampled from is told as it is written.
FROM_HOME = re.compile(r"(--(?!model=)[a-z-]+=)?(~/.*)", re.DOTALL)
EXTRA = "got unexpected extra argument"
# The wording of torch, the CUDA libraries and the system; torch's own error is a RuntimeError.
OUT_OF_MEMORY = re.compile("out of memory|allocate memory|ALLOC_FAILED")

# How the system (about files), Python and C++ (about threads) report that a limit is reached → the limit's option of
# `ulimit` and its resource number.
LIMITS = {
    "Too many open files": ("-n", resource.RLIMIT_NOFILE),
    "can't start new thread": ("-u", resource.RLIMIT_NPROC),
    "Resource temporarily unavailable": ("-u", resource.RLIMIT_NPROC),
}

# DeepSpeed's launcher gives each of its processes this argument, besides the variable LOCAL_RANK, which we read.
OF_LAUNCHER = "--local_rank={}"
# The names that MPI (Open MPI; MPICH and Intel's; MVAPICH) and Slurm have for RANK and LOCAL_RANK.
LOCAL_RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "MPI_LOCALRANKID"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_LOCALID"),
)
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# How long the launcher's other processes wait for the first to report an error. The launcher ends them all once one of
# them exits.
FIRST_REPORTS_S = 10.0


def print_error(message: str, code: int) -> None:
    """Print an error as one line on stderr.

    User errors (code 2) and requests to stop (128 and above) are usually the same in all processes of a launcher, so
    the first process on a machine reports them. Another reports a user error only if it turns out to be its own: if the
    launcher does not end it within `FIRST_REPORTS_S`.
    """
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first and (code >= 128 or (code == 2 and _terminated_within(FIRST_REPORTS_S))):
        return
    to_stderr(f"[bold red]error:[/bold red] {escape(message)}")


def to_stderr(text: str) -> None:
    """Print a line of rich markup on stderr, if that works: no command should fail, or change its exit code, because it
    cannot print."""
    Console(stderr=True, highlight=False, file=lasting("stderr")).print(text, soft_wrap=True)


def write_rows(output: Path | None, rows: Iterable[Any]) -> None:
    """The last that a command does: JSON Lines, in a file that is not there. Its place was free when it began; nothing
    of somebody else's is replaced, and half a file is not left."""
    if output is None:
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            output.unlink(missing_ok=True)
        print_error(f"--output: {output} cannot be written: {error.strerror}", 1)
        raise typer.Exit(1) from None


def out_of_memory(error: Exception) -> str | None:
    """The first line of an out-of-memory error, of the machine or of a GPU; None for any other error."""
    message = str(error).partition("\n")[0]
    if isinstance(error, MemoryError):
        return message or "the machine gives no more"
    if isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(message):
        return message.partition(" If reserved but unallocated")[0]  # the rest is advice about a setting of torch
    return None


def limit_reached(error: Exception) -> str | None:
    """The message for a library's error about a limit of the shell or container that was reached; None for any other
    error. Python's own error about open files is an `OSError`."""
    if not isinstance(error, RuntimeError):
        return None
    message = str(error).partition("\n")[0]
    for words, (option, limit) in LIMITS.items():
        if words in message:
            allowed = resource.getrlimit(limit)[0]
            if allowed == resource.RLIM_INFINITY:
                return f"{words}: this shell sets no limit, so its container or job does (pids.max)"
            return f"{words}: this shell allows {allowed}; raise it with ulimit {option}"
    return None


# Errors that the user can correct: unusable arguments and settings, and paths that lead to nothing that can be used.
OF_THE_USER = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def exit_code(error: Exception) -> int:
    """2 for an error that the user can correct, 1 for what the machine does not give, such as room on a disk."""
    return 2 if isinstance(error, OF_THE_USER) else 1


FILE = "FILE"
"""The metavar of an option that takes a file contains this."""
# Options that several commands have.
Workers = Annotated[int, typer.Option(min=1, max=256, help="Number of grading processes.")]
Disagreements = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write every disagreement here as JSON Lines.")
]
Shown = Annotated[int, typer.Option(min=0, help="How many disagreements of each kind to print.")]


def check_working_directory() -> None:
    """Raises `ValueError` if the current directory was deleted, where not even torch can be loaded."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ValueError("the current directory was deleted: change to one that exists, with `cd`") from None


def settle_rank() -> None:
    """Make RANK and LOCAL_RANK consistent for all code that reads them. Raises `ValueError` if what a launcher should
    have set is no number, as where a script fills in a variable that it does not have.

    RANK without WORLD_SIZE is left over from another program; trusting it could silence this command's errors. Without
    LOCAL_RANK each process has a machine to itself, as in a PyTorchJob, unless they meet at an address that only their
    own machine can reach: then they share its cards. A first process that is told localhost cannot know, and takes all
    cores: give 127.0.0.1 where several share a machine.
    """
    given = os.environ
    if "WORLD_SIZE" not in given:
        for name in ("RANK", "LOCAL_RANK"):
            given.pop(name, None)
    _check_numbers(given)
    if "RANK" in given and "LOCAL_RANK" not in given:
        if (local_rank := _local_rank_of_launcher(given)) is None:
            # A PyTorchJob tells its first process localhost too, alone on its machine.
            address = given.get("MASTER_ADDR")
            together = address in LOOPBACK and (given["RANK"] != "0" or address != "localhost")
            given.setdefault("LOCAL_WORLD_SIZE", given["WORLD_SIZE"] if together else "1")
            local_rank = given["RANK"] if together else "0"
        given["LOCAL_RANK"] = local_rank


def _check_numbers(given: Mapping[str, str]) -> None:
    for name in NUMBERS if "WORLD_SIZE" in given else ():
        if not given.get(name, "0").isdecimal():
            raise ValueError(
                f"{name} is {given[name]!r}, where a launcher gives a number: start the processes with torchrun, or "
                "unset WORLD_SIZE if there is only one"
            )
    if int(given.get("RANK", "0")) >= (count := int(given.get("WORLD_SIZE", "1"))) > 0:
        raise ValueError(f"RANK is {given['RANK']} and WORLD_SIZE is {count}: the ranks are 0 to {count - 1}")


def _local_rank_of_launcher(given: Mapping[str, str]) -> str | None:
    """What MPI or Slurm calls LOCAL_RANK. It is another process's if its RANK is another: a script that Slurm runs as
    process 0 passes these variables on to every process that it starts by hand."""
    for rank, local_rank in LOCAL_RANKS:
        if local_rank in given and given.get(rank, given["RANK"]) == given["RANK"]:
            return given[local_rank]
    return None


def _terminated_within(within_s: float) -> bool:
    """Wait for SIGTERM and consume it, so that the process exits with the code that it was about to exit with."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return signal.sigtimedwait({signal.SIGTERM}, within_s) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Command(TyperCommand):
    """A command with one-line errors, whose help shows a switch as a switch rather than as taking a <bool>."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Rich's table of options cuts long names on a terminal of 80 columns, and is twice as long.
        super().__init__(*args, **{**kwargs, "rich_markup_mode": None})

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_closed_streams()
        escape_unencodable()
        try:
            check_working_directory()
            settle_rank()
        except ValueError as error:
            print_error(str(error), 2)
            sys.exit(2)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # outside of what a command expects: where it prints its help, or its result
            print_error(str(error), exit_code(error))
            sys.exit(exit_code(error))

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example on a line of its own, however long, so that it can be copied; the rest as a paragraph."""
        example, _, rest = (self.epilog or "").partition("\n\n")
        formatter.write(f"\n{example}\n")
        if rest:
            formatter.write(f"\n{textwrap.fill(rest, formatter.width)}\n")

    def get_help_option_names(self, ctx: Any) -> list[str]:
        return ["--help", "-h"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = [arg for arg in args if arg != OF_LAUNCHER.format(os.environ.get("LOCAL_RANK"))]
        args = [_from_home(arg) for arg in args]
        given = list(args)
        before_dashes = given[: given.index("--")] if "--" in given else given
        known = [name for param in self._options(ctx) for name in (*param.opts, *param.secondary_opts)]
        for index, arg in enumerate(before_dashes):
            if OPTION.match(arg) and arg.partition("=")[0] not in known:
                options = ", ".join(sorted(name for name in known if name.startswith("--")))
                advice = self.advice(given[index:], known)
                print_error(f"there is no option {arg.partition('=')[0]}{advice}: there are {options}", 2)
                raise typer.Exit(2)
        if message := self._directory_for_file(ctx, given):
            print_error(message, 2)
            raise typer.Exit(2)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            print_error(self._told(error, ctx, given), 2)
            raise typer.Exit(2) from None

    def _directory_for_file(self, ctx: Any, args: Sequence[str]) -> str:
        """The message for an option that takes a file but is given `DIR/`, which a `Path` would turn into a file named
        DIR; empty if there is no such option."""
        for param in self._options(ctx):
            if FILE in str(param.metavar) and (message := _as_given(param, args)).endswith(("/'", '/"')):
                return f"{message}, which names a directory: give the name of a file in it"
        return ""

    def _options(self, ctx: Any) -> list[Any]:
        return [param for param in self.get_params(ctx) if param.param_type_name == "option"]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("stopped", 128 + signal.SIGINT)
            raise typer.Exit(128 + signal.SIGINT) from None
        except (MemoryError, RuntimeError) as error:
            if (message := out_of_memory(error)) is not None:
                message = f"out of memory: {message}"
            elif (message := limit_reached(error)) is None:
                raise
            print_error(message, 1)
            raise typer.Exit(1) from None

    def advice(self, args: Sequence[str], known: Sequence[str]) -> str:
        """A suggestion for the first of these arguments, which is not a known option."""
        return ""

    def dashless_option(self, ctx: Any, args: Sequence[str]) -> str:
        """The message for the first of these arguments that is an option without its dashes; empty if there is none."""
        for arg in args:
            name, equals, value = (part.strip() for part in arg.partition("="))
            for param in self._options(ctx):
                if (option := f"--{name.replace('_', '-')}") in param.opts:
                    written = option if param.is_flag else f"{option} {value}" if equals else _written(param)
                    return f"{arg}: {option} is an option of this command: write {written}"
        return ""

    def _told(self, error: Any, ctx: Any, args: Sequence[str]) -> str:
        """The parser's error with the parameter's name, its value and what is expected."""
        params, option = self.get_params(ctx), getattr(error, "option_name", None)
        if option is not None:
            param = next(each for each in params if option in (*each.opts, *each.secondary_opts))
            return f"{option} takes no value" if param.is_flag else f"{option} is incomplete: {_written(param)}"
        param, words = getattr(error, "param", None), str(error.message).removeprefix("Value error, ").rstrip(".")
        words = words[:1].lower() + words[1:]
        if param is None:
            return (words.startswith(EXTRA) and self.dashless_option(ctx, args)) or words
        if not words:
            example = (self.epilog or "").partition("\n")[0]
            return f"{_name(param)} is missing. {(param.help or '').rstrip('.')}. {example}"
        return f"{_as_given(param, args)}: {words}"


def _from_home(arg: str) -> str:
    """`--output=~/x.json` with the home directory in it; elsewhere a directory called ~ would be made."""
    found = FROM_HOME.fullmatch(arg)
    return f"{found[1] or ''}{os.path.expanduser(found[2])}" if found else arg  # noqa: PTH111 - no home is no error


def _name(param: Any) -> str:
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    return str(max(param.opts, key=len))


def _written(param: Any) -> str:
    """An option with the placeholder of its value: `--card TFLOPS TB/S`."""
    return f"{_name(param)} {param.metavar or 'VALUE'}"


def _as_given(param: Any, args: Sequence[str]) -> str:
    """A parameter and its value, as the user wrote them."""
    for index, arg in reversed([*enumerate(args)]):  # the last occurrence wins
        name, equals, value = arg.partition("=")
        if name in param.opts:
            return f"{name} is {value if equals else ' '.join(args[index + 1 : index + 1 + param.nargs])!r}"
    return _name(param)
