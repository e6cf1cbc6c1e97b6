"""The command: `python -m rl_engine.train --config NAME_OR_PATH [--resume|--overwrite] [--dry-run] [key.sub=value …]`;
with several `--config` options the runs train side by side.

Nothing heavy is imported until the configuration has been validated.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from evals.command import exit_explained, exit_with_error, lasting_console, print_loading
from rewards.streams import check_heard
from rl_engine.command import (
    EXPLAINED,
    ConfiguredCommand,
    KeepOld,
    Overrides,
    Overwrite,
    Resume,
    among_ranks,
    contradiction,
    exit_untrained,
    explained,
    help_end,
    losses_explained,
)
from rl_engine.config import Config, load_config
from rl_engine.plan.sharing import Group, groups_of, named
from rl_engine.run.checks import check_place
from rl_engine.run.output import Beginning
from rl_engine.train.checks import check_quickly, wanted_of_hub
from rl_engine.train.sequential import check_ranks, train_sequentially
from rl_engine.train.trial import try_reward
from rollout.files.durable import check_writable
from rollout.hub import check_hub, stay_offline_without
from rollout.loading import loading
from rollout.models import hub_items_of_config
from rollout.stopping import Stopped, StopRequest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    cls=ConfiguredCommand, epilog=help_end("rl_engine.train", "--config quickstart.yaml seed=1 output_dir=runs/one")
)
def main(
    config: Annotated[
        list[str],
        typer.Option(
            help="A YAML file, or the name of a shipped configuration. Repeat it to train several runs side by side."
        ),
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    keep_old: KeepOld = False,
    together: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="How many of several runs are in progress at once. Default: as many as memory allows.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything except the weights, and stop.")] = False,
) -> None:
    """Train a LoRA adapter with reinforcement learning."""
    beginning = Beginning(resume=resume, overwrite=overwrite, keep_old=keep_old)
    if message := contradiction(beginning):
        exit_with_error(message, 2)
    stop = StopRequest()
    try:
        settings = [load_config(name, overrides or ()) for name in config]
        groups = groups_of(settings)
        check_ranks(groups)
    except (ValueError, OSError) as error:
        exit_explained(error)
    try:
        check(settings, beginning, only_check=dry_run)
        print_groups(groups, together)
        with losses_explained(settings[0]), stop.listening():
            if len(groups) > 1 and not dry_run:
                files = {cell.name: name for cell, name in zip(named(settings), config, strict=True)}
                flags = [f"--{name.replace('_', '-')}" for name, given in asdict(beginning).items() if given]
                code = train_sequentially(groups, files, together, [*flags, *(overrides or ())], stop)
            elif len(settings) == 1 and (together is None or groups[0].alone):
                code = run(settings[0], stop, beginning, only_check=dry_run)
            else:
                code = run_together(groups, stop, together, beginning, only_check=dry_run)
        if dry_run:
            check_heard()
    except Stopped:
        exit_untrained(stop)
    except EXPLAINED as error:
        exit_with_error(*explained(error, settings[0]))
    raise typer.Exit(code)


def print_groups(groups: Sequence[Group], together: int | None) -> None:
    """Print which runs cannot train side by side and why; for a single run, say that `--together` has no effect."""
    lines = [line for group in groups for line in group.apart]
    if sum(len(group.cells) for group in groups) == 1:
        lines = [f"--together {together} has no effect: there is one run"] if (together or 1) > 1 else []
    console = lasting_console(quiet=os.environ.get("RANK", "0") != "0")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def check(configs: Sequence[Config], beginning: Beginning, *, only_check: bool) -> None:
    """Run all checks that take no time, for every configuration."""
    for config in configs:
        check_quickly(config, resume=beginning.resume)
    wanted = list(dict.fromkeys(item for config in configs for item in wanted_of_hub(config)))
    stay_offline_without(wanted)
    for config in configs:
        if only_check:
            check_writable(Path(config.output_dir), "output_dir")
            # Only the model yet: the dry run prints what it can show without the hub before it asks for the rest.
            check_hub(hub_items_of_config(config.model))
        else:
            check_place(config, resume=beginning.resume, overwrite=beginning.overwrite)
    if not only_check:
        check_hub(wanted)
    for config in configs:
        try_reward(config)


def run(config: Config, stop: StopRequest, beginning: Beginning, *, only_check: bool) -> int:
    """Assemble and train, and return the exit code. Raises `Stopped` on a request to stop before training has begun."""
    print_loading("torch, transformers and DeepSpeed")
    with among_ranks(config) as ranks:
        with loading():
            from rl_engine.sampling.collective import check_command
            from rl_engine.train.one_run import train_run
            from rl_engine.train.resolve import pinned, resolve_settings

        check_command(ranks, [config], {**asdict(beginning), "dry_run": only_check})
        config = resolve_settings(config, ranks, resume=beginning.resume)
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, beginning)
            return 0
        (config,) = ranks.broadcast(pinned([config], resume=beginning.resume) if ranks.is_main else [])
        return train_run(config, ranks, stop, beginning)


M_ARENA_MAX = -8
"""The constant for this `mallopt` setting in malloc.h."""


def share_heap() -> None:
    """Make all threads allocate from one heap, so that memory freed by one run can be reused by any other.

    glibc gives each thread its own heap, which keeps the memory that the thread's passes have freed: 7 GiB of 11.6 for
    eight runs of the embedded model. Only one run works at a time, so sharing a heap causes no contention. This must be
    called before any thread starts. Other C libraries have a single heap anyway.
    """
    with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def run_together(
    groups: Sequence[Group],
    stop: StopRequest,
    at_once: int | None,
    beginning: Beginning,
    *,
    only_check: bool,
) -> int:
    """Like `run`, for the runs of one group side by side; a dry run shows all groups."""
    share_heap()
    print_loading("torch, transformers and DeepSpeed")
    with among_ranks(groups[0].cells[0].config) as ranks:
        with loading():
            from rl_engine.sampling.collective import check_command
            from rl_engine.train.concurrent import show_all, train_all
            from rl_engine.train.resolve import pinned, resolve_together

        given = [config for group in groups for config in group.configs]
        check_command(ranks, given, {**asdict(beginning), "dry_run": only_check, "together": at_once or "all"})
        settled = []
        for group in groups:
            configs, number = resolve_together(group.configs, ranks, at_once, resume=beginning.resume)
            settled.append((group.resolved(configs), number))
        if only_check:
            show_all(settled, ranks, beginning)
            return 0
        ((group, number),) = settled
        configs = ranks.broadcast(pinned(group.configs, resume=beginning.resume) if ranks.is_main else [])
        return train_all(group.resolved(configs).cells, ranks, stop, number, beginning)


if __name__ == "__main__":
    sys.exit(app())
