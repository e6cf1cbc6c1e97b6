"""Import path → a user's reward function, called by its own convention, with its return value checked.

`package.module:name` is a user's function, `trl:name` one of TRL's. A function with a parameter `completions` or
`completion_ids` is called as TRL calls it, with lists, here of length one; one with `completion` with completion,
reference and problem; one with `solution_str` as verl calls it, and one with `queries` as OpenRLHF does; any other with
completion, reference and problem. A function gets only the
arguments that it has parameters for, or all of them if it takes `**kwargs`. The data's other columns are passed by name
too, unless the name is one of ours. A function that makes the reward function (TRL's `get_…`) is first called with
`function_arguments`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

TRL_MODULE = "trl.rewards"
Call = Callable[[dict[str, Any]], float | None]
Arguments = dict[str, Any]


def load(path: str, arguments: dict[str, Any]) -> Call:
    """The function behind an import path, wrapped to be called with one request.

    Raises what the import raises, `AttributeError` if the module has no such name, and `TypeError` if the name is not a
    function. The call raises `TypeError` if the function requires an argument that does not exist.
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
    offered, value_of = _convention(parameters)

    def call(request: dict[str, Any]) -> float | None:
        everything = offered(request)
        taken = _taken(parameters, tuple(everything))
        return _checked(value_of(function(**{key: everything[key] for key in taken})))

    return call


def _convention(parameters: Mapping[str, Any]) -> tuple[Callable[[dict[str, Any]], Arguments], Callable[[Any], Any]]:
    """How a function wants its arguments, and how it returns its value, by the names of its parameters."""
    if "completions" in parameters or "completion_ids" in parameters:
        return _lists, _only_value
    if "completion" in parameters:  # the names below are then columns of the user's data
        return _item, _itself
    if "solution_str" in parameters:
        return _as_verl, lambda value: _inner(value, "score")
    if "queries" in parameters:
        return _as_openrlhf, lambda value: _only_value(_inner(value, "rewards"))
    return _item, _itself


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is missing an import of its own
        raise ModuleNotFoundError(
            f"no module {error.name!r} in {Path.cwd()}, on PYTHONPATH or among the installed packages"
        ) from None


def _taken(parameters: Any, offered: tuple[str, ...]) -> tuple[str, ...]:
    """The offered arguments that the function takes. Raises `TypeError` if it requires others."""
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
    """Arguments by TRL's convention. The dataset's columns are those of the problem file; `solution` and `ground_truth`
    are the names that TRL's functions and documentation use for the answer. Token ids are not known here: zeros stand
    in for them, so that only their number is meaningful."""
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


def _as_verl(request: dict[str, Any]) -> Arguments:
    """Arguments by verl's convention. The data may lack its two columns."""
    return {
        "data_source": None,
        "extra_info": None,
        **request.get("extra", {}),
        "solution_str": request["completion"],
        "ground_truth": request["reference"],
    }


def _as_openrlhf(request: dict[str, Any]) -> Arguments:
    """Arguments by OpenRLHF's convention: a query is the prompt with the response after it."""
    problem = request.get("problem", "")
    return {
        **{name: [value] for name, value in request.get("extra", {}).items()},
        "queries": [problem + request["completion"]],
        "prompts": [problem],
        "labels": [request["reference"]],
    }


class _Turn(str):
    """A text that is also a list of one chat message. TRL passes either texts or lists of messages, and functions read
    `completion` or `completion[0]["content"]` accordingly."""

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


def _inner(value: Any, name: str) -> Any:
    """The reward in a mapping that holds other figures too, or the value itself."""
    return value[name] if isinstance(value, Mapping) and name in value else value


def _only_value(values: Any) -> Any:
    try:
        (value,) = values
    except (TypeError, ValueError):
        raise TypeError(
            "a function that takes lists must return a list with one value for each completion; for one completion it "
            f"returned {_shown(values)}"
        ) from None
    return value


def _checked(value: Any) -> float | None:
    """The function's return value: None, if the completion is not to be scored, or a finite number."""
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
