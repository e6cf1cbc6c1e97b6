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
    UNTRAINED,
    exit_untrained,
    join_ranks_quietly,
    stay_offline_if_possible,
    with_hint,
)
from rl_engine.config import Config, load_config
from rollout.engine import EngineError
from rollout.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks
    from rl_engine.train.loop import Run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[str, typer.Option(help="A YAML file, or the name of a shipped configuration.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]…", help="Settings that replace the file's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but the weights, and stop.")] = False,
) -> None:
    """Train a LoRA adapter with reinforcement learning."""
    if resume and overwrite:
        exit_with_error(RESUME_OR_OVERWRITE, 2)
    stop = StopRequest()
    try:
        settings = load_config(config, overrides or ())
        stay_offline_if_possible(settings)
        with stop.heard():
            code = run(settings, stop, resume=resume, overwrite=overwrite, only_check=dry_run)
    except Stopped:
        exit_untrained(stop)
    except (ValueError, FileNotFoundError) as error:
        # Configuration, data or adapters that cannot be used: the message is made for people.
        exit_with_error(str(error), 2)
    except SafetensorError as error:
        exit_with_error(f"a file of weights cannot be read: {error}", 2)
    except EngineError as error:
        exit_with_error(f"{error}\nWhat was saved before stands: --resume continues it.", 1)
    except OSError as error:
        exit_with_error(with_hint(error), 1)
    raise typer.Exit(code)


def run(config: Config, stop: StopRequest, *, resume: bool, overwrite: bool, only_check: bool) -> int:
    """Assemble and train; the exit code. Raises `Stopped` when someone asks to stop before training has begun."""
    ranks = join_ranks_quietly()
    from rl_engine.learner.ranks import leave_ranks
    from rl_engine.run.console import RunConsole
    from rl_engine.train.assemble import resolve_learning_rate

    try:
        config = resolve_learning_rate(config, RunConsole(quiet=not ranks.is_main, steps=config.train.steps))
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, resume=resume)
            return 0
        return train_run(config, ranks, stop, resume=resume, overwrite=overwrite)
    finally:
        leave_ranks()


def train_run(config: Config, ranks: Ranks, stop: StopRequest, *, resume: bool, overwrite: bool) -> int:
    from rl_engine.run.console import RunConsole
    from rl_engine.run.output import check_output, moved_aside, sole_writer

    mine = sole_writer(Path(config.output_dir), overwrite=overwrite)
    with mine if ranks.is_main else contextlib.nullcontext() as aside:
        if aside is not None:
            RunConsole(quiet=False, steps=0).note(moved_aside(aside))
        ranks.barrier()
        check_output(config, resume=resume)
        return train_in_place(config, ranks, stop, resume=resume)


def train_in_place(config: Config, ranks: Ranks, stop: StopRequest, *, resume: bool) -> int:
    """Train in an output directory that is known to be ours."""
    from rewards import Grader
    from rl_engine.learner.gap import SamplerGapError
    from rl_engine.report.page import NAME as REPORT
    from rl_engine.report.page import write_report
    from rl_engine.run.records import read_metrics
    from rl_engine.train.assemble import assemble
    from rl_engine.train.loop import summary_paths, train

    output = Path(config.output_dir)
    with Grader.from_config(config.rewards) as grader:
        run = assemble(config, ranks, grader, resume, stop=stop)
        with stop.noted():
            try:
                train(run)
            except Stopped:
                tell_stopped(run)
                return stop.exit_code
            except SamplerGapError as error:
                exit_with_error(f"step {run.step}, version {run.version}: {error}\n{way_on(run)}", 1)
            except EngineError as error:
                exit_with_error(f"step {run.step}: {error}\n{way_on(run)}", 1)
            finally:
                run.records.close()
                run.sampler.engine.close()
            if ranks.is_main:
                report = write_report([output], output / REPORT)
                run.console.summary(read_metrics(output), {**summary_paths(run), "report": report})
    return 0


def tell_stopped(run: Run) -> None:
    """Say what is kept, once all that can be is saved."""
    from rl_engine.run.records import read_metrics
    from rl_engine.train.loop import summary_paths

    finished = run.finished
    if not finished.step:
        run.console.note(f"stopped as asked before the first step was done: {UNTRAINED}")
        return
    if run.is_main:
        run.console.summary(read_metrics(run.records.run), summary_paths(run))
    first = "" if finished.unrecorded is None else ", with its evaluation first"
    run.console.note(f"stopped after step {finished.step} as asked, and saved: --resume continues{first}")


def way_on(run: Run) -> str:
    """What a person can do after an error, which came when the last finished step had been saved."""
    step = run.finished.step
    return f"step {step} is saved: --resume goes on after it." if step else f"No step was done: {UNTRAINED}."


if __name__ == "__main__":
    sys.exit(app())
