"""Configuration → a run in a separate process: its metrics as they arrive, or the finished run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_engine.api.process import running
from rl_engine.api.run import Run, read_run
from rl_engine.config import Config
from rl_engine.config.file import RUN_CONFIG
from rl_engine.run.records import METRICS, read_metrics

Row = dict[str, float]
"""A step's line of metrics.jsonl, with the names of docs/metrics.md; in seconds, tokens, nats and fractions."""


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, keep_old: bool = False, show: bool = True
) -> Run:
    """Train as `python -m rl_engine.train` does, in a separate process, and return the finished run.

    `resume` continues the run in `output_dir`. `overwrite` replaces it; with `keep_old` the earlier run is kept as
    `<output_dir>.old-N`. With neither, an existing run is an error. `show` prints the command's output. Ctrl-C, or
    anything else that ends the call, stops the run, which saves its last finished step.
    Raises `CommandError` with the command's error line.
    """
    for _ in train_steps(config, resume=resume, overwrite=overwrite, keep_old=keep_old, show=show):
        pass
    return read_run(config.output_dir)


def train_steps(
    config: Config, *, resume: bool = False, overwrite: bool = False, keep_old: bool = False, show: bool = False
) -> Iterator[Row]:
    """Like `train`, but yields each step's metrics as soon as it is done; step 0 is the evaluation before training.

    The run starts when the first metrics are requested. Leaving the loop stops it. With `resume=True` it continues, and
    first yields the finished steps again.
    """
    if not isinstance(config, Config):
        raise TypeError(f"train takes a configuration, as load_config gives it, not {config!r:.80}")
    flags = {"--resume": resume, "--overwrite": overwrite, "--keep-old": keep_old}
    return _steps(config, [flag for flag, given in flags.items() if given], show)


def _steps(config: Config, flags: list[str], show: bool) -> Iterator[Row]:
    run, given = Path(config.output_dir).absolute(), 0
    # A run that starts or resumes writes its metrics to a new file, so an existing file holds an earlier run's metrics.
    earlier = _file_at(run / METRICS)
    with tempfile.TemporaryDirectory(prefix="rl_engine-") as place:
        file = Path(place) / RUN_CONFIG
        file.write_text(config.to_yaml(), encoding="utf-8")
        with running("rl_engine.train", ["--config", str(file), *flags], show=show) as child:
            at_work, size = True, -1
            while at_work:
                at_work = child.is_at_work()
                if _file_at(run / METRICS) in (None, earlier) or (run / METRICS).stat().st_size == size:
                    continue
                size = (run / METRICS).stat().st_size
                rows: list[dict[str, Any]] = read_metrics(run)
                yield from rows[given:]
                given = len(rows)
            child.check()


def _file_at(path: Path) -> int | None:
    """The inode number of the file at `path`; None if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
