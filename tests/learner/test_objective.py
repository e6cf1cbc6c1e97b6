"""Log-probabilities and micro-batches against hand-computed numbers and the full softmax, and their invariances."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rl_engine.config import LossConfig
from rl_engine.learner.batching import LAYOUTS, TrainingSample, collate, pack, share_of_rank
from rl_engine.learner.objective import objective
from rl_engine.policy import logprobs
from rl_engine.policy.attention import PACKED_SHARED, PackedRows
from rl_engine.policy.logprobs import token_logprobs, token_logprobs_of_trained_head
from tests.helpers.precision import assert_same_sums

# Log-probabilities in chunks.

CHUNK = 8


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few rows: those of so small a vocabulary would have a hundred thousand."""
    monkeypatch.setattr(logprobs, "rows_at_once", lambda *_: CHUNK)


def naive(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    all_NV = (hidden @ weight.T / temperature).log_softmax(-1)
    return all_NV.gather(1, target[:, None]).squeeze(1), -(all_NV.exp() * all_NV).sum(-1)


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_match_the_full_softmax(count: int, temperature: float, chunked: None) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 16, generator=generator, requires_grad=True)
    weight = torch.randn(40, 16, generator=generator)
    target = torch.randint(0, 40, (count,), generator=generator)
    upstream, pull = torch.randn(2, count, generator=generator)
    expected, expected_entropy = naive(hidden, weight, target, temperature)
    (without_entropy,) = torch.autograd.grad((expected * upstream).sum(), hidden, retain_graph=True)
    (with_entropy,) = torch.autograd.grad((expected * upstream + expected_entropy * pull).sum(), hidden)
    for learn_entropy in (False, True):
        logprob, entropy = token_logprobs(hidden, weight, target, temperature, learn_entropy=learn_entropy)
        assert entropy.requires_grad == learn_entropy
        (gradient,) = torch.autograd.grad((logprob * upstream + entropy * pull).sum(), hidden)
        torch.testing.assert_close(logprob, expected)
        torch.testing.assert_close(entropy, expected_entropy)
        assert_same_sums(gradient, with_entropy if learn_entropy else without_entropy, 4 * (16 + 40))


@pytest.mark.parametrize("certain", [0.9, 0.99, 0.997, 0.9999])
def test_the_gradient_of_a_certain_token_survives_bfloat16(certain: float) -> None:
    """W[y] − Σ p·W is a difference of nearly equal vectors: 28 % off at 0.99 if each is rounded first."""
    generator = torch.Generator().manual_seed(0)
    count, width, vocabulary = 32, 64, 512
    weight = torch.randn(vocabulary, width, generator=generator).bfloat16()
    target = torch.randint(0, vocabulary, (count,), generator=generator)
    # A hidden state along the target's row, scaled to give the target that probability.
    hidden = weight[target].double()
    low, high = torch.zeros(count, 1).double(), torch.ones(count, 1).double()
    for _ in range(60):
        middle = (low + high) / 2
        likely = (middle * hidden @ weight.double().T).softmax(-1).gather(1, target[:, None])
        low, high = torch.where(likely < certain, middle, low), torch.where(likely < certain, high, middle)
    rows = (low * hidden).bfloat16().requires_grad_()
    logprob, _ = token_logprobs(rows, weight, target, 1.0)
    (found,) = torch.autograd.grad(logprob.sum(), rows)
    # The exact gradient for the logits as computed in bfloat16.
    logits = (rows.detach() @ weight.T).double().requires_grad_()
    (pull,) = torch.autograd.grad(logits.log_softmax(-1).gather(1, target[:, None]).sum(), logits)
    exact = pull @ weight.double()
    error = (found.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.01


def test_a_trained_head_gets_the_gradient_of_the_full_softmax(chunked: None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(CHUNK + 5, 16, generator=generator, requires_grad=True)
    head = nn.Linear(16, 40, bias=False)
    nn.init.normal_(head.weight, generator=generator)
    target = torch.randint(0, 40, (CHUNK + 5,), generator=generator)
    upstream, pull = torch.randn(2, CHUNK + 5, generator=generator)
    logprob, entropy = token_logprobs_of_trained_head(hidden, head, target, 0.7)
    expected, expected_entropy = naive(hidden, head.weight, target, 0.7)
    torch.testing.assert_close(logprob, expected)
    found = torch.autograd.grad((logprob * upstream + entropy * pull).sum(), (hidden, head.weight))
    wanted = torch.autograd.grad((expected * upstream + expected_entropy * pull).sum(), (hidden, head.weight))
    for gradient, other in zip(found, wanted, strict=True):
        assert_same_sums(gradient, other, CHUNK + 5 + 40)


def test_certain_tokens_have_no_entropy_and_no_nan() -> None:
    logprob, entropy = token_logprobs(torch.tensor([[1e4]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0]), 1.0)
    assert logprob.item() == 0.0
    assert entropy.item() == 0.0


# Micro-batches.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_stay_within_the_budget_and_lose_nothing(layout: str, samples: list[TrainingSample]) -> None:
    """The longest sample comes first, and each micro-batch takes what fits before another is begun."""
    rows = [replace(sample, prompt_ids=samples[i % 3].prompt_ids) for i, sample in enumerate(samples)]

    def positions(batch: Sequence[TrainingSample]) -> int:
        return collate(batch, pad_id=0, layout=layout).input_ids_BT.numel()

    for budget in (1, 20, 40, 60, 10_000):
        batches = pack(rows, budget, layout)
        assert sorted(s.num_tokens for batch in batches for s in batch) == sorted(s.num_tokens for s in rows)
        assert batches[0][0].num_tokens == max(s.num_tokens for s in rows)
        assert all(len(batch) == 1 or positions(batch) <= budget for batch in batches)
        for batch, after in itertools.pairwise(batches):
            assert positions([*batch, after[0]]) > budget
    assert len(pack(rows, 1, layout)) == len(rows)
    whole = positions(rows)
    assert len(pack(rows, whole, layout)) == 1
    assert len(pack(rows, whole - 1, layout)) == 2


def test_ranks_share_all_micro_batches_in_equally_many_passes(samples: list[TrainingSample]) -> None:
    batches = pack(samples, 40, "padded")
    for ranks in (1, 2, 3, len(batches) + 1):
        shares = [share_of_rank(batches, rank, ranks) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1
        # What fills up a rank's passes weighs nothing, and the rest as before.
        assert sum(s.weight for share in shares for batch in share for s in batch) == pytest.approx(1 / 20)
        real = [s for share in shares for batch in share for s in batch if s.advantage != 0.0]
        assert sorted(s.advantage for s in real) == sorted(s.advantage for s in samples)


def test_a_collated_batch_points_at_the_right_positions() -> None:
    short = TrainingSample(prompt_ids=(5, 6), completion_ids=(7,), behaviour_logprobs=(-1.0,), advantage=1.0)
    long = TrainingSample(
        prompt_ids=(8,), completion_ids=(9, 10, 11), behaviour_logprobs=(-2.0, -3.0, -4.0), advantage=-1.0
    )
    batch = collate([long, short], pad_id=0, layout="padded")
    assert batch.input_ids_BT.tolist() == [[8, 9, 10, 11], [5, 6, 7, 0]]
    assert batch.attention_mask_BT is not None
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    # The token at position t is predicted from position t − 1.
    assert batch.source_N.tolist() == [0, 1, 2, 5]
    assert batch.target_N.tolist() == [9, 10, 11, 7]
    assert batch.spread(batch.target_N.float()).tolist() == [[9, 10, 11], [7, 0, 0]]
    assert batch.behaviour_logprob_BC.tolist() == [[-2, -3, -4], [-1, 0, 0]]


def test_a_packed_batch_holds_a_shared_prompt_once() -> None:
    one, two = (5, 6), (8, 8, 8)
    rows = [(one, (7,)), (two, (9, 10)), (one, (11, 12, 13))]
    made = [
        TrainingSample(prompt_ids=prompt, completion_ids=own, behaviour_logprobs=(-1.0,) * len(own), advantage=1.0)
        for prompt, own in rows
    ]
    batch = collate(made, pad_id=0, layout=PACKED_SHARED)
    # Nothing is predicted from a completion's last token.
    assert batch.input_ids_BT.tolist() == [[5, 6, 8, 8, 8, 9, 11, 12]]
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 0, 1, 2, 3, 2, 3]]
    assert batch.source_N.tolist() == [1, 4, 5, 1, 6, 7]
    assert batch.target_N.tolist() == [7, 9, 10, 11, 12, 13]
    assert isinstance(batch.layout, PackedRows)
    assert batch.layout.keys_K is not None
    assert batch.layout.bounds.tolist() == [0, 2, 5, 6, 8]
    assert batch.layout.key_bounds.tolist() == [0, 2, 5, 9, 13]
    assert batch.layout.keys_K.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 0, 1, 6, 7]
    assert (batch.layout.longest, batch.layout.most_keys) == (3, 4)


def test_micro_batches_of_shared_prompts_keep_groups_together(samples: list[TrainingSample]) -> None:
    rows = [replace(sample, prompt_ids=samples[i % 3].prompt_ids) for i, sample in enumerate(samples)]
    for budget in (1, 30, 60, 10_000):
        batches = pack(rows, budget, PACKED_SHARED)
        assert sorted(map(id, itertools.chain(*batches))) == sorted(map(id, rows))
        for batch in batches:
            assert len(batch) == 1 or collate(batch, 0, PACKED_SHARED).input_ids_BT.numel() <= budget
        order = [key for key, _ in itertools.groupby(sample.prompt_ids for batch in batches for sample in batch)]
        assert len(order) == len(set(order)) == 3


def test_a_packed_batch_is_one_row_without_padding() -> None:
    first = TrainingSample(prompt_ids=(5, 6), completion_ids=(7,), behaviour_logprobs=(-1.0,), advantage=1.0)
    second = TrainingSample(prompt_ids=(8,), completion_ids=(9, 10), behaviour_logprobs=(-2.0, -3.0), advantage=-1.0)
    batch = collate([first, second], pad_id=0, layout="packed")
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.attention_mask_BT is None
    assert isinstance(batch.layout, PackedRows)
    assert batch.layout.bounds.tolist() == [0, 3, 6]
    assert batch.source_N.tolist() == [1, 3, 4]
    assert batch.target_N.tolist() == [7, 9, 10]
    assert batch.behaviour_logprob_BC.tolist() == [[-1, 0], [-2, -3]]


def split(samples: Sequence[TrainingSample], sizes: Sequence[int]) -> list[Sequence[TrainingSample]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(samples[start : start + size])
        start += size
    return parts


@pytest.mark.parametrize("name", ["importance_sampling", "ppo_clip", "gspo"])
def test_loss_of_a_step_does_not_depend_on_the_split(name: str, samples: list[TrainingSample]) -> None:
    config = LossConfig(name=name, kl_coef=0.1, entropy_coef=0.2, sampler_correction="sequence_mask")

    def total(parts: Sequence[Sequence[TrainingSample]]) -> float:
        value = 0.0
        for part in parts:
            batch = collate(part, pad_id=0, layout="padded")
            logprob = (batch.behaviour_logprob_BC - 0.1) * batch.mask_BC
            value += float(objective(config, batch, logprob, -logprob, logprob + 0.3).loss.double())
        return value

    whole = total([samples])
    assert abs(whole) > 1e-3
    for sizes in ([1] * 8, [3, 5], [7, 1]):
        assert total(split(samples, sizes)) == pytest.approx(whole, rel=1e-6)
    assert total([[replace(s, weight=0.0) for s in samples]]) == 0.0
