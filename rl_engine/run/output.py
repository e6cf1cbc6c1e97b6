"""Configuration → its output directory: free or belonging to this run, and used by one process at a time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from evals.launch.group import unjoined
from rl_engine.config import Config
from rl_engine.config.fields import value_at
from rl_engine.config.file import RUN_CONFIG, ConfigError
from rl_engine.config.resuming import ResumeRule
from rl_engine.config.run import CHECKPOINT_EVERY
from rl_engine.config.sft import SftConfig
from rl_engine.run.locks import LOCK, is_held, locks_on_one_machine, takes_lock
from rl_engine.run.origin.environment import ranks
from rl_engine.run.origin.inputs import changed_inputs
from rl_engine.run.origin.starts import read_starts
from rl_engine.run.records import METRICS, WRITTEN, read_metrics
from rl_engine.run.resumption import (
    UP_TO_ROUNDING,
    changes_since,
    notes_on,
    read_run_config,
    refuse_changes,
    settings_before,
    steps_on_record,
)
from rollout.files.durable import numbered
from rollout.files.exclusive import is_at
from rollout.files.ownership import MARKER, place_aside

CHECKPOINTS = "checkpoints"
CHANGES_SHOWN = 6
"""Largest number of changed settings that are listed when an earlier run is replaced."""
Say = Callable[[str], None]
"""Prints a line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """How to begin if the directory already contains a run; without any of these it is an error."""

    resume: bool = False
    """Continue after the newest checkpoint."""
    overwrite: bool = False
    """Replace the earlier run."""
    keep_old: bool = False
    """When replacing, keep the earlier run beside the new one."""


ANEW = Beginning()


@dataclass
class Earlier:
    """The files of an earlier run, moved aside while another begins in its directory."""

    place: Path
    keep: bool
    say: Say
    _settled: bool = field(default=False, init=False)

    def move_aside(self) -> None:
        """Remove the earlier run, or keep it for good, once the new one has made a step. Later calls do nothing."""
        if self._settled:
            return
        self._settled = True
        if self.keep:
            self.say(f"the earlier run is kept in {self.place}")
            return
        # On NFS a file that another program has open stays until that closes it: no reason to end the new run.
        shutil.rmtree(self.place, ignore_errors=True)
        left = " but for what could not be deleted" if self.place.exists() else ""
        self.say(f"the earlier run is removed from {self.place}{left}")


@contextlib.contextmanager
def sole_writer(
    config: Config | SftConfig, *, overwrite: bool, keep: bool = False, say: Say = print
) -> Iterator[Earlier | None]:
    """Create the directory if needed, and keep other processes from training in it for the duration of the block.

    With `overwrite` an earlier run in it is moved aside and yielded; otherwise yields None. The earlier run is given up
    when the new run says so, after its first step, and restored if the block ends before that; see `_is_kept`. Only
    files that our runs write are ever touched. The lock is released however the process ends.
    Raises `ConfigError` if another process is training there or the contents are not recognized as ours, and `OSError`
    if the directory is not writable.
    """
    run = Path(config.output_dir)
    refuse_place(run)
    made, unlocked = not run.exists(), not (run / LOCK).exists()
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a", encoding="utf-8") as file:
        if not takes_lock(file):
            raise _occupied(run)
        if message := locks_on_one_machine(run):
            say(f"warning: {message}")
        try:
            if overwrite and _written(run):
                refuse_unmarked(run)
                refuse_mount(run)
                keep = _is_kept(run, keep)
                with _set_aside(run, _described(run, config), lock=file, keep=keep, say=say) as earlier:
                    yield earlier
            else:
                yield None
        finally:
            if unlocked and not (run / MARKER).is_file() and is_at(file, run / LOCK):
                # The run was refused before it began, so leave no trace of it.
                (run / LOCK).unlink()
                if made and not any(run.iterdir()):
                    run.rmdir()


@contextlib.contextmanager
def _set_aside(run: Path, earlier_run: str, *, lock: IO[str], keep: bool, say: Say) -> Iterator[Earlier]:
    """Move an earlier run's files aside until the new run has made a step, and back if it makes none."""
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
        # If the directory was moved or removed meanwhile, what is there now may be another run's.
        gone = not is_at(lock, run / LOCK)
        earlier.keep |= gone
        # If the run was stopped during an evaluation, its step is in a checkpoint but not yet in the metrics.
        if gone or any(line["step"] > 0 for line in read_metrics(run)) or _newest_step(run):
            earlier.move_aside()
        else:
            for path in _written(run):
                _remove(path)
            _move(place, run)
            place.rmdir()
            say(f"this run made no step: the earlier one is back in {run}")


def _described(run: Path, config: Config | SftConfig) -> str:
    """A description of the earlier run in a directory, for the user, with the settings that have changed."""
    steps = "an unknown number of"
    try:
        steps = str(steps_on_record(read_metrics(run)))
        found = [change for change in changes_since(run, config) if change.key != "output_dir"]
    except ValueError:  # damaged
        return f"the earlier run ({steps} steps)"
    listed = [str(change) for change in found[:CHANGES_SHOWN]]
    if len(found) > CHANGES_SHOWN:
        listed.append("…")
    settings = f"other settings: {'; '.join(listed)}" if listed else "the same settings"
    return f"the earlier run ({steps} steps, {settings})"


def _is_kept(run: Path, asked: bool) -> bool:
    """Whether a replaced run is kept even after the first step of the new one. Not only when asked: `config.yaml` may
    name another directory because the user has edited it, expecting the new run there and the old one to stay."""
    try:
        stated = value_at(read_run_config(run / RUN_CONFIG), "output_dir")
    except (ConfigError, OSError):
        return asked
    return asked or (stated is not None and Path(str(stated)).resolve() != run.resolve())


def _written(directory: Path, names: Sequence[str] = WRITTEN) -> list[Path]:
    """The paths in a directory that have a name that runs write."""
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
    """Raises `ConfigError` if something has a name that we would write, but no marker says that it is ours."""
    written = [path.name for path in _written(directory, names)]
    if written and not (directory / MARKER).is_file():
        raise ConfigError(
            f"output_dir: {directory} holds {', '.join(written)} but is not known to be {what} (no {MARKER}): nothing "
            "in it was touched. Move the files away, or give another output_dir"
        )


def check_output(config: Config | SftConfig, *, resume: bool) -> list[str]:
    """Messages for the user before a run begins or continues in its directory.

    Raises `ConfigError` rather than overwrite another run or resume a different one.
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
    _refuse_other_kinds(run)
    found = changes_since(run, config)
    refuse_changes(run, found)
    newest, lines = _newest_step(run), read_metrics(run)
    if not newest:
        _refuse_lost_checkpoints(run, longer=any(change.rule is ResumeRule.LENGTH for change in found))
        return [f"the run in {run} has no checkpoint: it starts from the beginning"]
    (last,) = read_starts(run)[-1:] or [{}]
    notes = [*notes_on(found), *_other_ranks(last), *changed_inputs(config, last.get("inputs", {}))]
    # The newest step's own line may still be in the checkpoint. A supervised run does not record every step.
    lost = {*range(1, newest)} - {line["step"] for line in lines} if isinstance(config, Config) else ()
    if lost:
        notes.append(
            f"warning: {run / METRICS} lacks {len(lost)} of the {newest} steps that are done, from step {min(lost)}: "
            "their metrics are lost, and the run continues without them"
        )
    return notes


def _other_ranks(last: Mapping[str, Any]) -> list[str]:
    """A message if another number of ranks was at work when the run last trained."""
    before, now = last.get("ranks", ranks()), ranks()
    return [] if now == before else [f"the number of ranks was {before}, and is {now}: {UP_TO_ROUNDING}"]


def dry_output(config: Config | SftConfig, beginning: Beginning) -> list[str]:
    """What a run would do with its directory, as messages for a dry run, which changes nothing.

    Raises `ConfigError` for a problem that no option of this run could solve.
    """
    run = Path(config.output_dir)
    refuse_place(run)
    refuse_occupied(run)
    if not holds_run(run) and not (beginning.overwrite and _written(run)):
        return check_output(config, resume=beginning.resume)
    if beginning.resume:
        notes = check_output(config, resume=True)
        return [f"--resume would continue after step {_newest_step(run)} of the run in {run}", *notes]
    if beginning.overwrite:
        refuse_unmarked(run)
        refuse_mount(run)
        kept = _is_kept(run, beginning.keep_old)
        then = "kept there" if kept else "removed after the first step of this one"
        return [f"--overwrite would move {_described(run, config)} to {place_aside(run)}, {then}"]
    return [f"{run} holds a run already: to train there, --resume continues it and --overwrite replaces it"]


def can_be_resumed(config: Config | SftConfig) -> bool:
    """Whether the directory holds a checkpoint that this very run could resume from."""
    run = Path(config.output_dir)
    try:
        found = changes_since(run, config)
    except ValueError:  # damaged
        return False
    except OSError:  # not readable now, which says nothing about the checkpoints
        found = []
    return not any(change.is_refused for change in found) and _newest_step(run) > 0


def begins(config: Config | SftConfig, *, resume: bool) -> bool:
    """Whether a run starts from its first step. A resumed one loads its weights from a checkpoint, and the adapter that
    it began with is not read and may be gone."""
    return not (resume and _newest_step(Path(config.output_dir)))


def _newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    return max(numbered(run / CHECKPOINTS, "step"), default=0)


def holds_run(run: Path) -> bool:
    return (run / METRICS).exists() or (run / CHECKPOINTS).exists()


def refuse_place(run: Path) -> None:
    """Raises `ConfigError` if the path is not a directory or not suitable for a run: inside what another run replaces
    and removes, the root, or a new directory whose name contains an unexpanded shell variable."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is not a directory")
    whole = run.resolve()
    if not whole.name:
        raise ConfigError(f"output_dir: {run} is the root of the file system: give a directory in it")
    new = [path.name for path in (run, *run.parents) if not path.exists()]
    if unfilled := [name for name in new if re.search(r"[*?]|\$\w", name)]:
        raise ConfigError(
            f"output_dir: {run} contains {unfilled[0]!r}, a shell pattern or variable that was not expanded: write the "
            "whole path (in a file a variable is ${oc.env:NAME})"
        )
    refuse_inside(run, "output_dir")


def _refuse_other_kinds(run: Path) -> None:
    """Raises `ConfigError` for a directory in the place of a file of the run, or the reverse."""
    for path in _written(run):
        is_file = "." in path.name
        if path.exists() and path.is_file() != is_file:
            kinds = ("a directory", "a file") if is_file else ("a file", "a directory")
            raise ConfigError(f"output_dir: {path} is {kinds[0]}, where the run keeps {kinds[1]}: move it away")


def refuse_mount(run: Path) -> None:
    """Raises `ConfigError` if a run to be moved aside is a mount point, such as a container's volume: it cannot be
    renamed across file systems."""
    if _written(run) and run.resolve().is_mount():
        raise ConfigError(
            f"output_dir: {run} is a mount point, so --overwrite cannot move the run in it aside: move the run away by "
            f"hand, or give a directory in {run}"
        )


def refuse_inside(place: Path, key: str, but: str = "") -> None:
    """Raises `ConfigError` for a path among the files that a run writes and removes, except under the name `but`."""
    whole = place.resolve()
    for above in whole.parents:
        name = whole.relative_to(above).parts[0]
        if name in WRITTEN and name != but and (above / MARKER).is_file():
            raise ConfigError(
                f"{key}: {place} is in {above / name}, which the run in {above} writes, and removes when it is "
                "replaced: give a directory elsewhere"
            )


def refuse_occupied(run: Path) -> None:
    """Raises `ConfigError` if another process is training in the directory, or if its lock may not be opened: in a copy
    of a read-only run, or another user's run in a shared directory."""
    lock = run / LOCK
    if lock.is_file() and not os.access(lock, os.R_OK | os.W_OK):
        ours = lock.stat().st_uid == os.geteuid()
        way = f"chmod -R u+rw {run} allows it" if ours else f"its owner can allow it (chmod -R a+rwX {run})"
        raise ConfigError(f"output_dir: this user may not write {lock}: {way}, or give another output_dir")
    if is_held(lock):
        raise _occupied(run)


def _occupied(run: Path) -> ConfigError:
    return ConfigError(
        f"output_dir: another process is training in {run}: wait for it, or give another output_dir{unjoined()}"
    )


def _refuse_lost_checkpoints(run: Path, *, longer: bool) -> None:
    """Raises `ConfigError` for a resumption without checkpoints, which would start over, if the run was past its first
    checkpoint, and so lost more than a step, or is to be extended, and so would repeat all steps."""
    done, old = steps_on_record(read_metrics(run)), settings_before(run)
    every, ended = value_at(old, "checkpoint.every"), done > 0 and value_at(old, "train.steps") in (done, None)
    every = CHECKPOINT_EVERY.get(value_at(old, "method"), 1) if every is None else every
    if (longer and ended) or (every and done > every):
        raise ConfigError(
            f"{run} has {done} steps on record and no checkpoint to continue from (checkpoint.every is {every}); "
            "--overwrite starts over"
        )
