"""Micro-batches of a step → its statistics, summed over micro-batches, updates and ranks."""

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
"""What is summed: the same on a rank that has nothing to add."""
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnStats:
    """What one step of the learner saw; means and fractions are over completion tokens of all ranks."""

    loss: float
    grad_norm: float = 0.0
    """Before clipping; the mean over the step's updates."""
    updates: int = 0
    """Made."""
    skipped: int = 0
    """Left out, since their gradient was no number."""
    entropy: float
    """Nats a token."""
    kl_base: float
    """KL(policy ‖ base), nats a token: on every token where it is penalized, else on a few completions of each rank,
    those of median length; NaN where the base is not at hand."""
    gap: SamplerGap
    """Between the sampler and the learner before its first update, on the first update's tokens."""
    ratio: dict[str, float]
    """Quantiles (p01, p50, p99) and max of the ratio that the loss was computed with."""
    ess_frac: float
    """(Σ w)² / (N Σ w²) of the N weights w = policy/sampler of each token: 1 when all weigh alike."""
    clip_low_frac: float
    clip_high_frac: float
    correction: dict[str, float]
    """`mean` weight of the sampler correction and `outside_frac` of its bounds; empty without one."""
    tokens: int


def _token_gap(samples: Sequence[TrainingSample], index: int, sampler: float, learner: float) -> TokenGap:
    """The token of that index among all completion tokens of the samples."""
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

    What is added stays on its device until they are asked for: a number that were read after each micro-batch would let
    a GPU run dry each time.
    """

    ranks: Ranks
    logprob_limit: float = math.inf
    """What |log q − log p| of a token is counted beyond, nats."""
    _sums: dict[str, Tensor | float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    _furthest: list[tuple[Tensor, Sequence[TrainingSample]]] = field(default_factory=list)
    """The token of each micro-batch that is furthest apart, [4] float64, and its samples."""
    _log_ratios: list[Tensor] = field(default_factory=list)

    def _add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + (value.double() if isinstance(value, Tensor) else value)

    def add(self, objective: Objective, logprob_N: Tensor, entropy_N: Tensor, batch: MicroBatch) -> None:
        """Count one micro-batch."""
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
        """Count how far sampler and learner are apart on the samples that the micro-batch was made of; only before the
        step's first update does that say anything about the sampler."""
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
        index = gap_N.abs().argmax(dim=0, keepdim=True)  # of NaN where there is one
        figures = [values.index_select(0, index).double() for values in (gap_N.abs(), behaviour_N, logprob_N)]
        self._furthest.append((torch.cat([index.double(), *figures]), samples))

    def add_base(self, logprob_N: Tensor, base_logprob_N: Tensor) -> None:
        """Count KL(policy ‖ base), by the estimator that is unbiased and never negative."""
        self._add(kl_base=k3(logprob_N.double(), base_logprob_N.double()).sum(), base_tokens=base_logprob_N.numel())

    def gap(self) -> SamplerGap:
        """Collective: every rank calls it."""
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
        """Collective: every rank calls it."""
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
        """The largest difference of all ranks, and its token. NaN is the largest."""
        gap_max, worst = 0.0, None
        rows = torch.stack([figures for figures, _ in self._furthest]).tolist() if self._furthest else []
        for (index, largest, sampler, learner), (_, samples) in zip(rows, self._furthest, strict=True):
            # Not max(): it may pass over NaN, which is to stay.
            if math.isnan(largest) or largest > gap_max:
                gap_max, worst = largest, _token_gap(samples, int(index), sampler, learner)
        found = self.ranks.gather([(gap_max, worst)])
        return max(found, key=lambda one: math.inf if math.isnan(one[0]) else one[0])

    def _ratio_quantiles(self) -> dict[str, float]:
        mine = torch.cat([torch.empty(0, device=self.ranks.device), *self._log_ratios]).cpu()
        ordered = torch.cat(self.ranks.gather([mine])).sort().values
        # Not torch.quantile, which takes at most 16 million values.
        at = {name: float(ordered[round(q * (len(ordered) - 1))].exp()) for name, q in QUANTILES.items()}
        return {**at, "max": float(ordered[-1].exp())}
