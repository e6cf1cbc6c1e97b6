"""What happened in a step → its line of metrics.jsonl. Units: seconds, tokens, nats, fractions of one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from rewards import Verdict
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.statistics import LearnStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of each phase of a step."""

    rollout_s: float
    grade_s: float
    learn_s: float
    sync_s: float
    step_s: float


def rollout_metrics(groups: Sequence[GradedGroup]) -> dict[str, float]:
    """Rewards, verdicts and lengths. Means are over completions, for rewards over the scored ones only;
    `no_signal_frac` is over groups."""
    pairs = [pair for group in groups for pair in zip(group.rollout.completions, group.results, strict=True)]
    lengths = [len(completion.token_ids) for completion, _ in pairs]
    right = [len(c.token_ids) for c, result in pairs if result.verdict is Verdict.CORRECT]
    wrong = [len(c.token_ids) for c, result in pairs if result.verdict is not Verdict.CORRECT]
    verdicts = Counter(result.verdict for _, result in pairs)
    scored = [result for _, result in pairs if result.scored]
    # A mean over nothing is omitted rather than written as a number that looks measured.
    metrics = {
        **({"reward/mean": fmean(result.reward for result in scored)} if scored else {}),
        "reward/accuracy": verdicts[Verdict.CORRECT] / len(pairs),
        **{f"reward/verdict/{verdict}": verdicts[verdict] / len(pairs) for verdict in Verdict},
        "reward/unscored_frac": (len(pairs) - len(scored)) / len(pairs),
        "completion/tokens_mean": fmean(lengths),
        "completion/tokens_max": float(max(lengths)),
        "completion/truncated_frac": fmean(c.finish_reason == "length" for c, _ in pairs),
        "groups/no_signal_frac": 1 - sum(group.has_signal for group in groups) / len(groups),
    }
    if right:
        metrics["completion/tokens_mean_correct"] = fmean(right)
    if wrong:
        metrics["completion/tokens_mean_wrong"] = fmean(wrong)
    for name in sorted({name for result in scored for name in result.terms}):
        metrics[f"reward/term/{name}"] = fmean(result.terms.get(name, 0.0) for result in scored)
    return metrics


def advantage_metrics(advantages: Sequence[Sequence[float]]) -> dict[str, float]:
    """Spread of the advantages over the step's completions, including those without signal."""
    flat = [advantage for row in advantages for advantage in row]
    return {"advantage/std": pstdev(flat), "advantage/max_abs": max(abs(advantage) for advantage in flat)}


def learn_metrics(stats: LearnStats, lr: float) -> dict[str, float]:
    """Metrics of the update. Infinite and NaN values, as after an update skipped because of them, are omitted."""
    metrics = {
        "loss": stats.loss,
        "grad_norm": stats.grad_norm,
        "updates/skipped": float(stats.skipped),
        "lr": lr,
        "policy/entropy": stats.entropy,
        "policy/kl_base": stats.kl_base,
        "sampler/kl": stats.gap.kl,
        "sampler/kl_error": stats.gap.kl_error,
        "sampler/tokens": float(stats.gap.tokens),
        "sampler/kl_v1": stats.gap.kl_v1,
        "sampler/kl_v3": stats.gap.kl_v3,
        "sampler/logprob_gap_max": stats.gap.logprob_max,
        "sampler/beyond_frac": stats.gap.beyond,
        **{f"ratio/{name}": value for name, value in stats.ratio.items()},
        "ratio/ess_frac": stats.ess_frac,
        "loss/clip_low_frac": stats.clip_low_frac,
        "loss/clip_high_frac": stats.clip_high_frac,
        **{f"correction/{name}": value for name, value in stats.correction.items()},
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def time_metrics(timing: Timing, tokens: int) -> dict[str, float]:
    """Times of the phases. `throughput/tokens_per_s`: the step's completion tokens, sampled and learned from, divided
    by its total time."""
    return {
        "time/rollout_s": timing.rollout_s,
        "time/grade_s": timing.grade_s,
        "time/learn_s": timing.learn_s,
        "time/sync_s": timing.sync_s,
        "time/step_s": timing.step_s,
        "throughput/tokens_per_s": tokens / timing.step_s,
    }
