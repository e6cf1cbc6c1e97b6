"""Configurations that can share → runs side by side in one process, on one base model and one sampler.

Each run has its own thread. Only one works at a time, and a run yields its turn while it waits for samples. When all of
them wait, the sampler advances everything in flight one token at a time until some run has its batch. That run grades,
learns, publishes and submits its next batch, while the completions of the others stay where they are. So no run waits
for another's longest completion, and every run stays strictly on-policy.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rewards import Grader
from rl_engine.command import EXPLAINED, UNTRAINED, RunFailedError, explained
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.gradients import NonFiniteGradientError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.concurrent import Place, check_together, lines_together
from rl_engine.plan.sharing import Group, NamedConfig
from rl_engine.policy.base_model import SharedBase
from rl_engine.run.board import BEGUN, DONE, FAILED, STOPPED, Board, CellConsole
from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.console import RunConsole
from rl_engine.run.output import Beginning, check_output
from rl_engine.sampling.collective import asked_anywhere
from rl_engine.sampling.failures import GradingFailedError
from rl_engine.sampling.placement import start_shared_engine
from rl_engine.sampling.shared_engine import EngineOfOne
from rl_engine.sampling.turns import Turn
from rl_engine.train.assemble import Prepared, Shared, hash_of_run, newest_of_run, prepare_run
from rl_engine.train.dry_run import dry_run
from rl_engine.train.one_run import train_run
from rollout.engine import EngineError, StreamingEngine
from rollout.prompts.problems import tasks_of
from rollout.stopping import Stopped, StopRequest

ON_EVERY_RANK = (NonFiniteGradientError, GradingFailedError)
"""Errors that every rank is known to raise at the same point. Any other error could leave one of several ranks alone in
a collective call, so it ends the process and with it all runs."""


Given = dict[str, tuple[Prepared, Grader, CellConsole]]
"""Name of a run → what it is given, except the base model and the engine."""


def train_all(cells: Sequence[NamedConfig], ranks: Ranks, stop: StopRequest, at_once: int, beginning: Beginning) -> int:
    """Train runs that can share, and return the exit code: 1 if any failed; a single run's own code.

    `at_once` runs are in progress at a time; the configurations were resolved for this number. Errors in any
    configuration are raised before weights are loaded.
    """
    board = Board(quiet=not ranks.is_main, names=[cell.name for cell in cells])
    with contextlib.ExitStack() as stack:
        # Runs with the same rewards share the processes that grade.
        kinds = {cell.config.rewards.model_dump_json(): cell.config.rewards for cell in cells}
        tasks = {task.key: task for cell in cells for task in tasks_of(cell.config.data)}
        graders = {
            kind: stack.enter_context(Grader.from_config(rewards, [*tasks.values()])) for kind, rewards in kinds.items()
        }
        given = {}
        for cell in cells:
            grader = graders[cell.config.rewards.model_dump_json()]
            console = CellConsole(quiet=not ranks.is_main, steps=cell.config.train.steps, board=board, name=cell.name)
            with naming(cell, cells):
                given[cell.name] = checked(cell.config, ranks, grader, console, beginning), grader, console
        concurrent = ConcurrentRuns(board, ranks, stop, at_once, beginning)
        codes = concurrent.train(cells, given)
    if stop.asked and (len(codes) < len(cells) or stop.exit_code in codes.values()):
        return stop.exit_code  # if all runs had ended already, the request came too late to matter
    return codes[cells[0].name] if len(cells) == 1 else int(any(codes.values()))


@contextlib.contextmanager
def naming(cell: NamedConfig, cells: Sequence[NamedConfig]) -> Iterator[None]:
    """Prefix errors with the configuration's name if there are several."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if len(cells) == 1:
            raise
        raise ConfigError(f"{cell.name}: {error}") from error


def checked(config: Config, ranks: Ranks, grader: Grader, console: RunConsole, beginning: Beginning) -> Prepared:
    """Check the run as far as possible without weights, and return its data."""
    if not beginning.overwrite:
        check_output(config, resume=beginning.resume)
    prepared = prepare_run(config, ranks, grader, console, beginning.resume)
    if beginning.resume:
        checkpoints = Checkpoints(Path(config.output_dir) / "checkpoints", config.checkpoint.keep)
        newest_of_run(config, checkpoints, hash_of_run(config, prepared.data), ranks)
    return prepared


@dataclass(eq=False, slots=True)
class _ActiveRun:
    turn: Turn
    stop: StopRequest


@dataclass
class ConcurrentRuns:
    """Decides which run has the turn and which comes next. All ranks make the same choice."""

    board: Board
    ranks: Ranks
    stop: StopRequest
    at_once: int
    beginning: Beginning
    codes: dict[str, int] = field(default_factory=dict, init=False)
    """Name of a finished run → the exit code it would have had alone."""
    base: SharedBase = field(init=False)
    engine: StreamingEngine = field(init=False)
    _active: list[_ActiveRun] = field(default_factory=list, init=False)
    """Runs in progress, the one that has waited longest first."""
    _broken: EngineError | None = field(default=None, init=False)

    def train(self, cells: Sequence[NamedConfig], given: Given) -> dict[str, int]:
        """Load the base model, start the sampler, and train the runs; return the exit code of each that was started."""
        configs, place = [cell.config for cell in cells], Place.here(self.ranks)
        check_together(configs, place, self.at_once)
        lines = lines_together(configs, place, self.at_once)
        RunConsole(quiet=not self.ranks.is_main, steps=0).print_rows(
            {"model": f"{configs[0].model.name} ({configs[0].model.dtype})", **lines}
        )
        self.base = SharedBase(configs[0], self.ranks.device)
        context = max(prepared.context for prepared, _, _ in given.values())
        self.engine = start_shared_engine(configs, self.ranks, context, self.at_once)
        try:
            with self.stop.deferred(), self.board.shown():
                self._take_turns(cells, given)
        finally:
            self.engine.close()
        return self.codes

    def _take_turns(self, cells: Sequence[NamedConfig], given: Given) -> None:
        """Train until every run has ended. A run that waits for a slot takes the slot of one that has ended, however it
        ended."""
        waiting = deque(cells)
        while waiting or self._active:
            if self._must_end():
                self._report_unstarted(waiting)
            if waiting and len(self._active) < self.at_once:
                cell = waiting.popleft()
                self._resume(self._begin(cell, *given.pop(cell.name)))
            elif (one := self._next()) is not None:
                self._active.remove(one)
                self._resume(one)
            else:
                self._sample()

    def _begin(self, cell: NamedConfig, prepared: Prepared, grader: Grader, console: CellConsole) -> _ActiveRun:
        if self.at_once == 1:
            self.engine.wake()  # a run that failed while learning has left it asleep
        stop = StopRequest()
        self.stop.others.append(stop)
        turn = Turn(cell.name, lambda: self._train(cell, stop, shared))
        shared = Shared(
            prepared=prepared,
            grader=grader,
            load_base=self.base.model_of,
            engine=EngineOfOne(self.engine, cell.name, turn.wait_until, sleeps=self.at_once == 1),
            console=console,
        )
        return _ActiveRun(turn, stop)

    def _train(self, cell: NamedConfig, stop: StopRequest, shared: Shared) -> None:
        """Train one run, in its own thread. Its errors are reported and do not affect the other runs."""
        state, code = FAILED, 1
        self.board.state(cell.name, BEGUN)
        try:
            code = train_run(cell.config, self.ranks, stop, self.beginning, shared)
            state = STOPPED if code else DONE
        except Stopped:
            shared.console.note(f"stopped as asked before training began: {UNTRAINED}")
            state, code = STOPPED, stop.exit_code
        except EXPLAINED as error:
            self._end_with(error)
            message, code = explained(error, cell.config)
            self.board.error(cell.name, message)
        except Exception as error:  # noqa: BLE001 - a fault of one run, which leaves the others as they are
            self._end_with(error)
            self.board.error(cell.name, traceback.format_exc())
        finally:
            self.codes[cell.name] = code
            self.board.state(cell.name, state)

    def _end_with(self, error: Exception) -> None:
        """Re-raise the error if it could leave other ranks waiting."""
        cause = error.__cause__ if isinstance(error, RunFailedError) else error
        if self.ranks.count > 1 and not isinstance(cause, ON_EVERY_RANK):
            raise error

    def _resume(self, one: _ActiveRun) -> None:
        one.turn.take()
        if not one.turn.over:
            self._active.append(one)
            return
        self.stop.others.remove(one.stop)
        gc.collect()  # DeepSpeed's engine is in reference cycles; the next run and the waking sampler need its memory
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _next(self) -> _ActiveRun | None:
        """The longest-waiting run among those that can continue on every rank."""
        lacks = [not one.turn.ready for one in self._active]
        if self.ranks.count > 1 and lacks:
            lacks = self.ranks.max(torch.tensor(lacks, dtype=torch.float32, device=self.ranks.device)).bool().tolist()
        return next((one for one, lacking in zip(self._active, lacks, strict=True) if not lacking), None)

    def _must_end(self) -> bool:
        """Whether the runs must end: a rank was asked to stop, or the sampler is broken. Interrupts those that wait."""
        asked = asked_anywhere(self.ranks, self.stop)
        for one in self._active:
            if self._broken is not None:
                one.turn.interrupt(self._broken)
            elif asked and one.stop.raises:
                one.turn.interrupt(Stopped())
        return asked or self._broken is not None

    def _report_unstarted(self, waiting: deque[NamedConfig]) -> None:
        """Report the runs that were never started."""
        for cell in waiting:
            if self._broken is None:
                self.board.note(cell.name, f"stopped as asked before training began: {UNTRAINED}")
                self.board.state(cell.name, STOPPED)
            else:
                self.codes[cell.name] = 1
                self.board.error(cell.name, f"not started, because there is no sampler: {UNTRAINED}")
                self.board.state(cell.name, FAILED)
        waiting.clear()

    def _sample(self) -> None:
        # vLLM draws random numbers that it does not need. With one run at a time they must come from that run's state,
        # as they do when it trains alone.
        alone = self._active[0].turn.randomness() if self.at_once == 1 else contextlib.nullcontext()
        try:
            with alone:
                self.engine.advance()
        except EngineError as error:
            if self.ranks.count > 1:
                raise
            self._broken = error


def show_all(groups: Sequence[tuple[Group, int]], ranks: Ranks, beginning: Beginning) -> None:
    """Dry-run each configuration, and show what each group needs with that many runs at a time. Raises what the runs
    themselves would raise before they load weights."""
    cells = [cell for group, _ in groups for cell in group.cells]
    console = RunConsole(quiet=not ranks.is_main, steps=0)
    for cell in cells:
        console.note(f"\n{cell.name}")
        with naming(cell, cells):
            dry_run(cell.config, ranks, beginning)
    console.note("")
    for group, at_once in groups:
        lines = {"runs": ", ".join(cell.name for cell in group.cells)}
        if group.alone is None:
            place = Place.here(ranks)
            check_together(group.configs, place, at_once)
            lines |= lines_together(group.configs, place, at_once)
        console.print_rows(lines)
