"""Configurations that can share → runs side by side in one process, on one base model and one sampler.

Each run has its own thread, of which one works at a time, and gives its turn away where it waits for samples. When all
wait, the sampler makes a token of everything that was asked for, until some run has its batch: that one grades, learns,
publishes and asks for its next, while the others' completions stay where they are. So nobody waits for another's
longest completion, and every run stays strictly on its own policy.
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
from rl_engine.plan.company import Place, check_together, company_lines
from rl_engine.plan.sharing import Group, NamedConfig
from rl_engine.policy.base_model import SharedBase
from rl_engine.run.board import BEGUN, DONE, FAILED, STOPPED, Board, CellConsole
from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.console import RunConsole
from rl_engine.run.output import Beginning, check_output
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
"""Errors of a run that all ranks are known to meet at once. With any other one of several ranks may be left alone in a
call that the others are not in, so that the process ends, and with it all."""


Given = dict[str, tuple[Prepared, Grader, CellConsole]]
"""Name of a run → what it is given, but for base and engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked for of every run."""

    at_once: int
    """Runs at work at a time, for which their configurations are settled."""
    beginning: Beginning


def train_all(cells: Sequence[NamedConfig], ranks: Ranks, stop: StopRequest, wishes: Wishes) -> int:
    """Train runs that can share; the exit code: 1 where one failed, and of a lone one its own.

    Raises what is wrong with any of them before weights are loaded.
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
            console, grader = console_of_cell(cell, board, ranks), graders[cell.config.rewards.model_dump_json()]
            with naming(cell, cells):
                given[cell.name] = checked(cell.config, ranks, grader, console, wishes), grader, console
        codes = train_group(cells, given, board, ranks, stop, wishes)
    if stop.asked and (len(codes) < len(cells) or stop.exit_code in codes.values()):
        return stop.exit_code  # nobody was left to hear it where all were over
    return codes[cells[0].name] if len(cells) == 1 else int(any(codes.values()))


def console_of_cell(cell: NamedConfig, board: Board, ranks: Ranks) -> CellConsole:
    return CellConsole(quiet=not ranks.is_main, steps=cell.config.train.steps, board=board, name=cell.name)


@contextlib.contextmanager
def naming(cell: NamedConfig, cells: Sequence[NamedConfig]) -> Iterator[None]:
    """What is wrong with one of several configurations is told with its name."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if len(cells) == 1:
            raise
        raise ConfigError(f"{cell.name}: {error}") from error


def checked(config: Config, ranks: Ranks, grader: Grader, console: RunConsole, wishes: Wishes) -> Prepared:
    """The run's data, and that nothing of it is known to be wrong."""
    if not wishes.beginning.overwrite:
        check_output(config, resume=wishes.beginning.resume)
    prepared = prepare_run(config, ranks, grader, console, wishes.beginning.resume)
    if wishes.beginning.resume:
        checkpoints = Checkpoints(Path(config.output_dir) / "checkpoints", config.checkpoint.keep)
        newest_of_run(config, checkpoints, hash_of_run(config, prepared.data), ranks)
    return prepared


def train_group(
    cells: Sequence[NamedConfig], given: Given, board: Board, ranks: Ranks, stop: StopRequest, wishes: Wishes
) -> dict[str, int]:
    """The runs side by side; the exit code of each that was begun."""
    configs, place = [cell.config for cell in cells], Place.here(ranks)
    at_once = wishes.at_once
    check_together(configs, place, at_once)
    RunConsole(quiet=not ranks.is_main, steps=0).print_rows(
        {"model": f"{configs[0].model.name} ({configs[0].model.dtype})", **company_lines(configs, place, at_once)}
    )
    base = SharedBase(configs[0], ranks.device)
    context = max(prepared.context for prepared, _, _ in given.values())
    engine = start_shared_engine(configs, ranks, context, at_once)
    try:
        with stop.noted(), board.shown():
            company = Company(base, engine, ranks, stop, at_once, wishes, board)
            company.train(cells, given)
    finally:
        engine.close()
    return company.codes


@dataclass(eq=False, slots=True)
class _AtWork:
    turn: Turn
    stop: StopRequest


@dataclass
class Company:
    """Who has the turn, and who comes next. On several ranks all make the same choice."""

    base: SharedBase
    engine: StreamingEngine
    ranks: Ranks
    stop: StopRequest
    at_once: int
    wishes: Wishes
    board: Board
    codes: dict[str, int] = field(default_factory=dict, init=False)
    """Name of a run that is over → what its exit code would be alone."""
    _at_work: list[_AtWork] = field(default_factory=list, init=False)
    """Who has waited longest first."""
    _broken: EngineError | None = field(default=None, init=False)

    def train(self, cells: Sequence[NamedConfig], given: Given) -> None:
        """Until every run is over. A run that waits for a place takes that of one that is over, however it ended."""
        waiting = deque(cells)
        while waiting or self._at_work:
            if self._leaving():
                self._leave_out(waiting)
            if waiting and len(self._at_work) < self.at_once:
                cell = waiting.popleft()
                self._let_go_on(self._begin(cell, *given.pop(cell.name)))
            elif (one := self._next()) is not None:
                self._at_work.remove(one)
                self._let_go_on(one)
            else:
                self._sample()

    def _begin(self, cell: NamedConfig, prepared: Prepared, grader: Grader, console: CellConsole) -> _AtWork:
        if self.at_once == 1:
            self.engine.wake()  # one that failed while it learned has left it asleep
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
        return _AtWork(turn, stop)

    def _train(self, cell: NamedConfig, stop: StopRequest, shared: Shared) -> None:
        """One run, in its own thread: what happens to it is told, and is nobody else's."""
        state, code = FAILED, 1
        self.board.state(cell.name, BEGUN)
        try:
            code = train_run(cell.config, self.ranks, stop, self.wishes.beginning, shared)
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
        """Raises the error again where it would leave another rank alone."""
        cause = error.__cause__ if isinstance(error, RunFailedError) else error
        if self.ranks.count > 1 and not isinstance(cause, ON_EVERY_RANK):
            raise error

    def _let_go_on(self, one: _AtWork) -> None:
        one.turn.take()
        if not one.turn.over:
            self._at_work.append(one)
            return
        self.stop.others.remove(one.stop)
        gc.collect()  # DeepSpeed's engine is in circles; the next run wants its memory, and the sampler to wake in
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def _next(self) -> _AtWork | None:
        """The run that has waited longest, of those that have what they wait for on every rank."""
        lacks = [not one.turn.ready for one in self._at_work]
        if self.ranks.count > 1 and lacks:
            lacks = self.ranks.max(torch.tensor(lacks, dtype=torch.float32, device=self.ranks.device)).bool().tolist()
        return next((one for one, lacking in zip(self._at_work, lacks, strict=True) if not lacking), None)

    def _leaving(self) -> bool:
        """Whether the runs are to end: a rank was asked to stop, or there is no sampler left. Who waits hears it."""
        asked = self.stop.signum or 0
        if self.ranks.count > 1:
            asked = int(self.ranks.max(torch.tensor(float(asked), device=self.ranks.device)))
        if asked:
            self.stop.heed(asked)
        for one in self._at_work:
            if self._broken is not None:
                one.turn.interrupt(self._broken)
            elif asked and one.stop.raises:
                one.turn.interrupt(Stopped())
        return bool(asked) or self._broken is not None

    def _leave_out(self, waiting: deque[NamedConfig]) -> None:
        """Those that have not begun never will."""
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
        # vLLM draws numbers that it does not need. With one run they are those that it draws alone.
        alone = self._at_work[0].turn.randomness() if self.at_once == 1 else contextlib.nullcontext()
        try:
            with alone:
                self.engine.advance()
        except EngineError as error:
            if self.ranks.count > 1:
                raise
            self._broken = error


def show_all(groups: Sequence[tuple[Group, int]], ranks: Ranks, beginning: Beginning) -> None:
    """A dry run of each, and what those of a group need together, so many at a time. Raises what the runs would raise
    before they load weights."""
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
            configs, place = [cell.config for cell in group.cells], Place.here(ranks)
            check_together(configs, place, at_once)
            lines |= company_lines(configs, place, at_once)
        console.print_rows(lines)
