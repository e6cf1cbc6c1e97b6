"""Configuration → trained adapter, its report and console summary: one whole run, alone or beside others."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rewards import Grader
from rl_engine.command import UNTRAINED, RunFailedError, instead_of_resuming, losses_explained, what_is_saved
from rl_engine.config import Config
from rl_engine.learner.gap import DivergedError, SamplerGapError
from rl_engine.learner.gradients import NonFiniteGradientError
from rl_engine.learner.ranks import Ranks
from rl_engine.report.page import write_report
from rl_engine.run.bottleneck import bottleneck_line, settings_of
from rl_engine.run.console import RunConsole
from rl_engine.run.output import Beginning, Earlier, check_output, sole_writer
from rl_engine.run.records import REPORT, asked_alike, read_metrics
from rl_engine.sampling.collective import check_shared
from rl_engine.sampling.failures import GradingFailedError
from rl_engine.train.assemble import Shared, assemble
from rl_engine.train.loop import LiveRun, gained_nothing, summary_paths, train
from rl_engine.train.next_steps import next_steps
from rollout.engine import EngineError, NanError
from rollout.prompts.problems import tasks_of
from rollout.stopping import Stopped, StopRequest

DIVERGED = (NonFiniteGradientError, DivergedError, NanError)


def train_run(
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    beginning: Beginning,
    shared: Shared | None = None,
) -> int:
    """Claim the output directory, train, and return the exit code. Raises `RunFailedError` if training ended early,
    `Stopped` on a request to stop before training had begun."""
    console = shared.console if shared else RunConsole(quiet=not ranks.is_main, steps=0)
    mine = sole_writer(config, overwrite=beginning.overwrite, keep=beginning.keep_old, say=console.note)
    with mine if ranks.is_main else contextlib.nullcontext() as earlier:
        check_shared(Path(config.output_dir), ranks)
        for note in check_output(config, resume=beginning.resume):
            console.note(note)
        return train_in_place(config, ranks, stop, resume=beginning.resume, earlier=earlier, shared=shared)


def train_in_place(
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    *,
    resume: bool,
    earlier: Earlier | None = None,
    shared: Shared | None = None,
) -> int:
    """Train in an output directory that this process has claimed; an `earlier` run is replaced after the first step."""
    output = Path(config.output_dir)
    console = shared.console if shared else None
    with (
        contextlib.nullcontext(shared.grader)
        if shared
        else Grader.from_config(config.rewards, tasks_of(config.data)) as grader,
        losses_explained(config),
    ):
        run = assemble(config, ranks, grader, resume, console=console, stop=stop, shared=shared)
        if earlier is not None:
            run.records.on_first_step = earlier.move_aside
        with stop.deferred():
            try:
                with (
                    losses_explained(config, lambda: f"step {run.step}, version {run.version}: "),
                    run.records.in_place(),
                ):
                    train(run)
            except Stopped:
                report_stop(run)
                return stop.exit_code
            except (SamplerGapError, GradingFailedError, NonFiniteGradientError) as error:
                raise RunFailedError(
                    f"step {run.step}, version {run.version}: {error}\n{how_to_continue(run, error)}"
                ) from error
            except EngineError as error:
                raise RunFailedError(f"step {run.step}: {error}\n{how_to_continue(run, error)}") from error
            finally:
                with contextlib.closing(run.sampler.engine):
                    if ranks.is_main:
                        run.records.close()
            if ranks.is_main:
                paths = reported(run, output)
                run.console.summary(asked_alike(output), paths)
                if gained_nothing(run):
                    run.console.note("adapters/best is version 0: no score was higher than the one before training")
                # Beside other runs, waiting for the sampler includes waiting for them, which is not a bottleneck of
                # this run.
                if shared is None and (waits_for := bottleneck_line(read_metrics(output), settings_of(run.config))):
                    run.console.note(waits_for)
                run.console.examples(run.examples)
                run.console.commands(next_steps(config, paths.get("best adapter", paths["adapter"])))
    return 0


def reported(run: LiveRun, output: Path) -> dict[str, Path]:
    """Write the report and return the paths for the summary. The run is done, so a damaged file in its directory that
    cannot be shown is only mentioned."""
    try:
        return {**summary_paths(run), "report": write_report([output], output / REPORT)}
    except ValueError as error:
        run.console.note(f"warning: no report was written: {error}")
        return summary_paths(run)


def report_stop(run: LiveRun) -> None:
    """Print what was kept, after everything that can be saved has been."""
    finished = run.finished
    if not finished.step:
        run.console.note(f"stopped as asked before the first step was done: {UNTRAINED}")
        return
    if run.is_main:
        run.console.summary(asked_alike(run.records.run), summary_paths(run))
    first = "" if finished.unrecorded is None else ", with its evaluation first"
    run.console.note(f"stopped after step {finished.step} as asked, and saved: --resume continues{first}")


def how_to_continue(run: LiveRun, error: Exception) -> str:
    """How to continue after an error. By then the last finished step has been saved, if that was possible."""
    step = run.finished.step
    if not step:
        return f"No step was done: {UNTRAINED}."
    if isinstance(error, DIVERGED):
        return instead_of_resuming(run.config)
    return f"step {step} is saved: --resume continues after it." if run.saved == step else what_is_saved(run.config)
