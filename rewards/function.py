"""A user's reward function, by import path: found, called by its own convention, its value checked.

`package.module:name` is a function of yours, `trl:name` one of TRL's. A function with a parameter `completions` or
`completion_ids` is called as TRL calls it, with lists, here of one; any other with completion, reference and problem.
Either is given what it has parameters for, and all of it when it takes `**kwargs`. The data's other columns are
given by their names too, where those are none of ours. A function that makes the reward
function (TRL's `get_…`) is called with `function_arguments` first.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsIndex

TRL_MODULE = "trl.rewards"
Call = Callable[[dict[str, Any]], float | None]
Arguments = dict[str, Any]


def load(path: str, arguments: dict[str, Any]) -> Call:
    """The function behind an import path, as a call on one request.

    Raises what the import raises, `AttributeError` when the module has no such name, and `TypeError` for what is no
    function; the call raises it where the function asks for what there is not.
    """
    module_name, _, name = path.partition(":")
    module = _imported(TRL_MODULE if module_name == "trl" else module_name)
    if not hasattr(module, name):
        raise AttributeError(f"{module.__file__} has no {name!r}")
    function = getattr(module, name)
    if arguments or (module_name == "trl" and name.startswith("get_")):
        function = function(**arguments)
    if not callable(function):
        raise TypeError(f"{name} in {module.__file__} is a {type(function).__name__}, not a function")
    parameters = inspect.signature(function).parameters
    takes_lists = "completions" in parameters or "completion_ids" in parameters
    offered, value_of = (_lists, _only_value) if takes_lists else (_item, _itself)

    def call(request: dict[str, Any]) -> float | None:
        everything = offered(request)
        taken = _taken(parameters, tuple(everything))
        return _checked(value_of(function(**{key: everything[key] for key in taken})))

    return call


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise ModuleNotFoundError(
            f"no module {error.name!r} in {Path.cwd()}, on PYTHONPATH or among the installed packages"
        ) from None


def _taken(parameters: Any, offered: tuple[str, ...]) -> tuple[str, ...]:
    """What of the offered arguments a function is called with. Raises `TypeError` when it asks for others."""
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = [
        name
        for name, one in parameters.items()
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and one.default is one.empty
        and (name not in offered or one.kind is one.POSITIONAL_ONLY)
    ]
    taken = offered if inspect.Parameter.VAR_KEYWORD in kinds else tuple(key for key in offered if key in parameters)
    if unknown or not taken:
        wants = f"asks for {', '.join(unknown)}" if unknown else "takes no argument"
        raise TypeError(f"it {wants}; by name it may take {', '.join(offered)}")
    return taken


def _item(request: dict[str, Any]) -> Arguments:
    return {
        **request.get("extra", {}),
        "completion": request["completion"],
        "reference": request["reference"],
        "problem": request.get("problem", ""),
    }


def _lists(request: dict[str, Any]) -> Arguments:
    """TRL's convention. The columns of a dataset are those of a problem file; `solution` and `ground_truth` are what
    TRL's own functions and its documentation call the answer. Token ids are not known here: zeros stand for them, so
    only their number counts."""
    problem, reference = request.get("problem", ""), [request["reference"]]
    return {
        **{name: [value] for name, value in request.get("extra", {}).items()},
        "completions": [_Turn("assistant", request["completion"])],
        "prompts": [_Turn("user", problem)],
        "completion_ids": [[0] * (request.get("tokens") or 0)],
        "problem": [problem],
        "answer": reference,
        "solution": reference,
        "ground_truth": reference,
    }


class _Turn(str):
    """A text that is also the list of its one message: TRL hands functions texts or, of a chat, lists of messages, and
    they read `completion` or `completion[0]["content"]`."""

    role: str
    __slots__ = ("role",)

    def __new__(cls, role: str, text: str) -> _Turn:
        made = super().__new__(cls, text)
        made.role = role
        return made

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if key in (0, -1):
            return {"role": self.role, "content": str(self)}
        return super().__getitem__(key)


def _itself(value: Any) -> Any:
    return value


def _only_value(values: Any) -> Any:
    try:
        (value,) = values
    except (TypeError, ValueError):
        raise TypeError(
            "a function of `completions` must return a list with one value for each completion; for one completion it "
            f"returned {_shown(values)}"
        ) from None
    return value


def _checked(value: Any) -> float | None:
    """None says that the completion is not scored; anything else must be a finite number."""
    if value is None:
        return None
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        raise TypeError(f"the reward function returned {_shown(value)}: expected a number or None")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward function returned {value}: expected a finite number or None")
    return number


def _shown(value: Any) -> str:
    return f"{repr(value)[:80]} ({type(value).__name__})"
