"""Turns off the rank of each sampled token, which vLLM computes with every log-probability and nobody here reads. On a
CPU that code is compiled at an engine's first token, which takes seconds and needs a C++ compiler."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample import sampler


def uncounted(logprobs: Tensor, sampled: Tensor) -> Tensor:
    """[N, V] log-probabilities and [N, 1] those of the sampled tokens → [N] zeros instead of ranks."""
    return torch.zeros(len(logprobs), dtype=torch.int64, device=logprobs.device)


def leave_ranks_out() -> None:
    """Replace vLLM's function; call once, before the first engine is created."""
    if current_platform.is_cpu():
        sampler.batched_count_greater_than = uncounted
