"""How many tokens were likelier than the one that was sampled: vLLM counts it beside every log-probability, and nobody
here reads it. On a CPU the count is compiled at an engine's first token, which takes seconds, and a C++ compiler."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.platforms import current_platform
from vllm.v1.sample import sampler


def uncounted(logprobs: Tensor, sampled: Tensor) -> Tensor:
    """[N, V] log-probabilities and [N, 1] those of the sampled tokens → [N] zeros in the place of ranks."""
    return torch.zeros(len(logprobs), dtype=torch.int64, device=logprobs.device)


def leave_ranks_out() -> None:
    """To be called once, before the first engine is made."""
    if current_platform.is_cpu():
        sampler.batched_count_greater_than = uncounted
