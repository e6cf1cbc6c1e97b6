"""Seconds of the parts of a step → seconds of whole steps: learner and pool of workers, event by event.

What is simulated is what `rl_engine/train/loop.py`, `rl_engine/sampling/stream.py` and `rollout/pool/ray_pool.py` do:

- At the beginning of step s the learner asks for everything up to step s + k (k: `rollout.max_staleness`) that has
  not been asked for, and waits until the whole request that step s is part of is there. The first request, therefore,
  is of k + 1 steps.
- A request is cut into pieces of `prompts_per_piece`. The next piece goes to the first free worker.
- The learner grades, learns, writes the version and has it loaded; every worker loads it before its next piece, one
  that missed some loads all that are still needed. The canary, two prompts of at most eight tokens, goes ahead of all
  pieces that wait, and the learner waits for it.
- One thread of the learner's process, the driver, sends every call and takes every answer, one after the other.

The parts:

- A decoding step with r running sequences takes `longest_s + token_s · r`, and as a batch drains r falls. A piece has
  its longest completion's number of them, so their sum is `longest_s · longest + token_s · tokens`; with `sequence_s`
  a sequence for the prompts and `call_s` for the call, that is `Decoding.seconds`.
- Learning takes `learn_token_s` for each completion token of the groups with signal. Where the step was sampled by an
  older version, the check of that version takes `check_token_s` for each token of the step. Grading, and recording
  between the steps, take as long as there are completions.
- A call takes the driver `send_s`. It takes all answers that are there in one pass, of `scan_s · W` with W calls under
  way and `answer_s` for each.
- Cores: each thread that has work runs at `Cores.pace`. On C cores shared by learner and workers n > C threads get C
  / n of their speed each, whoever they belong to; and C busy cores are `all_busy` as fast each as one alone. Without
  a number of cores every worker and the learner have their own.

Left out: workers that fail or differ in speed, dynamic sampling, evaluations and checkpoints, that a token costs more
with a longer context, a limit of sequences side by side, the network. The learner is one process; `learner_ranks`
divides the time of learning and grading and nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")


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
class Setting:
    """A run's configuration, as far as it matters here."""

    workers: int
    staleness: int
    prompts_per_piece: int
    learner_ranks: int = 1
    cores: Cores = field(default_factory=Cores)


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

    @property
    def step_s(self) -> float:
        return self.rollout_s + self.grade_s + self.learn_s + self.sync_s


def simulate(costs: Costs, setting: Setting, steps: Sequence[StepWork]) -> list[StepSeconds]:
    """The seconds of each step of a run of these steps."""
    return _Simulation(costs, setting, steps).run()


def steady(staleness: int, steps: Sequence[T]) -> Sequence[T]:
    """The steps between the run's beginning and its end.

    The first warms up, the next k were sampled with it; in the last k nothing is left to sample ahead.
    """
    return steps[1 + staleness : len(steps) - staleness]


def pieces_of(lengths: npt.NDArray[np.int64], prompts_per_piece: int, decoding: Decoding) -> list[float]:
    """Seconds of the pieces of a request with these lengths, (prompts, samples)."""
    whole = len(lengths) // prompts_per_piece * prompts_per_piece
    samples = lengths.shape[1]
    seconds: list[float] = decoding.seconds(lengths[:whole].reshape(-1, prompts_per_piece * samples)).tolist()
    if whole < len(lengths):
        seconds.append(float(decoding.seconds(lengths[whole:].reshape(-1))))
    return seconds


@dataclass(eq=False, slots=True)
class _Request:
    """How many of its pieces are not there yet."""

    missing: int


WorkItem = tuple[_Request, float]
Waits = Generator[_Request | tuple[float, int], None, None]
"""A learner that yields what it waits for, or its own work as (seconds, threads)."""


class _Simulation:
    """Everything happens at a time of the machine's clock. When n threads share it, work that would take a second alone
    takes 1 / pace(n) seconds: all are slowed alike, so ends of work are kept on a clock of work done, and keep their
    order whatever begins in between."""

    def __init__(self, costs: Costs, setting: Setting, steps: Sequence[StepWork]) -> None:
        self.costs, self.setting, self.steps = costs, setting, steps
        self.now = 0.0
        self._worked = 0.0
        self._threads = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._driver_free = 0.0
        self._version = 0
        self._loaded = [0] * setting.workers
        self._idle = deque(range(setting.workers))
        self._in_flight = 0
        self._answers: list[tuple[int, _Request | None]] = []
        """Not taken yet."""
        self._urgent: deque[WorkItem] = deque()
        self._waiting: deque[WorkItem] = deque()
        self._learner = self._learn()
        self._awaited: _Request | None = None
        self._done: list[StepSeconds] = []
        # What was measured alone was slowed by the threads of its own.
        self._worker_pace = setting.cores.pace(setting.cores.worker)
        self._learner_pace = setting.cores.pace(setting.cores.learner)

    def run(self) -> list[StepSeconds]:
        self._resume()
        while len(self._done) < len(self.steps):
            worked, _, action, arguments = heapq.heappop(self._events)
            self.now += (worked - self._worked) / self.setting.cores.pace(self._threads)
            self._worked = worked
            action(*arguments)
        return self._done

    def _at(self, worked: float, action: Callable[..., None], *arguments: Any) -> None:
        self._number += 1
        heapq.heappush(self._events, (worked, self._number, action, arguments))

    def _driven(self, seconds: float) -> float:
        """When the driver has done this too."""
        self._driver_free = max(self._worked, self._driver_free) + seconds
        return self._driver_free

    # The learner

    def _learn(self) -> Waits:
        costs, ranks, cores = self.costs, self.setting.learner_ranks, self.setting.cores
        staleness, last = self.setting.staleness, len(self.steps) - 1
        requests: list[_Request] = []
        for step, work in enumerate(self.steps):
            begin = self.now
            until = min(step + staleness, last) + 1
            if until > len(requests):
                ahead = np.concatenate([other.lengths for other in self.steps[len(requests) : until]])
                request = self._submit(pieces_of(ahead, self.setting.prompts_per_piece, costs.decoding))
                requests += [request] * (until - len(requests))
            yield requests[step]
            sampled = self.now
            yield work.lengths.size * costs.grade_completion_s / ranks, 1
            graded = self.now
            checked = work.tokens * costs.check_token_s if staleness and step else 0.0
            seconds = (work.learned_tokens * costs.learn_token_s + checked) / ranks
            yield seconds * self._learner_pace, cores.learner
            learned = self.now
            yield costs.publish_s, 1
            self._publish()
            yield self._submit([costs.canary_s], urgent=True)
            synced = self.now
            yield work.lengths.size * costs.record_completion_s, 1
            self._done.append(
                StepSeconds(
                    rollout_s=sampled - begin,
                    grade_s=graded - sampled,
                    learn_s=learned - graded,
                    sync_s=synced - learned,
                    between_s=self.now - synced,
                )
            )

    def _resume(self) -> None:
        """The learner has what it waited for: on to the next thing that takes time."""
        for wanted in self._learner:
            if isinstance(wanted, _Request):
                if wanted.missing:
                    self._awaited = wanted
                    return
            else:
                seconds, threads = wanted
                self._threads += threads
                self._at(self._worked + seconds, self._learner_ended, threads)
                return

    def _learner_ended(self, threads: int) -> None:
        self._threads -= threads
        self._resume()

    def _submit(self, seconds: Sequence[float], *, urgent: bool = False) -> _Request:
        request = _Request(len(seconds))
        (self._urgent if urgent else self._waiting).extend((request, each) for each in seconds)
        while self._idle and (self._urgent or self._waiting):
            self._assign(self._idle.popleft())
        return request

    def _publish(self) -> None:
        self._version += 1
        for _ in range(len(self._idle)):
            self._assign(self._idle.popleft())

    # The workers

    def _assign(self, worker: int) -> None:
        """Versions first, then what is urgent."""
        missed = self._version - self._loaded[worker]
        if missed:
            self._loaded[worker] = self._version
            self._call(worker, min(missed, self.setting.staleness + 1) * self.costs.load_s, None)
            return
        for queue in (self._urgent, self._waiting):
            if queue:
                request, seconds = queue.popleft()
                self._call(worker, seconds, request)
                return
        self._idle.append(worker)

    def _call(self, worker: int, seconds: float, request: _Request | None) -> None:
        self._in_flight += 1
        self._at(self._driven(self.costs.send_s), self._begin, worker, seconds * self._worker_pace, request)

    def _begin(self, worker: int, seconds: float, request: _Request | None) -> None:
        self._threads += self.setting.cores.worker
        self._at(self._worked + seconds, self._end, worker, request)

    def _end(self, worker: int, request: _Request | None) -> None:
        self._threads -= self.setting.cores.worker
        self._answers.append((worker, request))
        if len(self._answers) == 1:
            self._at(self._worked, self._take_answers)

    def _take_answers(self) -> None:
        """A pass of the driver, as soon as it is free: all answers that are there by then."""
        if self._driver_free > self._worked:
            self._at(self._driver_free, self._take_answers)
            return
        taken, self._answers = self._answers, []
        answered = self._driven(self.costs.answer_s * len(taken) + self.costs.scan_s * self._in_flight)
        self._in_flight -= len(taken)
        for worker, request in taken:
            self._at(answered, self._answered, worker, request)

    def _answered(self, worker: int, request: _Request | None) -> None:
        self._assign(worker)
        if request is not None:
            request.missing -= 1
            if request is self._awaited and not request.missing:
                self._awaited = None
                self._resume()
