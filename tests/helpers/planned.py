"""Forecasts for a run of Qwen3-8B, from its shape."""

from __future__ import annotations

from torch import nn

from rl_engine.config import Config, load_config
from rl_engine.plan.forecast import Forecast, forecast

LAYERS, HIDDEN, MLP, VOCABULARY = 36, 4096, 12288, 151936


def deepmath(*overrides: str) -> Config:
    return load_config("deepmath.yaml", overrides)


def planned(meta_model: nn.Module, *overrides: str, **lengths: int) -> Forecast:
    return forecast(deepmath(*overrides), meta_model, device_type="cuda", **lengths)
