"""The training loop, where the end of the pipeline meets its beginning."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from datafiles.text import first_line
from evals.launch.presence import lost_rank
from evals.scoring.kept import keep_answers
from evals.scoring.outcomes import outcome_of
from evals.scoring.report import EvalReport, report_on
from evals.suites import Suite
from rewards.command import out_of_memory
from rl_engine.config import Config
from rl_engine.learner.advantages import advantages_of
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import SamplerGapError, gap_limits
from rl_engine.learner.groups import GradedGroup, StepGroups
from rl_engine.learner.learner import Learner
from rl_engine.learner.state import learner_state
from rl_engine.learner.statistics import LearnStats
from rl_engine.learner.updates import training_samples, updates_of
from rl_engine.report.plot import plot_run
from rl_engine.run.bottleneck import Watch, settings_of
from rl_engine.run.checkpoint import Checkpoints, RunState
from rl_engine.run.console import RunConsole, ShownAnswer
from rl_engine.run.memory import PhasePeaks
from rl_engine.run.metrics import Timing, advantage_metrics, learn_metrics, rollout_metrics, time_metrics
from rl_engine.run.records import METRICS, PLOT, Records, asked_alike, best_version
from rl_engine.run.resumption import planned_length
from rl_engine.sampling.failures import GradingFailedError, grading_failure
from rl_engine.sampling.past_versions import PastVersions, gap_of_versions
from rl_engine.sampling.publish import Publisher
from rl_engine.sampling.sampler import GradedBatch, Sampler
from rl_engine.sampling.stream import RolloutStream
from rollout.config import SamplingConfig
from rollout.engine import PoolError
from rollout.stopping import Stopped, StopRequest
from rollout.types import AdapterRef, Prompt
from rollout.work_items import PromptBatch, Request

log = logging.getLogger(__name__)


@dataclass
class LiveRun:
    """The parts of a run, and its progress."""

    config: Config
    eval_sampling: SamplingConfig
    suites: Sequence[tuple[Suite, Sequence[Prompt]]]
    stream: RolloutStream
    sampler: Sampler
    learner: Learner
    past: PastVersions
    publisher: Publisher
    checkpoints: Checkpoints
    records: Records
    console: RunConsole
    stop: StopRequest
    peaks: PhasePeaks
    config_hash: str
    step: int = 0
    """The current step."""
    version: int = 0
    """The version of the learner's current weights, published or about to be."""
    examples: list[ShownAnswer] = field(default_factory=list)
    """One per evaluation so far."""
    saved: int = 0
    """The step of the newest checkpoint."""
    adapter: AdapterRef = field(init=False)
    finished: RunState = field(init=False)
    """State after the last step whose update is done; it matches the learner's current weights."""
    rng: torch.Tensor = field(init=False)
    """torch's random state at that point."""
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(settings_of(self.config))
        finish(self, {})

    @property
    def is_main(self) -> bool:
        return self.learner.ranks.is_main


def train(run: LiveRun) -> None:
    """Sample, grade, learn, publish and record until all steps are done.

    On a request to stop, or when the sampler or its check fails, the current step is dropped and the last finished one
    is saved before the exception is raised: `Stopped`, `EngineError` or `SamplerGapError`.
    """
    with torch.random.fork_rng(devices=()):  # a resumed run publishes once more than an uninterrupted one
        publish(run)
    peaks = run.peaks.metrics()
    if run.finished.unrecorded is not None:
        conclude(run, {**peaks, **run.finished.unrecorded} if run.step else {})
    elif run.is_main:
        mark_best(run)
    while run.step < run.config.train.steps:
        run.step += 1
        take_step(run)
        if due(run.step, run.config.checkpoint_every, run):
            save(run)


def take_step(run: LiveRun) -> None:
    """One step, from its problems to its line in metrics.jsonl."""
    start = time.monotonic()
    groups = sample(run)
    advantages = advantages_of(groups.all, run.config.loss.baseline)
    updates = updates_of(run.config, groups.to_learn, advantages[: len(groups.to_learn)])
    learn_start = time.monotonic()
    try:
        stats = learn(run, updates, groups.to_learn)
    except (Stopped, SamplerGapError) as error:  # raised on every rank, before anything was learned
        keep(run, error)
        raise
    learned = time.monotonic()
    run.version += bool(stats.updates)
    timing = Timing(
        rollout_s=groups.rollout_s,
        grade_s=groups.grade_s,
        learn_s=learned - learn_start,
        sync_s=0.0,
        step_s=learned - start,
    )
    metrics = {**step_metrics(run, groups.all, stats, timing), **advantage_metrics(advantages)}
    finish(run, metrics)
    if run.is_main:
        run.records.rollouts(run.step, groups.all, advantages)
    if stats.updates:
        sync_start = time.monotonic()
        publish(run)
        sync_s = time.monotonic() - sync_start
        timing = replace(timing, sync_s=sync_s, step_s=timing.step_s + sync_s)
    conclude(run, {**metrics, **time_metrics(timing, tokens_of(groups.all)), **run.peaks.metrics()})


def finish(run: LiveRun, unrecorded: dict[str, float] | None = None) -> None:
    """Mark the current step's update as done: a save now includes it. `unrecorded`: the step's metrics, until they are
    in metrics.jsonl."""
    run.finished = RunState(
        step=run.step,
        position=run.stream.position,
        drawing=run.stream.state(),
        version=run.version,
        config_hash=run.config_hash,
        planned_steps=planned_length(run.config, run.config.train.steps),
        unrecorded=unrecorded,
    )
    run.rng = torch.get_rng_state()


def conclude(run: LiveRun, metrics: dict[str, float]) -> None:
    """Evaluate if due, and record the step: everything that follows the update. A run stopped here does this when it is
    resumed."""
    finish(run, metrics)
    wanted = due(run.step, run.config.eval.every, run) if run.step else run.config.eval.at_start
    record(run, metrics, evaluate(run) if wanted else [])
    finish(run)


def due(step: int, every: int, run: LiveRun) -> bool:
    """Whether something that happens every `every` steps, and after the last, happens after this step."""
    return step == run.config.train.steps or (every > 0 and step % every == 0)


def sample(run: LiveRun) -> StepGroups:
    """Sample and grade completions for the step's problems."""
    with kept(run), run.console.phase(f"step {run.step}: sampling"), run.peaks.peak_gib("rollout"):
        groups = run.stream.take(run.step, run.adapter)
        failure = grading_failure(run.config.rewards, run.step, groups.all)
        if failure is not None:
            if run.is_main:
                run.records.rollouts(run.step, groups.all, [[0.0] * len(group.results) for group in groups.all])
            raise GradingFailedError(f"{failure}\nAll are in the rollouts of this step.")
    return groups


@contextlib.contextmanager
def kept(run: LiveRun) -> Iterator[None]:
    """Save the last finished step before any exception leaves the block. The block must raise on every rank or on none,
    and must leave the learner unchanged."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            keep(run, sys.exception())


@contextlib.contextmanager
def kept_without_memory(run: LiveRun) -> Iterator[None]:
    """Save the last finished step if the block runs out of memory before anything is learned. With several ranks
    nothing is saved, because the others are still waiting in their pass for the one that ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if run.learner.is_whole and run.learner.ranks.count == 1 and out_of_memory(error) is not None:
            keep(run, error)
        raise


def learn(run: LiveRun, updates: Sequence[Sequence[TrainingSample]], groups: Sequence[GradedGroup]) -> LearnStats:
    """Make the step's updates, or only the measurements if no group carries signal. A request to stop is honoured until
    the first update; after that the step is finished first."""
    engine = run.sampler.engine
    engine.sleep()
    with run.console.phase(f"step {run.step}: learning"), run.peaks.peak_gib("learn"):
        limits = gap_limits(run.config)
        with kept_without_memory(run):
            earlier = gap_of_versions(run.past, groups, run.adapter, limits)
        # With completions of earlier versions, the gap that the step itself measures includes what was learned since.
        limits_of_step = limits if earlier is None else None
        run.learner.set_rate(run.config.optim.rate_factor(run.config.train.steps, run.step - 1))
        with kept_without_memory(run):
            if updates:
                stats = run.learner.step(updates, limits_of_step, run.sampler.leave_if_asked)
            else:
                unlearned = training_samples(groups[0].rollout, [0.0] * run.config.sampling.n)
                stats = run.learner.measure(unlearned, limits_of_step)
    run.learner.release_memory()
    engine.wake()
    return stats if earlier is None else replace(stats, gap=earlier)


def publish(run: LiveRun) -> None:
    """Publish the learner's adapter, or model, to the sampler."""
    try:
        with run.peaks.peak_gib("sync"):
            run.adapter = run.publisher.publish(run.version)
    except (Stopped, PoolError) as error:  # raised on every rank; the canary check's other errors may be one rank's
        keep(run, error)
        raise


def step_metrics(run: LiveRun, groups: Sequence[GradedGroup], stats: LearnStats, timing: Timing) -> dict[str, float]:
    return {
        **rollout_metrics(groups),
        **learn_metrics(stats, float(run.learner.optimizer.param_groups[0]["lr"])),
        **time_metrics(timing, tokens_of(groups)),
        **run.stream.metrics(),
        **run.peaks.metrics(),
    }


def tokens_of(groups: Sequence[GradedGroup]) -> int:
    return sum(len(completion.token_ids) for group in groups for completion in group.rollout.completions)


def evaluate(run: LiveRun) -> list[EvalReport]:
    """Score the current adapter on every suite, with the engine that samples for training. Only the main rank returns
    reports.

    Workers of a pool sample all suites side by side, so that none waits for the longest completions of another.
    """
    problems = sum(len(prompts) for _, prompts in run.suites)
    piece = run.config.eval_piece(problems)
    asked = []
    for suite, prompts in run.suites:
        seeds = [f"eval/{suite.name}/{index}" for index in range(len(prompts))]
        wanted = PromptBatch(prompts, run.eval_sampling, run.adapter, seeds, urgent=True, prompts_per_piece=piece)
        asked.append(run.sampler.queue.submit(wanted))
    batches = [collected(run, suite, request) for (suite, _), request in zip(run.suites, asked, strict=True)]
    if not run.is_main:
        return []
    run.records.check_place()
    if batches:
        run.examples.append(example_of(run.step, batches[0].groups[0]))
    # Each problem's share of the total time: suites sampled side by side have no separate times.
    rollout_s = sum(batch.rollout_s for batch in batches) / max(problems, 1)
    reports = []
    for (suite, _), batch in zip(run.suites, batches, strict=True):
        outcomes = [outcome_of(group.rollout, group.results, rollout_s) for group in batch.groups]
        report = report_on(suite, outcomes, run.eval_sampling, run.sampler.grader, adapter=run.adapter)
        keep_answers(run.records.run / "evals", report.suite, report.adapter, outcomes)
        reports.append(report)
    return reports


def collected(run: LiveRun, suite: Suite, request: Request) -> GradedBatch:
    """Collect the graded answers to a suite. Raises `GradingFailedError` if they could not be graded."""
    with kept(run), run.console.phase(f"step {run.step}: evaluating {suite.name}"):
        batch = run.sampler.collect(request)
        if (failure := grading_failure(run.config.rewards, run.step, batch.groups)) is not None:
            raise GradingFailedError(f"evaluating {suite.name}: {failure}")
    return batch


def example_of(step: int, group: GradedGroup) -> ShownAnswer:
    problem = group.rollout.prompt.problem
    return ShownAnswer(
        step=step,
        problem=problem.text,
        reference=problem.answer,
        completion=group.rollout.completions[0].text,
        verdict=group.results[0].verdict,
    )


def record(run: LiveRun, metrics: dict[str, float], reports: Sequence[EvalReport]) -> None:
    """Write the step's line in metrics.jsonl, the reports, the console row and the plot."""
    if not run.is_main:
        return
    line = {"step": run.step, "adapter/version": run.adapter.version, **metrics}
    for report in reports:
        report.write(run.records.run / "evals")
        line |= report.metrics()
    run.records.metrics(line)
    run.console.row(line, reports)
    if (waits_for := run.watch.see(line)) is not None:
        run.console.note(waits_for)
    if reports or run.step == run.config.train.steps:  # a run without suites still has sampling metrics to plot
        plot_run(run.records.run)
    if reports:
        mark_best(run)


def mark_best(run: LiveRun) -> None:
    """Point `adapters/best` at the version that scored highest so far, among those that were asked alike."""
    if not run.suites:
        return
    store = run.publisher.store
    suite = run.config.eval.best or run.suites[0][0].name
    best = best_version(asked_alike(run.records.run), suite, store.versions())
    if best is not None:
        store.point("best", best)


def save(run: LiveRun) -> None:
    """Save a checkpoint of the last finished step, if there is one. Collective."""
    if not run.finished.step:
        return
    tensors = learner_state(run.learner)
    if run.is_main:
        run.records.check_place()
        run.checkpoints.save(run.finished, tensors, run.rng)
    run.saved = run.finished.step


def keep(run: LiveRun, error: BaseException | None) -> None:
    """Save the last finished step before `error` ends the run.

    If saving fails too, for lack of memory or disk space or because other ranks are gone, that is only logged, so that
    the user is shown the original error. After a request to stop there is no such error, and the failure is raised.
    """
    try:
        save(run)
    except (OSError, SafetensorError, MemoryError, RuntimeError) as second:
        if isinstance(error, Stopped):
            raise
        why = lost_rank(second) or first_line(second)
        log.warning("step %d could not be saved: %s", run.finished.step, why)


def summary_paths(run: LiveRun) -> dict[str, Path]:
    """Where to find what the run produced. Version 0, which may be the best, is not something that it produced."""
    root, best = run.records.run, run.publisher.store.pointed("best")
    paths = {"run": root, "adapter": run.publisher.store.path_of(run.finished.version)}
    if best:
        paths["best adapter"] = run.publisher.store.path_of(best)
    paths["metrics"] = root / METRICS
    return {**paths, "plot": root / PLOT} if (root / PLOT).is_file() else paths


def gained_nothing(run: LiveRun) -> bool:
    """Whether all evaluations of trained versions scored lower than the one before training. Equal ones are best."""
    return run.publisher.store.pointed("best") == 0 < run.finished.version
