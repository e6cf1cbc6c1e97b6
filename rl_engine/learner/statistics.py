"""Micro-batches of a step → the step's statistics, summed over micro-batches, updates and ranks."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import SamplerGap, TokenGap
from rl_engine.learner.losses import k3
from rl_engine.learner.objective import Objective
from rl_engine.learner.ranks import Ranks
from rl_engine.policy.micro_batch import MicroBatch

SUMS = (
    *("loss", "entropy", "tokens", "weights", "weights2", "low", "high", "corrections", "outside", "corrected"),
    *("gap1", "gap2", "gap3", "gap4", "gap_tokens", "beyond", "kl_base", "base_tokens"),
)
"""Names of the sums; every rank has all of them, even with nothing to add."""
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnStats:
    """Statistics of one learner step; means and fractions are over the completion tokens of all ranks."""

    loss: float
    grad_norm: float = 0.0
    """Before clipping; the mean over the step's updates."""
    updates: int = 0
    """Updates made."""
    skipped: int = 0
    """Updates skipped because their gradient was infinite or NaN."""
    entropy: float
    """Nats per token."""
    kl_base: float
    """KL(policy ‖ base), nats per token: over all tokens if it is penalized, otherwise over a few completions of median
    length on each rank; NaN if the base is not available."""
    gap: SamplerGap
    """Between the sampler and the learner before its first update, on the first update's tokens."""
    ratio: dict[str, float]
    """Quantiles (p01, p50, p99) and max of the ratio used by the loss."""
    ess_frac: float
    """(Σ w)² / (N Σ w²) over the N token weights w = policy/sampler: 1 when all weights are equal."""
    clip_low_frac: float
    clip_high_frac: float
    correction: dict[str, float]
    """`mean` weight of the sampler correction, and `outside_frac`, the share outside its bounds; empty without one."""
    tokens: int


def _token_gap(samples: Sequence[TrainingSample], index: int, sampler: float, learner: float) -> TokenGap:
    """The token at `index` in the concatenated completion tokens of the samples."""
    ends = list(itertools.accumulate(len(sample.completion_ids) for sample in samples))
    row = bisect.bisect_right(ends, index)
    ids = samples[row].completion_ids
    place = index - (ends[row] - len(ids))
    return TokenGap(
        token=ids[place],
        place=place + 1,
        tokens=len(ids),
        origin=samples[row].origin,
        sampler=sampler,
        learner=learner,
    )


@dataclass
class StepStatistics:
    """Running sums of a step in float64; `gap` and `totals` are the same on every rank.

    Values stay on their device until `gap` or `totals` is called: reading a number after each micro-batch would stall
    the GPU every time.
    """

    ranks: Ranks
    logprob_limit: float = math.inf
    """Tokens with |log q − log p| above this are counted in `beyond`, nats."""
    _sums: dict[str, Tensor | float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    _furthest: list[tuple[Tensor, Sequence[TrainingSample]]] = field(default_factory=list)
    """Per micro-batch: its samples and the token with the largest gap, [4] float64 (index, |gap|, sampler, learner)."""
    _log_ratios: list[Tensor] = field(default_factory=list)

    def _add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + (value.double() if isinstance(value, Tensor) else value)

    def add(self, objective: Objective, logprob_N: Tensor, entropy_N: Tensor, batch: MicroBatch) -> None:
        """Add one micro-batch."""
        weight_N = (logprob_N.double() - batch.tokens_of(batch.behaviour_logprob_BC).double()).exp()
        low, high = objective.bounds_hit
        weights, outside = objective.corrected or (0.0, 0)
        self._add(
            loss=objective.loss.detach(),
            entropy=entropy_N.double().sum(),
            tokens=weight_N.numel(),
            weights=weight_N.sum(),
            weights2=weight_N.square().sum(),
            low=low,
            high=high,
            corrections=weights,
            outside=outside,
            corrected=0 if objective.corrected is None else weight_N.numel(),
        )
        self._log_ratios.append(objective.log_ratio_N.float())

    def add_gap(self, logprob_N: Tensor, batch: MicroBatch, samples: Sequence[TrainingSample]) -> None:
        """Add the gap between sampler and learner on the samples of the micro-batch. It only says something about the
        sampler before the step's first update."""
        behaviour_N = batch.tokens_of(batch.behaviour_logprob_BC).double()
        gap_N = logprob_N.double() - behaviour_N
        self._add(
            gap1=-gap_N.sum(),
            gap2=gap_N.square().sum(),
            gap3=(gap_N.expm1() - gap_N).sum(),
            gap4=gap_N.square().square().sum(),
            gap_tokens=gap_N.numel(),
            beyond=(~(gap_N.abs() <= self.logprob_limit)).sum(),
        )
        index = gap_N.abs().argmax(dim=0, keepdim=True)  # picks NaN if there is one
        figures = [values.index_select(0, index).double() for values in (gap_N.abs(), behaviour_N, logprob_N)]
        self._furthest.append((torch.cat([index.double(), *figures]), samples))

    def add_base(self, logprob_N: Tensor, base_logprob_N: Tensor) -> None:
        """Add KL(policy ‖ base), by the estimator that is unbiased and never negative."""
        self._add(kl_base=k3(logprob_N.double(), base_logprob_N.double()).sum(), base_tokens=base_logprob_N.numel())

    def gap(self) -> SamplerGap:
        """The sampler gap so far. Collective: every rank calls it."""
        return self._gap(self._total())

    def _total(self) -> dict[str, float]:
        """Every sum, over all ranks."""
        names, device = sorted(self._sums), self.ranks.device
        sums = [torch.as_tensor(self._sums[name], dtype=torch.float64, device=device) for name in names]
        return dict(zip(names, self.ranks.sum(torch.stack(sums)).tolist(), strict=True))

    def _gap(self, total: dict[str, float]) -> SamplerGap:
        gap_max, worst = self._worst()
        tokens = total["gap_tokens"]
        return SamplerGap(
            kl=0.5 * total["gap2"] / tokens,
            kl_error=0.5 * math.sqrt(total["gap4"]) / tokens,
            kl_v1=total["gap1"] / tokens,
            kl_v3=total["gap3"] / tokens,
            logprob_max=gap_max,
            tokens=int(tokens),
            beyond=total["beyond"] / tokens,
            worst=worst,
        )

    def totals(self) -> LearnStats:
        """The statistics of the step. Collective: every rank calls it."""
        total = self._total()
        tokens, corrected = total["tokens"], total["corrected"]
        return LearnStats(
            loss=total["loss"],
            entropy=total["entropy"] / tokens,
            kl_base=total["kl_base"] / total["base_tokens"] if total["base_tokens"] else math.nan,
            gap=self._gap(total),
            ratio=self._ratio_quantiles(),
            ess_frac=total["weights"] ** 2 / (tokens * total["weights2"]),
            clip_low_frac=total["low"] / tokens,
            clip_high_frac=total["high"] / tokens,
            correction={
                "mean": total["corrections"] / corrected,
                "outside_frac": total["outside"] / corrected,
            }
            if corrected
            else {},
            tokens=int(tokens),
        )

    def _worst(self) -> tuple[float, TokenGap | None]:
        """The largest difference over all ranks, and its token. NaN counts as the largest."""
        gap_max, worst = 0.0, None
        rows = torch.stack([figures for figures, _ in self._furthest]).tolist() if self._furthest else []
        for (index, largest, sampler, learner), (_, samples) in zip(rows, self._furthest, strict=True):
            # Not max(): it may skip NaN, which must be kept.
            if math.isnan(largest) or largest > gap_max:
                gap_max, worst = largest, _token_gap(samples, int(index), sampler, learner)
        found = self.ranks.gather([(gap_max, worst)])
        return max(found, key=lambda one: math.inf if math.isnan(one[0]) else one[0])

    def _ratio_quantiles(self) -> dict[str, float]:
        mine = torch.cat([torch.empty(0, device=self.ranks.device), *self._log_ratios]).cpu()
        ordered = torch.cat(self.ranks.gather([mine])).sort().values
        # Not torch.quantile, which accepts at most 16 million values.
        at = {name: float(ordered[round(q * (len(ordered) - 1))].exp()) for name, q in QUANTILES.items()}
        return {**at, "max": float(ordered[-1].exp())}
