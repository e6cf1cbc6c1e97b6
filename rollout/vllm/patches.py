"""The functions of vLLM that this process replaces, and why."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.compilation import decorators
from vllm.config import get_current_vllm_config_or_none
from vllm.platforms import current_platform
from vllm.triton_utils import dispatcher
from vllm.v1.engine import logprobs as logprobs_of_tokens
from vllm.v1.executor import uniproc_executor
from vllm.v1.sample import sampler

MARK = "do_not_compile"
"""Attribute that the decorated `__init__` sets on an instance."""


def patch_vllm() -> None:
    """Replace the functions; call once, before the first engine is created."""
    decorators._support_torch_compile = decorated_for_vllm_alone(decorators._support_torch_compile)
    vars(dispatcher)["vars"] = attributes
    uniproc_executor.get_file_store_init_method = meeting_point
    logprobs_of_tokens.convert_ids_list_to_tokens = without_texts
    if current_platform.is_cpu():
        sampler.batched_count_greater_than = uncounted


def decorated_for_vllm_alone(decorate: Callable[..., type]) -> Callable[..., type]:
    """Wrap vLLM's compile decorator so that it applies only to instances that vLLM creates.

    vLLM serves families without a class of its own through transformers' class. It decorates that very class, whose
    `__init__` then needs vLLM's configuration and whose `__call__` runs vLLM's compiled code. The learner in the same
    process uses the class too, and gets the plain methods.
    """

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


def attributes(value: Any) -> Mapping[str, Any]:
    """`vars`, for objects that answer to any name, `__dict__` included.

    On a CPU an engine that starts looks through the objects of all loaded modules for kernels. llvmlite, which Numba
    loads, has such an object, and no engine started after it.
    """
    found = vars(value)
    return found if isinstance(found, Mapping) else {}


def meeting_point() -> str:
    """Where the only process of an engine meets itself: a file in memory.

    vLLM names a file among the system's temporary ones, and it stays there if the process is killed, as the workers of
    a pool are.
    """
    return f"file:///proc/self/fd/{os.memfd_create('vllm_dist')}"


def uncounted(logprobs: Tensor, sampled: Tensor) -> Tensor:
    """[N, V] log-probabilities and [N, 1] those of the sampled tokens → [N] zeros instead of ranks.

    vLLM computes the rank of each sampled token with every log-probability, and nobody here reads it. On a CPU that
    code is compiled at an engine's first token, which takes seconds and needs a C++ compiler.
    """
    return torch.zeros(len(logprobs), dtype=torch.int64, device=logprobs.device)


def without_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """An empty text for each token beside its log-probability.

    If a request has stop strings, vLLM decodes every sampled token once more, by itself, and nobody here reads that.
    With a tokenizer of the Metaspace kind it fails on a token that only the model has, as where embeddings are padded.
    """
    return [""] * len(token_ids)
