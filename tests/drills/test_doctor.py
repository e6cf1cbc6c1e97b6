"""The doctor on a machine whose sampler is off. It starts the engines once more, for which `make test` has no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_engine.doctor.selftest import FIRST
from tests.doctor.test_doctor import doctor

pytestmark = [pytest.mark.drill, pytest.mark.timeout(600)]


def test_a_gap_that_cannot_be_met_fails_the_first_publication(tmp_path: Path) -> None:
    code, output = doctor(tmp_path, "rollout.kv_cache_gib=0.25", "rollout.max_logprob_gap=1e-12")
    assert code == 1
    (failed,) = [line for line in output.splitlines() if line.startswith("failed")]
    assert failed.startswith(f"failed {FIRST}")
    assert "nats from the learner's (limit 1e-12" in failed
    assert "Traceback" not in output
