"""The fit recovers the costs of a pool from the measurements of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.pool_measured import ARMS, MOST_STALE, Measured, MeasuredRun, MeasuredStep
from benchmarks.pool_model import comparison, error_of
from benchmarks.pool_parts import Parts, fit
from benchmarks.pool_setting import (
    Cores,
    Costs,
    Setting,
    StepSeconds,
    StepWork,
)
from benchmarks.pool_simulation import simulate
from tests.helpers.pool_settings import COSTS, DECODING, PROBLEMS, works


def test_the_fit_finds_what_batches_were_made_of() -> None:
    random = np.random.default_rng(0)
    batches = [random.integers(1, 100, size) for size in (8, 16, 32, 64, 128) for _ in range(4)]
    found, error = fit([(float(DECODING.seconds(lengths)), lengths) for lengths in batches])
    assert found.call_s == pytest.approx(0.5, rel=1e-6)
    assert found.sequence_s == pytest.approx(0.01, rel=1e-6)
    assert found.longest_s == pytest.approx(0.02, rel=1e-6)
    assert found.token_s == pytest.approx(0.001, rel=1e-6)
    assert error < 1e-9


def measured_from(costs: Costs, parts: Parts, steps: list[StepWork]) -> Measured:
    """The measurements of a machine that behaves exactly as the model says."""
    draft = Measured(
        environment={},
        cores=2,
        cpus_per_worker=1,
        prompts_per_piece=2,
        parts=parts,
        lengths=[work.lengths.tolist() for work in steps],
        runs=(),
    )
    runs = []
    for name, arm in ARMS.items():
        cores = Cores(count=2, worker=1 if arm.workers else 2, learner=2, all_busy=parts.all_busy)
        placed = Setting(
            workers=max(1, arm.workers),
            staleness=arm.staleness,
            prompts_per_piece=2 if arm.workers else PROBLEMS,
            cores=cores,
        )
        own = costs if arm.workers else replace(costs, decoding=parts.engine, load_s=0.0, canary_s=0.0)
        found = simulate(own, placed, steps)
        runs.append(MeasuredRun(arm=name, round=1, steps=tuple(map(as_measured, found, steps))))
    return replace(draft, runs=tuple(runs))


def as_measured(step: StepSeconds, work: StepWork) -> MeasuredStep:
    return MeasuredStep(
        rollout_s=step.rollout_s,
        grade_s=step.grade_s,
        learn_s=step.learn_s,
        sync_s=step.sync_s,
        step_s=step.step_s,
        between_s=step.between_s,
        tokens=work.tokens,
        learned_tokens=int(work.learned_tokens),
    )


def test_a_machine_that_is_as_the_model_says_is_found_again(tmp_path: Path) -> None:
    """The costs are recovered from the steps, check and sync included, and the model predicts every arm."""
    steps = [replace(work, learned_tokens=work.tokens // 2) for work in works(8)]
    parts = Parts(
        worker=DECODING,
        worker_error=0.0,
        engine=replace(DECODING, token_s=0.0007),
        engine_error=0.0,
        all_busy=0.9,
        canary_s=COSTS.canary_s,
        load_s=COSTS.load_s,
        send_s=0.0,
        answer_s=0.0,
        scan_s=0.0,
    )
    measured = measured_from(COSTS, parts, steps)
    measured.write(tmp_path / "pool.json")
    read = Measured.read(tmp_path / "pool.json")
    assert read == measured
    found = read.costs("2 workers, k = 1")
    assert found.learn_token_s == pytest.approx(0.002, rel=1e-6)
    assert found.check_token_s == pytest.approx(0.0005, rel=1e-6)
    assert found.publish_s == pytest.approx(COSTS.publish_s, rel=1e-6)
    assert found.record_completion_s == pytest.approx(0.02)
    for name in ARMS:
        assert error_of(read, name) == pytest.approx(0.0, abs=1e-6)
        assert len(read.steps_of(name)[0]) == len(steps) - 1 - 2 * MOST_STALE
    assert len(comparison(read)) == 1 + len(ARMS)
    assert read.speeds("in process") == pytest.approx([1.0] * 5)
