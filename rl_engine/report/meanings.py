"""docs/metrics.md → what each metric means: the page's hints say what the documentation says."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources

_NAME = re.compile(r"`([^`]+)`")


def meanings_of(keys: list[str]) -> dict[str, str]:
    """What the documentation says of those of the metrics that it has a row for."""
    found = {}
    for key in keys:
        for matches, text in _rows():
            if matches(key):
                found[key] = text
                break
    return found


@cache
def _rows() -> tuple[tuple[Callable[[str], object], str], ...]:
    """For each row of the page's first table: whether a name is among its names, and its text."""
    page = resources.files("rl_engine.report").joinpath("assets", "metrics.md").read_text(encoding="utf-8")
    table = page.split("|---|---|---|---|\n", 1)[1].split("\n\n", 1)[0]
    rows = []
    for line in table.splitlines():
        names, what, healthy, otherwise = (cell.strip() for cell in line.split("|")[1:5])
        said = {"": what, "Healthy: ": healthy, "Otherwise: ": otherwise}
        text = " ".join(f"{lead}{cell}." for lead, cell in said.items() if cell)
        rows.append((re.compile("|".join(_patterns(names))).fullmatch, _plain(text)))
    return tuple(rows)


def _patterns(names: str) -> list[str]:
    """`time/rollout_s`, `grade_s` and `completion/tokens_mean`, `…_correct`: later names lean on the first."""
    first, *others = _NAME.findall(names)
    folder = first.rpartition("/")[0]
    whole = [first]
    for name in others:
        if name.startswith("…"):
            # On the whole name, or in place of its last word.
            whole += [first + name[1:], first.rpartition("_")[0] + name[1:]]
        else:
            whole.append(name if "/" in name and "<" not in folder else f"{folder}/{name}" if folder else name)
    return [re.sub(r"<\w+>|\\<\w+\\>", "[^/]+", re.escape(name)) for name in whole]


def _plain(text: str) -> str:
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text).replace("`", "")
