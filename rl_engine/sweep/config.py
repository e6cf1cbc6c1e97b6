"""The configuration of a sweep. Imports neither torch nor matplotlib."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator

from evals.suites import suite_name
from rl_engine.config import Config
from rl_engine.config.fields import leaves
from rl_engine.config.file import CommandConfig
from rl_engine.config.sft import SftConfig
from rl_engine.plan.sharing import Group, groups_of
from rl_engine.sft import checks as sft
from rl_engine.sweep.placement import lines_together
from rl_engine.train import checks as train
from rollout.config import LARGEST_SEED, Section
from rollout.hub import HubItem

# YAML reads 1e-3 as text.
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class QuickCheck(Protocol):
    def __call__(self, config: Any, *, resume: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCommand:
    """A program that a sweep can run: `python -m MODULE --config BASE key=value … --resume`."""

    module: str
    schema: type[CommandConfig]
    check: QuickCheck
    """Checks settings, and that what they name exists; raises if not. `resume`: whether an existing run continues."""
    wanted_of_hub: Callable[[Any], list[HubItem]]
    step_scale: Literal["linear", "symlog"]
    """Scale of the step axis: supervised losses are drawn against the logarithm of the step, as in the paper."""
    groups: Callable[[Sequence[Any]], list[Group]] | None
    """Settings of several runs → groups that can train in one process; None if the program cannot do that."""
    room: Callable[[Sequence[Any], int, int], dict[str, str]] | None
    """(settings of runs that can share, runs in progress per process, processes) → lines for the user that say what
    they need; raises if that is more than there is."""
    cards: Callable[[Any], int] = lambda config: 1
    """Settings → the number of this machine's cards that such a run uses, if the machine has any."""
    unmeasured: Callable[[Any, str], str]
    """(settings, metric) → why no line of such a run's metrics.jsonl has the metric; empty if it may have it."""


def _cards_of_training(config: Config) -> int:
    rollout = config.rollout
    if rollout.placement == "inprocess":
        return rollout.tensor_parallel_size  # the learner uses one of the sampler's cards
    return 1 if rollout.workers == "max" or rollout.address else 1 + rollout.workers * rollout.tensor_parallel_size


def _unmeasured_by_train(config: Config, metric: str) -> str:
    kind, _, rest = metric.partition("/")
    suites = [suite_name(name) for name in config.eval.suites]
    if kind == "eval" and rest.rpartition("/")[0] not in suites:
        return f"eval.suites has {', '.join(suites) or 'none'}"
    return "it is of supervised runs (command: sft)" if kind == "test" else ""


def _unmeasured_by_sft(config: SftConfig, metric: str) -> str:
    kind = metric.partition("/")[0]
    if kind == "test" and config.data.test_size == 0:
        return "data.test_size is 0, so there is nothing to test on"
    return "supervised runs measure no suites (command: sft)" if kind == "eval" else ""


COMMANDS = {
    "train": CellCommand(
        module="rl_engine.train",
        schema=Config,
        check=train.check_quickly,
        wanted_of_hub=train.wanted_of_hub,
        step_scale="linear",
        groups=groups_of,
        room=lines_together,
        cards=_cards_of_training,
        unmeasured=_unmeasured_by_train,
    ),
    "sft": CellCommand(
        module="rl_engine.sft",
        schema=SftConfig,
        check=sft.check_quickly,
        wanted_of_hub=sft.wanted_of_hub,
        step_scale="symlog",
        groups=None,
        room=None,
        unmeasured=_unmeasured_by_sft,
    ),
}


def flattened(tree: Any) -> Any:
    """Flatten to dotted keys: `{"lora": {"rank": 8}}` and `{"lora.rank": 8}` are the same setting, and the last
    wins."""
    if tree is None:
        return {}  # an arm that changes nothing
    return dict(leaves(tree)) if isinstance(tree, dict) else tree  # pydantic reports the error


def axes(tree: Any) -> Any:
    """The grid with a single value as a list of one, and text with commas as several values."""
    flat = flattened(tree)
    if not isinstance(flat, dict):
        return flat
    return {key: values if isinstance(values, list | tuple) else _several(values) for key, values in flat.items()}


def _several(value: Any) -> list[Any]:
    if not isinstance(value, str) or "," not in value:
        return [value]
    return [_number(part) for part in map(str.strip, value.split(",")) if part]


def _number(text: str) -> int | float | str:
    if not NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("-+").isdigit() else float(text)


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Settings = Annotated[dict[str, Any], BeforeValidator(flattened)]


class ScoreConfig(Section):
    metric: str = Field(description="Name of a metric in metrics.jsonl, such as `eval/held_out/avg`.")
    mode: Literal["max", "min"] = Field("max", description="Whether higher or lower is better.")
    at: Literal["last", "best"] | Annotated[int, Field(ge=1)] = Field(
        "last",
        description="Which evaluation of a run counts: the last, the best, or, for a number, the mean of that "
        "many last ones.",
    )
    tolerance: float = Field(
        0.02, gt=0, description="Defines an arm's good range: the axis values that score within this of its best."
    )


class SweepConfig(CommandConfig):
    """One sweep."""

    module: ClassVar[str] = "rl_engine.sweep"

    command: str = Field("train", description="What each cell runs: an entry of `rl_engine.sweep.config.COMMANDS`.")
    base: str = Field(
        description="Configuration that all cells start from: a file, or the name of one that ships with the project."
    )
    set: Settings = Field({}, description="Settings for all cells; they replace the base's.")
    grid: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(axes)] = Field(
        description="Key → its values. Every arm runs at every combination."
    )
    arms: dict[str, Settings] = Field(
        {}, description="Name → settings. An arm may give its own value or values for a key of the grid."
    )
    axis: str = Field(
        "optim.lr", description="Key of the grid on the figures' horizontal axis; its values must be positive numbers."
    )
    reference: str | None = Field(None, description="Arm that the others are compared with; drawn dashed.")
    seeds: tuple[Seed, ...] = Field((0,), min_length=1, description="Seeds to run at every axis value.")
    confirm_seeds: tuple[Seed, ...] = Field(
        (),
        description="Seeds to run only at each arm's best axis value, once `seeds` have found it; the arm's "
        "score comes from these.",
    )
    score: ScoreConfig
    curves: tuple[str, ...] = Field((), description="Other metrics to keep in the results and draw over the steps.")
    jobs: int = Field(
        1, ge=1, description="How many processes run at once; the cores and the GPUs are divided among them."
    )
    together: int = Field(
        1,
        ge=1,
        description="How many runs are in progress at once in each process, where they can share a base model "
        "and a sampler.",
    )
    time_limit_s: float | None = Field(
        None, gt=0, description="Longest time a run may take, in seconds; it is then stopped."
    )
    keep: Literal["all", "metrics"] = Field(
        "all", description="`metrics` deletes the adapters, checkpoints and rollouts of runs that are done."
    )
    output_dir: str = Field(min_length=1, description="Sweep directory; `runs/<config name>` if not given.")

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.command not in COMMANDS:
            raise ValueError(f"command is {self.command!r}; known are {', '.join(sorted(COMMANDS))}")
        if self.axis not in self.grid:
            raise ValueError(f"axis is {self.axis!r}, which grid does not have; it has {', '.join(self.grid)}")
        if self.reference is not None and self.reference not in self.arms:
            raise ValueError(f"reference is {self.reference!r}, which is none of the arms {', '.join(self.arms)}")
        for key in ("seed", "output_dir"):
            if any(key in given for given in (self.set, self.grid, *self.arms.values())):
                raise ValueError(f"{key} is not for set, arms or grid: the sweep gives each cell its own")
        return self

    @model_validator(mode="after")
    def _values_are_usable(self) -> Self:
        seeds = (*self.seeds, *self.confirm_seeds)
        if len({*seeds}) < len(seeds):
            raise ValueError(f"seeds and confirm_seeds name a seed twice: {', '.join(map(str, seeds))}")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key} has no values")
        return self

    @property
    def output(self) -> Path:
        return Path(self.output_dir)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The score's metric first, then those of `curves`."""
        return (self.score.metric, *(name for name in self.curves if name != self.score.metric))
