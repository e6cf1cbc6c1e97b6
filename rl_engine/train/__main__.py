"""The command: `python -m rl_engine.train --config NAME_OR_PATH [--resume|--overwrite] [--dry-run] [key.sub=value …]`;
with several `--config` the runs train side by side.

Imports nothing heavy until the configuration is known to be good.
"""

from __future__ import annotations

if __name__ == "__main__":
    from rollout.stopping import leave_while_loading

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

from evals.command import exit_with_error, new_console, say_loading
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
from rl_engine.train.in_turn import check_ranks, train_in_turn
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
        exit_with_error(str(error), 2)
    try:
        check(settings, beginning, only_check=dry_run)
        tell_apart(groups, together)
        with losses_explained(settings[0]), stop.heard():
            if len(groups) > 1 and not dry_run:
                files = {cell.name: name for cell, name in zip(named(settings), config, strict=True)}
                flags = [f"--{name.replace('_', '-')}" for name, given in asdict(beginning).items() if given]
                code = train_in_turn(groups, files, together, [*flags, *(overrides or ())], stop)
            elif len(settings) == 1 and (together is None or groups[0].alone):
                code = run(settings[0], stop, beginning, only_check=dry_run)
            else:
                code = run_together(groups, stop, together, beginning, only_check=dry_run)
    except Stopped:
        exit_untrained(stop)
    except EXPLAINED as error:
        exit_with_error(*explained(error, settings[0]))
    raise typer.Exit(code)


def tell_apart(groups: Sequence[Group], together: int | None) -> None:
    """Which of several runs do not train with which, and why; of a lone one that there is nothing to share."""
    lines = [line for group in groups for line in group.apart]
    if sum(len(group.cells) for group in groups) == 1:
        lines = [f"--together {together} has no effect: there is one run"] if (together or 1) > 1 else []
    console = new_console(quiet=os.environ.get("RANK", "0") != "0")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def check(configs: Sequence[Config], beginning: Beginning, *, only_check: bool) -> None:
    """What can be wrong and costs no time to find, of all of them."""
    for config in configs:
        check_quickly(config, resume=beginning.resume)
    wanted = list(dict.fromkeys(item for config in configs for item in wanted_of_hub(config)))
    stay_offline_without(wanted)
    for config in configs:
        if only_check:
            check_writable(Path(config.output_dir), "output_dir")
            # What can be shown without the hub is shown before it is asked for the rest.
            check_hub(hub_items_of_config(config.model))
        else:
            check_place(config, resume=beginning.resume, overwrite=beginning.overwrite)
    if not only_check:
        check_hub(wanted)
    for config in configs:
        try_reward(config)


def run(config: Config, stop: StopRequest, beginning: Beginning, *, only_check: bool) -> int:
    """Assemble and train; the exit code. Raises `Stopped` when someone asks to stop before training has begun."""
    say_loading("torch, transformers and DeepSpeed")
    with among_ranks(config) as ranks:
        with loading():
            from rl_engine.train.one_run import train_run
            from rl_engine.train.resolve import resolve_settings

        config = resolve_settings(config, ranks, resume=beginning.resume)
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, beginning)
            return 0
        return train_run(config, ranks, stop, beginning)


M_ARENA_MAX = -8
"""The number that malloc.h gives this setting."""


def share_heap() -> None:
    """Let all threads take memory from one heap, where each freed block is there for every run.

    glibc gives each thread a heap of its own, which keeps what its passes have freed: for eight runs of the embedded
    model that was 7 GiB of 11.6. One run works at a time, so that none waits for another's. It has to be asked for
    before there are threads; other C libraries have one heap.
    """
    with contextlib.suppress(AttributeError):  # they have no such switch
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def run_together(
    groups: Sequence[Group],
    stop: StopRequest,
    at_once: int | None,
    beginning: Beginning,
    *,
    only_check: bool,
) -> int:
    """The same for the runs of a group, side by side; a dry run shows all groups."""
    share_heap()
    say_loading("torch, transformers and DeepSpeed")
    with among_ranks(groups[0].cells[0].config) as ranks:
        with loading():
            from rl_engine.train.company import Wishes, show_all, train_all
            from rl_engine.train.resolve import resolve_together

        settled = []
        for group in groups:
            configs = [cell.config for cell in group.cells]
            configs, number = resolve_together(configs, ranks, at_once, resume=beginning.resume)
            for cell, config in zip(group.cells, configs, strict=True):
                cell.config = config
            settled.append((group, number))
        if only_check:
            show_all(settled, ranks, beginning)
            return 0
        ((group, number),) = settled
        return train_all(group.cells, ranks, stop, Wishes(at_once=number, beginning=beginning))


if __name__ == "__main__":
    sys.exit(app())
