"""Arms → line styles, the same in every figure; LoRA ranks and full fine-tuning look the same in every sweep."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from rl_engine.drawing.style import COLOURS, FULL_COLOUR, MARKERS, rank_colour
from rl_engine.sweep.cells import Arm
from rl_engine.sweep.config import SweepConfig

LineStyle = dict[str, Any]
"""Keyword arguments for matplotlib's lines."""
RANK = "lora.rank"
SAY_NO_MORE_THAN_A_RANK = {"method", RANK, "lora.alpha"}
FULL = "full"
# Dashes for arms that differ only in another key of the grid; their markers alternate between filled and hollow.
DASHES = ("-", ":", "-.")
REFERENCE_DASHES = ("--", "-.", ":")


def line_styles_of(config: SweepConfig, arms: Sequence[Arm], over: str = "") -> dict[str, LineStyle]:
    """Arm → its look. What is compared determines colour and marker, other keys of the grid determine fill and dash
    pattern, and the reference is dashed. `over` is the key along which a line runs, which then does not affect it."""
    styles: dict[str, LineStyle] = {}
    places: dict[Hashable, int] = {}
    variants: dict[Hashable, int] = {}
    others = iter(COLOURS * len(arms))
    colours: dict[Hashable, str] = {}
    for number, arm in enumerate(arms):
        one = compared(config, arm, over)
        if one not in colours:
            colours[one] = FULL_COLOUR if one == (FULL,) else rank_colour(one) if isinstance(one, int) else next(others)
        place, variant = places.setdefault(one, len(places)), variants.get(one, 0)
        variants[one] = variant + 1
        dashes = REFERENCE_DASHES if arm.family and arm.family == config.reference else DASHES
        styles[arm.name] = {
            "color": colours[one],
            "marker": MARKERS[place % len(MARKERS)],
            "markerfacecolor": "white" if variant % 2 else colours[one],
            # Earlier arms are thicker, so that they remain visible behind later ones that overlap them.
            "linewidth": max(1.9 - 0.3 * number, 1.0),
            "markersize": max(4.6 - 0.4 * number, 3.4),
            "linestyle": dashes[variant // 2 % len(dashes)],
        }
    return styles


def compared(config: SweepConfig, arm: Arm, over: str) -> Hashable:
    """What an arm represents: a LoRA rank if it sets nothing else, full fine-tuning, or its own name."""
    given = config.arms.get(arm.family, {})
    settings = {**given, **arm.at}
    if settings.get("method") == "full":
        return (FULL,)
    if RANK in settings and over != RANK and given.keys() - config.grid.keys() <= SAY_NO_MORE_THAN_A_RANK:
        return int(settings[RANK])
    return arm.family or arm.name
