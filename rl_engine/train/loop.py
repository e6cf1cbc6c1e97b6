"""The training loop: where the end of the pipeline meets its beginning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from evals.scoring.outcomes import outcome_of
from evals.scoring.report import EvalReport, report_on
from evals.suites import Suite
from rl_engine.config import Config
from rl_engine.learner.advantages import advantages_of
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import gap_limits
from rl_engine.learner.groups import GradedGroup, StepGroups
from rl_engine.learner.learner import Learner
from rl_engine.learner.state import learner_state
from rl_engine.learner.statistics import LearnStats
from rl_engine.learner.updates import training_samples, updates_of
from rl_engine.report.plot import NAME as PLOT
from rl_engine.report.plot import plot_run
from rl_engine.run.best import best_version
from rl_engine.run.bottleneck import Watch, settings_of
from rl_engine.run.checkpoint import Checkpoints, RunState
from rl_engine.run.console import RunConsole
from rl_engine.run.metrics import Timing, advantage_metrics, learn_metrics, rollout_metrics, time_metrics
from rl_engine.run.peaks import PhasePeaks
from rl_engine.run.records import METRICS, Records, read_metrics
from rl_engine.run.stopping import StopRequest
from rl_engine.sampling.past import PastVersions, gap_of_versions
from rl_engine.sampling.publish import Publisher
from rl_engine.sampling.sampler import Sampler
from rl_engine.sampling.stream import RolloutStream
from rollout.config import SamplingConfig
from rollout.types import AdapterRef, Prompt


@dataclass
class Run:
    """The parts of a run, and where it stands."""

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
    version: int = 0
    adapter: AdapterRef = field(init=False)
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(settings_of(self.config))

    @property
    def is_main(self) -> bool:
        return self.learner.ranks.is_main


def train(run: Run) -> None:
    """Sample, grade, learn, publish, record; until the steps are done or someone asks to stop."""
    with torch.random.fork_rng(devices=()):  # a run that goes on publishes once more than one that never stopped
        run.adapter = run.publisher.publish(run.version)
    if run.step == 0:
        record(run, {}, evaluate(run) if run.config.eval.at_start else [])
    elif run.is_main:
        mark_best(run)
    while run.step < run.config.train.steps and not run.stop.agreed(run.learner.ranks):
        start = time.monotonic()
        run.step += 1
        groups = sample(run)
        advantages = advantages_of(groups.all, run.config.loss.baseline)
        updates = updates_of(run.config, groups.to_learn, advantages[: len(groups.to_learn)])
        learn_start = time.monotonic()
        stats = learn(run, updates, groups.to_learn)
        sync_start = time.monotonic()
        if updates:
            run.version += 1
            with run.peaks.peak_gib("sync"):
                run.adapter = run.publisher.publish(run.version)
        end = time.monotonic()
        timing = Timing(
            rollout_s=groups.rollout_s,
            grade_s=groups.grade_s,
            learn_s=sync_start - learn_start,
            sync_s=end - sync_start,
            step_s=end - start,
        )
        metrics = {**step_metrics(run, groups.all, stats, timing), **advantage_metrics(advantages)}
        if run.is_main:
            run.records.rollouts(run.step, groups.all, advantages)
        record(run, metrics, evaluate(run) if due(run.step, run.config.eval.every, run) else [])
        if due(run.step, run.config.checkpoint.every, run):
            save(run)
    if run.step % run.config.checkpoint.every and run.step < run.config.train.steps:
        save(run)


def due(step: int, every: int, run: Run) -> bool:
    """Whether something done every so many steps, and after the last, is to be done."""
    return step == run.config.train.steps or (every > 0 and step % every == 0)


def sample(run: Run) -> StepGroups:
    """Graded completions of the step's problems."""
    with run.console.phase(f"step {run.step}: sampling"), run.peaks.peak_gib("rollout"):
        return run.stream.take(run.step, run.adapter)


def learn(run: Run, updates: Sequence[Sequence[TrainingSample]], groups: Sequence[GradedGroup]) -> LearnStats:
    """The step's updates; where no group carries signal, only the measurements."""
    engine = run.sampler.engine
    engine.sleep()
    with run.console.phase(f"step {run.step}: learning"), run.peaks.peak_gib("learn"):
        limits = gap_limits(run.config)
        earlier = gap_of_versions(run.past, groups, run.adapter, limits)
        # With earlier versions, what the step itself sees between sampler and learner is what was learned since, too.
        limits_of_step = limits if earlier is None else None
        if updates:
            stats = run.learner.step(updates, limits_of_step)
        else:
            unlearned = training_samples(groups[0].rollout, [0.0] * run.config.sampling.n)
            stats = run.learner.measure(unlearned, limits_of_step)
    run.learner.release_memory()
    engine.wake()
    return stats if earlier is None else replace(stats, gap=earlier)


def step_metrics(run: Run, groups: Sequence[GradedGroup], stats: LearnStats, timing: Timing) -> dict[str, float]:
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.rollout.completions)
    return {
        **rollout_metrics(groups),
        **learn_metrics(stats, float(run.learner.optimizer.param_groups[0]["lr"])),
        **time_metrics(timing, tokens),
        **run.stream.metrics(),
        **run.peaks.metrics(),
    }


def evaluate(run: Run) -> list[EvalReport]:
    """Score the current adapter on every suite, by the same engine that samples for training. The main rank reports.

    Workers of a pool sample all suites side by side: the longest completions of one are no one's wait.
    """
    problems = sum(len(prompts) for _, prompts in run.suites)
    asked = []
    for suite, prompts in run.suites:
        seeds = [f"eval/{suite.name}/{index}" for index in range(len(prompts))]
        request = run.sampler.queue.submit(
            prompts,
            run.eval_sampling,
            run.adapter,
            seeds,
            urgent=True,
            prompts_per_piece=run.config.eval_piece(problems),
        )
        asked.append(request)
    batches = []
    for (suite, _), request in zip(run.suites, asked, strict=True):
        with run.console.phase(f"step {run.step}: evaluating {suite.name}"):
            batches.append(run.sampler.collect(request))
    if not run.is_main:
        return []
    # Each problem's share: of suites that were sampled side by side none has a time of its own.
    rollout_s = sum(batch.rollout_s for batch in batches) / max(problems, 1)
    return [
        report_on(
            suite,
            [outcome_of(group.rollout, group.results, rollout_s) for group in batch.groups],
            run.eval_sampling,
            run.sampler.grader,
            adapter=run.adapter,
        )
        for (suite, _), batch in zip(run.suites, batches, strict=True)
    ]


def record(run: Run, metrics: dict[str, float], reports: Sequence[EvalReport]) -> None:
    """The step's line in metrics.jsonl, the reports, a row on the console, the plot."""
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
    if reports:
        plot_run(run.records.run)
        mark_best(run)


def mark_best(run: Run) -> None:
    """Let `adapters/best` name the version that scored highest so far."""
    if not run.suites:
        return
    store = run.publisher.store
    suite = run.config.eval.best or run.suites[0][0].name
    best = best_version(read_metrics(run.records.run), suite, store.versions())
    if best is not None:
        store.point("best", best)


def save(run: Run) -> None:
    """A checkpoint after the current step."""
    tensors = learner_state(run.learner)
    if not run.is_main:
        return
    state = RunState(step=run.step, position=run.stream.position, version=run.version, config_hash=run.config_hash)
    run.checkpoints.save(state, tensors)


def summary_paths(run: Run) -> dict[str, Path]:
    """Where a person finds what the run made."""
    root, best = run.records.run, run.publisher.store.pointed("best")
    paths = {"run": root, "adapter": run.adapter.path}
    if best is not None:
        paths["best adapter"] = run.publisher.store.path_of(best).resolve()
    return {**paths, "metrics": root / METRICS, "plot": root / PLOT}
