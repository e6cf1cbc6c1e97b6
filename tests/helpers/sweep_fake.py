"""The sweep command with one command added to its table: `python -m tests.helpers.sweep_fake --config …`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from rl_engine.config import TrainConfig
from rl_engine.config.file import CommandConfig
from rl_engine.plan.sharing import Group, NamedConfig
from rl_engine.sweep.__main__ import app
from rl_engine.sweep.config import COMMANDS, CellCommand, SweepConfig
from rollout.config import Section


class FakeOptim(Section):
    lr: float


class FakeTest(Section):
    kind: Literal["ok", "broken", "deaf", "deadly"] = "ok"
    shift: float = 3.0
    step_s: float = 0.0
    concurrent: int = 1
    base: str = "one"
    """Runs with the same base can share it; runs with `own` share with none."""


class FakeConfig(CommandConfig):
    module: ClassVar[str] = "tests.helpers.sweep_fake_run"

    seed: int = 0
    output_dir: str
    optim: FakeOptim
    train: TrainConfig
    test: FakeTest = FakeTest()


def groups_of_fakes(configs: Sequence[Any]) -> list[Group]:
    groups: dict[str, Group] = {}
    for config in configs:
        cell, base = NamedConfig(Path(config.output_dir).name, config), config.test.base
        if base == "own":
            groups[cell.name] = Group([cell], "test.base is own")
        else:
            groups.setdefault(base, Group([])).cells.append(cell)
    return list(groups.values())


FAKE = CellCommand(
    groups=groups_of_fakes,
    room=lambda configs, together, jobs: {"together": f"{together} of {len(configs)}"},
    check=lambda config, *, resume: None,
    wanted_of_hub=lambda config: [],
    module="tests.helpers.sweep_fake_run",
    schema=FakeConfig,
    step_scale="linear",
    unmeasured=lambda config, metric: "",
)


def sweep_of(**values: Any) -> SweepConfig:
    plain = {"base": "quickstart.yaml", "score": {"metric": "eval/held_out/avg"}, "output_dir": "runs/x"}
    return SweepConfig.model_validate({**plain, **values})


if __name__ == "__main__":
    COMMANDS["fake"] = FAKE
    app()
