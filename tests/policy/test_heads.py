"""Chunks of the output embedding: as one kernel computes them on a GPU, and with a trainable embedding."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CohereConfig, Gemma3Config, Gemma3TextConfig, GraniteConfig

from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.policy import logprobs
from rl_engine.policy.full import compute_in
from rl_engine.policy.logits import LogitTransform, compiled, head_chunk, only, transform_of
from rl_engine.policy.logprobs import LogprobModel, _frozen_chunk, _TrainedHead, rows_at_once
from tests.helpers.families import tiny_model
from tests.helpers.precision import assert_same_sums

TRANSFORMS = (LogitTransform(), LogitTransform(divisor=1.7), LogitTransform(divisor=0.5, cap=3.0))


def parts(rows: int = 23, vocabulary: int = 40, hidden: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(vocabulary, hidden, generator=generator)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    return torch.randn(rows, hidden, generator=generator), weight, torch.randn(vocabulary, generator=generator), target


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_tempered_transform_divides_what_the_model_returns(transform: LogitTransform) -> None:
    raw = torch.linspace(-5, 5, 11).double().requires_grad_()
    tempered = transform.tempered(0.7)
    found = tempered.apply(raw)
    torch.testing.assert_close(found, transform.apply(raw) / 0.7)
    slope = tempered.cap_slope(found)
    (wanted,) = torch.autograd.grad(found.sum(), raw)
    torch.testing.assert_close((1.0 if slope is None else slope) / tempered.divisor * torch.ones(11).double(), wanted)


def test_a_wrappers_text_model_says_what_it_does_to_its_logits() -> None:
    text = Gemma3TextConfig(final_logit_softcapping=30.0)
    assert transform_of(text) == transform_of(Gemma3Config(text_config=text)) == LogitTransform(cap=30.0)


def test_families_multiply_or_divide_by_the_same_key() -> None:
    """Granite divides its logits by `logits_scaling`, Cohere multiplies by `logit_scale`, and HyperCLOVA X by the key
    of Granite."""
    assert transform_of(GraniteConfig(logits_scaling=8.0)).divisor == 8.0
    assert transform_of(CohereConfig(logit_scale=0.0625)).divisor == 16.0
    other: Any = GraniteConfig(logits_scaling=0.125)
    other.model_type = "hyperclovax"
    assert transform_of(other).divisor == 8.0


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_gpu_kernel_computes_the_same_as_the_cpu_steps(transform: LogitTransform) -> None:
    hidden, weight, bias, target = parts()
    raw = torch.nn.functional.linear(hidden, weight, bias)
    expected = _frozen_chunk(raw, target, weight, transform, 4)
    logprob, entropy, pull, entropy_pull = head_chunk(raw, target, transform.divisor, transform.cap)
    found = (logprob, entropy, pull @ weight / transform.divisor, entropy_pull @ weight / -transform.divisor)
    for one, other in zip(found, expected, strict=True):
        assert_same_sums(one, other, 4 * 40)


def test_in_16_bits_a_certain_token_still_has_a_gradient() -> None:
    """With 16-bit input it returns 16-bit gradients, and a nearly certain token still has one."""
    raw = torch.zeros(1, 8, dtype=torch.bfloat16)
    raw[0, 3] = 12.0
    logprob, _, pull, _ = head_chunk(raw, torch.tensor([3]), 1.0, None)
    assert pull.dtype == torch.bfloat16
    assert logprob.dtype == torch.float32
    assert float(pull[0, 3]) == pytest.approx(7 * 6.14e-6, rel=0.02)


def test_the_compiler_finds_one_graph_for_any_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    call = compiled.__wrapped__(3)
    hidden, weight, bias, target = parts()
    for rows in (23, 7, 11):
        raw = torch.nn.functional.linear(hidden[:rows], weight, bias)
        found, expected = call(raw, target[:rows], 1.7, None), only(3)(raw, target[:rows], 1.7, None)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len(graphs) == 1


def test_without_a_compiler_it_warns_once_and_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, _: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    hidden, weight, bias, target = parts()
    raw = torch.nn.functional.linear(hidden, weight, bias)
    call = compiled.__wrapped__(2)
    with pytest.warns(UserWarning, match=r"torch.compile does not work here.*"):
        found = call(raw, target, 1.0, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = call(raw, target, 1.0, None)
    for one, other, wanted in zip(found, again, only(2)(raw, target, 1.0, None), strict=True):
        assert torch.equal(one, wanted)
        assert torch.equal(other, wanted)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_trained_head_has_the_gradients_of_all_logits(
    transform: LogitTransform, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "rows_at_once", lambda *_: 7)
    hidden, weight, bias, target = parts()
    learned = [hidden.requires_grad_(), weight.requires_grad_()] + [bias.requires_grad_()] * with_bias
    all_NV = transform.apply(torch.nn.functional.linear(hidden, weight, bias if with_bias else None)).log_softmax(-1)
    expected = all_NV.gather(1, target[:, None]).squeeze(1), -(all_NV.exp() * all_NV).sum(-1)
    found = _TrainedHead.apply(hidden, weight, bias if with_bias else None, target, transform)  # type: ignore[no-untyped-call]
    up, pull = torch.randn(2, len(target), generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((found[0] * up + found[1] * pull).sum(), learned)
    wanted = torch.autograd.grad((expected[0] * up + expected[1] * pull).sum(), learned)
    for one, other in zip((*found, *gradients), (*expected, *wanted), strict=True):
        assert_same_sums(one, other, 4 * 40)


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "phi"])
def test_a_float32_head_is_cast_once_per_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untied, tied to the input embedding, and with a bias; equal to the full log-softmax up to 16-bit rounding."""
    monkeypatch.setattr(logprobs, "rows_at_once", lambda *_: 5)
    model = tiny_model(kind).to(torch.float32)
    completion = tuple(range(8, 30))
    sample = TrainingSample(
        prompt_ids=(5, 6, 7), completion_ids=completion, behaviour_logprobs=(0.0,) * len(completion), advantage=1.0
    )
    batch = collate([sample], pad_id=0, layout="padded")
    compute_in(model, torch.bfloat16)
    policy = LogprobModel(model, 1.0)
    assert policy.head_is_cast
    casts = []
    policy.head.parametrizations.weight.register_forward_hook(lambda *_: casts.append(1))
    logprob_N, entropy_N = policy(batch)
    (logprob_N.sum() + entropy_N.sum()).backward()
    assert len(casts) == 1 + (policy.head is model.get_input_embeddings())
    gradient = policy.head.parametrizations.weight.original.grad.clone()
    model.zero_grad()
    logits_NV = model(**batch.model_inputs(model.config)).logits.float().flatten(0, 1).index_select(0, batch.source_N)
    all_NV = logits_NV.log_softmax(-1)
    loss = all_NV.gather(1, batch.target_N[:, None]).sum() - (all_NV.exp() * all_NV).sum()
    loss.backward()
    other = policy.head.parametrizations.weight.original.grad
    assert float((gradient - other).norm() / other.norm()) < 0.02


def test_sums_over_many_chunks_are_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 rows of which each pulls by ½: in bfloat16 such a sum stops growing at 128."""
    monkeypatch.setattr(logprobs, "rows_at_once", lambda *_: 1)
    weight, bias = (torch.zeros(*shape, dtype=torch.bfloat16, requires_grad=True) for shape in ((2, 1), (2,)))
    hidden, target = torch.ones(600, 1, dtype=torch.bfloat16), torch.zeros(600, dtype=torch.int64)
    logprob, _ = _TrainedHead.apply(hidden, weight, bias, target, TRANSFORMS[0])  # type: ignore[no-untyped-call]
    of_weight, of_bias = torch.autograd.grad(logprob.sum(), (weight, bias))
    assert of_weight.flatten().tolist() == of_bias.tolist() == [300.0, -300.0]
    assert of_weight.dtype == of_bias.dtype == torch.bfloat16


def test_chunks_are_as_large_as_their_budget_allows() -> None:
    # On a CPU 28 MiB of float32 logits, and 16 rows at least.
    assert rows_at_once(151_936, "cpu") == 28 * 2**20 // (4 * 151_936) == 48
    assert rows_at_once(1_000_000, "cpu") == 16
    assert rows_at_once(151_936, "cuda") == 883
    assert rows_at_once(49_152, "cuda") == 2730
    assert rows_at_once(1_000_000, "cuda") == 512
