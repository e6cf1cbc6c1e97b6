"""Rows with one adapter or several: the same numbers as vLLM's own arithmetic where that is right, for less work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from vllm import ir
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.models import EMBEDDED_DIR
from rollout.types import Problem, Prompt
from rollout.vllm.few_adapters import PROVIDER, FewAdaptersWrapper

ADAPTER = 7
"""Its number in vLLM; it is in slot 0."""
INPUTS = 32
# One rounding of a sum of terms near one; bfloat16 keeps eight bits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def wrappers(rows: list[int], prefill: bool = True) -> tuple[FewAdaptersWrapper, PunicaWrapperCPU]:
    """Our wrapper and vLLM's, told that adapter `rows[i]` serves row i, 0 for none."""
    both = FewAdaptersWrapper(64, 64, "cpu"), PunicaWrapperCPU(64, 64, "cpu")
    for wrapper in both:
        wrapper.update_metadata(LoRAMapping(tuple(rows), tuple(rows), is_prefill=prefill), [ADAPTER], 2, 100)
    return both


def adapter(rank: int, slices: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Matrices A and B of each slice as vLLM stacks them, for one slot."""
    a = tuple(torch.randn(1, 1, rank, INPUTS).to(dtype) / INPUTS**0.5 for _ in slices)
    return a, tuple(torch.randn(1, 1, width, rank).to(dtype) for width in slices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("slices", [(24,), (16, 8, 8), (40, 40)], ids=["one", "qkv", "gate_up"])
@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "decode"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_layer_gets_what_vllm_adds(
    dtype: torch.dtype, rank: int, slices: tuple[int, ...], prefill: bool, scale: float
) -> None:
    torch.manual_seed(0)
    ours, theirs = wrappers([ADAPTER] * 13, prefill)
    a, b = adapter(rank, slices, dtype)
    x, before = torch.randn(13, INPUTS).to(dtype), torch.randn(13, sum(slices)).to(dtype)
    expected, y = before.clone(), before.clone()
    theirs.add_lora_linear(expected, x, a, b, scale, slices)
    ours.add_lora_linear(y, x, a, b, scale, slices)
    assert not torch.equal(y, before)
    torch.testing.assert_close(y, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    # The result is no further than vLLM's from the exact value.
    exact = before.double() + torch.cat(
        [scale * x.double() @ p[0, 0].double().T @ q[0, 0].double().T for p, q in zip(a, b, strict=True)], 1
    )
    assert (y - exact).abs().mean() <= 1.1 * (expected - exact).abs().mean()
    ours.add_lora_linear(y, x, a, b, scale, slices, add_inputs=False)
    torch.testing.assert_close(y.double(), exact - before.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("padding", [-3, 0, 3])
@pytest.mark.parametrize("rank", [1, 8])
def test_logits_get_what_vllm_adds_whatever_the_padding(rank: int, padding: int) -> None:
    torch.manual_seed(0)
    ours, theirs = wrappers([ADAPTER] * 5)
    (a,), (b,) = adapter(rank, (20,), torch.float32)
    x, before = torch.randn(5, INPUTS), torch.randn(5, 20 + padding)
    expected, y = before.clone(), before.clone()
    theirs.add_lora_logits(expected, x, a, b, 1.0)
    ours.add_lora_logits(y, x, a, b, 1.0)
    assert not torch.equal(y, before)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("prefill", [True, False], ids=["prefill", "decode"])
@pytest.mark.parametrize("rank", [1, 8])
def test_rows_without_an_adapter_are_left_alone(rank: int, prefill: bool) -> None:
    """vLLM's CPU wrapper reads its index -1 as the last slot, and applies that adapter to these rows."""
    torch.manual_seed(0)
    rows = [ADAPTER, 0, 0, ADAPTER, 0]
    served = torch.tensor(rows) == ADAPTER
    (ours, theirs), (nobody, _) = wrappers(rows, prefill), wrappers([0] * 5, prefill)
    a, b = adapter(rank, (16, 8), torch.float32)
    x, before = torch.randn(5, INPUTS), torch.randn(5, 24)
    expected, y = before.clone(), before.clone()
    theirs.add_lora_linear(expected, x, a, b, 1.0, (16, 8))
    ours.add_lora_linear(y, x, a, b, 1.0, (16, 8))
    torch.testing.assert_close(y, torch.where(served.unsqueeze(1), expected, before))
    nobody.add_lora_linear(y := before.clone(), x, a, b, 1.0, (16, 8))
    assert torch.equal(y, before)
    head = wrappers(rows, prefill)[0]  # a new wrapper: another layer's matrices would be elsewhere in memory
    head.add_lora_logits(y := before[:, :16].clone(), x, a[0], b[0], 1.0)
    torch.testing.assert_close(y, torch.where(served.unsqueeze(1), expected, before)[:, :16])


RANKS = {1: 1, 2: 8, 3: 64}
"""The adapter's number in vLLM → its rank."""
MIXED = {
    "in runs": [1] * 4 + [2] * 3 + [3] * 5 + [0] * 2,
    "by turns": [1, 0, 3, 2, 2, 3, 1, 0, 3, 1, 2, 1, 3, 0],
    "one of them": [2] * 14,
}


def several(slices: tuple[int, ...], dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Matrices of three adapters of different rank, in the slots given by `IN_SLOTS`, padded with zeros."""
    largest = max(RANKS.values())
    a = tuple(torch.zeros(3, 1, largest, INPUTS, dtype=dtype) for _ in slices)
    b = tuple(torch.zeros(3, 1, width, largest, dtype=dtype) for width in slices)
    for slot, number in enumerate(IN_SLOTS):
        for part_a, part_b in zip(a, b, strict=True):
            rank = RANKS[number]
            part_a[slot, 0, :rank] = torch.randn(rank, INPUTS) / INPUTS**0.5
            part_b[slot, 0, :, :rank] = torch.randn(part_b.shape[2], rank) / rank
    return a, b


IN_SLOTS = (3, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", MIXED.values(), ids=MIXED)
def test_each_row_gets_the_share_of_its_own_adapter(rows: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wrapper, slices = FewAdaptersWrapper(64, 64, "cpu"), (16, 8, 8)
    wrapper.update_metadata(LoRAMapping(tuple(rows), tuple(rows), is_prefill=False), [*IN_SLOTS], 4, 100)
    a, b = several(slices, dtype)
    x, before = torch.randn(len(rows), INPUTS).to(dtype), torch.randn(len(rows), sum(slices)).to(dtype)
    wrapper.add_lora_linear(y := before.clone(), x, a, b, 0.5, slices)
    (head_a,), (head_b,) = several((20,), dtype)
    wrapper.add_lora_logits(logits := before[:, :20].clone(), x, head_a, head_b, 1.0)
    for i, number in enumerate(rows):
        if number == 0:
            assert torch.equal(y[i], before[i])
            assert torch.equal(logits[i], before[i, :20])
            continue
        slot, exact = IN_SLOTS.index(number), before[i].double()
        shares = [p[slot, 0].double().T @ q[slot, 0].double().T for p, q in zip(a, b, strict=True)]
        torch.testing.assert_close(
            y[i].double(),
            exact + 0.5 * x[i].double() @ torch.cat(shares, 1),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype],
        )
        of_head = x[i].double() @ head_a[slot, 0].double().T @ head_b[slot, 0].double().T
        torch.testing.assert_close(
            logits[i].double(), exact[:20] + of_head, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_another_adapter_in_a_slot_is_another() -> None:
    """The matrices of the previous adapter are kept as long as it is in the slot, and no longer."""
    torch.manual_seed(0)
    wrapper = FewAdaptersWrapper(64, 64, "cpu")
    a, b = torch.zeros(2, 1, 8, INPUTS), torch.zeros(2, 1, 16, 8)
    a[:, 0, :2], b[:, 0, :, :2] = torch.randn(2, INPUTS), torch.randn(16, 2)
    x = torch.randn(2, INPUTS)

    def share(*ids: int) -> Tensor:
        wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=False), [*ids], 3, 100)
        y = torch.zeros(2, 16)
        wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (16,))
        return y

    before = share(1, 2)
    b[1] *= 2
    assert torch.equal(share(1, 2), before)
    after = share(1, 7)
    torch.testing.assert_close(after, before * torch.tensor([[1.0], [2.0]]))


def write_adapter(directory: Path) -> None:
    """A random rank 2 adapter of the embedded model, on a part of each fused layer and on the layers that are not
    fused."""
    shape = AutoConfig.from_pretrained(EMBEDDED_DIR)
    hidden, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    layers = {"self_attn.q_proj": (hidden, heads), "self_attn.o_proj": (heads, hidden)}
    layers |= {"mlp.up_proj": (hidden, shape.intermediate_size), "mlp.down_proj": (shape.intermediate_size, hidden)}
    draw, tensors = torch.Generator().manual_seed(0), {}
    for number in range(shape.num_hidden_layers):
        for name, (inputs, outputs) in layers.items():
            stem = f"base_model.model.model.layers.{number}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(2, inputs, generator=draw) / inputs**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, 2, generator=draw) / 10
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = [name.rpartition(".")[2] for name in layers]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.engine
def test_the_engine_samples_as_with_vllms_own_arithmetic(
    vllm_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = AdapterStore(tmp_path, name="products").publish(0, write_adapter, {"rank": 2})
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    prompts = [
        Prompt(problem=Problem(id=text, text=text, answer=""), text=text, token_ids=tuple(tokenizer(text).input_ids))
        for text in ("3+4=", "17-5+2-11=", "1+2+3+4+5=")
    ]
    sampling = SamplingConfig(n=4, temperature=1.0, max_tokens=24)

    def sample(adapter: Any) -> list[Any]:
        groups = vllm_engine.generate(prompts, sampling, adapter, ["a", "b", "c"])
        return [completion for group in groups for completion in group.completions]

    vllm_engine.load_adapter(ref)
    used = []
    products = FewAdaptersWrapper.add_lora_linear

    def noted(self: Any, *args: Any) -> None:
        used.append(args)
        products(self, *args)

    monkeypatch.setattr(FewAdaptersWrapper, "add_lora_linear", noted)
    ours = sample(ref)
    assert used, "the engine was not built with our wrapper"
    monkeypatch.setattr(FewAdaptersWrapper, "add_lora_linear", PunicaWrapperCPU.add_lora_linear)
    theirs, base = sample(ref), sample(None)
    vllm_engine.unload_adapter(ref)
    assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
    gaps = [abs(p - q) for a, b in zip(ours, theirs, strict=True) for p, q in zip(a.logprobs, b.logprobs, strict=True)]
    assert max(gaps) < 1e-4
    assert [c.logprobs for c in base] != [c.logprobs for c in ours]


@pytest.mark.engine
@pytest.mark.parametrize(("max_tokens", "reason"), [(6, "length"), (24, "stop")])
def test_the_text_is_the_one_vllm_makes_on_the_way(vllm_engine: Any, max_tokens: int, reason: str) -> None:
    """A stop string that never occurs makes vLLM detokenize the text itself."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    prompt = Prompt(
        problem=Problem(id="x", text="x", answer=""), text="x", token_ids=tuple(tokenizer("3+4=").input_ids)
    )
    sampling = SamplingConfig(n=16, temperature=1.0, max_tokens=max_tokens)
    (ours,) = vllm_engine.generate([prompt], sampling, None, ["x"])
    (theirs,) = vllm_engine.generate([prompt], sampling.model_copy(update={"stop": ("never",)}), None, ["x"])
    assert ours == theirs
    assert reason in {completion.finish_reason for completion in ours.completions}


def test_the_kernel_norms_as_vllm_does() -> None:
    """Rows of a slice, the shape in which q and k are normalized, and the norm of a sum, written over its terms."""
    torch.manual_seed(0)
    x, residual, weight = torch.randn(6, 3, 64)[:, 1:], torch.randn(6, 64), torch.randn(64)
    kernel, steps = (ir.ops.rms_norm.impls[name].impl_fn for name in (PROVIDER, "native"))
    torch.testing.assert_close(kernel(x, weight, 1e-6), steps(x, weight, 1e-6))
    kernel, steps = (ir.ops.fused_add_rms_norm.impls[name].impl_fn for name in (PROVIDER, "native"))
    y = torch.randn(6, 64)
    expected = steps(y.clone(), residual.clone(), weight, 1e-6)
    torch.testing.assert_close(kernel(y, residual, weight, 1e-6), expected)
