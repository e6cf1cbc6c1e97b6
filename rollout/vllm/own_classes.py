"""vLLM's compile decorator, kept from affecting transformers' models that others in this process use.

vLLM serves families without a class of its own through transformers' class. It decorates that very class, whose
`__init__` then needs vLLM's configuration and whose `__call__` runs vLLM's compiled code. The learner in the same
process uses the class too. Here only vLLM's instances get the decorated methods, and all others the plain ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vllm.compilation import decorators
from vllm.config import get_current_vllm_config_or_none
from vllm.triton_utils import dispatcher

MARK = "do_not_compile"
"""Attribute that the decorated `__init__` sets on an instance."""


def pass_over_other_libraries() -> None:
    """Let vLLM's search for kernels pass over objects that answer to any name, `__dict__` included.

    On a CPU an engine that starts looks through the objects of all loaded modules. llvmlite, which Numba loads, has
    such an object, and no engine started after it.
    """
    vars(dispatcher)["vars"] = _attributes


def _attributes(value: Any) -> Mapping[str, Any]:
    found = vars(value)
    return found if isinstance(found, Mapping) else {}


def decorate_for_vllm_alone(decorate: Callable[..., type]) -> Callable[..., type]:
    """Wrap vLLM's class decorator so that it applies only to instances that vLLM creates."""

    @functools.wraps(decorate)
    def decorated(cls: Any, *args: Any, **kwargs: Any) -> type:
        plain_init, plain_call = cls.__init__, cls.__call__
        found: Any = decorate(cls, *args, **kwargs)
        if not cls.__module__.startswith("transformers.") or found.__init__ is plain_init:
            return found  # type: ignore[no-any-return]
        vllm_init, vllm_call = found.__init__, found.__call__

        @functools.wraps(plain_init)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            # vLLM sets its current configuration while an engine creates its model.
            theirs = get_current_vllm_config_or_none() is not None
            (vllm_init if theirs else plain_init)(self, *args, **kwargs)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (vllm_call if MARK in vars(self) else plain_call)(self, *args, **kwargs)

        found.__init__, found.__call__ = init, call
        return found  # type: ignore[no-any-return]

    return decorated


def leave_transformers_alone() -> None:
    """Install the wrapped decorator; call once, before the first engine is created."""
    decorators._support_torch_compile = decorate_for_vllm_alone(decorators._support_torch_compile)
