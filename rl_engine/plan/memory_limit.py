"""Estimated against available memory → an error that names what helps, or lines for the console."""

from __future__ import annotations

from rl_engine.config.file import ConfigError
from rl_engine.plan.memory import PHASES, Memory
from rl_engine.run.memory import Available

WORTH_NAMING = 0.01
"""Share of a phase's memory below which changing a part's settings would not help."""


def check_fits(memory: Memory, available: Available) -> None:
    """Raise `ConfigError` if a phase needs more than is available, naming the largest part and what helps."""
    for on_host, room in ((False, available.device_gib), (True, available.host_gib)):
        phase = max(PHASES, key=lambda name: memory.needed(name, on_host=on_host))
        needed = memory.needed(phase, on_host=on_host)
        if needed <= room:
            continue
        held = memory.held(phase, on_host=on_host)
        keys = list(dict.fromkeys(key for part in held if part.gib > WORTH_NAMING * needed for key in part.keys))
        where = "of host memory" if on_host else "of memory"
        raise ConfigError(
            f"this run would need about {needed:.1f} GiB {where} on each rank in its {phase} phase, and "
            f"{room:.1f} GiB are available. The largest part is {held[0].name}, {held[0].gib:.1f} GiB"
            + "".join(f"; then {part.name}, {part.gib:.1f} GiB" for part in held[1:3])
            + f". To need less, {'change ' + ', '.join(keys) if keys else 'take a smaller model'}; "
            "--dry-run shows every part"
        )


def memory_lines(memory: Memory, available: Available) -> dict[str, str]:
    """Names and values for the console: every phase against what is available, then every part."""
    lines = {}
    for phase in PHASES:
        text = f"{memory.needed(phase):.2f} GiB of {available.device_gib:.2f} available"
        host = memory.needed(phase, on_host=True)
        if host:
            text += f"; {host:.2f} GiB of the host's {available.host_gib:.2f}"
        lines[f"memory, {phase}"] = text
    for part in sorted(memory.parts, key=lambda part: -part.gib):
        where = ", on the machine" if part.on_host else ""
        lines[f"  {part.name}"] = f"{part.gib:.3f} GiB ({', '.join(part.phases)}{where})"
    return lines
