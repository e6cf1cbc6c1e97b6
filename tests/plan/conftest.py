"""The shape of Qwen3-8B."""

from __future__ import annotations

import pytest
from torch import nn

from rl_engine.policy.base_model import load_meta_model
from rollout.config import ModelConfig


@pytest.fixture(scope="module")
def meta_model() -> nn.Module:
    model: nn.Module = load_meta_model(ModelConfig(name="Qwen/Qwen3-8B-Base"))
    return model
