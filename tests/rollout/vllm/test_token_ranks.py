"""On a CPU nothing is compiled for an engine, because the machine may have no compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.v1.sample import sampler
from vllm.v1.sample.ops.logprobs import batched_count_greater_than

from rollout.config import SamplingConfig
from rollout.types import Problem, Prompt

pytestmark = [pytest.mark.engine, pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")]
PROMPT = Prompt(problem=Problem(id="1", text="", answer=""), text="", token_ids=(5, 6, 7))


def test_sampling_asks_for_no_compiler(vllm_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", missing)
    ours: Any = sampler.batched_count_greater_than
    asked: list[tuple[int, ...]] = []

    def counted(logprobs: Tensor, sampled: Tensor) -> Any:
        asked.append(tuple(logprobs.shape))
        return ours(logprobs, sampled)

    monkeypatch.setattr(sampler, "batched_count_greater_than", counted)
    (group,) = vllm_engine.generate([PROMPT], SamplingConfig(n=2, max_tokens=3), None, ["one"])
    assert asked
    assert all(value < 0 for completion in group.completions for value in completion.logprobs)
    with pytest.raises(Exception, match="No working"):  # raised by vLLM's own version
        batched_count_greater_than(torch.zeros(2, 3), torch.zeros(2, 1))
