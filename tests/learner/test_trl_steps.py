"""A step of TRL's GRPOTrainer and one of ours, from the same completions and rewards: the same weights after it.

Each computes everything else itself: advantages, its model's log-probabilities now and at the start of the step, the
reference's, the ratio to the sampler, the loss and its gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_engine.config import Config
from rl_engine.learner.advantages import advantages_of
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.learner import Learner
from rl_engine.learner.updates import updates_of
from rollout.models import EMBEDDED_DIR
from rollout.types import Completion
from tests.helpers.batches import LOOSE
from tests.helpers.builders import graded_group, prompt, result

with warnings.catch_warnings():
    # TRL warns about vLLM versions it was not tested with; it uses none here.
    warnings.simplefilter("ignore")
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

pytestmark = pytest.mark.engine

MAX_TOKENS, SIZE = 24, 4
# In the last group all are equal: only a penalty has a gradient there.
REWARDS = ((1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0))
# Adam divides by the size of the gradient; an eps of 1e-6 keeps it from amplifying gradients that are only rounding.
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-6}
OURS = ("method=full", "optim.lr=1e-3", "optim.eps=1e-6", f"sampling.max_tokens={MAX_TOKENS}", f"sampling.n={SIZE}")

GRPO = ({"loss_type": "grpo"}, ("loss.name=ppo_clip", "loss.normalizer=sequence", "loss.baseline=group_mean_std"))
# TRL's settings and ours.
PAIRS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "grpo": GRPO,
    "grpo with KL": ({**GRPO[0], "beta": 0.3, "use_bias_correction_kl": False}, (*GRPO[1], "loss.kl_coef=0.3")),
    "grpo with TRL's own KL": ({**GRPO[0], "beta": 0.3}, (*GRPO[1], "loss.kl_coef=0.3", "loss.kl_penalty=k3_weighted")),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, ("loss.name=ppo_clip",)),
    "dapo": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        ("loss.name=ppo_clip", "loss.clip_high=0.28", "loss.normalizer=tokens", "loss.baseline=group_mean_std"),
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.02},
        ("loss.name=cispo", "loss.clip_high=0.02", "loss.normalizer=tokens", "loss.baseline=group_mean_std"),
    ),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
        ("loss.name=gspo", "loss.normalizer=sequence", "loss.baseline=group_mean_std"),
    ),
}


@pytest.fixture(scope="module")
def groups() -> list[GradedGroup]:
    """Completions sampled by transformers, so that no engine needs to be started.

    Their log-probabilities are off by ±0.05 nats, as in another precision.
    """
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    made = []
    for number, rewards in enumerate(REWARDS):
        prompt_ids = tokenizer(f"{number}+7-3=?").input_ids
        with torch.random.fork_rng():
            torch.manual_seed(number)
            out = model.generate(
                torch.tensor([prompt_ids]),
                do_sample=True,
                top_k=0,
                max_new_tokens=MAX_TOKENS,
                num_return_sequences=SIZE,
                output_logits=True,
                return_dict_in_generate=True,
            )
        ids_GT = out.sequences[:, len(prompt_ids) :]
        logprob_GT = torch.stack(out.logits, dim=1).log_softmax(-1).gather(2, ids_GT[..., None]).squeeze(2)
        completions = [
            Completion(
                text="",
                token_ids=tuple(ids[:length].tolist()),
                logprobs=tuple(q + 0.05 * (-1) ** index for index, q in enumerate(row[:length].tolist())),
                finish_reason="stop",
                adapter="base",
            )
            for ids, row in zip(ids_GT, logprob_GT, strict=True)
            for length in [int((ids != tokenizer.eos_token_id).sum().clamp(max=MAX_TOKENS - 1)) + 1]
        ]
        pairs = [(each, result(reward=reward)) for each, reward in zip(completions, rewards, strict=True)]
        made.append(graded_group(prompt(f"{number}+7-3=?", tokens=prompt_ids), pairs))
    return made


def theirs_after_a_step(
    settings: dict[str, Any], groups: list[GradedGroup], epochs: int, directory: Path
) -> dict[str, Tensor]:
    rows = [(group.rollout.prompt, each) for group in groups for each in group.rollout.completions]

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [list(prompt.token_ids) for prompt, _ in rows],
            "completion_ids": [list(each.token_ids) for _, each in rows],
            "logprobs": [list(each.logprobs) for _, each in rows],
        }

    def judge(completions: list[str], **_: Any) -> list[float | None]:
        return [reward for rewards in REWARDS for reward in rewards]

    trainer: Any = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32),
        args=GRPOConfig(
            output_dir=str(directory),
            max_completion_length=MAX_TOKENS,
            num_generations=SIZE,
            per_device_train_batch_size=len(rows),
            num_iterations=epochs,
            vllm_importance_sampling_mode="token_truncate",
            vllm_importance_sampling_clip_max=2.0,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **settings,
        ),
        processing_class=AutoTokenizer.from_pretrained(EMBEDDED_DIR),
        reward_funcs=judge,
        train_dataset=Dataset.from_dict({"prompt": ["1+1=?"]}),
        rollout_func=rollout,
    )
    # As if TRL's vLLM had sampled them, so that TRL computes the weights of the correction itself.
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW(trainer.model.parameters(), weight_decay=0.0, **ADAM)
    for trainer._step in range(epochs):
        inputs = trainer._prepare_inputs([{"prompt": "1+1=?"} for _ in rows])
        trainer._compute_loss(trainer.model, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(trainer.model.state_dict())


def ours_after_a_step(config: Config, groups: list[GradedGroup], learner: Learner) -> dict[str, Tensor]:
    updates = updates_of(config, groups, advantages_of(groups, config.loss.baseline))
    stats = learner.step(updates, LOOSE)
    if config.learner.epochs_per_step > 1:
        # Otherwise the bounds would not have been compared.
        assert stats.clip_low_frac + stats.clip_high_frac > 0
    return learner.weights()


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_matches_trl(
    name: str,
    groups: list[GradedGroup],
    make_learner: Callable[..., Learner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs over the same completions: the second update's ratios are relative to the start of the step."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    settings, overrides = PAIRS[name]
    learner = make_learner(*OURS, *overrides, "learner.epochs_per_step=2", "learner.tokens_per_microbatch=200")
    start = learner.weights()
    wanted = theirs_after_a_step(settings, groups, 2, tmp_path)
    for parameter, found in ours_after_a_step(learner.config, groups, learner).items():
        # On average, since Adam amplifies gradients that are hardly more than rounding.
        assert (found - wanted[parameter]).abs().mean() < 1e-7, parameter
        assert (found - start[parameter]).abs().mean() > 1e-4, parameter
