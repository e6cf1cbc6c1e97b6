"""Costs, steps and workers of made-up pools."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.pool_setting import (
    Costs,
    Decoding,
    Setting,
    StepWork,
    pieces_of,
)

DECODING = Decoding(call_s=0.5, sequence_s=0.01, longest_s=0.02, token_s=0.001)

COSTS = Costs(
    decoding=DECODING,
    canary_s=0.3,
    load_s=0.2,
    learn_token_s=0.002,
    check_token_s=0.0005,
    grade_completion_s=0.01,
    record_completion_s=0.02,
    publish_s=0.4,
)

SYNC_S = COSTS.publish_s + COSTS.load_s + COSTS.canary_s

PROBLEMS, SAMPLES = 12, 4

EXACT = 1e-9


def works(count: int, seed: int = 0) -> list[StepWork]:
    lengths = np.random.default_rng(seed).integers(1, 200, (count, PROBLEMS, SAMPLES))
    return [StepWork(lengths=each, learned_tokens=0.5 * float(each.sum())) for each in lengths]


def setting(workers: int, staleness: int = 0, **others: Any) -> Setting:
    return Setting(**{"workers": workers, "staleness": staleness, "prompts_per_piece": 2, **others})


def pieces(work: StepWork, prompts_per_piece: int = 2) -> list[float]:
    return pieces_of(work.lengths, prompts_per_piece, DECODING)


def learner_s(work: StepWork, *, stale: bool) -> float:
    """Seconds of grading and learning."""
    completions = PROBLEMS * SAMPLES
    return completions * 0.01 + work.learned_tokens * 0.002 + stale * work.tokens * 0.0005
