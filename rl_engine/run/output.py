"""Configuration → its output directory: free or of this very run, and of one process at a time."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.config.resuming import ResumeRule, value_at
from rl_engine.config.run import CHECKPOINT_EVERY
from rl_engine.config.sft import SftConfig
from rl_engine.run.locks import LOCK, is_held, locks_on_one_machine, takes_lock
from rl_engine.run.origin.inputs import changed_inputs
from rl_engine.run.origin.starts import read_starts
from rl_engine.run.records import METRICS, WRITTEN, read_metrics
from rl_engine.run.resumption import (
    CONFIG,
    changes_since,
    notes_on,
    read_run_config,
    refuse_changes,
    steps_on_record,
)
from rollout.files.durable import numbered
from rollout.files.ownership import MARKER, place_aside

CHECKPOINTS = "checkpoints"
CHANGES_TOLD = 6
"""Settings of an earlier run that are named when it is replaced, at most."""
Say = Callable[[str], None]
"""Tells a person a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How a run begins where its directory has one already; without any of these it does not."""

    resume: bool = False
    """It goes on after the newest checkpoint."""
    overwrite: bool = False
    """It takes the place of the earlier one."""
    keep_old: bool = False
    """That is kept beside it."""


ANEW = Beginning()


@dataclass
class Earlier:
    """What an earlier run wrote, beside its directory while another begins there."""

    place: Path
    keep: bool
    say: Say
    _settled: bool = field(default=False, init=False)

    def give_way(self) -> None:
        """The new run has made a step: the earlier one is removed, or kept for good. Later calls change nothing."""
        if self._settled:
            return
        self._settled = True
        if not self.keep:
            shutil.rmtree(self.place)
        self.say(f"the earlier run is {'kept in' if self.keep else 'removed from'} {self.place}")


@contextlib.contextmanager
def sole_writer(
    config: Config | SftConfig, *, overwrite: bool, keep: bool = False, say: Say = print
) -> Iterator[Earlier | None]:
    """Make the directory where it is not there, and let no other process train in it while the block lasts.

    With `overwrite` an earlier run in it is moved aside: yields it, or None without one. It gives way when the new run
    tells it to, after its first step, and comes back when the block ends before that; see `_is_kept`. Only what a run
    of ours writes is ever touched. The lock goes with the process that holds it, however that ends.
    Raises `ConfigError` when another process is at work there, or when what is there is not known to be ours;
    `OSError` when nothing can be written there.
    """
    run = Path(config.output_dir)
    refuse_place(run)
    made, unlocked = not run.exists(), not (run / LOCK).exists()
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a", encoding="utf-8") as file:
        if not takes_lock(file):
            raise _occupied(run)
        if told := locks_on_one_machine(run):
            say(f"warning: {told}")
        try:
            if overwrite and _written(run):
                refuse_unmarked(run)
                refuse_mount(run)
                with _set_aside(run, _described(run, config), keep=_is_kept(run, keep), say=say) as earlier:
                    yield earlier
            else:
                yield None
        finally:
            if unlocked and not (run / MARKER).is_file():
                # Refused before it began: nothing is left of it.
                (run / LOCK).unlink()
                if made and not any(run.iterdir()):
                    run.rmdir()


@contextlib.contextmanager
def _set_aside(run: Path, earlier_run: str, *, keep: bool, say: Say) -> Iterator[Earlier]:
    """What an earlier run wrote is beside the directory until another has made a step in it."""
    place = place_aside(run)
    place.mkdir()
    try:
        _move(run, place)
    except OSError:
        _move(place, run)
        place.rmdir()
        raise
    then = "is kept there" if keep else "is removed once this one has made a step (--keep-old keeps it)"
    say(f"{earlier_run} is in {place}: it {then}, and comes back if this one makes none")
    earlier = Earlier(place=place, keep=keep, say=say)
    try:
        yield earlier
    finally:
        # A run that was stopped while it evaluated has a step in its checkpoint that is not on record yet.
        if any(line["step"] > 0 for line in read_metrics(run)) or numbered(run / CHECKPOINTS, "step"):
            earlier.give_way()
        else:
            for path in _written(run):
                _remove(path)
            _move(place, run)
            place.rmdir()
            say(f"this run made no step: the earlier one is back in {run}")


def _described(run: Path, config: Config | SftConfig) -> str:
    """The earlier run in a directory, as a person is told of it: with the settings that are others now."""
    steps = steps_on_record(read_metrics(run))
    try:
        found = [change for change in changes_since(run, config) if change.key != "output_dir"]
    except ConfigError:
        return f"the earlier run ({steps} steps)"
    told = [str(change) for change in found[:CHANGES_TOLD]]
    if len(found) > CHANGES_TOLD:
        told.append("…")
    settings = f"other settings: {'; '.join(told)}" if told else "the same settings"
    return f"the earlier run ({steps} steps, {settings})"


def _is_kept(run: Path, asked: bool) -> bool:
    """Whether a replaced run is kept even after the first step of the new one. Not only when asked: `config.yaml` may
    name another directory because the user has edited it, expecting the new run there and the old one to stay."""
    try:
        stated = value_at(read_run_config(run / CONFIG), "output_dir")
    except (ConfigError, OSError):
        return asked
    return asked or (stated is not None and Path(str(stated)).resolve() != run.resolve())


def _written(directory: Path, names: Sequence[str] = WRITTEN) -> list[Path]:
    """What is there by a name that runs write."""
    return [directory / name for name in names if (directory / name).exists() or (directory / name).is_symlink()]


def _move(source: Path, target: Path) -> None:
    for path in _written(source):
        path.rename(target / path.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def refuse_unmarked(directory: Path, names: Sequence[str] = WRITTEN, what: str = "a run") -> None:
    """Raises `ConfigError` where something has a name that we would write, and no mark says that it is ours."""
    written = [path.name for path in _written(directory, names)]
    if written and not (directory / MARKER).is_file():
        raise ConfigError(
            f"output_dir: {directory} holds {', '.join(written)} and is not marked as {what} ({MARKER} is not there): "
            "nothing in it is touched. Move that away, or give another output_dir"
        )


def check_output(config: Config | SftConfig, *, resume: bool) -> list[str]:
    """What a person is told before a run begins in its directory or goes on there.

    Raises `ConfigError` rather than write over another run, or resume one that is not this one.
    """
    run = Path(config.output_dir)
    refuse_place(run)
    if not holds_run(run):
        refuse_unmarked(run)
        return [f"there is no run in {run} to resume: this one starts from the beginning"] if resume else []
    if not resume:
        raise ConfigError(
            f"output_dir: {run} holds a run already; --resume continues it, --overwrite replaces it, "
            "or give another output_dir"
        )
    if not (run / CONFIG).is_file():
        return []
    found = changes_since(run, config)
    refuse_changes(run, found)
    if not numbered(run / CHECKPOINTS, "step"):
        _refuse_lost_checkpoints(run, longer=any(change.rule is ResumeRule.LENGTH for change in found))
        return [f"the run in {run} has no checkpoint: it starts from the beginning"]
    starts = read_starts(run)
    return [*notes_on(found), *changed_inputs(config, starts[-1].get("inputs", {}) if starts else {})]


def dry_output(config: Config | SftConfig, beginning: Beginning) -> list[str]:
    """What a run would do with its directory, told by a dry run, which changes nothing there.

    Raises `ConfigError` for what no option of this run could mend.
    """
    run = Path(config.output_dir)
    refuse_place(run)
    refuse_occupied(run)
    if not holds_run(run) and not (beginning.overwrite and _written(run)):
        return check_output(config, resume=beginning.resume)
    if beginning.resume:
        notes = check_output(config, resume=True)
        newest = max(numbered(run / CHECKPOINTS, "step"), default=0)
        return [f"--resume would continue after step {newest} of the run in {run}", *notes]
    if beginning.overwrite:
        refuse_unmarked(run)
        refuse_mount(run)
        kept = _is_kept(run, beginning.keep_old)
        then = "kept there" if kept else "removed after the first step of this one"
        return [f"--overwrite would move {_described(run, config)} to {place_aside(run)}, {then}"]
    return [f"{run} holds a run already: to train there, --resume continues it and --overwrite replaces it"]


def can_be_resumed(config: Config | SftConfig) -> bool:
    """Whether the directory holds a checkpoint that this run, and not another, would go on from."""
    run = Path(config.output_dir)
    try:
        found = changes_since(run, config)
    except (ConfigError, OSError):
        return False
    # auto has been resolved to the number that is on record.
    refused = [change for change in found if change.is_refused and change.new != "auto"]
    return not refused and bool(numbered(run / CHECKPOINTS, "step"))


def begins(config: Config | SftConfig, *, resume: bool) -> bool:
    """Whether a run starts with its first step. One that goes on has what it trains from a checkpoint: the adapter that
    it once began with is not looked at, and may be gone."""
    return not (resume and numbered(Path(config.output_dir) / CHECKPOINTS, "step"))


def holds_run(run: Path) -> bool:
    return (run / METRICS).exists() or (run / CHECKPOINTS).exists()


def refuse_place(run: Path) -> None:
    """Raises `ConfigError` for what is no directory, or no place for a run: what another run replaces and removes, the
    root, and a new directory whose name holds what a shell fills in, which nothing has filled in here."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is not a directory")
    whole = run.resolve()
    if not whole.name:
        raise ConfigError(f"output_dir: {run} is the root of the file system: give a directory in it")
    new = [path.name for path in (run, *run.parents) if not path.exists()]
    if unfilled := [name for name in new if re.search(r"[*?]|\$\w", name)]:
        raise ConfigError(
            f"output_dir: {run} would be made with the name {unfilled[0]!r}, which a shell fills in and nothing "
            "else does: write the whole path (in a file a variable is ${oc.env:NAME})"
        )
    refuse_inside(run, "output_dir")


def refuse_mount(run: Path) -> None:
    """Raises `ConfigError` where a run is to be moved aside from a file system of its own, as a container's volume is:
    nothing is moved from one to another."""
    if _written(run) and run.resolve().is_mount():
        raise ConfigError(
            f"output_dir: {run} is a mount point, and --overwrite moves the run in it to a place beside it: move that "
            f"away by hand, or give a directory in {run}"
        )


def refuse_inside(place: Path, key: str, but: str = "") -> None:
    """Raises `ConfigError` for a place among what a run writes in its directory, and removes; `but` by that name."""
    whole = place.resolve()
    for above in whole.parents:
        name = whole.relative_to(above).parts[0]
        if name in WRITTEN and name != but and (above / MARKER).is_file():
            raise ConfigError(
                f"{key}: {place} is in {above / name}, which the run in {above} writes, and removes when it is "
                "replaced: give a directory elsewhere"
            )


def refuse_occupied(run: Path) -> None:
    """Raises `ConfigError` where another process is at work in the directory."""
    if is_held(run / LOCK):
        raise _occupied(run)


def _occupied(run: Path) -> ConfigError:
    return ConfigError(f"output_dir: another process is training in {run}")


def _refuse_lost_checkpoints(run: Path, *, longer: bool) -> None:
    """Without a checkpoint a run begins anew: what has gone further than its first one did not just lose a step, and
    what is to be longer would be made again from its first step."""
    done, old = steps_on_record(read_metrics(run)), read_run_config(run / CONFIG)
    every, ended = value_at(old, "checkpoint.every"), done > 0 and value_at(old, "train.steps") in (done, None)
    every = CHECKPOINT_EVERY.get(value_at(old, "method"), 1) if every is None else every
    if (longer and ended) or (every and done > every):
        raise ConfigError(
            f"{run} has {done} steps on record and no checkpoint to continue from (checkpoint.every is {every}); "
            "--overwrite starts over"
        )
