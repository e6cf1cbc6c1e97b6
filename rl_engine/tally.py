"""Micro-batches of a step → its statistics, summed over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from rl_engine.batching import MicroBatch
from rl_engine.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnStats:
    """What one step of the learner saw; means are over completion tokens of all ranks."""

    loss: float
    grad_norm: float = 0.0
    """Before clipping."""
    entropy: float
    """Nats a token, of the policy that sampled."""
    kl_base: float
    """KL(policy ‖ base), nats a token, on one micro-batch of each rank: that of median length."""
    sampler_kl: float
    """½·mean((log q − log p)²) of sampler q and learner p on the same tokens, nats."""
    logprob_gap_max: float
    """Largest |log q − log p| of one token, nats."""
    tokens: int


@dataclass
class Tally:
    """Running sums in float64; `totals` is the same on every rank."""

    ranks: Ranks
    _sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("loss", "entropy", "gap2", "tokens", "kl_base", "base_tokens"), 0.0)
    )
    _gap_max: float = 0.0

    def add(self, loss: Tensor, logprob_N: Tensor, entropy_N: Tensor, batch: MicroBatch) -> None:
        gap_N = logprob_N.double() - batch.behaviour_logprob_BC[batch.mask_BC].double()
        self._sums["loss"] += float(loss)
        self._sums["entropy"] += float(entropy_N.double().sum())
        self._sums["gap2"] += float(gap_N.square().sum())
        self._sums["tokens"] += gap_N.numel()
        self._gap_max = max(self._gap_max, float(gap_N.abs().max()))

    def add_base(self, logprob_N: Tensor, base_logprob_N: Tensor) -> None:
        """KL(policy ‖ base) by k3 = exp(d) − 1 − d with d = log base − log policy: unbiased, never negative
        (Schulman 2020, "Approximating KL Divergence")."""
        difference_N = base_logprob_N.double() - logprob_N.double()
        self._sums["kl_base"] += float((difference_N.expm1() - difference_N).sum())
        self._sums["base_tokens"] += difference_N.numel()

    def totals(self) -> LearnStats:
        names = list(self._sums)
        sums = torch.tensor([self._sums[name] for name in names], dtype=torch.float64, device=self.ranks.device)
        gap_max = torch.tensor(self._gap_max, dtype=torch.float64, device=self.ranks.device)
        if self.ranks.count > 1:
            dist.all_reduce(sums)
            dist.all_reduce(gap_max, op=dist.ReduceOp.MAX)
        total = dict(zip(names, sums.tolist(), strict=True))
        return LearnStats(
            loss=total["loss"],
            entropy=total["entropy"] / total["tokens"],
            kl_base=total["kl_base"] / total["base_tokens"],
            sampler_kl=0.5 * total["gap2"] / total["tokens"],
            logprob_gap_max=float(gap_max),
            tokens=int(total["tokens"]),
        )
