"""A user's reward function, by import path: found, called by its own convention, its value checked.

`package.module:name` is a function of yours, `trl:name` one of TRL's. A function with a parameter
`completions` is called as TRL calls it, with lists of one; any other with completion, reference and
problem. A function that makes the reward function (TRL's `get_…`) is called with `function_arguments` first.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

TRL_MODULE = "trl.rewards"
Call = Callable[[dict[str, Any]], float | None]


def load(path: str, arguments: dict[str, Any]) -> Call:
    """The function behind an import path, as a call on one request. Raises what the import raises."""
    module_name, _, name = path.partition(":")
    module = importlib.import_module(TRL_MODULE if module_name == "trl" else module_name)
    function = getattr(module, name)
    if arguments or (module_name == "trl" and name.startswith("get_")):
        function = function(**arguments)
    parameters = inspect.signature(function).parameters
    takes_lists = "completions" in parameters or "completion_ids" in parameters
    convention = _call_with_lists if takes_lists else _call_with_item
    return lambda request: _checked(convention(function, request))


def _call_with_item(function: Callable[..., Any], request: dict[str, Any]) -> Any:
    return function(
        completion=request["completion"], reference=request["reference"], problem=request.get("problem", "")
    )


def _call_with_lists(function: Callable[..., Any], request: dict[str, Any]) -> Any:
    """TRL's convention. Token ids are not known here: zeros stand for them, so only their number counts."""
    values = function(
        completions=[[{"role": "assistant", "content": request["completion"]}]],
        prompts=[[{"role": "user", "content": request.get("problem", "")}]],
        completion_ids=[[0] * (request.get("tokens") or 0)],
        solution=[request["reference"]],
    )
    return values[0]


def _checked(value: Any) -> float | None:
    """None skips the term; anything else must be a finite number."""
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward function returned {value}")
    return number
