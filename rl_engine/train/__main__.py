"""The command: `python -m rl_engine.train --config NAME_OR_PATH [--resume|--overwrite] [--dry-run] [key.sub=value …]`.

Imports nothing heavy until the configuration is known to be good.
"""

from __future__ import annotations

if __name__ == "__main__":
    from rollout.stopping import leave_while_loading

    leave_while_loading()

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from safetensors import SafetensorError

from evals.command import exit_with_error, say_loading
from rl_engine.command import (
    UNTRAINED,
    ConfiguredCommand,
    contradiction,
    exit_untrained,
    help_end,
    join_ranks_quietly,
    what_is_saved,
    with_hint,
)
from rl_engine.config import Config, load_config
from rl_engine.run.checks import check_place
from rl_engine.train.checks import check_quickly, wanted_of_hub
from rl_engine.train.trial import try_reward
from rollout.engine import EngineError
from rollout.files.durable import check_writable
from rollout.hub import check_hub, stay_offline_without
from rollout.models import hub_items_of_config
from rollout.stopping import Stopped, StopRequest

if TYPE_CHECKING:
    from rl_engine.learner.ranks import Ranks
    from rl_engine.run.output import Earlier
    from rl_engine.train.loop import Run

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
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="With --overwrite: keep the earlier run, aside.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything but the weights, and stop.")] = False,
) -> None:
    """Train a LoRA adapter with reinforcement learning."""
    if message := contradiction(resume=resume, overwrite=overwrite, keep_old=keep_old):
        exit_with_error(message, 2)
    stop = StopRequest()
    try:
        settings = load_config(config, overrides or ())
    except (ValueError, OSError) as error:
        exit_with_error(str(error), 2)
    try:
        check(settings, resume=resume, overwrite=overwrite, only_check=dry_run)
        say_loading("torch, transformers and DeepSpeed")
        with stop.heard():
            code = run(settings, stop, resume=resume, overwrite=overwrite, keep_old=keep_old, only_check=dry_run)
    except Stopped:
        exit_untrained(stop)
    except (ValueError, FileNotFoundError) as error:
        # Configuration, data or adapters that cannot be used: the message is made for people.
        exit_with_error(str(error), 2)
    except SafetensorError as error:
        exit_with_error(f"a file of weights cannot be read: {error}", 2)
    except EngineError as error:
        exit_with_error(f"{error}\n{what_is_saved(settings)}", 1)
    except OSError as error:
        exit_with_error(with_hint(error, settings), 1)
    raise typer.Exit(code)


def check(config: Config, *, resume: bool, overwrite: bool, only_check: bool) -> None:
    """What can be wrong and costs no time to find."""
    check_quickly(config)
    wanted = wanted_of_hub(config)
    stay_offline_without(wanted)
    if only_check:
        check_writable(Path(config.output_dir), "output_dir")
        # What can be shown without the hub is shown before it is asked for the rest.
        check_hub(hub_items_of_config(config.model))
    else:
        check_place(config, resume=resume, overwrite=overwrite)
        check_hub(wanted)
    try_reward(config)


def run(
    config: Config, stop: StopRequest, *, resume: bool, overwrite: bool, keep_old: bool = False, only_check: bool
) -> int:
    """Assemble and train; the exit code. Raises `Stopped` when someone asks to stop before training has begun."""
    ranks = join_ranks_quietly()
    from rl_engine.learner.ranks import leave_ranks
    from rl_engine.plan.card import settle_card, settle_precision
    from rl_engine.run.console import RunConsole
    from rl_engine.sampling.sent import check_room
    from rl_engine.train.assemble import resolve_learning_rate, resolve_pieces

    try:
        config = settle_precision(config, ranks.device.type, resume=resume)
        config = resolve_learning_rate(config, RunConsole(quiet=not ranks.is_main, steps=config.train.steps))
        config = settle_card(resolve_pieces(config, resume=resume), ranks)
        check_room(config)
        if only_check:
            from rl_engine.train.dry_run import dry_run

            dry_run(config, ranks, resume=resume, overwrite=overwrite, keep_old=keep_old)
            return 0
        return train_run(config, ranks, stop, resume=resume, overwrite=overwrite, keep_old=keep_old)
    finally:
        leave_ranks()


def train_run(
    config: Config, ranks: Ranks, stop: StopRequest, *, resume: bool, overwrite: bool, keep_old: bool = False
) -> int:
    from rl_engine.run.console import RunConsole
    from rl_engine.run.output import check_output, sole_writer

    console = RunConsole(quiet=not ranks.is_main, steps=0)
    mine = sole_writer(config, overwrite=overwrite, keep=keep_old, say=console.note)
    with mine if ranks.is_main else contextlib.nullcontext() as earlier:
        ranks.barrier()
        for note in check_output(config, resume=resume):
            console.note(note)
        return train_in_place(config, ranks, stop, resume=resume, earlier=earlier)


def train_in_place(
    config: Config, ranks: Ranks, stop: StopRequest, *, resume: bool, earlier: Earlier | None = None
) -> int:
    """Train in an output directory that is known to be ours; an `earlier` run gives way after the first step."""
    from rewards import Grader
    from rl_engine.learner.gap import SamplerGapError
    from rl_engine.learner.gradients import NonFiniteGradientError
    from rl_engine.report.page import NAME as REPORT
    from rl_engine.report.page import write_report
    from rl_engine.run.bottleneck import in_one_line, settings_of
    from rl_engine.run.records import read_metrics
    from rl_engine.sampling.failures import GradingFailedError
    from rl_engine.train.assemble import assemble
    from rl_engine.train.loop import summary_paths, train
    from rl_engine.train.next_steps import next_steps
    from rollout.prompts.problems import tasks_of

    output = Path(config.output_dir)
    with Grader.from_config(config.rewards, tasks_of(config.data)) as grader:
        run = assemble(config, ranks, grader, resume, stop=stop)
        if earlier is not None:
            run.records.on_first_step = earlier.give_way
        with stop.noted():
            try:
                train(run)
            except Stopped:
                tell_stopped(run)
                return stop.exit_code
            except (SamplerGapError, GradingFailedError) as error:
                exit_with_error(f"step {run.step}, version {run.version}: {error}\n{way_on(run)}", 1)
            except NonFiniteGradientError as error:
                exit_with_error(f"step {run.step}, version {run.version}: {error}\n{what_is_saved(config)}", 1)
            except EngineError as error:
                exit_with_error(f"step {run.step}: {error}\n{way_on(run)}", 1)
            finally:
                run.records.close()
                run.sampler.engine.close()
            if ranks.is_main:
                report = write_report([output], output / REPORT)
                paths = {**summary_paths(run), "report": report}
                lines = read_metrics(output)
                run.console.summary(lines, paths)
                if waits_for := in_one_line(lines, settings_of(run.config)):
                    run.console.note(waits_for)
                run.console.examples(run.examples)
                run.console.commands(next_steps(config, paths.get("best adapter", paths["adapter"])))
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
