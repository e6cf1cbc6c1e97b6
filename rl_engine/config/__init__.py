"""YAML and overrides → the configuration of a run: frozen, validated, light to import (neither torch nor vllm)."""

from rl_engine.config.lora import LoraConfig
from rl_engine.config.loss import CLIP_BOUNDS, LossConfig
from rl_engine.config.optim import OptimConfig
from rl_engine.config.run import (
    CheckpointConfig,
    Config,
    EvalConfig,
    LearnerConfig,
    LogConfig,
    Method,
    TrainConfig,
    load_config,
)

__all__ = [
    "CLIP_BOUNDS",
    "CheckpointConfig",
    "Config",
    "EvalConfig",
    "LearnerConfig",
    "LogConfig",
    "LoraConfig",
    "LossConfig",
    "Method",
    "OptimConfig",
    "TrainConfig",
    "load_config",
]
