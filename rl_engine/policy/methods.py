"""`method` → what reinforcement learning trains."""

from __future__ import annotations

import torch

from rl_engine.config import Config
from rl_engine.policy.base_model import LoadBase, load_causal_lm
from rl_engine.policy.full import FullPolicy
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.policy.trainable import TrainablePolicy


def load_policy(config: Config, device: torch.device, load: LoadBase = load_causal_lm) -> TrainablePolicy:
    """The policy of a run at its start. `load` loads the frozen base model; trained weights are never shared."""
    if config.method == "lora":
        return LoraPolicy(config, load(config, device))
    causal_lm, base = load_causal_lm(config, device, torch.float32), None
    if config.loss.kl_coef > 0:
        base = LogprobModel(load(config, device).requires_grad_(False), config.sampling.temperature)
    return FullPolicy(config, causal_lm, base)
