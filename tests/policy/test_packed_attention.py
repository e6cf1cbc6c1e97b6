"""Samples packed end to end in one row: attention against torch's own, whole families against padded rows, and the call
of the kernel that computes it on CUDA, which is not available here."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.policy import micro_batch
from rl_engine.policy.attention import (
    MODEL_TYPES,
    PACKABLE,
    PACKED_SHARED,
    VARLEN,
    PackedRows,
    by_kernel,
    by_products,
    has_plain_attention,
    packed_attention,
)
from rl_engine.policy.base_model import choose_attention, choose_layout
from rl_engine.policy.logprobs import LogprobModel
from tests.conftest import ConfigMaker
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.precision import assert_same_sums

SAMPLES = [
    TrainingSample(
        prompt_ids=prompt,
        completion_ids=tuple(range(first, last)),
        behaviour_logprobs=(0.0,) * (last - first),
        advantage=1.0,
    )
    for prompt, first, last in (((5, 6, 7), 8, 30), ((5, 6, 7), 20, 32), ((9, 3, 4, 4), 40, 57), ((9,), 3, 4))
]


def row(kv_heads: int, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(kv_heads)
    total = sum(lengths)
    q, k, v = (
        torch.randn(total, heads, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    return q, k, v


def per_sample(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """torch's attention on each sample alone."""
    parts = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (q, k, v)), strict=True)
    outputs = [
        scaled_dot_product_attention(q_one, k_one, v_one, is_causal=True, scale=scale, enable_gqa=True)
        for q_one, k_one, v_one in parts
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


# Two prompts of 4 and 2 tokens, with two and three completions.
PIECES, CONTINUED = (4, 3, 5, 2, 1, 6, 2), (None, 0, 0, None, 3, 3, 3)


def unshared(x_T: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A row of those pieces → every sample with its own copy of the prompt, and the lengths of the samples. A prompt by
    itself is a sample too."""
    pieces = x_T.split(PIECES)
    samples = [
        piece if before is None else torch.cat([pieces[before], piece])
        for piece, before in zip(pieces, CONTINUED, strict=True)
    ]
    return torch.cat(samples), tuple(map(len, samples))


def own_part(output_T: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The part of those samples' output that belongs to the row of pieces."""
    return torch.cat([one[-count:] for one, count in zip(output_T.split(lengths), PIECES, strict=True)])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_completions_attend_to_a_shared_prompt_as_to_their_own(kv_heads: int) -> None:
    """Both attention and gradients agree: those of a prompt's keys are sums over all its completions."""
    parts = row(kv_heads, PIECES)
    (q, lengths), (k, _), (v, _) = map(unshared, parts)
    expected = own_part(per_sample(q, k, v, lengths, 0.3), lengths)
    query, key, value = (x_THD.transpose(0, 1)[None] for x_THD in parts)
    layout = PackedRows.continuing(PIECES, CONTINUED)
    found = packed_attention(query, key, value, layout, 0.3)
    assert_same_sums(found, expected, 8 + 10)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    pairs = zip(*(torch.autograd.grad((one * upstream).sum(), parts) for one in (found, expected)), strict=True)
    for gradient, other in pairs:
        assert_same_sums(gradient, other, 3 * (8 + 10))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_and_gradients_match_separate_samples(kv_heads: int) -> None:
    lengths = (5, 1, 7)
    parts = row(kv_heads, lengths)
    found, expected = by_products(*parts, PackedRows.of(lengths), 0.3), per_sample(*parts, lengths, 0.3)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    # Scores are always computed in float32: 8 products, a softmax over 7.
    assert_same_sums(found, expected, 8 + 7)
    gradients = torch.autograd.grad((found * upstream).sum(), parts)
    for gradient, other in zip(gradients, torch.autograd.grad((expected * upstream).sum(), parts), strict=True):
        assert_same_sums(gradient, other, 2 * (8 + 7))


def test_this_torchs_kernel_accepts_the_call() -> None:
    """Uses torch's meta device, on which operators check their arguments and compute nothing."""
    rows = PackedRows.of((5, 1, 7)).to(torch.device("meta"))
    q, k, v = (torch.empty(13, h, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for h in (4, 2, 2))
    found = by_kernel(q, k, v, rows, 0.3)
    assert found.shape == q.shape
    assert [x.shape for x in torch.autograd.grad(found.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]
    shared = PackedRows.continuing((5, 1, 7), (None, 0, 0)).to(torch.device("meta"))
    assert shared.keys_K is not None
    k, v = (x.index_select(0, shared.keys_K) for x in (k, v))
    assert by_kernel(q, k, v, shared, 0.3).shape == q.shape


def of_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """The signature in torch 2.11: every head needs its own keys."""
    assert query.shape[1:] == key.shape[1:]
    return of_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def of_2_13(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The signature in torch 2.13."""
    assert enable_gqa or query.shape[1:] == key.shape[1:]
    assert cu_seq_k is not None
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert window_size == (-1, 0)
    assert scale is not None
    lengths, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max(lengths), max(keys)) == (max_q, max_k)
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(keys), value.split(keys), strict=True):
        # Flash attention's causal mask aligns the last query with the last key.
        sees = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        q_1HtD, k_1HtD, v_1HtD = (x.transpose(0, 1)[None] for x in (q, k, v))
        output = scaled_dot_product_attention(q_1HtD, k_1HtD, v_1HtD, attn_mask=sees, scale=scale, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("signature", [of_2_11, of_2_13])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_torchs_kernel_gets_the_same_arguments(
    signature: Any, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of older and newer torch get the same arguments as the plain products."""
    stand_in: Any = ModuleType("torch.nn.attention.varlen")
    stand_in.varlen_attn = signature
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    for rows in (PackedRows.of((5, 1, 7)), PackedRows.continuing((5, 1, 7), (None, 0, 0))):
        q, k, v = row(kv_heads, (5, 1, 7))
        keys, values = (x if rows.keys_K is None else x.index_select(0, rows.keys_K) for x in (k, v))
        found, expected = (compute(q, keys, values, rows, 0.3) for compute in (by_kernel, by_products))
        assert_same_sums(found, expected, 8 + 12)
        for gradient, other in zip(
            *(torch.autograd.grad(one.square().sum(), (q, k, v), retain_graph=True) for one in (found, expected)),
            strict=True,
        ):
            assert_same_sums(gradient, other, 2 * (8 + 12))


WAYS = (("padded", "sdpa"), ("packed", VARLEN), ("shared_prompt", "shared_prompt"), (PACKED_SHARED, VARLEN))


def test_every_family_learns_the_same_in_every_layout() -> None:
    """Log-probabilities and the gradients of all weights agree between layouts."""
    apart = {}
    for kind in sorted(MODEL_TYPES):
        policy = LogprobModel(tiny_model(kind), 1.0)
        learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        results = []
        for layout, attention in WAYS:
            policy.causal_lm.config._attn_implementation = attention
            logprob_N, _ = policy(collate(SAMPLES, pad_id=0, layout=layout))
            # Some of a mixture's experts may get no tokens.
            gradients = torch.autograd.grad(logprob_N.sum(), learned, allow_unused=True, materialize_grads=True)
            results.append((logprob_N.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
        for (name, _), (logprob_N, gradient) in zip(WAYS[1:], results[1:], strict=True):
            apart[kind, name, "logprobs"] = float((logprob_N - results[0][0]).abs().max())
            apart[kind, name, "gradient"] = float((gradient - results[0][1]).norm() / results[0][1].norm())
    assert {case: gap for case, gap in apart.items() if not gap < 1e-4} == {}


def test_right_padding_needs_no_mask_in_causal_families(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = collate(SAMPLES, pad_id=0, layout="padded")
    apart = {}
    for kind in sorted(PACKABLE):
        model = tiny_model(kind)
        assert batch.model_inputs(model.config)["attention_mask"] is None
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            policy = LogprobModel(model, 1.0).eval()
            with torch.no_grad(), monkeypatch.context() as masked:
                without, _ = policy(batch)
                masked.setattr(micro_batch, "sees_padding", lambda _: True)
                apart[kind, attention] = float((policy(batch)[0] - without).abs().max())
    assert {case: gap for case, gap in apart.items() if not gap < 1e-4} == {}
    assert batch.model_inputs(tiny_config("falcon_h1"))["attention_mask"] is not None


def test_auto_packs_on_cuda_if_the_kernel_fits_the_model(make_config: ConfigMaker) -> None:
    def chosen(kind: str, *overrides: str, sizes: Any = None) -> tuple[str, str]:
        config, model_config = make_config("model.dtype=bfloat16", *overrides), tiny_config(kind)
        for name, value in (sizes or {}).items():
            setattr(model_config, name, value)
        layout = choose_layout(config, model_config, "cuda")
        return layout, choose_attention(config, layout, model_config, "cuda")

    assert chosen("qwen3") == chosen("llama") == chosen("mixtral") == ("packed", VARLEN)
    # The kernel computes in 16 bits, with heads of up to 256 in steps of 8, without windows or caps.
    assert chosen("qwen3", "model.dtype=float32") == ("padded", "sdpa")
    assert chosen("qwen3", sizes={"head_dim": 512}) == chosen("qwen3", sizes={"head_dim": 36}) == ("padded", "sdpa")
    assert chosen("deepseek_v3") == chosen("nemotron") == ("padded", "sdpa")
    assert chosen("gemma2") == ("padded", "eager")
    # Explicit settings are respected.
    assert chosen("qwen3", "learner.layout=padded") == ("padded", "sdpa")
    assert chosen("qwen3", "learner.attention=eager") == ("padded", "eager")
    assert chosen("qwen3", "learner.layout=packed", "learner.attention=flash_attention_2")[1] == "flash_attention_2"
    # auto uses shared prompts only on a CPU, whatever the length; if they are requested, rows have no padding.
    assert chosen("qwen3", "sampling.max_tokens=8")[0] == chosen("qwen3", "sampling.max_tokens=9000")[0] == "packed"
    assert chosen("qwen3", "learner.layout=shared_prompt") == (PACKED_SHARED, VARLEN)
    for kind, words in (("qwen3", "on CUDA needs model.dtype bfloat16"), ("gemma2", "does not support the attention")):
        with pytest.raises(ConfigError, match=words):
            chosen(kind, "learner.layout=shared_prompt", "method=full", "model.dtype=float32")


def test_packed_rows_on_a_cpu_use_the_same_attention(make_config: ConfigMaker) -> None:
    config = make_config("learner.layout=packed")
    assert choose_attention(config, "packed", tiny_config("qwen3"), "cpu") == VARLEN
    assert choose_attention(config, "packed", tiny_config("nemotron"), "cpu") == "sdpa"


def test_families_with_plain_attention_are_packable() -> None:
    assert MODEL_TYPES <= PACKABLE
    slides = {kind for kind in MODEL_TYPES if not has_plain_attention(tiny_config(kind))}
    assert slides == {"mistral"}  # its default configuration has a sliding window
