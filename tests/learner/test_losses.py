"""Losses, penalties, corrections and normalizers against hand-computed numbers and finite differences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_engine.config import CLIP_BOUNDS, LossConfig, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.losses import (
    KL_ESTIMATORS,
    LOSSES,
    NORMALIZERS,
    bounds_hit,
    cispo,
    gspo,
    importance_sampling,
    ppo_clip,
    reinforce,
    sampler_weight,
    token_ratio,
)
from rl_engine.learner.objective import needs_base, needs_every_group, objective
from rl_engine.policy.micro_batch import MicroBatch

LOG2 = math.log(2)
ONES = torch.ones(1, 2, dtype=torch.bool)


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def test_importance_sampling_by_hand() -> None:
    logprob = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    behaviour = torch.tensor([[-1.0, -1.5], [-1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss = importance_sampling(logprob, behaviour, torch.tensor([[2.0], [-1.0]]), mask)
    torch.testing.assert_close(loss, torch.tensor([[-2.0, -2.0 * math.exp(-0.5)], [math.exp(0.5), 0.0]]))


def test_reinforce_by_hand() -> None:
    loss = reinforce(row(-1.5, 3.0), torch.zeros(1, 2), row(2.0, 2.0), torch.tensor([[True, False]]))
    torch.testing.assert_close(loss, row(3.0, 0.0))


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"),
    # min(r·A, clip(r, 0.8, 1.28)·A): clipped only if the ratio has moved in the direction of the advantage.
    [(1.0, 2.0, -1.28), (1.0, 0.5, -0.5), (-1.0, 2.0, 2.0), (-1.0, 0.5, 0.8), (2.0, 1.1, -2.2)],
)
def test_ppo_clip_by_hand(advantage: float, ratio: float, expected: float) -> None:
    loss = ppo_clip(row(math.log(ratio)), row(0.0), row(advantage), ONES[:, :1], clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, row(expected))


def test_cispo_weights_by_bounded_ratios_and_keeps_gradients() -> None:
    logprob = row(math.log(8.0), -LOG2).requires_grad_()
    loss = cispo(logprob, row(0.0, 0.0), row(1.0, -2.0), ONES)
    torch.testing.assert_close(loss, row(-4.0 * math.log(8.0), 2.0 * 0.5 * -LOG2))
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    torch.testing.assert_close(gradient, row(-4.0, 1.0))


def test_gspo_has_one_ratio_per_completion() -> None:
    """Ratios 4 and 1 have geometric mean 2, clipped to 1.5 for the good completion and unchanged for the bad one."""
    logprob = torch.tensor([[2 * LOG2, 0.0], [2 * LOG2, 0.0]])
    mask = ONES.expand(2, 2)
    loss = gspo(logprob, torch.zeros(2, 2), torch.tensor([[1.0], [-1.0]]), mask, clip_low=0.5, clip_high=0.5)
    torch.testing.assert_close(loss, torch.tensor([[-1.5, -1.5], [2.0, 2.0]]))


def test_a_row_without_tokens_adds_nothing_to_gspo() -> None:
    """0/0 would make the whole loss NaN, whatever its weight."""
    mask = torch.tensor([[True, True], [False, False]])
    loss = gspo(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 1), mask, clip_low=0.5, clip_high=0.5)
    assert torch.isfinite(loss).all()


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probabilities, old ones, advantages, mask), with ratios on both sides of every bound."""
    generator = torch.Generator().manual_seed(0)
    logprob, old = -torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    advantage = torch.tensor([[1.0], [-0.5], [0.25]], dtype=torch.float64).expand(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    return logprob.requires_grad_(), old, advantage, mask


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cispo"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    logprob, old, advantage, mask = example()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, old, advantage, mask).sum(), logprob)


def test_the_gradient_of_cispo_is_that_of_a_fixed_weight() -> None:
    """The gradient is not that of the loss's value, so the finite differences hold the weight fixed."""
    logprob, old, advantage, mask = example()
    weight = token_ratio(logprob.detach(), old, mask).clamp(max=1.1)

    def held(x: Tensor) -> Tensor:
        return -(weight * advantage * x * mask).sum()

    assert torch.autograd.gradcheck(held, logprob)
    (found,) = torch.autograd.grad(cispo(logprob, old, advantage, mask, clip_high=0.1).sum(), logprob)
    (wanted,) = torch.autograd.grad(held(logprob), logprob)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_loss_has_the_policy_gradient(name: str) -> None:
    logprob = row(-1.0, -2.0).requires_grad_()
    loss = LOSSES[name](logprob, logprob.detach(), row(0.75, 0.75), ONES)
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    torch.testing.assert_close(gradient, row(-0.75, -0.75))


@pytest.mark.parametrize("name", LOSSES)
def test_the_content_of_padding_does_not_matter(name: str) -> None:
    mask = torch.tensor([[True, False]])
    logprob = row(-1.0, 90.0).requires_grad_()
    loss = LOSSES[name](logprob, row(-1.0, -90.0), row(1.0, 1.0), mask)
    assert loss[0, 1] == 0.0
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    torch.testing.assert_close(gradient, row(-1.0, 0.0))


def hits(*arguments: Any) -> list[int]:
    return [int(count) for count in bounds_hit(*arguments)]


def test_bounds_are_hit_only_in_the_advantages_direction() -> None:
    ratio, advantage = row(0.5, 0.5, 2.0, 2.0, 1.0), row(-1.0, 1.0, -1.0, 1.0, 1.0)
    assert hits(ratio, advantage, torch.ones(1, 5, dtype=torch.bool), 0.2, 0.2) == [1, 1]
    assert hits(ratio, advantage, torch.zeros(1, 5, dtype=torch.bool), 0.2, 0.2) == [0, 0]
    assert hits(ratio, advantage, torch.ones(1, 5, dtype=torch.bool), math.inf, math.inf) == [0, 0]
    # At a bound, within both, or without an advantage, the clipped loss still has its gradient.
    ratio, advantage = row(0.5, 1.5, 1.0, 1.0, 0.25, 2.0), row(-1.0, 1.0, -0.5, 0.5, 0.0, 0.0)
    assert hits(ratio, advantage, torch.ones(1, 6, dtype=torch.bool), 0.5, 0.5) == [0, 0]
    assert hits(row(0.25, 2.0), row(-0.1, 0.1), ONES, 0.5, 0.5) == [1, 1]


# KL to the base.


@pytest.mark.parametrize(("name", "expected"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_estimators_by_hand(name: str, expected: float) -> None:
    torch.testing.assert_close(KL_ESTIMATORS[name](row(-1.0), row(-1.5)), row(expected))


def expectations(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, Tensor]:
    """Exact expectations of an estimator and of its gradient at the logits, under a policy over three tokens."""
    logits = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([0.1, 0.2, -0.5], dtype=torch.float64).log_softmax(0)
    logprob = logits.log_softmax(0)
    weighted = (logprob.exp().detach() * function(logprob, base)).sum()
    (gradient,) = torch.autograd.grad(weighted, logits)
    return float(weighted.detach()), gradient


def exact_kl() -> tuple[float, Tensor]:
    logits = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([0.1, 0.2, -0.5], dtype=torch.float64).log_softmax(0)
    logprob = logits.log_softmax(0)
    value = (logprob.exp() * (logprob - base)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return float(value.detach()), gradient


def test_what_each_estimator_is_unbiased_for() -> None:
    """k1 and k3 are unbiased in value, k2 in gradient. k1's gradient vanishes, but as a per-token cost it is exact."""
    value, gradient = exact_kl()
    assert expectations(KL_ESTIMATORS["k1"])[0] == pytest.approx(value)
    assert expectations(KL_ESTIMATORS["k3"])[0] == pytest.approx(value)
    torch.testing.assert_close(expectations(KL_ESTIMATORS["k2"])[1], gradient)
    torch.testing.assert_close(expectations(KL_ESTIMATORS["k1"])[1], torch.zeros(3, dtype=torch.float64))

    def as_a_cost(logprob: Tensor, base: Tensor) -> Tensor:
        return reinforce(logprob[None], base[None], -(logprob - base).detach()[None], torch.ones(1, 3))

    torch.testing.assert_close(expectations(as_a_cost)[1], gradient)


# The correction for the mismatch between sampler and learner.


@pytest.mark.parametrize(
    ("level", "action", "expected", "outside"),
    [
        ("token", "truncate", (2.0, 1.0, 0.5), 2),
        ("token", "mask", (0.0, 1.0, 0.0), 2),
        # The product of the completion's ratios: 4 · 1 · ¼.
        ("sequence", "truncate", (1.0, 1.0, 1.0), 0),
        ("sequence", "mask", (1.0, 1.0, 1.0), 0),
    ],
)
def test_sampler_weights_by_hand(level: str, action: str, expected: tuple[float, ...], outside: int) -> None:
    log_ratio = row(math.log(4), 0.0, math.log(0.25))
    weight, out = sampler_weight(
        log_ratio, torch.ones(1, 3, dtype=torch.bool), level=level, action=action, low=0.5, high=2.0
    )
    torch.testing.assert_close(weight, row(*expected))
    assert int(out.sum()) == outside


def test_a_sequence_weight_is_cut_for_the_whole_completion() -> None:
    mask = torch.tensor([[True, True, False]])
    log_ratio = row(LOG2, LOG2, -50.0)
    for action, value in (("truncate", 2.0), ("mask", 0.0)):
        weight, out = sampler_weight(log_ratio, mask, level="sequence", action=action, low=0.0, high=2.0)
        torch.testing.assert_close(weight[mask], torch.tensor([value, value]))
        assert out.tolist() == [[True, True, False]]


def test_a_weight_at_its_bound_is_inside_and_none_has_a_gradient() -> None:
    log_ratio = row(0.0, LOG2).requires_grad_()
    for action in ("truncate", "mask"):
        weight, out = sampler_weight(log_ratio, ONES, level="token", action=action, low=1.0, high=2.0)
        assert weight.tolist() == [[1.0, 2.0]]
        assert not out.any()
        assert not weight.requires_grad


# Normalizers.


@pytest.mark.parametrize(
    ("name", "expected"),
    [("constant", (1 / 40, 1 / 40)), ("tokens", (1 / 10, 1 / 10)), ("sequence", (1 / 4, 1 / 16))],
)
def test_normalizers_by_hand(name: str, expected: tuple[float, float]) -> None:
    """Two completions of 2 and 8 tokens; the maximum is 20."""
    weights = NORMALIZERS[name](torch.tensor([2.0, 8.0]), 20)
    torch.testing.assert_close(weights, torch.tensor(expected))


# The whole objective.


def micro_batch() -> MicroBatch:
    """One completion of two tokens, sampled at log-probabilities −1 and −2, with advantage 2 and weight ½."""
    return collate(
        [
            TrainingSample(
                prompt_ids=(1,), completion_ids=(2, 3), behaviour_logprobs=(-1.0, -2.0), advantage=2.0, weight=0.5
            )
        ],
        pad_id=0,
        layout="padded",
    )


def total(settings: dict[str, Any], base: Tensor | None = None) -> float:
    logprob = row(-1.0, -2.0 + LOG2)
    return float(objective(LossConfig(**settings), micro_batch(), logprob, row(0.3, 0.5), base).loss)


def test_an_objective_by_hand() -> None:
    plain = -0.5 * 2.0 * (1 + 2)
    assert total({}) == pytest.approx(plain)
    assert total({"entropy_coef": 0.1}) == pytest.approx(plain - 0.5 * 0.1 * 0.8)
    base = row(-1.0, -2.0)
    assert total({"kl_coef": 0.2, "kl_penalty": "k1"}, base) == pytest.approx(plain + 0.5 * 0.2 * LOG2)
    assert total({"kl_coef": 0.2, "kl_penalty": "k2"}, base) == pytest.approx(plain + 0.5 * 0.2 * 0.5 * LOG2**2)
    weighted = {"kl_coef": 0.2, "kl_penalty": "k3_weighted"}
    assert total(weighted, base) == pytest.approx(plain + 0.5 * 0.2 * 2 * (0.5 - 1 + LOG2))
    # The gradient of k3 times the ratio of 2 is 2 ln 2.
    torch.testing.assert_close(gradient_of(weighted, base) - gradient_of({}), row(0.0, 0.5 * 0.2 * 2 * LOG2))
    # The penalty reduces the advantage of the second token, whose ratio is 2.
    assert total({"kl_coef": 0.2, "kl_penalty": "advantage"}, base) == pytest.approx(plain + 0.5 * 2 * 0.2 * LOG2)


def test_a_correction_bounds_the_ratio_to_the_sampler() -> None:
    """The learner's ratio is one at the first update; the ratio of 2 to the sampler is truncated to 1.5, or masked."""
    result = objective(
        LossConfig(sampler_correction="token_truncate", correction_max=1.5),
        micro_batch(),
        row(-1.0, -2.0 + LOG2),
        row(0.0, 0.0),
        None,
    )
    assert float(result.loss) == pytest.approx(-0.5 * 2.0 * (1 + 1.5))
    assert result.log_ratio_N.tolist() == [0.0, 0.0]
    assert result.corrected is not None
    assert [float(part) for part in result.corrected] == [2.5, 1]
    assert total({"sampler_correction": "token_mask", "correction_max": 1.5}) == pytest.approx(-0.5 * 2.0)


def test_a_correction_is_counted_over_tokens_alone() -> None:
    """The ratios to the sampler are 1 and 4 in one completion, and 2 in the other, which is one token shorter."""
    made = [
        TrainingSample(prompt_ids=(1,), completion_ids=ids, behaviour_logprobs=(-2.0,) * len(ids), advantage=1.0)
        for ids in ((2, 3), (4,))
    ]
    logprob = torch.tensor([[-2.0, -2.0 + 2 * LOG2], [-2.0 + LOG2, 50.0]])
    config = LossConfig(sampler_correction="token_truncate", correction_max=3.0)
    result = objective(config, collate(made, pad_id=0, layout="padded"), logprob, torch.zeros(2, 2), None)
    assert result.corrected is not None
    assert [float(part) for part in result.corrected] == pytest.approx([1 + 3 + 2, 1])
    assert float(result.loss) == pytest.approx(-6)


def test_the_ratio_is_relative_to_old_logprobs() -> None:
    """In a later update of a step, the ratio is 2 to the step's start, whose own ratio to the sampler is ½."""
    batch = replace(micro_batch(), old_logprob_BC=row(-1.0, -2.0 - LOG2))
    config = LossConfig(sampler_correction="token_truncate")
    result = objective(config, batch, row(-1.0, -2.0), row(0.0, 0.0), None)
    assert float(result.loss) == pytest.approx(-0.5 * 2.0 * (1 + 2 * 0.5))
    assert result.log_ratio_N.tolist() == pytest.approx([0.0, LOG2])


def gradient_of(settings: dict[str, Any], base: Tensor | None = None) -> Tensor:
    """The gradient at the learner's log-probabilities −1 and −2 + ln 2, where the sampler's are −1 and −2."""
    logprob = row(-1.0, -2.0 + LOG2).requires_grad_()
    loss = objective(LossConfig(**settings), micro_batch(), logprob, row(0.3, 0.5), base).loss
    (gradient,) = torch.autograd.grad(loss, logprob)
    return gradient


@pytest.mark.parametrize(
    ("name", "corrected"),
    # The ratios to the sampler are 1 and 2. GSPO's tokens share one ratio, and so the mean of the weights.
    [("ppo_clip", (-1.0, -2.0)), ("cispo", (-1.0, -2.0)), ("gspo", (-1.5, -1.5))],
)
def test_a_first_update_has_the_policy_gradient(name: str, corrected: tuple[float, float]) -> None:
    """The completion's weight of ½ times its advantage of 2, times the correction if there is one."""
    torch.testing.assert_close(gradient_of({"name": name, "sampler_correction": "none"}), row(-1.0, -1.0))
    torch.testing.assert_close(gradient_of({"name": name}), row(*corrected))


def test_a_penalty_on_the_advantage_adds_no_gradient_of_its_own() -> None:
    """The second token's advantage falls by 0.2 ln 2; its ratio to the sampler is 2."""
    found = gradient_of({"kl_coef": 0.2, "kl_penalty": "advantage"}, row(-1.0, -2.0))
    torch.testing.assert_close(found, row(-1.0, -0.5 * 2 * (2 - 0.2 * LOG2)))
    assert total({"kl_penalty": "advantage"}) == total({})


def test_what_the_terms_of_a_loss_need() -> None:
    for coefficient in (1e-4, 1.0):
        assert needs_base(LossConfig(kl_coef=coefficient))
        assert needs_every_group(LossConfig(kl_coef=coefficient))
        for entropy_coef in (coefficient, -coefficient):
            assert needs_every_group(LossConfig(entropy_coef=entropy_coef))
            assert not needs_base(LossConfig(entropy_coef=entropy_coef))
    assert not needs_base(LossConfig())
    assert not needs_every_group(LossConfig())


# The configuration.


def test_configured_bounds_match_the_functions_defaults() -> None:
    for name, function in LOSSES.items():
        parameters = inspect.signature(function).parameters
        assert CLIP_BOUNDS.get(name, {}) == {key: parameters[key].default for key in parameters if "clip" in key}
    assert LossConfig(name="ppo_clip", clip_high=0.28).bounds() == {"clip_low": 0.2, "clip_high": 0.28}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["loss.clip_low=0.1"], r"loss.clip_low has no meaning for importance_sampling; it belongs to ppo_clip, gspo"),
        (["loss.name=cispo", "loss.clip_low=0.1"], r"loss.clip_low has no meaning for cispo"),
        (["loss.name=grpo"], "loss.name is 'grpo': here that is loss.name=ppo_clip"),
        (["learner.offload_optimizer=true"], r"needs learner.zero_stage 1, 2 or 3, not 0"),
        (["sampling.top_p=0.95"], r"sampling.top_p is 0.95: .* biased, .* \(eval.top_p may truncate\)"),
        (["sampling.top_k=20"], r"sampling.top_k is 20: .*eval.top_k"),
        (["sampling.min_p=0.05"], r"sampling.min_p is 0.05: .*eval.min_p"),
        (["learner.updates_per_step=65"], r"learner.updates_per_step is 65, and a step has only .* \(64\)"),
    ],
)
def test_meaningless_settings_are_refused(override: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart.yaml", override)
