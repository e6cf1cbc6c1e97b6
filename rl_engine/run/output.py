"""Configuration → its output directory: free or of this very run, and of one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from evals.partial_results import differences
from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.config.sft import SftConfig
from rl_engine.run.records import MARKER, METRICS, WRITTEN, read_metrics

LOCK = ".lock"
# What may change between a run and its resumption: nothing that the numbers depend on.
FREE_TO_CHANGE = ("output_dir", "log", "checkpoint", "eval")
FREE_OF_ROLLOUT = ("workers", "address", "start_timeout_s", "piece_timeout_s", "max_restarts")


def config_hash(config: Config | SftConfig) -> str:
    """Digest of everything the numbers of a run depend on."""
    values = _decisive(config.model_dump(mode="json"), config)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _decisive(values: dict[str, Any], config: Config | SftConfig) -> dict[str, Any]:
    """The part of a configuration that numbers depend on; `config` tells which kind of run it is of."""
    kept = {key: value for key, value in values.items() if key not in FREE_TO_CHANGE}
    if isinstance(config, SftConfig):
        return kept  # its order of examples and its rates depend on the number of steps
    rollout = {key: value for key, value in kept["rollout"].items() if key not in FREE_OF_ROLLOUT}
    return {**kept, "rollout": rollout, "train": {**kept["train"], "steps": None}}


@contextlib.contextmanager
def sole_writer(run: Path, *, overwrite: bool) -> Iterator[Path | None]:
    """Make the directory where it is not there, and let no other process train in it while the block lasts.

    With `overwrite` an earlier run in it is moved aside: yields where it is, or None without one. It is removed when
    the block has recorded a first step of its own, and comes back when the block ends before that. Only what a run of
    ours writes is ever touched. The lock goes with the process that holds it, however that ends.
    Raises `ConfigError` when another process is at work there, or when what is there is not known to be ours;
    `OSError` when nothing can be written there.
    """
    _refuse_file(run)
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"output_dir: another process is training in {run}") from error
        try:
            if overwrite and _written(run):
                _refuse_unmarked(run)
                with _set_aside(run) as aside:
                    yield aside
            else:
                yield None
        finally:
            if made and [path.name for path in run.iterdir()] == [LOCK]:
                # Refused before it began: nothing is left of it.
                (run / LOCK).unlink()
                run.rmdir()


@contextlib.contextmanager
def _set_aside(run: Path) -> Iterator[Path]:
    """What an earlier run wrote is beside the directory until another has made a step in it."""
    numbers = (number for number in itertools.count(1) if not run.with_name(f"{run.name}.old-{number}").exists())
    aside = run.with_name(f"{run.name}.old-{next(numbers)}")
    aside.mkdir()
    _move(run, aside)
    try:
        yield aside
    finally:
        if any(line["step"] > 0 for line in read_metrics(run)):
            shutil.rmtree(aside)
        else:
            for path in _written(run):
                _remove(path)
            _move(aside, run)
            aside.rmdir()


def moved_aside(aside: Path) -> str:
    """What a person is told of an earlier run."""
    return f"the earlier run is in {aside} while this one goes on, and comes back if this one makes no step"


def _written(directory: Path) -> list[Path]:
    """What is there by a name that runs write."""
    return [directory / name for name in WRITTEN if (directory / name).exists() or (directory / name).is_symlink()]


def _move(source: Path, target: Path) -> None:
    for path in _written(source):
        path.rename(target / path.name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _refuse_unmarked(run: Path) -> None:
    """Raises `ConfigError` where something has a name that runs write, and no run of ours says that it is its own."""
    written = [path.name for path in _written(run)]
    if written and not (run / MARKER).is_file():
        raise ConfigError(
            f"output_dir: {run} holds {', '.join(written)} and is not marked as a run ({MARKER} is not there): nothing "
            "in it is touched. Move that away, or give another output_dir"
        )


def check_output(config: Config | SftConfig, *, resume: bool) -> None:
    """Raises `ConfigError` rather than write over another run, or resume one that is not this one."""
    run = Path(config.output_dir)
    _refuse_file(run)
    exists = (run / METRICS).exists() or (run / "checkpoints").exists()
    if exists and not resume:
        raise ConfigError(
            f"output_dir: {run} holds a run already; --resume continues it, --overwrite replaces it, "
            "or give another output_dir"
        )
    if not exists:
        _refuse_unmarked(run)
    if resume and (run / "config.yaml").is_file():
        old = _read_config(run / "config.yaml")
        changed = differences(_decisive(old, config), _decisive(config.model_dump(mode="json"), config))
        if changed:
            raise ConfigError(f"{run} cannot be resumed with another configuration: {'; '.join(changed)}")
        _refuse_lost_checkpoints(run, every=old["checkpoint"]["every"])


def began_with(run: Path, section: str, key: str) -> Any:
    """The value that a run's own configuration has for `section.key`; None where there is no run, or no such key."""
    path = run / "config.yaml"
    return _read_config(path).get(section, {}).get(key) if path.is_file() else None


def _refuse_file(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise ConfigError(f"output_dir: {run} is not a directory")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict) or not {"train", "checkpoint"} <= values.keys():
        raise ConfigError(f"{path} is damaged: it is not the configuration of a run")
    return values


def _refuse_lost_checkpoints(run: Path, *, every: int) -> None:
    """Without a checkpoint a run begins anew: what has gone further than its first one did not just lose a step."""
    if not every or any((run / "checkpoints").glob("step*")):
        return
    lines = read_metrics(run)
    if lines and lines[-1]["step"] > every:
        raise ConfigError(
            f"{run} has {lines[-1]['step']} steps on record and no checkpoint to go on from, although checkpoint.every "
            f"is {every}; --overwrite begins anew"
        )
