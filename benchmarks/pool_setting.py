"""Input and output of the pool simulation: costs of the parts, a configuration, the work of a step → seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Costs of sampling a piece, for an engine that has its cores to itself."""

    call_s: float
    sequence_s: float
    longest_s: float
    token_s: float

    def seconds(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Seconds of the batches with these completion lengths, (…, sequences) → (…)."""
        longest, tokens = lengths.max(axis=-1), lengths.sum(axis=-1)
        seconds: npt.NDArray[np.float64] = (
            self.call_s + self.sequence_s * lengths.shape[-1] + self.longest_s * longest + self.token_s * tokens
        )
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of the parts, each measured with nothing else running."""

    decoding: Decoding
    canary_s: float
    """For a worker."""
    load_s: float
    """For a worker, per version."""
    learn_token_s: float
    check_token_s: float
    grade_completion_s: float
    record_completion_s: float
    """Between two steps, on one rank only."""
    publish_s: float
    """The sync without loading and canary."""
    send_s: float = 0.0
    answer_s: float = 0.0
    scan_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """How learner and workers share a machine's cores."""

    count: float = math.inf
    """Cores of the machine that the learner and the workers share."""
    worker: int = 1
    """Threads per worker."""
    learner: int = 1
    """Threads of the learner."""
    all_busy: float = 1.0
    """Speed of a core while all are busy, relative to one busy core alone."""

    def pace(self, threads: float) -> float:
        """Speed of each of this many threads."""
        if threads <= 1 or math.isinf(self.count):
            return 1.0
        busy = min(threads, self.count)
        further = (self.count * self.all_busy - 1) / (self.count - 1) if self.count > 1 else 0.0
        return (1 + (busy - 1) * further) / threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often workers die, and how long it takes to replace one."""

    per_hour: float
    """Failure rate of each worker, the same at any time, whether it is working or idle."""
    start_s: float
    """Seconds until a new worker has its engine."""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The part of a run's configuration that matters here."""

    workers: int
    staleness: int
    prompts_per_piece: int
    learner_ranks: int = 1
    cores: Cores = field(default_factory=Cores)
    continuous: bool = False
    """Whether workers take single prompts whenever one is done, instead of pieces."""
    failures: Failures | None = None

    @property
    def slots(self) -> int:
        """Requests that a worker handles side by side."""
        return self.prompts_per_piece if self.continuous else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """The work of one step: what it samples and learns from."""

    lengths: npt.NDArray[np.int64]
    """Completion tokens, shape (problems, samples)."""
    learned_tokens: float
    """Completion tokens of the groups with signal."""

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """Times as in `metrics.jsonl`, and what happens after the step."""

    rollout_s: float
    """The learner's wait for completions."""
    grade_s: float
    learn_s: float
    sync_s: float
    between_s: float
    busy_s: float = 0.0
    """Total seconds in which workers sampled until the next step."""
    lost_tokens: float = 0.0
    """Tokens that workers had sampled when they died."""

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.grade_s + self.learn_s + self.sync_s


def pieces_of(lengths: npt.NDArray[np.int64], prompts_per_piece: int, decoding: Decoding) -> list[float]:
    """Seconds of the pieces of a request with these lengths, shape (prompts, samples)."""
    whole = len(lengths) // prompts_per_piece * prompts_per_piece
    samples = lengths.shape[1]
    seconds: list[float] = decoding.seconds(lengths[:whole].reshape(-1, prompts_per_piece * samples)).tolist()
    if whole < len(lengths):
        seconds.append(float(decoding.seconds(lengths[whole:].reshape(-1))))
    return seconds
