"""Several runs on one base and one sampler → the memory that a rank will need, and how many can run at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.card import settle_card, settle_share
from rl_engine.plan.memory import HEAP, PHASES, Memory, Part, estimate, heap_shares, memory_of_run, shortage
from rl_engine.plan.sharing import groups_of
from rl_engine.plan.sizes import Devices
from rl_engine.policy.base_model import load_meta_model
from rl_engine.run.memory import Available, available

OF_EACH = ("adapter", "gradients", "Adam's moments", "ZeRO's copy", "ZeRO's bucket", "sampler adapter")
"""Parts that each active run has for itself. The other parts exist once, at the size of the largest run's."""
GRADING = "grading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The machine and device that a rank runs on."""

    title: str
    room: Available
    on_gpu: bool
    alone: Callable[[Config], Memory]
    """The memory that a single run needs there."""
    settle: Callable[[Config], Config]
    """Resolves a run's share of a GPU there."""

    @classmethod
    def here(cls, ranks: Ranks) -> Place:
        shape_of = functools.cache(load_meta_model)  # runs that share a base have one shape, which takes time to build
        return cls(
            title="this machine",
            room=available(ranks),
            on_gpu=ranks.device.type == "cuda",
            alone=lambda config: memory_of_run(config, ranks, shape_of(config.model)),
            settle=lambda config: settle_card(config, ranks, shape_of(config.model)),
        )

    @classmethod
    def on(cls, devices: Devices) -> Place:
        """GPUs elsewhere; nothing is known about the machine they are in."""
        shape_of = functools.cache(load_meta_model)
        return cls(
            title=f"{devices.count} × {devices.gib:g} GiB",
            room=Available(device_gib=devices.gib, host_gib=math.inf),
            on_gpu=True,
            alone=lambda config: estimate(config, shape_of(config.model), devices.count, gpu_gib=devices.gib),
            settle=lambda config: settle_share(config, shape_of(config.model), devices.count, devices.gib),
        )

    def together(self, configs: Sequence[Config], at_once: int) -> Memory:
        """The memory for `at_once` of the settled runs, each counted as large as the largest of them, with a grader for
        each distinct reward configuration."""
        largest: dict[tuple[str, bool], Part] = {}
        for part in (part for config in configs for part in self.alone(config).parts):
            known = largest.get((part.name, part.on_host))
            if known is None or part.gib > known.gib:
                largest[part.name, part.on_host] = part
        graders = len({config.rewards.model_dump_json() for config in configs})
        times = {**dict.fromkeys(OF_EACH, at_once), GRADING: graders, HEAP: heap_shares(at_once) / heap_shares(1)}
        return Memory(parts=tuple(replace(part, gib=part.gib * times.get(part.name, 1)) for part in largest.values()))

    def settled(self, configs: Sequence[Config], at_once: int) -> list[Config]:
        """The runs settled for `at_once` of them at a time; the one sampler gets the smallest of their shares of a GPU.

        With several at once the sampler never sleeps: while one run learns, others are sampling. With one at a time, it
        sleeps for every run if it has to for any.
        """
        if not self.on_gpu:
            return [*configs]
        awake = [config.with_values("rollout", sleep=False) for config in configs] if at_once > 1 else configs
        settled = [self.settle(config) for config in awake]
        if any(config.rollout.sleep is True for config in settled):
            settled = [self.settle(config.with_values("rollout", sleep=True)) for config in configs]
        share = min(config.rollout.card_share for config in settled)
        return [config.with_values("rollout", memory_fraction=share) for config in settled]

    def has_room(self, configs: Sequence[Config], at_once: int) -> bool:
        """Whether `at_once` of the settled runs fit."""
        return not shortage(self.together(configs, at_once), self.room)


def settle_together(configs: Sequence[Config], place: Place, wanted: int | None) -> tuple[list[Config], int]:
    """The settled runs, and how many run at a time: `wanted` if given, otherwise all of them on a CPU and as many as
    memory allows on a GPU. `check_together` finds out whether there is enough for even one."""
    at_once = min(wanted or len(configs), len(configs))
    settled = place.settled(configs, at_once)
    while wanted is None and place.on_gpu and at_once > 1 and not place.has_room(settled, at_once):
        at_once -= 1
        settled = place.settled(configs, at_once)
    return settled, at_once


def check_together(configs: Sequence[Config], place: Place, at_once: int) -> None:
    """Raise `ConfigError` if `at_once` of the settled runs do not fit."""
    if why := shortage(place.together(configs, at_once), place.room):
        raise ConfigError(
            why if at_once == 1 else f"{at_once} runs together: {why}; or let fewer run at once: --together"
        )


def lines_together(configs: Sequence[Config], place: Place, at_once: int) -> dict[str, str]:
    """Lines for the console: how many run at once, and what they need compared with as many separate processes."""
    lines = {"together": f"{at_once} of {len(configs)} runs at a time, on one base model and one sampler"}
    if at_once > 1:
        lines["memory"] = f"about {_most(place.together(configs, at_once)):.2f} GiB at the most"
        if not place.on_gpu:
            apart = sum(sorted((_most(place.alone(config)) for config in configs), reverse=True)[:at_once])
            lines["memory"] += f"; {at_once} processes would need {apart:.2f}"
    return lines


def plan_together(configs: Sequence[Config], devices: Sequence[Devices]) -> list[dict[str, str]]:
    """Lines for the console: the groups that can train together, and what each needs on each choice of devices, or on
    this machine if none is given. Raises `ConfigError` if two runs have the same directory."""
    places = [Place.on(each) for each in devices] or [Place.here(Ranks(0, 1, torch.device("cpu")))]
    shown: list[dict[str, str]] = []
    for group in groups_of(configs):
        names = {"runs": ", ".join(cell.name for cell in group.cells), **dict.fromkeys(group.apart, "")}
        for place in places if group.alone is None else ():
            settled, at_once = settle_together(group.configs, place, None)
            try:
                check_together(settled, place, at_once)
                lines = lines_together(settled, place, at_once)
            except ConfigError as error:
                lines = {"together": str(error)}
            shown.append({**names, **{f"{place.title}: {title}": text for title, text in lines.items()}})
        if group.alone is not None:
            shown.append(names)
    return shown


def _most(memory: Memory) -> float:
    return max(map(memory.needed, PHASES))
