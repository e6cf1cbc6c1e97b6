"""The same tensors through TRL's GRPOTrainer and through our objective: the same loss and the same gradient.

TRL computes its loss itself; only the forward pass of its model is replaced by fixed log-probabilities.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_engine.config import LossConfig
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.losses import NORMALIZERS
from rl_engine.learner.objective import objective
from rollout.models import EMBEDDED_DIR

with warnings.catch_warnings():
    # TRL warns about vLLM versions it was not tested with; it uses none here.
    warnings.simplefilter("ignore")
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
LENGTHS = (3, 12, 5, 7, 1, 9)

# TRL's settings and ours for the same objective. TRL's CISPO bound is the ratio itself, ours the distance from one.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"name": "ppo_clip", "normalizer": "sequence"}),
    "dr_grpo": ({"loss_type": "dr_grpo"}, {"name": "ppo_clip", "normalizer": "constant"}),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"name": "ppo_clip", "clip_high": 0.28, "normalizer": "tokens"},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.5},
        {"name": "cispo", "clip_high": 0.5, "normalizer": "tokens"},
    ),
    "gspo": (
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.03,
            "epsilon_high": 0.04,
        },
        {"name": "gspo", "clip_low": 0.03, "clip_high": 0.04, "normalizer": "sequence"},
    ),
    "grpo with KL": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
        {"name": "ppo_clip", "normalizer": "sequence", "kl_coef": 0.3},
    ),
    "grpo with TRL's own KL": (
        {"loss_type": "grpo", "beta": 0.3},
        {"name": "ppo_clip", "normalizer": "sequence", "kl_coef": 0.3, "kl_penalty": "k3_weighted"},
    ),
    "gspo with TRL's own KL": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 0.3, "beta": 0.3},
        {
            "name": "gspo",
            "clip_low": 0.2,
            "clip_high": 0.3,
            "normalizer": "sequence",
            "kl_coef": 0.3,
            "kl_penalty": "k3_weighted",
        },
    ),
    "dapo with entropy bonus": (
        {"loss_type": "dapo", "entropy_coef": 0.05},
        {"name": "ppo_clip", "normalizer": "tokens", "entropy_coef": 0.05},
    ),
}


def no_reward(completions: list[str], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def trainer_of(settings: dict[str, Any], directory: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    arguments = GRPOConfig(
        output_dir=str(directory),
        max_completion_length=MAX_TOKENS,
        num_generations=len(LENGTHS),
        per_device_train_batch_size=len(LENGTHS),
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    trainer: Any = GRPOTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        reward_funcs=no_reward,
        train_dataset=Dataset.from_dict({"prompt": ["1+1=?"]}),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def tensors() -> dict[str, Tensor]:
    """Log-probabilities, ratios on both sides of the bounds, advantages of both signs, a ragged mask."""
    generator = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), MAX_TOKENS)
    mask = torch.arange(MAX_TOKENS) < torch.tensor(LENGTHS)[:, None]
    logprob = -0.1 - 3 * torch.rand(shape, generator=generator)
    return {
        "mask": mask,
        "logprob": logprob,
        "old": logprob + 0.4 * torch.randn(shape, generator=generator),
        "base": logprob + 0.5 * torch.randn(shape, generator=generator),
        "entropy": torch.rand(shape, generator=generator),
        "advantage": torch.tensor([1.2, -0.7, 0.4, -1.1, 0.9, -0.7]),
    }


def trl_loss(settings: dict[str, Any], values: dict[str, Tensor], directory: Path) -> tuple[Tensor, Tensor]:
    trainer = trainer_of(settings, directory)
    logprob = values["logprob"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprob, values["entropy"], None)
    mask = values["mask"].long()
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": torch.ones(len(LENGTHS), 2, dtype=torch.long),
            "prompt_mask": torch.ones(len(LENGTHS), 2, dtype=torch.long),
            "completion_ids": torch.ones_like(mask),
            "completion_mask": mask,
            "advantages": values["advantage"],
            "old_per_token_logps": values["old"],
            "ref_per_token_logps": values["base"],
            "num_items_in_batch": mask.sum(),
        },
    )
    (gradient,) = torch.autograd.grad(loss, logprob)
    return loss.detach(), gradient


def our_loss(settings: dict[str, Any], values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    config = LossConfig(**settings)
    weights = NORMALIZERS[config.normalizer](torch.tensor(LENGTHS, dtype=torch.float64), MAX_TOKENS)
    samples = [
        TrainingSample(
            prompt_ids=(1, 1),
            completion_ids=(1,) * length,
            behaviour_logprobs=tuple(values["old"][i, :length].tolist()),
            old_logprobs=tuple(values["old"][i, :length].tolist()),
            advantage=float(values["advantage"][i]),
            weight=float(weights[i]),
        )
        for i, length in enumerate(LENGTHS)
    ]
    logprob = values["logprob"].clone().requires_grad_()
    batch = collate(samples, pad_id=0, layout="padded")
    loss = objective(config, batch, logprob, values["entropy"], values["base"]).loss
    (gradient,) = torch.autograd.grad(loss, logprob)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradient_match_trl(name: str, tmp_path: Path) -> None:
    theirs, ours = PAIRS[name]
    values = tensors()
    loss, gradient = trl_loss(theirs, values, tmp_path)
    found, found_gradient = our_loss(ours, values)
    assert float(loss) != 0.0
    torch.testing.assert_close(found.float(), loss.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-6, rtol=1e-5)
