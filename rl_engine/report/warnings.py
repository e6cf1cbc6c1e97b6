"""A run's metrics → warnings, one sentence each: the red lines at the top of its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_engine.learner.gap import BEYOND_LIMIT
from rl_engine.report.shown_run import ShownRun
from rollout.closeness import KL_LIMITS, LOGPROB_LIMITS, KlEstimate, chance

Line = Mapping[str, float]
Settings = Mapping[str, Any]
NEAR = 0.5
"""Fraction of a limit above which a gap is reported although the run went on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningRule:
    """A metric that should stay small."""

    key: str
    limit: Callable[[Settings, Line], float]
    """The run's settings and the step's metrics → the value above which the metric is reported."""
    text: str
    """Template with `worst`, the highest value, and `steps`, the number of steps above the limit."""


def _kl_limit(settings: Settings, line: Line) -> float:
    """The largest `sampler/kl` that chance explains if half the limit is the true value, by the same rule that stops a
    run (`rollout/closeness.py`). Runs of earlier versions lack the token count, so that any value may be chance."""
    if line.get("sampler/tokens", 0) < 1:
        return math.inf
    limit = NEAR * _given(settings, "rollout.max_kl", KL_LIMITS)
    error = line.get("sampler/kl_error", math.inf)
    found = KlEstimate(kl=line["sampler/kl"], error=error, tokens=int(line["sampler/tokens"]))
    return limit + found.margin(limit, _given(settings, "rollout.max_logprob_gap", LOGPROB_LIMITS))


def _beyond_limit(_: Settings, line: Line) -> float:
    """Like `_kl_limit`, for the fraction of tokens beyond the limit."""
    limit = NEAR * BEYOND_LIMIT
    tokens = int(line.get("sampler/tokens", 0))
    return limit + chance(limit, tokens, largest=1.0) if tokens > 0 else math.inf


def _given(settings: Settings, key: str, limits: Mapping[str, float]) -> float:
    """The limit at which the run stops."""
    given = settings.get(key, "auto")
    return limits.get(str(settings["model.dtype"]), limits["bfloat16"]) if given == "auto" else float(given)


RULES = (
    WarningRule(
        key="reward/verdict/error",
        limit=lambda *_: 0.0,
        text="grading failed on up to {worst:.2%} of the completions of a step, at {steps} (verdict error)",
    ),
    WarningRule(
        key="reward/verdict/timeout",
        limit=lambda *_: 0.01,
        text="grading took too long on up to {worst:.1%} of the completions of a step, at {steps} (verdict timeout)",
    ),
    WarningRule(
        key="sampler/kl",
        limit=_kl_limit,
        text="the sampler was far from the learner: sampler/kl up to {worst:.2g}, above half its limit by more than "
        "chance at {steps}",
    ),
    WarningRule(
        key="sampler/beyond_frac",
        limit=_beyond_limit,
        text="up to {worst:.2%} of a step's tokens were beyond rollout.max_logprob_gap, above half the limit by more "
        "than chance at {steps}",
    ),
    WarningRule(
        key="completion/truncated_frac",
        limit=lambda *_: 0.1,
        text="up to {worst:.0%} of a step's completions were cut off by sampling.max_tokens; above 10 % at {steps}",
    ),
    WarningRule(
        key="loss/clip_low_frac",
        limit=lambda *_: 0.05,
        text="up to {worst:.0%} of a step's tokens were held by the lower clipping bound; above 5 % at {steps}",
    ),
    WarningRule(
        key="loss/clip_high_frac",
        limit=lambda *_: 0.05,
        text="up to {worst:.0%} of a step's tokens were held by the upper clipping bound; above 5 % at {steps}",
    ),
    WarningRule(
        key="updates/skipped",
        limit=lambda *_: 0.0,
        text="updates were skipped at {steps}: their gradient was infinite or NaN",
    ),
)


def warnings_of(run: ShownRun) -> list[str]:
    """What a reader must know before looking at the numbers; empty for a healthy run."""
    found = left_out(run)
    for rule in RULES:
        lines = [line for line in run.lines if rule.key in line]
        over = [line[rule.key] for line in lines if line[rule.key] > rule.limit(run.settings, line)]
        if over:
            steps = "1 step" if len(over) == 1 else f"{len(over):,} steps"
            found.append(rule.text.format(worst=max(over), steps=steps))
    return found


def left_out(run: ShownRun) -> list[str]:
    """Notes on what is left out because it is damaged."""
    return [f"{line}, and is left out" for line in run.damaged] + [
        f"{line}: its completions are left out" for line in run.completions.damaged
    ]
