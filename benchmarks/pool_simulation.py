"""Seconds of the parts of a step → seconds of whole steps: a discrete-event simulation of learner and workers.

It models what `rl_engine/train/loop.py`, `rl_engine/sampling/stream.py` and `rollout/pool/ray_pool.py` do:

- At the beginning of step s the learner requests everything up to step s + k (k: `rollout.max_staleness`) that has not
  been requested yet, and waits until the whole request that contains step s is complete. Therefore the first request
  covers k + 1 steps.
- A request is split into pieces of `prompts_per_piece`. The next piece goes to the first free worker.
- The learner grades, learns, writes the version and has it loaded. Every worker loads it before its next piece; a
  worker that missed versions loads all that are still needed. The canary, two prompts of at most eight tokens, goes
  ahead of all waiting pieces, and the learner waits for it.
- With continuous admission a worker has `prompts_per_piece` slots instead of a piece: each slot takes the next prompt
  as soon as its own completions are done.
- Workers die, each at the rate `Failures.per_hour`, whether they are working or not. The work in progress is lost, and
  its prompts go ahead of all that wait. The replacement starts after the pause of `rollout/pool/incidents.py`, takes
  `start_s` to start, and loads all versions that are needed.
- One thread of the learner's process, the driver, sends every call and takes every answer, one after the other.

The parts:

- A decoding step with r running sequences takes `longest_s + token_s · r`, and r falls as a batch drains. A piece needs
  as many decoding steps as its longest completion has tokens, which add up to
  `longest_s · longest + token_s · tokens`. With `sequence_s` per sequence for the prompts and `call_s` for the call,
  that is `Decoding.seconds`.
- In a worker with slots, r counts the remaining sequences of all slots; prompts of two versions are decoded side by
  side.
- Learning takes `learn_token_s` for each completion token of the groups with signal. If the step was sampled by an
  older version, the check of that version takes `check_token_s` for each token of the step. The time for grading, and
  for recording between steps, is proportional to the number of completions.
- A call takes the driver `send_s`. It takes all available answers in one pass, which costs `scan_s · W` with W open
  calls, and `answer_s` per answer.
- Cores: each thread that has work runs at `Cores.pace`. On C cores shared by learner and workers, n > C threads each
  get C / n of their speed, whoever they belong to; and C busy cores each run at `all_busy` of the speed of one core
  alone. Without a number of cores every worker and the learner have their own.

Left out: machines that die with several workers, workers of different speed, dynamic sampling, evaluations and
checkpoints, the higher cost of a token in a longer context, a limit on sequences side by side, the network. The learner
is one process; `learner_ranks` divides only the time of learning and grading.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.pool_setting import Costs, Setting, StepSeconds, StepWork, pieces_of
from rollout.pool.incidents import Incidents

T = TypeVar("T")


def simulate(costs: Costs, setting: Setting, steps: Sequence[StepWork]) -> list[StepSeconds]:
    """Simulate a run with these steps; return the seconds of each."""
    return _Simulation(costs, setting, steps).run()


def steady(staleness: int, steps: Sequence[T]) -> Sequence[T]:
    """The steps without those at the run's beginning and end.

    The first step warms up, the next k were sampled together with it, and in the last k nothing is left to sample
    ahead.
    """
    return steps[1 + staleness : len(steps) - staleness]


@dataclass(eq=False, slots=True)
class _Request:
    """The number of pieces that are still missing."""

    missing: int


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Work for a slot."""

    request: _Request
    seconds: float
    """Seconds of a piece, which the worker samples alone. A prompt's time depends on those sampled beside it."""
    tokens: float = 0.0
    longest: float = 0.0
    """Decoding steps of a prompt; 0 for a piece."""
    sequences: int = 0


@dataclass(slots=True)
class _Batch:
    """What a worker with slots decodes: a step takes `longest_s` plus `token_s` for each remaining sequence. A prompt's
    sequences end one after the other; their mean number is used."""

    steps: float = 0.0
    """Decoding steps since the beginning."""
    at: float = 0.0
    """Time at which `steps` was computed; in the future while a prompt is being read."""
    running: float = 0.0
    """Running sequences."""
    items: dict[int, tuple[WorkItem, float]] = field(default_factory=dict)
    """Slot → (item, decoding step at which it ends)."""
    turn: int = 0
    """Number of times its next end was scheduled; only the last one is valid."""


Waits = Generator[_Request | tuple[float, int], None, None]
"""A learner as a generator that yields what it waits for, or its own work as (seconds, threads)."""


class _Simulation:
    """The simulation has two clocks. When n threads share the machine, work that takes one second alone takes 1 /
    pace(n) seconds. All threads slow down alike, so events are kept on a clock of work done, where they keep their
    order whatever starts in between."""

    def __init__(self, costs: Costs, setting: Setting, steps: Sequence[StepWork]) -> None:
        self.costs, self.setting, self.steps = costs, setting, steps
        self.now = 0.0
        self._worked = 0.0
        self._threads = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._driver_free = 0.0
        self._version = 0
        # A slot samples independently; slot // `setting.slots` is its worker.
        slots = setting.workers * setting.slots
        self._loaded = [0] * slots
        self._idle = deque(range(slots))
        self._life = [0] * slots
        """Slot → number of workers that it has belonged to so far."""
        self._batches = [_Batch() for _ in range(setting.workers)]
        self._at_work: dict[int, tuple[WorkItem | None, float, float]] = {}
        """Slot → (item, begin, end)."""
        self._busy_s = self._lost_tokens = 0.0
        self._hire_at = 0.0
        self._incidents = Incidents(clock=lambda: self.now)
        self._in_flight = 0
        self._answers: list[tuple[int, int, WorkItem | None]] = []
        """Answers that the driver has not taken yet."""
        self._urgent: deque[WorkItem] = deque()
        self._waiting: deque[WorkItem] = deque()
        self._learner = self._learn()
        self._awaited: _Request | None = None
        self._done: list[StepSeconds] = []
        # The costs measured alone already include the slowdown by the part's own threads.
        self._worker_pace = setting.cores.pace(setting.cores.worker)
        self._learner_pace = setting.cores.pace(setting.cores.learner)
        if setting.failures is not None:
            self._random = np.random.default_rng(setting.failures.seed)
            for worker in range(setting.workers):
                self._live(worker)

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
        """Queue work for the driver, and return when it will be done."""
        self._driver_free = max(self._worked, self._driver_free) + seconds
        return self._driver_free

    # The learner

    def _learn(self) -> Waits:
        costs, ranks, cores = self.costs, self.setting.learner_ranks, self.setting.cores
        staleness, last = self.setting.staleness, len(self.steps) - 1
        requests: list[_Request] = []
        for step, work in enumerate(self.steps):
            begin, busy_s, lost_tokens = self.now, self._busy_s, self._lost_tokens
            until = min(step + staleness, last) + 1
            if until > len(requests):
                ahead = np.concatenate([other.lengths for other in self.steps[len(requests) : until]])
                request = self._sampled(ahead)
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
            yield self._submit([(costs.canary_s, 0.0)], urgent=True)
            synced = self.now
            yield work.lengths.size * costs.record_completion_s, 1
            self._done.append(
                StepSeconds(
                    rollout_s=sampled - begin,
                    grade_s=graded - sampled,
                    learn_s=learned - graded,
                    sync_s=synced - learned,
                    between_s=self.now - synced,
                    busy_s=self._busy_s - busy_s,
                    lost_tokens=self._lost_tokens - lost_tokens,
                )
            )

    def _resume(self) -> None:
        """Continue the learner, which has what it waited for, to the next thing that takes time."""
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

    def _sampled(self, lengths: npt.NDArray[np.int64]) -> _Request:
        size, decoding = self.setting.prompts_per_piece, self.costs.decoding
        if self.setting.continuous:
            longest, tokens = lengths.max(axis=1).tolist(), lengths.sum(axis=1).tolist()
            return self._submit([(0.0, *each, lengths.shape[1]) for each in zip(tokens, longest, strict=True)])
        tokens = np.add.reduceat(lengths.sum(axis=1), range(0, len(lengths), size))
        return self._submit(list(zip(pieces_of(lengths, size, decoding), tokens.tolist(), strict=True)))

    def _submit(self, items: Sequence[tuple[Any, ...]], *, urgent: bool = False) -> _Request:
        """Submit items, given as the fields of `WorkItem` after the request."""
        request = _Request(len(items))
        (self._urgent if urgent else self._waiting).extend(WorkItem(request, *each) for each in items)
        while self._idle and (self._urgent or self._waiting):
            self._assign(self._idle.popleft())
        return request

    def _publish(self) -> None:
        self._version += 1
        for _ in range(len(self._idle)):
            self._assign(self._idle.popleft())

    # The workers

    def _assign(self, slot: int) -> None:
        """Give a slot its next work: missed versions first, then urgent items."""
        missed = self._version - self._loaded[slot]
        if missed:
            self._loaded[slot] = self._version
            self._call(slot, min(missed, self.setting.staleness + 1) * self.costs.load_s, None)
            return
        for queue in (self._urgent, self._waiting):
            if queue:
                item = queue.popleft()
                self._call(slot, item.seconds, item)
                return
        self._idle.append(slot)

    def _call(self, slot: int, seconds: float, item: WorkItem | None) -> None:
        self._in_flight += 1
        begin = self._driven(self.costs.send_s)
        self._at(begin, self._begin, slot, self._life[slot], seconds * self._worker_pace, item)

    def _begin(self, slot: int, life: int, seconds: float, item: WorkItem | None) -> None:
        if life != self._life[slot]:  # the worker has died since
            self._in_flight -= 1
            self._give_back(item)
            return
        self._threads += self.setting.cores.worker
        if item is not None and item.longest:
            self._admit(slot, item)
            return
        self._at_work[slot] = (item, self._worked, self._worked + seconds)
        self._at(self._worked + seconds, self._end, slot, life)

    def _end(self, slot: int, life: int) -> None:
        if life != self._life[slot]:
            return
        item, begun, _ = self._at_work.pop(slot)
        self._busy_s += self._worked - begun if item and item.tokens else 0.0
        self._done_with(slot, life, item)

    def _done_with(self, slot: int, life: int, item: WorkItem | None) -> None:
        self._threads -= self.setting.cores.worker
        self._answers.append((slot, life, item))
        if len(self._answers) == 1:
            self._at(self._worked, self._take_answers)

    def _take_answers(self) -> None:
        """Make a pass of the driver as soon as it is free, over all answers that are available by then."""
        if self._driver_free > self._worked:
            self._at(self._driver_free, self._take_answers)
            return
        taken, self._answers = self._answers, []
        answered = self._driven(self.costs.answer_s * len(taken) + self.costs.scan_s * self._in_flight)
        self._in_flight -= len(taken)
        for each in taken:
            self._at(answered, self._answered, *each)

    def _answered(self, slot: int, life: int, item: WorkItem | None) -> None:
        if life == self._life[slot]:
            self._assign(slot)
        if item is not None:
            request = item.request
            request.missing -= 1
            if request is self._awaited and not request.missing:
                self._awaited = None
                self._resume()

    def _advance(self, batch: _Batch) -> None:
        """Advance a batch to the present."""
        passed = max(0.0, self._worked - batch.at)
        if batch.items and passed:
            decoding = self.costs.decoding
            batch.steps += passed / (decoding.longest_s + decoding.token_s * batch.running)
            self._busy_s += passed
        batch.at = max(batch.at, self._worked)

    def _admit(self, slot: int, item: WorkItem) -> None:
        """Add a prompt to its worker's batch, which pauses while the prompt is read."""
        batch, decoding = self._batches[slot // self.setting.slots], self.costs.decoding
        self._advance(batch)
        reading_s = decoding.call_s / self.setting.slots + decoding.sequence_s * item.sequences
        batch.at += reading_s
        self._busy_s += reading_s
        batch.items[slot] = (item, batch.steps + item.longest)
        batch.running += item.tokens / item.longest
        self._plan(batch)

    def _plan(self, batch: _Batch) -> None:
        """Schedule the end of the batch's next prompt."""
        batch.turn += 1
        if batch.items:
            slot, (_, ends) = min(batch.items.items(), key=lambda pair: pair[1][1])
            step_s = self.costs.decoding.longest_s + self.costs.decoding.token_s * batch.running
            self._at(batch.at + max(0.0, ends - batch.steps) * step_s, self._left, batch, batch.turn, slot)

    def _left(self, batch: _Batch, turn: int, slot: int) -> None:
        if turn != batch.turn:
            return
        self._advance(batch)
        item, _ = batch.items.pop(slot)
        batch.running = batch.running - item.tokens / item.longest if batch.items else 0.0
        self._plan(batch)
        self._done_with(slot, self._life[slot], item)

    def _live(self, worker: int) -> None:
        failures = self.setting.failures
        assert failures is not None
        if failures.per_hour:
            self._at(self._worked + self._random.exponential(3600 / failures.per_hour), self._die, worker)

    def _die(self, worker: int) -> None:
        """Kill a worker: its slots lose their work, and a replacement is started as in the pool."""
        failures, slots = self.setting.failures, self.setting.slots
        assert failures is not None
        self._idle = deque(slot for slot in self._idle if slot // slots != worker)
        for slot in range(worker * slots, (worker + 1) * slots):
            self._life[slot] += 1
            if slot in self._at_work:
                item, begun, ends = self._at_work.pop(slot)
                self._in_flight -= 1
                self._threads -= self.setting.cores.worker
                if item is not None:
                    self._busy_s += self._worked - begun
                    self._lost_tokens += item.tokens * (self._worked - begun) / (ends - begun)
                    self._give_back(item)
        batch = self._batches[worker]
        self._advance(batch)
        for item, ends in batch.items.values():
            self._in_flight -= 1
            self._threads -= self.setting.cores.worker
            self._lost_tokens += item.tokens * min(1.0, 1 - (ends - batch.steps) / item.longest)
        given, self._batches[worker] = list(batch.items.values()), _Batch()
        batch.turn += 1
        for item, _ in given:
            self._give_back(item)
        self._incidents.lost(str(worker), "")
        if self._worked >= self._hire_at:
            self._hire_at = self._worked + self._incidents.pause_s()
        self._at(self._hire_at + failures.start_s, self._return, worker)

    def _return(self, worker: int) -> None:
        for slot in range(worker * self.setting.slots, (worker + 1) * self.setting.slots):
            self._loaded[slot] = self._version - min(self._version, self.setting.staleness + 1)
            self._assign(slot)
        self._live(worker)

    def _give_back(self, item: WorkItem | None) -> None:
        if item is not None:
            self._urgent.appendleft(item)
            if self._idle:
                self._assign(self._idle.popleft())
