"""The JSON file written by `benchmarks.pool` → the costs and the work that the simulation takes as input."""

from __future__ import annotations

import gzip
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pool_parts import Parts
from benchmarks.pool_setting import Cores, Costs, Setting, StepSeconds, StepWork
from benchmarks.pool_simulation import simulate, steady
from rl_engine.run.records import read_metrics

MEASURED = Path(__file__).parent.parent / "docs" / "benchmarks" / "pool.json"
PHASES = ("rollout_s", "grade_s", "learn_s", "sync_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """How a run samples."""

    workers: int
    """Number of workers; 0 samples in the learner's process."""
    staleness: int

    def overrides(self) -> list[str]:
        if not self.workers:
            return ["rollout.placement=inprocess"]
        return ["rollout.placement=ray", f"rollout.workers={self.workers}", f"rollout.max_staleness={self.staleness}"]


IN_PROCESS, ONE_WORKER = "in process", "1 worker, k = 0"
ARMS = {
    IN_PROCESS: Arm(workers=0, staleness=0),
    ONE_WORKER: Arm(workers=1, staleness=0),
    "2 workers, k = 0": Arm(workers=2, staleness=0),
    "1 worker, k = 1": Arm(workers=1, staleness=1),
    "2 workers, k = 1": Arm(workers=2, staleness=1),
}
MOST_STALE = max(arm.staleness for arm in ARMS.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """Seconds as recorded in `metrics.jsonl`."""

    rollout_s: float
    grade_s: float
    learn_s: float
    sync_s: float
    step_s: float
    between_s: float
    """From the end of the previous step to the beginning of this one; 0 for the first."""
    tokens: int
    learned_tokens: int
    """Completion tokens of the groups with signal."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over the time from step to step."""
        return self.tokens / (self.step_s + self.between_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    arm: str
    round: int
    steps: tuple[MeasuredStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything measured by one invocation."""

    environment: dict[str, Any]
    cores: int
    cpus_per_worker: int
    prompts_per_piece: int
    parts: Parts
    lengths: list[list[list[int]]]
    """Completion tokens by step, problem and sample, of an in-process run."""
    runs: tuple[MeasuredRun, ...]

    @classmethod
    def read(cls, path: Path) -> Measured:
        facts = json.loads(path.read_text())
        runs = tuple(
            MeasuredRun(arm=run["arm"], round=run["round"], steps=tuple(MeasuredStep(**step) for step in run["steps"]))
            for run in facts["runs"]
        )
        return cls(**{**facts, "parts": Parts.of(facts["parts"]), "runs": runs})

    def write(self, path: Path) -> None:
        """Write one line per run and per step's lengths, so that diffs are readable."""
        facts = asdict(self)
        lists = {name: facts.pop(name) for name in ("lengths", "runs")}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
        for name, rows in lists.items():
            lines.append(f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    def steps_of(self, arm: str) -> list[tuple[MeasuredStep, ...]]:
        """The same steps of each round for every arm: those `steady` for the arm that samples furthest ahead."""
        return [tuple(steady(MOST_STALE, run.steps)) for run in self.runs if run.arm == arm]

    def median(self, arm: str, value: Callable[[MeasuredStep], float]) -> float:
        return statistics.median(value(step) for steps in self.steps_of(arm) for step in steps)

    def speeds(self, arm: str) -> list[float]:
        """Tokens per second of each step divided by those of the same step in process, in the same round."""
        return [
            step.tokens_per_s / other.tokens_per_s
            for steps, others in zip(self.steps_of(arm), self.steps_of(IN_PROCESS), strict=True)
            for step, other in zip(steps, others, strict=True)
        ]

    def work(self) -> list[StepWork]:
        """The work of each step, from an in-process run."""
        steps = next(run.steps for run in self.runs if run.arm == IN_PROCESS)
        return [
            StepWork(lengths=np.array(lengths), learned_tokens=step.learned_tokens)
            for lengths, step in zip(self.lengths, steps, strict=True)
        ]

    def costs(self, arm: str) -> Costs:
        """The costs for an arm. Learning and sync are taken from the in-process arm or the one with one worker and k =
        0, where nothing else runs meanwhile; the check from the last steps of the arms with k > 0, in which nothing is
        sampled any more."""
        parts, pooled = self.parts, ARMS[arm].workers > 0
        alone = ONE_WORKER if pooled else IN_PROCESS
        completions = len(self.lengths[0]) * len(self.lengths[0][0])
        learn_token_s = self.median(alone, lambda step: step.learn_s / step.learned_tokens)
        last = [run.steps[-1] for run in self.runs if ARMS[run.arm].staleness]
        check_token_s = statistics.median(
            (step.learn_s - learn_token_s * step.learned_tokens) / step.tokens for step in last
        )
        of_pool = Costs(
            decoding=parts.worker,
            canary_s=parts.canary_s,
            load_s=parts.load_s,
            learn_token_s=learn_token_s,
            check_token_s=max(0.0, check_token_s),
            grade_completion_s=self.median(alone, lambda step: step.grade_s) / completions,
            record_completion_s=self.median(alone, lambda step: step.between_s) / completions,
            publish_s=max(0.0, self.median(alone, lambda step: step.sync_s) - parts.load_s - parts.canary_s),
            send_s=parts.send_s,
            answer_s=parts.answer_s,
            scan_s=parts.scan_s,
        )
        if pooled:
            return of_pool
        none = dict.fromkeys(("canary_s", "load_s", "send_s", "answer_s", "scan_s"), 0.0)
        sync_s = self.median(alone, lambda step: step.sync_s)
        return replace(of_pool, decoding=parts.engine, publish_s=sync_s, **none)

    def simulated(self, name: str) -> Sequence[StepSeconds]:
        """The simulated steps of an arm: the same ones as in `steps_of`."""
        arm = ARMS[name]
        cores = Cores(
            count=self.cores,
            worker=self.cpus_per_worker if arm.workers else self.cores,
            learner=self.cores,
            all_busy=self.parts.all_busy,
        )
        setting = Setting(
            workers=max(1, arm.workers),
            staleness=arm.staleness,
            prompts_per_piece=self.prompts_per_piece if arm.workers else len(self.lengths[0]),
            cores=cores,
        )
        return steady(MOST_STALE, simulate(self.costs(name), setting, self.work()))


def read_run(directory: Path) -> tuple[tuple[MeasuredStep, ...], list[list[list[int]]]]:
    """Return (the run's steps, their completion lengths by problem and sample)."""
    steps, lengths, before = [], [], 0.0
    for line in read_metrics(directory)[1:]:
        path = directory / "rollouts" / f"step{int(line['step']):06d}.jsonl.gz"
        groups: dict[str, list[tuple[int, float]]] = {}
        with gzip.open(path, "rt") as file:
            for record in map(json.loads, file):
                sample = (record["completion_tokens"], record["reward"])
                groups.setdefault(record["problem_id"], []).append(sample)
        lengths.append([[tokens for tokens, _ in group] for group in groups.values()])
        # The file is written at the end of the step, so the time between two files is the period.
        written = path.stat().st_mtime
        steps.append(
            MeasuredStep(
                **{name: line[f"time/{name}"] for name in PHASES},
                step_s=line["time/step_s"],
                between_s=max(0.0, written - before - line["time/step_s"]) if before else 0.0,
                tokens=sum(tokens for group in groups.values() for tokens, _ in group),
                learned_tokens=sum(
                    sum(tokens for tokens, _ in group)
                    for group in groups.values()
                    if len({reward for _, reward in group}) > 1
                ),
            )
        )
        before = written
    return tuple(steps), lengths
