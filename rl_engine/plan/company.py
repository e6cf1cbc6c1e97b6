"""Several runs on one base and one sampler → the memory that a rank will need, and how many can be at work at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.memory import PHASES, Memory, Part, memory_of_run
from rl_engine.plan.memory_limit import check_fits
from rl_engine.run.peaks import Available

OF_EACH = ("adapter", "gradients", "Adam's moments", "ZeRO's copy", "ZeRO's bucket", "sampler adapter")
"""Parts that every run at work has of its own; of the others there is one for all, as large as the largest."""
GRADING = "grading"


def memory_together(memories: Sequence[Memory], at_once: int, graders: int) -> Memory:
    """What a rank needs while `at_once` of the runs are at work, each as large as the largest of them, with as many
    graders as there are different rewards."""
    largest: dict[tuple[str, bool], Part] = {}
    for memory in memories:
        for part in memory.parts:
            known = largest.get((part.name, part.on_host))
            if known is None or part.gib > known.gib:
                largest[part.name, part.on_host] = part
    times = {**dict.fromkeys(OF_EACH, at_once), GRADING: graders}
    return Memory(parts=tuple(replace(part, gib=part.gib * times.get(part.name, 1)) for part in largest.values()))


def memory_of_company(configs: Sequence[Config], ranks: Ranks, at_once: int) -> Memory:
    """The estimate for these runs on this rank's device."""
    # While one run learns others are at their completions: the sampler never sleeps.
    awake = {"rollout": configs[0].rollout.model_copy(update={"sleep": False})} if at_once > 1 else {}
    memories = [memory_of_run(config.model_copy(update=awake), ranks) for config in configs]
    return memory_together(memories, at_once, len({config.rewards.model_dump_json() for config in configs}))


def runs_at_once(configs: Sequence[Config], ranks: Ranks, available: Available, wanted: int | None) -> int:
    """How many of the runs are at work at a time: as many as are wanted, on a CPU all of them where nobody says, and on
    a GPU as many as there is memory for.

    Raises `ConfigError` where that does not fit.
    """
    most = len(configs)
    if wanted is None and ranks.device.type == "cuda":
        while most > 1 and not _fits(memory_of_company(configs, ranks, most), available):
            most -= 1
    at_once = min(wanted or most, most)
    try:
        check_fits(memory_of_company(configs, ranks, at_once), available)
    except ConfigError as error:
        if at_once == 1:
            raise
        raise ConfigError(f"{at_once} runs together: {error}; or let fewer be at work at once: --together") from error
    return at_once


def _fits(memory: Memory, available: Available) -> bool:
    try:
        check_fits(memory, available)
    except ConfigError:
        return False
    return True


def company_lines(configs: Sequence[Config], ranks: Ranks, at_once: int) -> dict[str, str]:
    """For people: how many are at work at once, and what they need against as many processes."""
    together = memory_of_company(configs, ranks, at_once)
    needed = max(map(together.needed, PHASES))
    lines = {"together": f"{at_once} of {len(configs)} runs at a time, on one base model and one sampler"}
    if at_once > 1:
        each = [memory_of_run(config, ranks) for config in configs]
        apart = sum(sorted((max(map(memory.needed, PHASES)) for memory in each), reverse=True)[:at_once])
        saved = f"; {at_once} processes would need {apart:.2f}" if ranks.device.type == "cpu" else ""
        lines["memory"] = f"about {needed:.2f} GiB at the most{saved}"
    return lines
