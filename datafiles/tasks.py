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

OURS = {"seed": "the seed is the run's own `seed`", "size": "how many problems is said in data.limit"}
"""Settings that every task has and that are said elsewhere."""
UNREPEATABLE = frozenset(
    {
        *("codeio", "isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication"),
        *("ransom_note", "word_ladder"),
    }
)
"""Tasks whose problems hang on the order of Python's sets, which is drawn anew in each process."""
# What JSON does not know: a tuple is {"(": [items]}, a mapping whose keys are not all text {"{": [[key, value]]}.
TUPLE, PAIRS = "(", "{"


class TaskError(ValueError):
    """A task, or settings of one, that cannot be had; the text is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is generated.

    Example: `Task(name="chain_sum", settings={"max_terms": 3})`
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Those that are None are the task's defaults."""

    @property
    def given(self) -> dict[str, Any]:
        """What the library is told. Lists are the tuples that its own values are."""
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.settings.items()
            if value is not None
        }

    @property
    def key(self) -> str:
        """The same for the same task with the same settings."""
        return json.dumps([self.name, self.given], sort_keys=True)


def open_task(task: Task, seed: int, size: int, where: str = "data.") -> Any:
    """The library's dataset: `[i]` is an entry with `question`, `answer` and `metadata`, `score_answer` scores.

    Raises `TaskError` where the library, the task or a setting is missing, or a value is refused; `where` is what the
    keys begin with, for people.
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
        raise TaskError(f"{where}task_settings is {shown}, which {task.name} refuses: {_reason(error)}") from error


def _no_solver(*_: Any) -> NoReturn:
    raise RuntimeError("its solver is not installed: pip install pycosat, which needs a C compiler")


@lru_cache(maxsize=1)
def _imported() -> Any:
    if "pycosat" not in sys.modules and importlib.util.find_spec("pycosat") is None:
        # A solver for one task of a hundred (zebra_puzzles), imported with all of them, and built by a C compiler.
        sys.modules["pycosat"] = stand_in = ModuleType("pycosat")
        vars(stand_in)["itersolve"] = _no_solver
    with warnings.catch_warnings():
        # Of its dependencies' code, when Python compiles that for the first time.
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym

    return reasoning_gym


def library(where: str = "data.") -> Any:
    """Raises `TaskError` where reasoning-gym, or what it needs, is not installed."""
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def packed(value: Any) -> Any:
    """An entry as JSON can carry it without loss: a scorer compares tuples with tuples."""
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
    """What `packed` was given."""
    if isinstance(value, list):
        return [unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {TUPLE}:
        return tuple(unpacked(one) for one in value[TUPLE])
    if value.keys() == {PAIRS}:
        return {unpacked(key): unpacked(one) for key, one in value[PAIRS]}
    return {key: unpacked(one) for key, one in value.items()}
