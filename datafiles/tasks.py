"""A task's name and settings → its dataset in the library reasoning-gym, which makes problems and scores answers."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType
from typing import Any, NoReturn

from datafiles.text import in_one_line

OURS = {"seed": "the seed is the run's own `seed`", "size": "how many problems is said in data.limit"}
"""Settings that every task has, but that are configured elsewhere."""
UNREPEATABLE = frozenset(
    {
        *("codeio", "isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication"),
        *("ransom_note", "word_ladder"),
    }
)
"""Tasks whose problems depend on the iteration order of Python's sets, which differs between processes."""
# JSON has neither tuples nor keys that are not strings: a tuple becomes {"(": [items]}, and a mapping with such keys
# {"{": [[key, value]]}.
TUPLE, PAIRS = "(", "{"


class TaskError(ValueError):
    """A task or its settings cannot be used. The message is meant for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A generator of problems.

    Example: `Task(name="chain_sum", settings={"max_terms": 3})`
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """None stands for the task's default."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings for the library. Lists become tuples, as the library's own values are."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.settings.items()
            if value is not None
        }

    @property
    def key(self) -> str:
        """A string that identifies the task and its settings."""
        return json.dumps([self.name, self.given], sort_keys=True)


def open_task(task: Task, seed: int, size: int, where: str = "data.") -> Any:
    """The library's dataset: `[i]` is an entry with `question`, `answer` and `metadata`, and `score_answer` scores.

    `where` is the prefix of the configuration keys in messages. Raises `TaskError` if the library is not installed, the
    task or a setting does not exist, or the library refuses a value.
    """
    known = library(where).factory.DATASETS
    if task.name not in known:
        near = difflib.get_close_matches(task.name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        raise TaskError(f"{where}task is {task.name!r}, which reasoning-gym does not have: {hint}")
    if task.name in UNREPEATABLE and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        raise TaskError(
            f"{where}task is {task.name!r}, whose problems differ from process to process, so no run could be resumed: "
            "set PYTHONHASHSEED=0 in the environment, or use another task"
        )
    maker, config = known[task.name]
    _check_names(task, [one.name for one in dataclasses.fields(config)], where)
    try:
        made = config(**task.given, seed=seed, size=size)
        if hasattr(made, "validate"):
            made.validate()
        return maker(made)
    except (AssertionError, TypeError, ValueError, KeyError, AttributeError) as error:
        shown = json.dumps(task.given)
        raise TaskError(f"{where}task_settings is {shown}, which {task.name} refuses: {in_one_line(error)}") from error


def _no_solver(*_: Any) -> NoReturn:
    raise RuntimeError("its solver is not installed: pip install pycosat, which needs a C compiler")


@lru_cache(maxsize=1)
def _imported() -> Any:
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        # A solver that only one task of a hundred (zebra_puzzles) uses. The library always imports it, and installing
        # it takes a C compiler.
        sys.modules["pycosat"] = stand_in = ModuleType("pycosat")
        vars(stand_in)["itersolve"] = _no_solver
    with warnings.catch_warnings():
        # Python raises these warnings about the dependencies' code when it first compiles that.
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym

    return reasoning_gym


def library(where: str = "data.") -> Any:
    """Import reasoning-gym. Raises `TaskError` if it, or a module that it needs, is not installed."""
    try:
        return _imported()
    except ModuleNotFoundError as error:
        raise TaskError(
            f"{where}source is 'reasoning_gym', and there is no module {error.name!r}: "
            "pip install 'rl_engine[reasoning-gym]'"
        ) from None


def _check_names(task: Task, names: Sequence[str], where: str) -> None:
    for name in task.given:
        if name in OURS:
            raise TaskError(f"{where}task_settings.{name}: {OURS[name]}")
        if name not in names:
            there = [one for one in names if one not in OURS]
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(there) or 'none'} (null takes it back)"
            raise TaskError(f"{where}task_settings.{name}: {task.name} has no setting so called; {hint}")


def packed(value: Any) -> Any:
    """An entry in a form that JSON carries without loss: scorers need tuples to compare with tuples."""
    if isinstance(value, tuple):
        return {TUPLE: [packed(one) for one in value]}
    if isinstance(value, list):
        return [packed(one) for one in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key not in (TUPLE, PAIRS) for key in value):
            return {key: packed(one) for key, one in value.items()}
        return {PAIRS: [[packed(key), packed(one)] for key, one in value.items()]}
    return value


def unpacked(value: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, list):
        return [unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TUPLE}:
        return tuple(unpacked(one) for one in value[TUPLE])
    if value.keys() == {PAIRS}:
        return {unpacked(key): unpacked(one) for key, one in value[PAIRS]}
    return {key: unpacked(one) for key, one in value.items()}
