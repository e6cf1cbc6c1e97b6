"""A model, adapters and suites → scores, measured in a separate process."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.options import EvalOptions
from rl_engine.api.process import running
from rl_engine.config.hints import near
from rollout.models import from_home

NAMED = {"model", "suites", "adapters", "output"}
OPTIONS = {field.name: field.default for field in dataclasses.fields(EvalOptions) if field.name not in NAMED}
"""All other options of `python -m evals`, with their defaults."""
Place = str | os.PathLike[str]
Adapters = Place | None | Sequence[Place | None] | Mapping[str, Place | None]
"""None, as `run.best` may be, is refused with that reason."""


def evaluate(
    model: Place,
    suites: Place | Sequence[Place],
    adapters: Adapters = (),
    *,
    output: Place | None = None,
    show: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Score a base model and its adapters as `python -m evals` does, in a separate process, and return the report.

    `adapters` are directories, or a mapping of names to directories; for a run or its directory, its best version is
    taken, or the latest if none was scored.
    `output` is a JSON file in which to keep the report, without which the files that the command names are removed when
    it ends; with it, calling the function again continues an interrupted
    evaluation. Give the command's other options by name, with `_` for `-`: `samples=16`, `limit=100`,
    `temperature=0.6`, `base=False`, `records=True`, `overwrite=True`. `show` prints the command's output.

    The report has one entry per suite in `suites`: its `rows`, one per model (`adapter`, `avg`, its 95 % `interval`,
    `pass_at`, `tokens_mean`, …), and `minus_base`, the paired difference by adapter name; see docs/evaluation.md.
    Raises `CommandError` with the command's error line, and `TypeError` for an unknown option or what is no path.
    """
    for name in options.keys() - OPTIONS.keys():
        found = near(name, OPTIONS)
        hint = f"did you mean {found}?" if found else f"there are {', '.join(OPTIONS)}"
        raise TypeError(f"evaluate() has no option {name!r}: {hint}")
    names = [suites] if isinstance(suites, str | os.PathLike) else suites
    with tempfile.TemporaryDirectory(prefix="rl_engine-") as place:
        report = Path(place) / "scores.json" if output is None else from_home(os.fspath(output))
        arguments = [f"--model={os.fspath(model)}", *(f"--suite={os.fspath(one)}" for one in names)]
        arguments.append(f"--output={report}")
        arguments += [f"--adapter={adapter}" for adapter in _as_arguments(adapters)]
        arguments += [_flag(name, value) for name, value in options.items() if value != OPTIONS[name]]
        # Files in a directory that is gone when the report is returned are no result.
        with running("evals", arguments, show=show, hide=None if output is not None else place) as child:
            while child.is_at_work():
                pass
            child.check()
        found_scores: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found_scores


def _as_arguments(adapters: Adapters) -> Iterator[str]:
    """Each adapter as a `[NAME=]DIR` argument."""
    if isinstance(adapters, Mapping):
        for name, place in adapters.items():
            yield f"{name}={_path_of(place)}"
    elif adapters is None or isinstance(adapters, str | os.PathLike):
        yield _path_of(adapters)
    else:
        yield from map(_path_of, adapters)


def _path_of(adapter: Place | None) -> str:
    if adapter is None:
        raise TypeError("adapters holds None, which is no path: run.best is None if no version was scored")
    return os.fspath(adapter)


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"
