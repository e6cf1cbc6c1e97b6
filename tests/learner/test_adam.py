"""Adam by the place of its state: fused on a GPU and on the host of a GPU, with the host's threads, after a restore."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rl_engine.config.optim import OptimConfig
from rl_engine.learner import learner as learning
from rl_engine.learner.adam import adam, cores_of_rank, steps_taken
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.learner import Learner
from rl_engine.learner.state import learner_state, restore_learner
from tests.helpers.batches import LOOSE
from tests.helpers.precision import assert_same_adam_steps

OFFLOADED = ("learner.zero_stage=2", "learner.offload_optimizer=true", "method=full", "optim.lr=1e-3")


def as_on_cuda(groups: Any, config: OptimConfig, device_type: str, *, offloaded: bool) -> torch.optim.AdamW:
    return adam(groups, config, "cuda", offloaded=offloaded)


@pytest.mark.parametrize(
    ("device_type", "offloaded", "fused"), [("cpu", False, False), ("cpu", True, False), ("cuda", True, True)]
)
def test_a_cpu_run_does_not_use_the_fused_kernel(device_type: str, offloaded: bool, fused: bool) -> None:
    optimizer = adam(
        [(1.0, [torch.nn.Parameter(torch.ones(3))])], OptimConfig(lr=1e-3), device_type, offloaded=offloaded
    )
    assert optimizer.param_groups[0]["fused"] is fused


def test_adam_is_the_one_that_was_configured() -> None:
    config = OptimConfig(lr=1e-3, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1)
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = adam(zip((1.0, 4.0), ([one] for one in weights), strict=True), config, "cpu").param_groups
    assert [group["lr"] for group in groups] == [1e-3, 4e-3]
    for group in groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-5, 0.1)


def test_a_rank_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores_of_rank() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert cores_of_rank() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores_of_rank() == 1


def test_the_step_count_is_on_the_device_the_kernel_needs() -> None:
    beside = torch.nn.Parameter(torch.ones(3, device="meta"))
    plain, fused = (adam([(1.0, [beside])], OptimConfig(lr=1e-3), kind) for kind in ("cpu", "cuda"))
    assert steps_taken(plain, beside, 7).device.type == "cpu"
    assert steps_taken(fused, beside, 7).device.type == "meta"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the numbers of threads that are set, with optimizers created as on CUDA, on a machine with four cores.
    vLLM leaves the process one thread."""
    made: list[int] = []
    monkeypatch.setattr(learning, "adam", as_on_cuda)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: made[-1] if made else 1)
    monkeypatch.setattr(torch, "set_num_threads", made.append)
    return made


def test_an_offloaded_optimizer_steps_fused_on_host_threads(
    make_learner: Callable[..., Learner], samples: list[TrainingSample], threads: list[int]
) -> None:
    """Only its steps run on those threads: after each step the process has its earlier number again."""
    learner = make_learner(*OFFLOADED)
    for _ in range(2):
        learner.step([samples], LOOSE)
    assert threads == [4, 1] * 2


@pytest.mark.parametrize("settings", [(), OFFLOADED], ids=["card", "host"])
def test_a_fused_optimizer_resumes_bit_for_bit(
    make_learner: Callable[..., Learner], samples: list[TrainingSample], threads: list[int], settings: tuple[str, ...]
) -> None:
    """The step after a restore is bit-identical to the step without one, and equals the other kernel's to rounding."""
    through, resumed = make_learner(*settings), make_learner(*settings)
    through.step([samples], LOOSE)
    restore_learner(resumed, learner_state(through))
    for learner in (through, resumed):
        learner.step([samples], LOOSE)
    found, expected = resumed.weights(), through.weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert int(learner_state(resumed)["adam_steps"]) == 2


def test_the_fused_kernel_equals_the_other_up_to_rounding(
    make_learner: Callable[..., Learner], samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_learner()
    plain.step([samples], LOOSE)
    monkeypatch.setattr(learning, "adam", as_on_cuda)
    fused = make_learner()
    fused.step([samples], LOOSE)
    assert_same_adam_steps(fused.weights(), plain.weights(), plain.config.optim.rate)
