"""Decoder layers as torch compiles them for a GPU: the same numbers, and one graph for micro-batches of every size."""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.learner import Learner
from rl_engine.policy import attention, compiled_layers
from rl_engine.policy.attention import PACKED_SHARED, VARLEN
from rl_engine.policy.base_model import fuse_norms
from rl_engine.policy.compiled_layers import compile_layers, is_worth_compiling, shares_of_error
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora import linear as lora_linear
from tests.conftest import ConfigMaker
from tests.helpers.batches import LOOSE
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.precision import assert_same_sums

# torch's compiler reads `.grad` of a layer's inputs, which are not leaves; torch warns about that.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")]


@torch.library.custom_op("rl_engine_tests::varlen", mutates_args=())
def kernel(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor, longest: int, most_keys: int, scale: float
) -> Tensor:
    """[T, H, D]: stands in for the GPU's kernel; both are opaque to torch's compiler."""
    assert [longest, most_keys] == [int(one.diff().max()) for one in (bounds, key_bounds)]
    pieces = zip(_pieces(bounds, q), _pieces(key_bounds, k), _pieces(key_bounds, v), strict=True)
    parts = [_weights(q_HtD, k_HtD, scale) @ v_HtD for q_HtD, k_HtD, v_HtD in pieces]
    return torch.cat(parts, dim=1).transpose(0, 1).contiguous()


@torch.library.custom_op("rl_engine_tests::varlen_backward", mutates_args=())
def kernel_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    parts = []
    sides = ((bounds, grad), (bounds, q), (key_bounds, k), (key_bounds, v))
    for g_HtD, q_HtD, k_HtD, v_HtD in zip(*(_pieces(*side) for side in sides), strict=True):
        p_Htt = _weights(q_HtD, k_HtD, scale)
        pull_Htt = g_HtD @ v_HtD.mT
        s_Htt = p_Htt * (pull_Htt - (pull_Htt * p_Htt).sum(-1, keepdim=True)) * scale
        parts.append((s_Htt @ k_HtD, s_Htt.mT @ q_HtD, p_Htt.mT @ g_HtD))
    dq, dk, dv = (torch.cat(one, dim=1).transpose(0, 1).contiguous() for one in zip(*parts, strict=True))
    return dq, dk, dv


def _pieces(bounds: Tensor, x_THD: Tensor) -> list[Tensor]:
    return [x.transpose(0, 1) for x in x_THD.split(bounds.diff().tolist())]


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    later = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
    return (q @ k.mT * scale).masked_fill(later, -torch.inf).softmax(-1)


@kernel.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)


@kernel_backward.register_fake
def _(_: Tensor, *qkv: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in qkv[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.scale = inputs[7]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *kernel_backward(grad, *ctx.saved_tensors, ctx.scale), *(None,) * 5


kernel.register_autograd(_backward, setup_context=_keep)


def varlen_attn(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, key_bounds: Tensor, longest: int, most_keys: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    output: Tensor = kernel(q, k, v, bounds, key_bounds, longest, most_keys, scale)
    return output


@pytest.fixture
def as_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the code paths of a GPU, and torch's compiler without its last stage, which needs a C++ compiler."""
    stand_in: Any = ModuleType("torch.nn.attention.varlen")
    stand_in.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    monkeypatch.setattr(attention, "by_products", attention.by_kernel)
    monkeypatch.setattr(lora_linear, "_LoraLinear", lora_linear._CardLoraLinear)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()


def batch(*completions: int, layout: str = "packed") -> Any:
    draw = torch.Generator().manual_seed(sum(completions))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (count,), generator=draw).tolist())

    samples = [
        TrainingSample(
            prompt_ids=(3,) * (1 + count % 5),
            completion_ids=tokens(count),
            behaviour_logprobs=(0.0,) * count,
            advantage=1.0,
        )
        for count in completions
    ]
    return collate(samples, pad_id=0, layout=layout)


def results(policy: LogprobModel, given: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and all gradients concatenated."""
    logprob_N, _ = policy(given)
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logprob_N.sum(), learned)
    return logprob_N.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def own_forwards(policy: LogprobModel) -> list[torch.nn.Module]:
    """Decoder layers whose forward function is no longer that of their class."""
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert layers
    return [layer for layer in layers if "forward" in vars(layer)]


def adapted(checkpointing: bool) -> LogprobModel:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    # More layers than the graphs allowed below, so that compiling each layer separately would be noticed.
    config = tiny_config("qwen2")
    config.num_hidden_layers, config.layer_types = 4, ["full_attention"] * 4
    model = AutoModelForCausalLM.from_config(config).float()
    lora = LoraConfig(r=3, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    lora._register_custom_module({torch.nn.Linear: lora_linear.LoraLinear})
    get_peft_model(model, lora)
    model.config._attn_implementation = VARLEN
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    fuse_norms(model)
    return LogprobModel(model, 1.0).train()


@pytest.mark.parametrize(("checkpointing", "layout"), [(True, "packed"), (False, PACKED_SHARED)])
def test_compiled_layers_compute_the_same_with_one_graph(checkpointing: bool, layout: str, as_on_a_card: None) -> None:
    policy = adapted(checkpointing)
    counts = [(9,), (4,), (12, 3), (2, 2, 17, 30), tuple(range(1, 12))]
    batches = [batch(*completions, layout=layout) for completions in counts]
    expected = [results(policy, one) for one in batches]
    compile_layers(policy.causal_lm, lambda: policy(batches[0])[0])
    # The first layer's inputs need no gradient, those of the others do: at most two graphs.
    forms = counters["stats"]["unique_graphs"]
    assert 1 <= forms <= 2
    for one, (logprob_N, gradient) in zip(batches, expected, strict=True):
        found_N, found = results(policy, one)
        assert_same_sums(found_N, logprob_N, 64)
        assert (found - gradient).norm() < 1e-5 * gradient.norm()
        assert counters["stats"]["unique_graphs"] == forms
    with torch.no_grad():
        for one in batches:
            policy(one)
    assert counters["stats"]["unique_graphs"] == forms
    assert not counters["graph_break"]
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch._dynamo.exc.BackendCompilerFailed(compile_layers, RuntimeError("no C compiler"), None),
        # Errors of the compiled code in its first pass: launching a kernel, and an assertion on its inputs.
        RuntimeError("Triton Error [CUDA]: no C compiler"),
        AssertionError("expected size 3==3, stride 1==4 at dim=0; no C compiler"),
    ],
)
def test_layers_stay_as_they_are_if_the_compiler_fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the compiler or the compiled code fails, the layers stay as they are, with a warning."""

    def broken(forward: Any, **_: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise error

        return call

    monkeypatch.setattr(torch, "compile", broken)
    policy = LogprobModel(tiny_model("qwen2"), 1.0)
    with pytest.warns(UserWarning, match=r"does not work here: .*no C compiler; the learner runs uncompiled"):
        assert not compile_layers(policy.causal_lm, lambda: policy(batch(5))[0])
    assert not own_forwards(policy)
    results(policy, batch(5))


def test_running_out_of_memory_is_not_a_compiler_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(forward: Any, **_: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    policy = LogprobModel(tiny_model("qwen2"), 1.0)
    with pytest.raises(torch.OutOfMemoryError):
        compile_layers(policy.causal_lm, lambda: policy(batch(5))[0])


class Lost(torch.autograd.Function):
    """Passes its input on but loses the gradient, as torch 2.11 compiled an in-place sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def test_layers_stay_as_they_are_if_a_gradient_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(forward: Any, **_: Any) -> Any:
        return lambda *args, **kwargs: Lost.apply(forward(*args, **kwargs))  # type: ignore[no-untyped-call]

    monkeypatch.setattr(torch, "compile", compiled)
    policy = adapted(checkpointing=False)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    _, expected = results(policy, batch(5))
    with pytest.warns(UserWarning, match=r"wrong gradients here \(off by up to 100%\); the learner runs"):
        compile_layers(policy.causal_lm, lambda: policy(batch(5))[0])
    assert not own_forwards(policy)
    assert torch.equal(results(policy, batch(5))[1], expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


def test_a_new_adapter_is_compared_in_both_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """While B is zero, A has no gradient. Both gradients are compared nevertheless, and the adapter is restored."""
    seen: list[tuple[Tensor, ...]] = []

    def shares(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
        seen.extend((found, expected))
        return shares_of_error(found, expected)

    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    monkeypatch.setattr(compiled_layers, "shares_of_error", shares)
    policy = adapted(checkpointing=False)
    halves = [(name, one) for name, one in policy.named_parameters() if one.requires_grad]
    for name, parameter in halves:
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    before = [parameter.detach().clone() for _, parameter in halves]
    compile_layers(policy.causal_lm, lambda: policy(batch(5))[0])
    assert len(seen) == 2 * compiled_layers.ADAPTERS
    assert not any(torch.equal(one, other) for one, other in zip(seen[1], seen[3], strict=True))
    assert all(bool(tensor.any()) for tensors in seen for tensor in tensors)
    assert all(torch.equal(one, kept) for (_, one), kept in zip(halves, before, strict=True))


def test_a_difference_with_only_one_adapter_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, a gradient whose terms nearly cancel is rounding only; with another adapter, another tensor is
    affected."""

    def compiled(forward: Any, **_: Any) -> Any:
        calls = itertools.count()

        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            return Lost.apply(output) if next(calls) == 0 else output  # type: ignore[no-untyped-call]

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    policy = adapted(checkpointing=False)
    assert compile_layers(policy.causal_lm, lambda: policy(batch(5))[0])
    assert len(own_forwards(policy)) == 4


def test_errors_are_relative_to_the_tensor_that_is_wrong() -> None:
    def worst_error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
        return float(shares_of_error(found, expected).max())

    expected = (torch.full((4,), 10.0), torch.tensor([3.0, 4.0]), torch.tensor([1e-6]))
    same = (expected[0] * 1.01, expected[1], torch.tensor([2e-6]))
    assert worst_error(same, expected) == pytest.approx(0.01, rel=1e-4)
    # The third is divided by a thousandth of the first's norm, which is 20.
    assert worst_error((*expected[:2], torch.tensor([0.005])), expected) == pytest.approx(0.25, rel=1e-3)
    assert worst_error((expected[0], torch.zeros(2), expected[2]), expected) == pytest.approx(1)
    assert math.isnan(worst_error((expected[0], torch.full((2,), math.nan), expected[2]), expected))


def test_a_learner_with_compiled_layers_makes_the_same_updates(
    as_on_a_card: None, make_config: ConfigMaker, ranks: Any, samples: list[TrainingSample]
) -> None:
    settings = ("learner.zero_stage=2", "loss.name=ppo_clip", "loss.kl_coef=0.1", "learner.updates_per_step=2")
    config = make_config("learner.layout=packed", "learner.tokens_per_microbatch=40", *settings)
    plain, compiled = (Learner(config, ranks, 0) for _ in range(2))
    compiled.compile_layers([sample.prompt_ids for sample in samples])
    assert counters["stats"]["unique_graphs"] == 2
    for learner in (plain, compiled):
        learner.step([samples, samples[::-1]], LOOSE)
    assert counters["stats"]["unique_graphs"] == 2
    expected = plain.weights()
    for name, tensor in compiled.weights().items():
        assert_same_sums(tensor, expected[name], 64)


def test_a_policy_that_has_not_moved_has_a_ratio_of_one(
    monkeypatch: pytest.MonkeyPatch, make_config: ConfigMaker, ranks: Any, samples: list[TrainingSample]
) -> None:
    """This holds although compiled layers round differently from a pass without gradients, and clips are tight."""

    def rounding(forward: Any, **_: Any) -> Any:
        return lambda *args, **kwargs: 1.001 * forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", rounding)
    config = make_config("loss.name=gspo", "learner.updates_per_step=2", "train.problems_per_step=2", "optim.lr=1e-5")
    learner = Learner(config, ranks, 0)
    learner.compile_layers([sample.prompt_ids for sample in samples])
    learner.set_rate(0)
    stats = learner.step([samples[:4], samples[4:]], LOOSE)
    assert stats.ratio == dict.fromkeys(stats.ratio, 1.0)
    assert stats.clip_low_frac == stats.clip_high_frac == 0


CARD = torch.device("cuda")


@pytest.mark.parametrize(
    ("family", "settings", "device", "worth"),
    [
        ("qwen2", (), CARD, True),
        ("qwen2", ("learner.gradient_checkpointing=true", "learner.zero_stage=2"), CARD, True),
        ("qwen2", (), torch.device("cpu"), False),
        ("qwen2", ("learner.zero_stage=3",), CARD, False),
        ("qwen2", ("learner.layout=padded",), CARD, False),
        ("qwen2", ("model.dtype=float32",), CARD, False),
        ("qwen2", ("method=full",), CARD, False),
        ("qwen2", ("lora.rank_pattern={layers.0.mlp.down_proj: 8}",), CARD, False),
        ("qwen3_moe", (), CARD, False),
        ("gemma2", (), CARD, False),
    ],
)
def test_what_is_worth_compiling(
    family: str,
    settings: tuple[str, ...],
    device: torch.device,
    worth: bool,
    make_config: ConfigMaker,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    config = make_config("model.dtype=bfloat16", *settings, f"model.name={tmp_path}")
    model = tiny_model(family)
    assert not is_worth_compiling(config, model, device), "a model this small"
    monkeypatch.setattr(compiled_layers, "WORTH_COMPILING", 1)
    assert is_worth_compiling(config, model, device) == worth
