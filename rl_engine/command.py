"""What the commands of rl_engine share: options, hints for system errors and out-of-memory errors, ranks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer
from safetensors import SafetensorError

from evals.command import exit_with_error, lasting_console, quiet_libraries, settle_torch
from evals.launch.presence import lost_rank, presence
from rewards.command import Command, exit_code, limit_reached, out_of_memory
from rl_engine.config import Config
from rl_engine.config.fields import is_setting
from rl_engine.config.file import CommandConfig, shipped
from rl_engine.config.hints import NO_HINT, key_hint, near
from rl_engine.config.sft import SftConfig
from rl_engine.run.output import Beginning, can_be_resumed
from rollout.engine import EngineError
from rollout.loading import loading
from rollout.servable import check_cards, check_semaphores
from rollout.stopping import StopRequest

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks


ConfigFile = Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.SUB=VALUE", help="Settings that override the file's. If a key is given twice, the later one holds."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")]
KeepOld = Annotated[
    bool, typer.Option("--keep-old", help="With --overwrite: keep the earlier run as output_dir.old-N.")
]


def contradiction(beginning: Beginning) -> str | None:
    """The message for options that exclude each other; None if they are consistent."""
    if beginning.resume and beginning.overwrite:
        return "--resume continues the run in output_dir and --overwrite replaces it: give one of them"
    if beginning.keep_old and not beginning.overwrite:
        return "--keep-old keeps the run that --overwrite replaces: give --overwrite too"
    return None


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNTRAINED = "nothing was trained"


def what_is_saved(config: Config | SftConfig) -> str:
    """The message on what a run that ended early has saved."""
    if can_be_resumed(config):
        return "What was saved before stands: --resume continues it."
    return "No checkpoint of this run was saved."


def instead_of_resuming(config: Config | SftConfig) -> str:
    """The message where training has diverged. What could prevent it does not change on `--resume`."""
    begin = "--resume keeps optim.lr and would end here again: start a new run with a lower one"
    if isinstance(config, SftConfig):  # it publishes nothing between its start and its end
        return f"{begin}."
    key = "lora.start_from" if config.method == "lora" else "model.name"
    return f"{begin}, from the base model or from an earlier version ({key}={config.output_dir}/adapters/vNNNNNN)."


class RunFailedError(RuntimeError):
    """Training ended early. The message is for the user: where the run was, what happened, what is saved."""


EXPLAINED = (ValueError, OSError, SafetensorError, EngineError, RunFailedError)
"""Errors that a command reports in one line; anything else is a bug and gets a traceback."""


def explained(error: Exception, config: Config | SftConfig) -> tuple[str, int]:
    """The message for the user and the exit code: 2 for unusable configuration, data or adapters, else 1."""
    code = exit_code(error)
    if isinstance(error, OSError) and (code == 1 or can_be_resumed(config)):
        return with_hint(error, config), code
    if isinstance(error, SafetensorError):
        return f"a file of weights cannot be read: {error}", 2
    if isinstance(error, EngineError):
        return f"{error}\n{what_is_saved(config)}", 1
    return str(error), code


@contextlib.contextmanager
def losses_explained(config: Config | SftConfig, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn running out of memory, or losing another rank, into a `RunFailedError` that says what to do. `where` returns
    the run's position, with which the message begins."""
    try:
        yield
    except EXPLAINED:
        raise
    except (MemoryError, RuntimeError) as error:
        if (said := out_of_memory(error)) is not None:
            text = f"out of memory: {said}\n{what_takes_less(config)}"
        elif (message := limit_reached(error) or lost_rank(error)) is not None:
            text = message
        else:
            raise
        raise RunFailedError(f"{where()}{text}\n{what_is_saved(config)}") from error


def what_takes_less(config: Config | SftConfig) -> str:
    """The settings, with their values, that lower the learner's memory, those that may change on `--resume` first."""
    if isinstance(config, SftConfig):
        batch, checkpointing = f"train.microbatch_size ({config.train.microbatch})", "train.gradient_checkpointing=true"
        length, done = f"data.max_tokens ({config.data.max_tokens})", config.train.gradient_checkpointing
    else:
        batch = f"learner.tokens_per_microbatch ({config.learner.tokens_per_microbatch})"
        checkpointing, done = "learner.gradient_checkpointing=true", config.learner.gradient_checkpointing
        length = f"sampling.max_tokens ({config.sampling.max_tokens})"
    keys = f"lower {batch}" if done else f"lower {batch} or set {checkpointing}"
    return f"To need less memory, {keys}; in a new run, also lower {length}."


def exit_untrained(stop: StopRequest) -> NoReturn:
    """Exit a command that was asked to stop while still loading. Only rank 0 reports it. Before the ranks are
    connected, a launcher also stops them this way when one of them fails."""
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    otherwise = "" if alone else ". If nobody asked, another rank failed: its output, or the launcher's, says why"
    console = lasting_console(quiet=os.environ.get("RANK", "0") != "0")
    console.print(f"stopped as asked before training began: {UNTRAINED}{otherwise}", soft_wrap=True)
    raise typer.Exit(stop.exit_code)


def with_hint(error: OSError, config: Config | SftConfig) -> str:
    """The system's error and a way out, which depends on whether the run has saved anything."""
    if error.errno is None:
        return str(error)
    space = "Make space. " if error.errno in NO_SPACE else ""
    return f"{error}\n{space}{what_is_saved(config)}"


@contextlib.contextmanager
def among_ranks(config: Config) -> Iterator[Ranks]:
    """Join the process group for the block, and leave it last of all, when the process ends. See `presence`."""
    ranks = join_ranks_quietly()
    from rl_engine.learner.ranks import leave_ranks

    try:
        with presence(ranks.rank, ranks.count, lambda: what_is_saved(config)):
            yield ranks
    finally:
        leave_ranks()


def join_ranks_quietly() -> Ranks:
    """Join the process group; imports torch. Raises `ValueError` if torch cannot use the cards."""
    settle_torch()
    quiet_libraries()
    with loading():
        check_semaphores()
        check_cards()
        from rl_engine.learner.ranks import join_ranks

    return join_ranks()


class ConfiguredCommand(Command):
    """A command that takes `--config` and settings."""

    schema: ClassVar[type[CommandConfig]] = Config
    """The schema of the settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = [arg.removeprefix("config=") for arg in args]
        first = [arg for arg in given[:1] if not arg.startswith("-")]
        files = [
            arg for arg in (*first, *given) if "=" not in arg and (arg in first or arg.endswith((".yaml", ".yml")))
        ]
        if files and not any(arg.partition("=")[0] in ("--config", "--redraw") for arg in args):
            exit_with_error(f"give a configuration with --config: --config {files[0]}", 2)
        several = sum(arg.partition("=")[0] == "--config" for arg in args) > 1
        if several and not any(param.multiple for param in self.get_params(ctx) if "--config" in param.opts):
            exit_with_error("--config is given twice, and this command takes one configuration", 2)
        rest = super().parse_args(ctx, args)
        if message := self.dashless_option(ctx, ctx.params.get("overrides") or ()):
            exit_with_error(message, 2)
        return rest

    def advice(self, args: Sequence[str], known: Sequence[str]) -> str:
        """A hint for an unknown option: a similar option, or the setting that was meant; empty if there is neither."""
        name, equals, value = args[0].lstrip("-").partition("=")
        if found := near(f"--{name}", known):
            return f" (did you mean {found}?)"
        plain = name.replace("-", "_")
        value = value if equals else next((arg for arg in args[1:2] if not arg.startswith("-")), "VALUE")
        key = next((key for key in (plain, name.replace("-", ".")) if is_setting(self.schema, key)), None)
        if key is not None:
            return f" (a setting is written without dashes, {key}={value})"
        hint = key_hint(self.schema, plain.split("."), value)
        end = "" if hint.endswith("?") else ";"
        return "" if hint == NO_HINT else f" ({plain}={value}: {hint}{end} a setting is written without dashes)"


def help_end(module: str, example: str) -> str:
    """The end of a configured command's help: an example and the shipped configurations."""
    return f"Example: python -m {module} {example}\n\nShipped: {', '.join(shipped(module))}."
