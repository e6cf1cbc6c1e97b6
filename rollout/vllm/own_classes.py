"""vLLM's compile decorator, kept off the models of transformers that others in this process use.

Families without a class in vLLM are served through transformers' own: vLLM decorates that very class, and from then on
its `__init__` wants vLLM's configuration and its `__call__` goes to what vLLM compiled. The learner in the same process
uses the class too. Here the decorated methods are vLLM's alone: whoever else makes or calls a model gets plain ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm.compilation import decorators
from vllm.config import get_current_vllm_config_or_none

MARK = "do_not_compile"
"""What the decorated `__init__` leaves in an instance."""


def decorate_for_vllm_alone(decorate: Callable[..., type]) -> Callable[..., type]:
    """vLLM's decorator of classes, made to tell its own instances of a class of transformers from others'."""

    @functools.wraps(decorate)
    def decorated(cls: Any, *args: Any, **kwargs: Any) -> type:
        plain_init, plain_call = cls.__init__, cls.__call__
        found: Any = decorate(cls, *args, **kwargs)
        if not cls.__module__.startswith("transformers.") or found.__init__ is plain_init:
            return found  # type: ignore[no-any-return]
        vllm_init, vllm_call = found.__init__, found.__call__

        @functools.wraps(plain_init)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            # An engine makes its model where its configuration is the current one.
            theirs = get_current_vllm_config_or_none() is not None
            (vllm_init if theirs else plain_init)(self, *args, **kwargs)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (vllm_call if MARK in vars(self) else plain_call)(self, *args, **kwargs)

        found.__init__, found.__call__ = init, call
        return found  # type: ignore[no-any-return]

    return decorated


def leave_transformers_alone() -> None:
    """To be called once, before the first engine is made."""
    decorators._support_torch_compile = decorate_for_vllm_alone(decorators._support_torch_compile)
