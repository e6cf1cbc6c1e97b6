"""Several learners on one base model: each learns as if the base were its own, and none changes a bit of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rl_engine.config import Config
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.policy.base_model import SharedBase
from rl_engine.policy.lora.adapter import LoraPolicy

PROMPTS = [(18, 5, 19, 7, 8, 3)] * 200
KINDS = (
    ("lora.rank=2", "lora.init=olora"),  # PEFT subtracts its start from the weights in place
    ("lora.rank=4", "lora.init=pissa", "learner.zero_stage=1"),
    ("lora.rank=1", "lora.init=eva", "learner.zero_stage=2", "learner.gradient_checkpointing=true"),
    ("lora.rank=3", "lora.init=tiny", "lora.numbers=20", "learner.zero_stage=2", "learner.gradient_checkpointing=true"),
    ("lora.rank=8", "lora.targets=[q_proj,down_proj]", "learner.layout=padded", "learner.attention=eager"),
)


def test_learners_share_the_weights_and_nothing_else(
    make_config: Callable[..., Config], ranks: Ranks, samples: list[TrainingSample]
) -> None:
    configs = [make_config(*kind) for kind in KINDS]
    base = SharedBase(configs[0], ranks.device)
    weights = dict(base.model_of(configs[0], ranks.device).named_parameters(remove_duplicate=False))
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    together = [Learner(config, ranks, 0, PROMPTS, base.model_of) for config in configs]
    for _ in range(2):
        for learner in together:
            learner.step([samples], None)
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    places = {weight.data_ptr() for weight in weights.values()}
    for config, learner in zip(configs, together, strict=True):
        assert isinstance(learner.trainable, LoraPolicy)
        frozen = [one for one in learner.trainable.model.parameters() if not one.requires_grad]
        assert {one.data_ptr() for one in frozen} == places
        alone = Learner(config, ranks, 0, PROMPTS)
        for _ in range(2):
            alone.step([samples], None)
        for name, value in alone.weights().items():
            assert torch.equal(learner.weights()[name], value), (config.lora.init, name)
