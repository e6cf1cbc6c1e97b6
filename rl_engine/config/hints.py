"""An unknown name → the one that was probably meant, if any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from rl_engine.config.fields import fields, section_at
from rl_engine.config.other_trainers import ABSENT, ELSEWHERE, OBJECTIVES, SIGNS

NO_HINT = "docs/configuration.md lists the keys"


def edits(one: str, other: str) -> int:
    """Edit distance between two names, where swapping neighbouring letters is one edit (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = above
    return row[-1]


def near(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, within one edit per three letters and at most two edits; None if there is none."""
    plain = _plain(name)
    counted = [(edits(plain, _plain(other)), other) for other in names]
    fewest, nearest = min(counted, default=(len(plain), ""))
    return nearest if fewest <= min(2, len(plain) // 3) else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def listed(names: Iterable[str]) -> str:
    """Join names in words: `a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def key_hint(schema: type[BaseModel], location: list[str], value: Any) -> str:
    """A hint for an unknown key: our name for another library's key, a key of the same name in another section, a key
    with a similar name; otherwise the keys that exist."""
    name = location[-1]
    if "=" in name:
        key, _, text = name.partition("=")
        return f"in a file write a colon, {key.strip()}: {text.strip()}"
    keys = [key for key, _ in fields(schema)]
    if "." in name and ".".join(location) in keys:
        *sections, last = ".".join(location).split(".")
        nested = f"{last}: {value}"
        for section in reversed(sections):
            nested = f"{section}: {{{nested}}}"
        return f"in a file write the key in its section, {nested}"
    if (theirs := _of_another_library(keys, location, value)) is not None:
        return theirs
    own = getattr(schema, "module", None)
    for module, signs in SIGNS.items():
        if module != own and signs & {location[0], ".".join(location[:2])}:
            return f"{module} has it, and this command does not"
    # A `name` in some other section is no useful hint.
    by_name = [key for key in keys if len(location) == 1 or key.split(".")[-1] != "name"]
    if same := [key for key in by_name if key.split(".")[-1] == name]:
        return f"did you mean {listed(same)}?"
    beside = section_at(schema, location[:-1])
    if beside is not None and (found := near(name, beside.model_fields)):
        return f"did you mean {'.'.join([*location[:-1], found])}?"
    if found := near(name, [key.split(".")[-1] for key in by_name]):
        return f"did you mean {listed(key for key in by_name if key.split('.')[-1] == found)}?"
    if beside is None and own == "rl_engine.sweep":  # a section of the cells' configuration
        key = ".".join(location)
        return f"set.{key} is one of all cells, grid.{key} has values to compare"
    if beside is None or not location[:-1]:
        return NO_HINT
    return f"{'.'.join(location[:-1])} has {', '.join(beside.model_fields)}"


def _of_another_library(keys: list[str], location: list[str], value: Any) -> str | None:
    """Our name for a key of TRL, verl, Axolotl and similar libraries."""
    # The longest known suffix of the path wins: `rollout.n` before `n`.
    for start in range(len(location)):
        name = ".".join(location[start:])
        settings = [setting for setting in ELSEWHERE.get(name, "").split() if setting.split("=")[0] in keys]
        if settings and any(setting.startswith("loss.name") for setting in settings) and (how := objective(value)):
            return f"here {value} is {how}"
        if settings:
            return f"here it is {' and '.join(settings)}"
        if name in ABSENT:
            return ABSENT[name]
        if name in ELSEWHERE:
            return (
                f"this command has none; {' and '.join(ELSEWHERE[name].split())} is another's (docs/configuration.md)"
            )
    return None


def objective(name: Any) -> str | None:
    """The settings for the objective of this name."""
    return OBJECTIVES.get(str(name).lower().replace("-", "_").replace(" ", "_"))
