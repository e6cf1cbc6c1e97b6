"""Advantages, losses, log-probabilities and micro-batches against numbers worked out by hand, finite differences,
and the invariances they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl_engine.advantages import advantages_of, group_mean
from rl_engine.batching import TrainingSample, collate, pack, share_of_rank
from rl_engine.logprobs import CHUNK, token_logprobs
from rl_engine.losses import LOSSES, constant, importance_sampling, reinforce


def test_group_mean_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 1.5, 0.5, 1.5]])
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [-0.5, 0.5, -0.5, 0.5]])
    torch.testing.assert_close(group_mean(rewards), expected)


def test_groups_without_signal_have_exactly_no_advantage() -> None:
    advantages, signal = advantages_of([[0.1] * 3, [1.0, 0.0, 1.0]], "group_mean")
    assert signal == [False, True]
    assert advantages[0] == [0.0, 0.0, 0.0]
    assert sum(advantages[1]) == pytest.approx(0.0, abs=1e-15)


def test_importance_sampling_by_hand() -> None:
    logprob = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]])
    behaviour = torch.tensor([[-1.0, -1.5], [-1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss = importance_sampling(logprob, behaviour, torch.tensor([2.0, -1.0]), mask)
    expected = torch.tensor([[-2.0, -2.0 * math.exp(-0.5)], [math.exp(0.5), 0.0]])
    torch.testing.assert_close(loss, expected)


def test_reinforce_by_hand() -> None:
    mask = torch.tensor([[True, False]])
    loss = reinforce(torch.tensor([[-1.5, 3.0]]), torch.zeros(1, 2), torch.tensor([2.0]), mask)
    torch.testing.assert_close(loss, torch.tensor([[3.0, 0.0]]))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(3, 4, generator=generator, dtype=torch.float64)
    behaviour = -torch.rand(3, 4, generator=generator, dtype=torch.float64)
    advantage = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)

    def total(x: Tensor) -> Tensor:
        return LOSSES[name](x, behaviour, advantage, mask).sum()

    assert torch.autograd.gradcheck(total, logprob.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_every_loss_has_the_policy_gradient(name: str) -> None:
    logprob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss = LOSSES[name](logprob, logprob.detach(), torch.tensor([0.75]), torch.ones(1, 2, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    torch.testing.assert_close(gradient, torch.full((1, 2), -0.75))


def test_what_padding_holds_does_not_matter() -> None:
    mask = torch.tensor([[True, False]])
    for name in LOSSES:
        loss = LOSSES[name](torch.tensor([[-1.0, 90.0]]), torch.tensor([[-1.0, -90.0]]), torch.ones(1), mask)
        assert loss[0, 1] == 0.0


def test_the_constant_is_completions_times_length() -> None:
    assert constant(512, 72) == 512 * 72


# Log-probabilities in chunks.


def naive(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = (hidden @ weight.T / temperature).log_softmax(-1)
    return logprobs.gather(1, target[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_are_those_of_the_full_softmax(count: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 16, generator=generator, requires_grad=True)
    weight = torch.randn(40, 16, generator=generator)
    target = torch.randint(0, 40, (count,), generator=generator)
    upstream = torch.randn(count, generator=generator)
    logprob, entropy = token_logprobs(hidden, weight, target, temperature)
    (gradient,) = torch.autograd.grad((logprob * upstream).sum(), hidden)
    expected, expected_entropy = naive(hidden, weight, target, temperature)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    torch.testing.assert_close(logprob, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=1e-4)


def test_certain_tokens_have_no_entropy_and_no_nan() -> None:
    logprob, entropy = token_logprobs(torch.tensor([[1e4]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0]), 1.0)
    assert logprob.item() == 0.0
    assert entropy.item() == 0.0


# Micro-batches.


def test_micro_batches_stay_within_the_budget_and_lose_nothing(samples: list[TrainingSample]) -> None:
    for budget in (1, 20, 40, 60, 10_000):
        batches = pack(samples, budget)
        assert sorted(s.num_tokens for batch in batches for s in batch) == sorted(s.num_tokens for s in samples)
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(s.num_tokens for s in batch) <= budget
    assert len(pack(samples, 10_000)) == 1
    assert len(pack(samples, 1)) == len(samples)


def test_ranks_share_all_micro_batches_and_pass_equally_often(samples: list[TrainingSample]) -> None:
    batches = pack(samples, 40)
    for ranks in (1, 2, 3, len(batches) + 1):
        shares = [share_of_rank(batches, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        real = [s for share in shares for batch in share for s in batch if s.advantage != 0.0]
        assert sorted(s.advantage for s in real) == sorted(s.advantage for s in samples)


def test_a_collated_batch_points_at_the_right_places() -> None:
    short = TrainingSample(prompt_ids=(5, 6), completion_ids=(7,), behaviour_logprobs=(-1.0,), advantage=1.0)
    long = TrainingSample(
        prompt_ids=(8,), completion_ids=(9, 10, 11), behaviour_logprobs=(-2.0, -3.0, -4.0), advantage=-1.0
    )
    batch = collate([long, short], pad_id=0)
    assert batch.input_ids_BT.tolist() == [[8, 9, 10, 11], [5, 6, 7, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    # The token at position t is predicted from position t − 1.
    assert batch.source_N.tolist() == [0, 1, 2, 5]
    assert batch.target_N.tolist() == [9, 10, 11, 7]
    assert batch.spread(batch.target_N.float()).tolist() == [[9, 10, 11], [7, 0, 0]]
    assert batch.behaviour_logprob_BC.tolist() == [[-2, -3, -4], [-1, 0, 0]]


def split(samples: Sequence[TrainingSample], sizes: Sequence[int]) -> list[Sequence[TrainingSample]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(samples[start : start + size])
        start += size
    return parts


def test_loss_of_a_step_does_not_depend_on_the_split(samples: list[TrainingSample]) -> None:
    def total(parts: Sequence[Sequence[TrainingSample]]) -> float:
        value = 0.0
        for part in parts:
            batch = collate(part, pad_id=0)
            logprob = batch.behaviour_logprob_BC - 0.1
            loss = importance_sampling(logprob, batch.behaviour_logprob_BC, batch.advantage_B, batch.mask_BC)
            value += float(loss.double().sum()) / constant(len(samples), 20)
        return value

    whole = total([samples])
    for sizes in ([1] * 8, [3, 5], [7, 1]):
        assert total(split(samples, sizes)) == pytest.approx(whole, rel=1e-6)
    assert total([[replace(s, advantage=0.0) for s in samples]]) == 0.0
