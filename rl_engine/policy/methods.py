"""`method` → what is trained: the table of training methods."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rl_engine.config import Config
from rl_engine.policy.base_model import LoadBase
from rl_engine.policy.full import FullPolicy
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.policy.trainable import TrainablePolicy

METHODS: dict[str, Callable[[Config, torch.device, LoadBase], TrainablePolicy]] = {
    "lora": LoraPolicy,
    "full": FullPolicy,
}
