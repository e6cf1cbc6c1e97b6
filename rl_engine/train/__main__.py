"""The command: `python -m rl_engine.train --config NAME_OR_PATH [--resume] [--dry-run] [key.sub=value …]`.

Imports nothing heavy until the configuration is known to be good.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from safetensors import SafetensorError

from evals.command import exit_with_error
from rl_engine.command import (
    RESUME_OR_OVERWRITE,
    ConfiguredCommand,
    help_end,
    join_ranks_quietly,
    stay_offline_if_possible,
    with_hint,
)
from rl_engine.config import Config, load_config
from rollout.engine import PoolError

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    cls=ConfiguredCommand, epilog=help_end("rl_engine.train", "--config quickstart.yaml seed=1 output_dir=runs/one")
)
def main(
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Settings that replace the file's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but the weights, and stop.")] = False,
) -> None:
    """Train a LoRA adapter with reinforcement learning."""
    if resume and overwrite:
        exit_with_error(RESUME_OR_OVERWRITE, 2)
    try:
        settings = load_config(config, overrides or ())
        stay_offline_if_possible(settings)
        code = run(settings, resume=resume, overwrite=overwrite, only_check=dry_run)
    except (ValueError, FileNotFoundError) as error:
        # Configuration, data or adapters that cannot be used: the message is made for people.
        exit_with_error(str(error), 2)
    except SafetensorError as error:
        exit_with_error(f"a file of weights cannot be read: {error}", 2)
    except PoolError as error:
        exit_with_error(f"{error}\nWhat was saved before stands: --resume continues it.", 1)
    except OSError as error:
        exit_with_error(with_hint(error), 1)
    raise typer.Exit(code)


def run(config: Config, *, resume: bool, overwrite: bool, only_check: bool) -> int:
    """Assemble and train; the exit code."""
    ranks = join_ranks_quietly()
    from rl_engine.learner.ranks import leave_ranks
    from rl_engine.run.console import RunConsole
    from rl_engine.sampling.sent import check_room
    from rl_engine.train.assemble import resolve_learning_rate, resolve_pieces

    try:
        config = resolve_learning_rate(config, RunConsole(quiet=not ranks.is_main, steps=config.train.steps))
        config = resolve_pieces(config, resume=resume)
        check_room(config)
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, resume=resume)
            return 0
        return train_run(config, ranks, resume=resume, overwrite=overwrite)
    finally:
        leave_ranks()


def train_run(config: Config, ranks: Ranks, *, resume: bool, overwrite: bool) -> int:
    from rl_engine.run.console import RunConsole
    from rl_engine.run.output import check_output, moved_aside, sole_writer

    mine = sole_writer(Path(config.output_dir), overwrite=overwrite)
    with mine if ranks.is_main else contextlib.nullcontext() as aside:
        if aside is not None:
            RunConsole(quiet=False, steps=0).note(moved_aside(aside))
        ranks.barrier()
        check_output(config, resume=resume)
        return train_in_place(config, ranks, resume=resume)


def train_in_place(config: Config, ranks: Ranks, *, resume: bool) -> int:
    """Train in an output directory that is known to be ours."""
    from rewards import Grader
    from rl_engine.learner.gap import SamplerGapError
    from rl_engine.report.page import NAME as REPORT
    from rl_engine.report.page import write_report
    from rl_engine.run.bottleneck import in_one_line, settings_of
    from rl_engine.run.records import read_metrics
    from rl_engine.train.assemble import assemble
    from rl_engine.train.loop import summary_paths, train

    output = Path(config.output_dir)
    with Grader.from_config(config.rewards) as grader:
        run = assemble(config, ranks, grader, resume)
        run.stop.listen()
        try:
            train(run)
        except SamplerGapError as error:
            exit_with_error(
                f"step {run.step}, version {run.version}: {error}\n--resume goes on from the last checkpoint.", 1
            )
        finally:
            run.records.close()
            run.sampler.engine.close()
        if ranks.is_main:
            report = write_report([output], output / REPORT)
            lines = read_metrics(output)
            run.console.summary(lines, {**summary_paths(run), "report": report})
            if waits_for := in_one_line(lines, settings_of(run.config)):
                run.console.note(waits_for)
            if run.stop.signum is not None:
                run.console.note(f"stopped after step {run.step} as asked, and saved: --resume continues")
    return 0 if run.stop.signum is None else 128 + run.stop.signum


if __name__ == "__main__":
    sys.exit(app())
