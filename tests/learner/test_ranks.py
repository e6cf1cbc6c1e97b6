"""One rank or two, every ZeRO stage, an adapter or the full model: the same weights after two steps."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rl_engine.learner.ranks import _free_port, leave_ranks
from rollout.models import EMBEDDED_DIR
from tests.helpers.precision import assert_same_adam_steps

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
# Adam divides by the size of the gradient. With an eps of 1e-12, a gradient that is only rounding would move its weight
# by the full rate, in a direction that depends on the order of summation.
RATES = {"lora": 1e-3, "tiny": 1e-2, "full": 1e-4}
METHODS = {
    "lora": f"optim.lr={RATES['lora']} lora.rank=2 optim.eps=1e-7",
    # A single number, so the second rank's shard is empty.
    "tiny": f"lora.init=tiny lora.numbers=1 optim.lr={RATES['tiny']} optim.eps=1e-7",
    "full": f"method=full optim.lr={RATES['full']} optim.eps=1e-6",
}
STAGES = {
    "0": "learner.zero_stage=0",
    "1": "learner.zero_stage=1",
    "2": "learner.zero_stage=2",
    "3": "learner.zero_stage=3",
    "3-offload": "learner.zero_stage=3 learner.offload_optimizer=true",
}
# Two updates per step, with the learner's own log-probabilities at its start kept for the correction.
TWICE = f"{METHODS['lora']} learner.zero_stage=3 learner.updates_per_step=2 loss.sampler_correction=token_truncate"
# A penalty with an effect: after the first step the policy differs from the reference.
PENALIZED = f"{METHODS['full']} loss.kl_coef=0.5"
# DeepSpeed's stages 1 and 2 are one class: with an adapter both are tried, otherwise the second.
SHARDED = [
    (method, stage) for method in METHODS for stage in STAGES if stage != "0" and (stage != "1" or method == "lora")
]
CASES = {
    f"{method}-{stage}": f"{METHODS[method]} {STAGES[stage]}"
    for method, stage in [*((method, "0") for method in METHODS), *SHARDED]
} | {"lora-twice": TWICE, **{f"full-KL-{stage}": f"{PENALIZED} {STAGES[stage]}" for stage in ("0", "3")}}


# Cases run on one rank: two ranks are compared with the unsharded one, and a single rank's shards are whole weights.
OF_ONE = {name: settings for name, settings in CASES.items() if name.endswith(("-0", "-3-offload", "-twice"))}


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Tensor]]]:
    """The weights of every case, trained on one rank and on two."""
    root = tmp_path_factory.mktemp("ranks")
    cases = {1: OF_ONE, 2: CASES}
    one, two = (
        [str(count), *(word for named in of_count.items() for word in named)] for count, of_count in cases.items()
    )
    # OMPI's variable is there as if mpirun had started a launcher on each machine.
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "steps_of_learners.py"), str(root), *one, "--", *two],
        env={**os.environ, **environment, "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        count: {name: load_file(root / str(count) / f"{name}.safetensors") for name in of_count}
        for count, of_count in cases.items()
    }


@pytest.mark.parametrize("case", OF_ONE)
def test_two_ranks_learn_the_same_as_one(case: str, by_ranks: dict[int, dict[str, dict[str, Tensor]]]) -> None:
    one, two = by_ranks[1][case], by_ranks[2][case]
    assert_same_adam_steps(two, one, RATES[case.partition("-")[0]])


def test_a_sharded_reference_penalizes_like_a_whole_one(by_ranks: dict[int, dict[str, dict[str, Tensor]]]) -> None:
    whole, free = by_ranks[1]["full-KL-0"], by_ranks[1]["full-0"]
    for name, tensor in by_ranks[2]["full-KL-3"].items():
        assert float((tensor - whole[name]).abs().mean()) < 0.01 * RATES["full"], name
    assert any((tensor - whole[name]).abs().max() > 1e-5 for name, tensor in free.items())


@pytest.mark.parametrize(("method", "stage"), SHARDED)
def test_every_stage_learns_the_same_as_without_sharding(
    method: str, stage: str, by_ranks: dict[int, dict[str, dict[str, Tensor]]]
) -> None:
    plain, sharded = by_ranks[1][f"{method}-0"], by_ranks[2][f"{method}-{stage}"]
    assert_same_adam_steps(sharded, plain, RATES[method])


def test_something_was_learned(by_ranks: dict[int, dict[str, dict[str, Tensor]]]) -> None:
    """Otherwise the tests above would compare unchanged weights. Two updates per step move further than one."""
    start = load_file(EMBEDDED_DIR / "model.safetensors")
    for before, after in ((start, "full-3"), (by_ranks[2]["lora-3"], "lora-twice")):
        moved = by_ranks[2][after]
        assert max(float((tensor - before[name]).abs().max()) for name, tensor in moved.items()) > 5e-5


@pytest.mark.parametrize(("backend", "count", "waits"), [("gloo", 2, True), ("gloo", 1, False), ("nccl", 2, False)])
def test_gloo_threads_get_time_before_a_rank_ends(
    backend: str, count: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that asks for the GIL during interpreter shutdown aborts the process, which no test can reproduce."""
    events = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: count)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: events.append("left"))
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append("waited"))
    leave_ranks()
    assert events == ["left", "waited"][: 1 + waits]


def test_a_machine_without_a_loopback_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(*_: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr("rl_engine.learner.ranks.socket.socket.bind", bind)
    with pytest.raises(ValueError, match=r"^no process can listen on 127\.0\.0\.1 here \(Cannot assign.*`ip addr add"):
        _free_port()
