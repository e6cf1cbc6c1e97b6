"""Micro-batches → a new adapter: the policy under DeepSpeed. The only file that imports deepspeed's engine.

The loss of a step is one sum over all its tokens divided by one normaliser. A rank adds up the part of its own
micro-batches; DeepSpeed, told that each `backward` is unscaled, averages the ranks' gradients, so each rank
multiplies by their number and the average is the sum again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from rl_engine.batching import MicroBatch, TrainingSample, collate, pack, share_of_rank
from rl_engine.config import Config
from rl_engine.logprobs import Policy
from rl_engine.lora import adapter_parameters, add_adapter, peft_config_of
from rl_engine.losses import LOSSES
from rl_engine.ranks import Ranks
from rl_engine.tally import LearnStats, Tally
from rollout.models import locate_model

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class SamplerGapError(RuntimeError):
    """The sampler does not sample from the policy that is being trained."""


class Learner:
    """The policy, its adapter and its optimizer on this rank."""

    def __init__(self, config: Config, ranks: Ranks, pad_id: int) -> None:
        self.config = config
        self.ranks = ranks
        self.pad_id = pad_id
        base = _load_base(config, ranks)
        self.model, self.coverage = add_adapter(base, config.lora, config.seed)
        self.parameters = adapter_parameters(self.model)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=0.0,
        )
        self._grad_norm = 0.0
        self.engine = self._start_engine(Policy(self.model.get_base_model(), config.sampling.temperature))

    def _start_engine(self, policy: Policy) -> Any:
        import deepspeed

        stage = self.config.learner.zero_stage
        if stage == 0:
            # Without ZeRO the plain optimizer steps on reduced gradients, and nothing else sees their norm.
            self.optimizer.register_step_pre_hook(self._clip)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # `step` is the boundary, whatever the number of micro-batches before it.
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.config.optim.clip_norm if stage else 0.0,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        engine, *_ = deepspeed.initialize(model=policy, optimizer=self.optimizer, config=settings)
        return engine

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        limit = self.config.optim.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        self._grad_norm = float(norm)

    def step(
        self, samples: Sequence[TrainingSample], normalizer: float, *, max_kl: float, max_gap: float
    ) -> LearnStats:
        """One optimizer step on samples that every rank passes alike.

        Raises `SamplerGapError` before anything is updated when the sampler's log-probabilities and the learner's
        are further apart than the limits (nats).
        """
        self.engine.train()
        stats = self._pass_over(samples, normalizer)
        refuse_gap(stats, max_kl, max_gap)
        self.engine.step()
        norm = self._grad_norm if self.config.learner.zero_stage == 0 else self.engine.get_global_grad_norm()
        return replace(stats, grad_norm=float(norm))

    def prime(self) -> None:
        """A step with a gradient of exactly zero: it moves nothing, and the optimizer then has its state to restore.

        DeepSpeed makes its shards of the moments in the first step, and only then knows whose they are.
        """
        nothing = TrainingSample(prompt_ids=(0,), completion_ids=(0,), behaviour_logprobs=(0.0,), advantage=0.0)
        self.engine.train()
        self._pass_over([nothing], 1.0)
        self.engine.step()

    @torch.no_grad()
    def measure(self, samples: Sequence[TrainingSample], *, max_kl: float, max_gap: float) -> LearnStats:
        """The figures of `step` without a step: for one whose groups carry no signal."""
        stats = self._pass_over(samples, None)
        refuse_gap(stats, max_kl, max_gap)
        return stats

    def _pass_over(self, samples: Sequence[TrainingSample], normalizer: float | None) -> LearnStats:
        """Forward over this rank's micro-batches, and backward where there is a normaliser."""
        loss_fn = LOSSES[self.config.loss.name]
        batches = pack(samples, self.config.learner.tokens_per_microbatch)
        mine = share_of_rank(batches, self.ranks.rank, self.ranks.count)
        tally = Tally(self.ranks)
        for index, rows in enumerate(mine):
            batch = collate(rows, self.pad_id).to(self.ranks.device)
            logprob_N, entropy_N = self.engine(batch)
            loss_BC = loss_fn(batch.spread(logprob_N), batch.behaviour_logprob_BC, batch.advantage_B, batch.mask_BC)
            loss = loss_BC.sum() / (normalizer or 1.0)
            if normalizer is not None:
                self.engine.backward(loss * self.ranks.count)
            tally.add(loss.detach(), logprob_N.detach(), entropy_N, batch)
            if index == len(mine) // 2:
                tally.add_base(logprob_N.detach(), self._base_logprobs(batch))
        return tally.totals()

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """Log-probabilities (nats) of each sample's completion tokens under the current adapter, in order."""
        scores = []
        for sample in samples:
            logprob_N, _ = self.engine(collate([sample], self.pad_id).to(self.ranks.device))
            scores.append(logprob_N.tolist())
        return scores

    @torch.no_grad()
    def _base_logprobs(self, batch: MicroBatch) -> Tensor:
        with self.model.disable_adapter():
            logprob_N, _ = self.engine(batch)
        return logprob_N  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def whole_adapter(self, *, modify: bool = False) -> Iterator[None]:
        """The adapter's full values on every rank; under ZeRO-3 only these are gathered, never the base.

        With `modify`, what rank 0 writes into them inside the block is scattered again at its end.
        """
        if self.config.learner.zero_stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.parameters.values()), modifier_rank=0 if modify else None):
            yield

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors on the CPU, float32, under PEFT's names."""
        with self.whole_adapter():
            return {name: p.detach().float().cpu().clone() for name, p in self.parameters.items()}

    def write_adapter(self, directory: Path, tensors: dict[str, Tensor]) -> None:
        """Write what `adapter()` returned in PEFT's format."""
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        facts = peft_config_of(self.model, locate_model(self.config.model.name))
        (directory / "adapter_config.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _load_base(config: Config, ranks: Ranks) -> nn.Module:
    """The frozen base model on this rank's device."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        locate_model(config.model.name),
        revision=config.model.revision,
        dtype=DTYPES[config.model.dtype],
        attn_implementation="sdpa",
    )
    if config.learner.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(ranks.device)  # type: ignore[no-any-return]


def refuse_gap(stats: LearnStats, max_kl: float, max_gap: float) -> None:
    kl, gap = stats.sampler_kl, stats.logprob_gap_max
    # Not `kl > max_kl`: a comparison with NaN is false, and NaN is no agreement.
    if not (kl <= max_kl and gap <= max_gap):
        raise SamplerGapError(
            f"the sampler's log-probabilities are not the learner's: sampler/kl {kl:.3g} (limit {max_kl:.3g}), "
            f"sampler/logprob_gap_max {gap:.3g} (limit {max_gap:.3g}) nats. Nothing was updated. Either the last "
            "adapter did not reach the sampler, or the two run the model at different precision; the limits are "
            "rollout.max_kl and rollout.max_logprob_gap."
        )
