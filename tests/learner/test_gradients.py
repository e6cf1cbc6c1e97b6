"""Non-finite gradients, and the rate over a run: by hand, against transformers, and bit for bit when resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from rl_engine.config import OptimConfig, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gradients import SKIPS_IN_A_ROW, NonFiniteGradientError
from rl_engine.learner.learner import Learner
from rl_engine.learner.state import learner_state, restore_learner
from rl_engine.run.metrics import learn_metrics
from tests.helpers.batches import LOOSE

pytestmark = pytest.mark.engine

LearnerMaker = Callable[..., Learner]


def broken(samples: list[TrainingSample]) -> list[TrainingSample]:
    """The samples with a loss that overflows although all log-probabilities are finite."""
    return [*samples[:-1], replace(samples[-1], weight=math.inf)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_update_with_a_non_finite_gradient_leaves_no_trace(
    stage: int, make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    overrides = (f"learner.zero_stage={stage}", "optim.weight_decay=0.1", "optim.clip_norm=0.01")
    learner, other = make_learner(*overrides), make_learner(*overrides)
    for each in (learner, other):
        each.step([samples], LOOSE)
    before = learner_state(learner)
    stats = learner.step([broken(samples)], LOOSE)
    assert (stats.updates, stats.skipped) == (0, 1)
    after = learner_state(learner)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    metrics = learn_metrics(stats, 1e-3)
    assert metrics["updates/skipped"] == 1
    assert not {"loss", "grad_norm"} & metrics.keys()
    # Both continue identically; in a step of two updates, the good one is made.
    assert other.step([samples], LOOSE).skipped == 0
    mixed = learner.step([broken(samples), samples], LOOSE)
    assert (mixed.updates, mixed.skipped) == (1, 1)
    for name, tensor in other.weights().items():
        assert torch.equal(learner.weights()[name], tensor), name


def test_several_skips_in_a_row_stop_the_run_with_old_weights(
    make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    learner = make_learner()
    before = learner.weights()
    for _ in range(SKIPS_IN_A_ROW - 1):
        assert learner.step([broken(samples)], LOOSE).skipped == 1
    with pytest.raises(NonFiniteGradientError, match=r"3 updates in a row.*sampler is not the cause.*optim\.lr"):
        learner.step([broken(samples)], LOOSE)
    assert all(torch.equal(learner.weights()[name], tensor) for name, tensor in before.items())


def test_a_good_update_resets_the_count_of_skips(make_learner: LearnerMaker, samples: list[TrainingSample]) -> None:
    learner = make_learner()
    for _ in range(SKIPS_IN_A_ROW):
        assert learner.step([broken(samples), samples], LOOSE).skipped == 1


# The learning rate.


def test_the_rate_follows_the_schedule() -> None:
    def factors(steps: int = 4, **settings: object) -> list[float]:
        config = OptimConfig.model_validate({"lr": 1e-3, **settings})
        return [config.rate_factor(steps, done) for done in range(steps)]

    assert factors() == [1, 1, 1, 1]
    assert factors(warmup_steps=2) == [0.5, 1, 1, 1]
    assert factors(schedule="linear", warmup_steps=2) == [0.5, 0.75, 0.5, 0.25]
    assert factors(schedule="cosine") == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4])


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_the_schedules_match_transformers(schedule: str, theirs: Callable[..., object]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler: object = theirs(optimizer, num_warmup_steps=0, num_training_steps=7)
    config = OptimConfig.model_validate({"lr": 0.5, "schedule": schedule})
    for done in range(7):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * config.rate_factor(7, done))
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]


def test_a_warm_up_that_never_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim.warmup_steps is 20, and train.steps is 20"):
        load_config("quickstart.yaml", ["optim.warmup_steps=20", "train.steps=20"])


def test_every_group_learns_at_its_rate_and_weights_decay(
    make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    """Adam's first step has the size of the rate. A has no gradient yet and only decays: A·(1 − rate·decay)."""
    learner = make_learner("optim.lr=1e-3", "optim.weight_decay=0.5", "lora.plus_ratio=4")
    before = learner.weights()
    learner.set_rate(0.25)
    learner.step([samples], LOOSE)
    for name, tensor in learner.weights().items():
        if "lora_A" in name:
            torch.testing.assert_close(tensor, before[name] * (1 - 0.25e-3 * 0.5), rtol=1e-6, atol=0)
        else:
            moved = (tensor - before[name]).abs()
            assert moved[moved > 0].median() == pytest.approx(4 * 0.25e-3, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adams_step_count_is_restored_in_place(
    stage: int, make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    """A fused optimizer refuses a step count on another device than its parameters, so its own tensor is kept and
    filled."""
    learner, other = (make_learner(f"learner.zero_stage={stage}") for _ in range(2))
    for _ in range(3):
        learner.step([samples], LOOSE)
    other.step([samples], LOOSE)
    counts = [state["step"] for state in other.optimizer.state.values() if state]
    restore_learner(other, learner_state(learner))
    after = [state["step"] for state in other.optimizer.state.values() if state]
    assert len(after) == len(counts) > 0
    assert all(one is before for one, before in zip(after, counts, strict=True))
    assert {float(count) for count in counts} == {3.0}


def test_epochs_decay_and_a_schedule_resume_bit_for_bit(
    make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    overrides = ("learner.epochs_per_step=2", "loss.name=ppo_clip", "optim.weight_decay=0.1", "optim.schedule=linear")

    def steps(learner: Learner, first: int, last: int) -> None:
        for step in range(first, last):
            learner.set_rate(learner.config.optim.rate_factor(4, step))
            learner.step([samples[::2], samples[1::2]], LOOSE)

    whole, first, resumed = (make_learner(*overrides) for _ in range(3))
    steps(whole, 0, 4)
    steps(first, 0, 2)
    restore_learner(resumed, learner_state(first))
    steps(resumed, 2, 4)
    for name, tensor in whole.weights().items():
        assert torch.equal(resumed.weights()[name], tensor), name
