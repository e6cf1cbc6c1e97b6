"""What the simulation of a pool is told, and what it answers: parts, a configuration, the work of a step; seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Seconds of sampling a piece, of an engine that has its cores to itself."""

    call_s: float
    sequence_s: float
    longest_s: float
    token_s: float

    def seconds(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Of the batches with these completion lengths, (…, sequences) → (…)."""
        longest, tokens = lengths.max(axis=-1), lengths.sum(axis=-1)
        seconds: npt.NDArray[np.float64] = (
            self.call_s + self.sequence_s * lengths.shape[-1] + self.longest_s * longest + self.token_s * tokens
        )
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of the parts, each measured with nothing else at work."""

    decoding: Decoding
    canary_s: float
    """Of a worker."""
    load_s: float
    """Of a worker, for one version."""
    learn_token_s: float
    check_token_s: float
    grade_completion_s: float
    record_completion_s: float
    """Between two steps, by one rank alone."""
    publish_s: float
    """The sync without load and canary."""
    send_s: float = 0.0
    answer_s: float = 0.0
    scan_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """Who shares what."""

    count: float = math.inf
    """Cores of the machine that learner and workers share."""
    worker: int = 1
    """Threads of a worker."""
    learner: int = 1
    """Threads that learn."""
    all_busy: float = 1.0
    """Speed of a core while all are busy; of one alone 1."""

    def pace(self, threads: float) -> float:
        """Speed of each of so many threads."""
        if threads <= 1 or math.isinf(self.count):
            return 1.0
        busy = min(threads, self.count)
        further = (self.count * self.all_busy - 1) / (self.count - 1) if self.count > 1 else 0.0
        return (1 + (busy - 1) * further) / threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How workers die, and what it takes to replace one."""

    per_hour: float
    """Of each worker, alive or at work, at any moment alike."""
    start_s: float
    """Until a worker that is started has its engine."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A run's configuration, as far as it matters here."""

    workers: int
    staleness: int
    prompts_per_piece: int
    learner_ranks: int = 1
    cores: Cores = field(default_factory=Cores)
    continuous: bool = False
    """Whether workers take a prompt whenever one is done, and no pieces."""
    failures: Failures | None = None

    @property
    def slots(self) -> int:
        """Of a worker: what it is asked for side by side."""
        return self.prompts_per_piece if self.continuous else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one step samples and learns from."""

    lengths: npt.NDArray[np.int64]
    """Completion tokens, (problems, samples)."""
    learned_tokens: float
    """Of the groups with signal."""

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """As `metrics.jsonl` has them, and what lies behind the step."""

    rollout_s: float
    """The learner's wait for completions."""
    grade_s: float
    learn_s: float
    sync_s: float
    between_s: float
    busy_s: float = 0.0
    """In which workers sampled, all together, until the next step."""
    lost_tokens: float = 0.0
    """That workers had sampled when they died."""

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.grade_s + self.learn_s + self.sync_s


def pieces_of(lengths: npt.NDArray[np.int64], prompts_per_piece: int, decoding: Decoding) -> list[float]:
    """Seconds of the pieces of a request with these lengths, (prompts, samples)."""
    whole = len(lengths) // prompts_per_piece * prompts_per_piece
    samples = lengths.shape[1]
    seconds: list[float] = decoding.seconds(lengths[:whole].reshape(-1, prompts_per_piece * samples)).tolist()
    if whole < len(lengths):
        seconds.append(float(decoding.seconds(lengths[whole:].reshape(-1))))
    return seconds
