"""A run's metrics → what was wrong with it, one sentence each: the red line at the top of its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_engine.learner.gap import BEYOND_LIMIT
from rl_engine.report.shown_run import ShownRun
from rollout.closeness import KL_LIMITS

Lines = Sequence[Mapping[str, float]]
NEAR = 0.5
"""Share of a limit from which a gap is told of, though the run went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A metric that should stay small."""

    key: str
    limit: Callable[[Mapping[str, Any]], float]
    """Of the run's settings: told of where the metric is above it at any step."""
    text: str
    """With `worst`, the highest value, and `steps`, at how many it was above."""


RULES = (
    Rule(
        key="reward/verdict/error",
        limit=lambda _: 0.0,
        text="grading failed on up to {worst:.2%} of the completions of a step, at {steps} (verdict error)",
    ),
    Rule(
        key="reward/verdict/timeout",
        limit=lambda _: 0.01,
        text="grading took too long on up to {worst:.1%} of the completions of a step, at {steps} (verdict timeout)",
    ),
    Rule(
        key="sampler/kl",
        limit=lambda settings: NEAR * _largest_kl(settings),
        text="the sampler was far from the learner: sampler/kl up to {worst:.2g}, above half its limit at {steps}",
    ),
    Rule(
        key="sampler/beyond_frac",
        limit=lambda _: NEAR * BEYOND_LIMIT,
        text="up to {worst:.2%} of a step's tokens were beyond rollout.max_logprob_gap, at {steps}",
    ),
    Rule(
        key="completion/truncated_frac",
        limit=lambda _: 0.1,
        text="up to {worst:.0%} of a step's completions were cut off by sampling.max_tokens; above 10 % at {steps}",
    ),
    Rule(
        key="loss/clip_low_frac",
        limit=lambda _: 0.05,
        text="up to {worst:.0%} of a step's tokens were held by the lower clipping bound; above 5 % at {steps}",
    ),
    Rule(
        key="loss/clip_high_frac",
        limit=lambda _: 0.05,
        text="up to {worst:.0%} of a step's tokens were held by the upper clipping bound; above 5 % at {steps}",
    ),
    Rule(
        key="updates/skipped",
        limit=lambda _: 0.0,
        text="updates were skipped at {steps}: their gradient was infinite or NaN",
    ),
)


def warnings_of(run: ShownRun) -> list[str]:
    """What a reader must know before the numbers; empty for a healthy run."""
    found = []
    for rule in RULES:
        limit = rule.limit(run.settings)
        over = [line[rule.key] for line in run.lines if line.get(rule.key, 0.0) > limit]
        if over:
            steps = "1 step" if len(over) == 1 else f"{len(over):,} steps"
            found.append(rule.text.format(worst=max(over), steps=steps))
    return found


def _largest_kl(settings: Mapping[str, Any]) -> float:
    """The limit at which the run stops."""
    given = settings.get("rollout.max_kl", "auto")
    dtype = str(settings["model.dtype"])
    return KL_LIMITS.get(dtype, KL_LIMITS["bfloat16"]) if given == "auto" else float(given)
