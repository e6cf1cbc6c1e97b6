"""docs/metrics.md → what each metric means, so that the page's tooltips quote the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources

_NAME = re.compile(r"`([^`]+)`")


def descriptions_of(keys: list[str]) -> dict[str, str]:
    """Metric → what the documentation says about it, for the metrics that have a row there."""
    found = {}
    for key in keys:
        for matches, text in _rows():
            if matches(key):
                found[key] = text
                break
    return found


@cache
def _rows() -> tuple[tuple[Callable[[str], object], str], ...]:
    """For each row of the first table in docs/metrics.md: a matcher for the metrics it covers, and its text."""
    page = resources.files("rl_engine.report").joinpath("assets", "metrics.md").read_text(encoding="utf-8")
    table = page.split("|---|---|---|---|\n", 1)[1].split("\n\n", 1)[0]
    rows = []
    for line in table.splitlines():
        names, what, healthy, otherwise = (cell.strip() for cell in line.split("|")[1:5])
        sentences = {"": what, "Healthy: ": healthy, "Otherwise: ": otherwise}
        text = " ".join(f"{lead}{cell}." for lead, cell in sentences.items() if cell)
        rows.append((re.compile("|".join(_patterns(names))).fullmatch, _plain(text)))
    return tuple(rows)


def _patterns(names: str) -> list[str]:
    """Patterns for the names in a cell, where later names abbreviate: `time/rollout_s`, `grade_s` or
    `completion/tokens_mean`, `…_correct`."""
    first, *others = _NAME.findall(names)
    folder = first.rpartition("/")[0]
    whole = [first]
    for name in others:
        if name.startswith("…"):
            # `…` may stand for the whole first name, or for all but its last word.
            whole += [first + name[1:], first.rpartition("_")[0] + name[1:]]
        else:
            whole.append(name if "/" in name and "<" not in folder else f"{folder}/{name}" if folder else name)
    return [re.sub(r"<\w+>|\\<\w+\\>", "[^/]+", re.escape(name)) for name in whole]


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", "")
