"""Metrics → the services that mirror them: TensorBoard's files, and remote trackers."""

from __future__ import annotations

import importlib
import json
import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datafiles.text import first_line
from rl_engine.config import Config
from rl_engine.config.sft import SftConfig
from rollout.files.durable import naming, write_synced

TRACKERS = ("wandb", "trackio")
"""Modules with the interface of Weights & Biases; `log.NAME` is the project."""
TRACKED_AS = "tracked_as.json"
"""File in a run's directory with its id at the trackers, so that a resumed run continues there."""


class Sink(Protocol):
    """Receives every line of metrics.jsonl."""

    def log(self, line: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def open_sinks(run: Path, config: Config | SftConfig, done: int) -> list[Sink]:
    """The services that the configuration names, for a run that continues after step `done`."""
    sinks: list[Sink] = [_TensorBoard(run, done)] if config.log.tensorboard else []
    for module in TRACKERS:
        if (project := getattr(config.log, module)) is not None:
            sinks.append(_Tracker(module, _imported(module), project, run, config))
    return sinks


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"log.{module} is set, but {module} is not installed: pip install {module}") from error


class _TensorBoard:
    def __init__(self, run: Path, done: int) -> None:
        # Imported here, because code that only reads a run's records does not need torch.
        from torch.utils.tensorboard import SummaryWriter

        self._place = run / "tensorboard"
        self._writer = SummaryWriter(self._place, purge_step=done + 1)

    def log(self, line: dict[str, float]) -> None:
        with naming(self._place):
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(line["step"]))
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@dataclass
class _Tracker:
    """A remote service. It may fail, and the run continues without it.

    Everything the run needs is in its own files. The first failure is logged, and the service is not used again.
    """

    name: str
    module: Any
    project: str
    run: Path
    config: Config | SftConfig
    _alive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        known = _tracked_as(self.run)
        # trackio identifies runs by name only, so the name must differ from that of any other run in this directory.
        label = {"id": known, "name": self.run.name} if self.name == "wandb" else {"name": f"{self.run.name}-{known}"}
        values = self.config.model_dump(mode="json")
        self._tell("init", project=self.project, **label, resume="allow", config=values)

    def log(self, line: dict[str, float]) -> None:
        self._tell("log", line, step=int(line["step"]))

    def close(self) -> None:
        self._tell("finish")

    def _tell(self, what: str, *arguments: Any, **named: Any) -> None:
        if not self._alive:
            return
        try:
            getattr(self.module, what)(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - a service may raise anything, and none of it is the run's affair
            self._alive = False
            logging.getLogger(__name__).warning(
                f"log.{self.name}: {what} failed ({first_line(error)}): "
                "from here on metrics are written only to the run's own files"
            )


def _tracked_as(run: Path) -> str:
    """The run's id at its trackers, created once."""
    path = run / TRACKED_AS
    if not path.is_file():
        write_synced(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: remove it, and the run continues as a new one at its tracker") from error
