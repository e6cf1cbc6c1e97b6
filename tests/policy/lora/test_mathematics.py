"""What LoRA Without Regret says about the parametrization, checked on one layer in float64.

The layer is y = (W + (α/r)·B·A) x with A uniform in ±1/√d_in and B zero; G is the gradient of the loss with respect to
the effective weight. Then ∂L/∂B = (α/r)·G·Aᵀ and ∂L/∂A = (α/r)·Bᵀ·G. In its first step, Adam with eps → 0 moves every
entry of B by LR_B, and does not move A, whose gradient is zero:

    ΔW₁ = −α · LR_B · (1/r) Σ_k sign(G a_k) a_kᵀ,   where a_k are the rows of A.

This is a mean over r independent rows, so its expectation is the same at every rank and its spread falls as 1/√r.
"""

from __future__ import annotations

import functools
import itertools
import math
from statistics import fmean, stdev
from typing import Any, NamedTuple, cast

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from rl_engine.config import LoraConfig
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.plan.flops import MultiplyAdds, learning_flops
from rl_engine.plan.sizes import Workload
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import add_adapter, lora_layers
from rl_engine.policy.lora.linear import LoraLinear
from rl_engine.policy.lora.targets import coverage_of
from rollout.config import ModelConfig

INPUTS, OUTPUTS, EXAMPLES = 16, 12, 40
ALPHA = 32.0
TINY_EPS = 1e-40
"""Smaller than any gradient here, so that scaling the loss does not change the size of Adam's steps."""


def uniform(*shape: int, seed: int) -> Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


X_NI, TARGET_NO = uniform(EXAMPLES, INPUTS, seed=1), uniform(EXAMPLES, OUTPUTS, seed=2)
WEIGHT_OI = uniform(OUTPUTS, INPUTS, seed=3)


class Regression:
    """A least-squares problem with our LoRA layer, set up by PEFT."""

    def __init__(self, rank: int, alpha: float = ALPHA, *, rslora: bool = False) -> None:
        linear = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
        linear.weight.data = WEIGHT_OI.clone()
        peft_config = PeftLoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], use_rslora=rslora)  # type: ignore[arg-type]
        peft_config._register_custom_module({nn.Linear: LoraLinear})
        self.model: Any = get_peft_model(nn.Sequential(linear), peft_config)
        self.layer = cast("Any", self.model.get_submodule("base_model.model.0"))
        self.a: nn.Parameter = self.layer.lora_A["default"].weight
        self.b: nn.Parameter = self.layer.lora_B["default"].weight

    def start(self, seed: int, scale: float = 1.0) -> None:
        """Reset to PEFT's initial values, drawn from the seed, with A multiplied by `scale`."""
        torch.manual_seed(seed)
        self.layer.reset_lora_parameters("default", True)
        self.a.data *= scale

    def adam(self, lr_a: float, lr_b: float, eps: float = TINY_EPS) -> torch.optim.Optimizer:
        groups = [{"params": [self.a], "lr": lr_a}, {"params": [self.b], "lr": lr_b}]
        return torch.optim.Adam(groups, eps=eps)

    def loss(self) -> Tensor:
        error: Tensor = self.model(X_NI) - TARGET_NO
        return error.square().mean()

    def learn(self, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
        """Train and return the loss before each step and after the last."""
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        return [*losses, self.loss().item()]

    def update(self) -> Tensor:
        delta: Tensor = self.layer.get_delta_weight("default").detach().clone()
        return delta


def gradient() -> Tensor:
    """G at the start, for the mean of squares: 2 (W X − T) Xᵀ / entries."""
    return 2 * (X_NI @ WEIGHT_OI.T - TARGET_NO).T @ X_NI / TARGET_NO.numel()


@functools.cache
def first_updates(rank: int, *, rslora: bool = False) -> tuple[Tensor, Tensor]:
    """Per seed: (ΔW of the first step; ⟨G, ΔW⟩, the first-order change of the loss)."""
    made = Regression(rank, rslora=rslora)
    updates = []
    for seed in range(SEEDS):
        made.start(seed)
        before = made.a.detach().clone()
        made.learn(made.adam(1e-3, 1e-3), 1)
        assert torch.equal(made.a, before)
        torch.testing.assert_close(made.b.detach(), -1e-3 * (gradient() @ before.T).sign(), rtol=1e-12, atol=0)
        updates.append(made.update())
    stacked = torch.stack(updates)
    return stacked, (stacked * gradient()).sum(dim=(1, 2))


SEEDS = 60


def test_the_first_update_is_the_same_at_every_rank() -> None:
    """This holds in expectation over the initial A."""
    (one, change_of_one), (many, change) = first_updates(1), first_updates(16)
    error = ((one.var(0) + many.var(0)) / SEEDS).sqrt()
    # With 192 entries, the chance that any is 4.2 standard errors off is about one in a hundred.
    assert ((one.mean(0) - many.mean(0)).abs() / error).max() < 4.2
    # To first order the loss falls by the same amount, and surely for one row too, though with more spread.
    assert float(change.mean()) == pytest.approx(float(change_of_one.mean()), rel=0.05)
    assert float(change_of_one.mean()) < -10 * float(change_of_one.std()) / SEEDS**0.5
    assert float(change_of_one.std() / change.std()) == pytest.approx(4, rel=0.3)


def test_with_rslora_it_grows_with_the_root_of_the_rank() -> None:
    _, change_of_one = first_updates(1)  # at rank 1 both scales are α
    _, change = first_updates(16, rslora=True)
    assert float(change.mean() / change_of_one.mean()) == pytest.approx(4, rel=0.05)


@functools.cache
def early_falls(rank: int, *, rslora: bool = False) -> list[list[float]]:
    """[step][seed]: how much the loss has fallen after each of five small steps, for each of 20 seeds."""
    made = Regression(rank, rslora=rslora)
    falls = []
    for seed in range(20):
        made.start(seed)
        losses = made.learn(made.adam(1e-6, 1e-6), 5)
        falls.append([losses[0] - loss for loss in losses[1:]])
    return [list(step) for step in zip(*falls, strict=True)]


def test_early_learning_curves_of_ranks_coincide() -> None:
    """With rsLoRA they do not coincide."""
    for one, many in zip(early_falls(1), early_falls(16), strict=True):
        error = math.hypot(stdev(one), stdev(many)) / 20**0.5
        assert abs(fmean(one) - fmean(many)) < 4 * error
        assert 0 < fmean(one) == pytest.approx(fmean(many), rel=0.1)
    rslora = early_falls(16, rslora=True)
    assert fmean(rslora[-1]) / fmean(early_falls(1)[-1]) == pytest.approx(4, rel=0.1)


class Setting(NamedTuple):
    """The four hyperparameters of LoRA under Adam."""

    alpha: float = ALPHA
    init_a: float = 1.0
    """Relative to PEFT's initial A."""
    lr_a: float = 2e-3
    lr_b: float = 2e-3

    def rescaled(self, p: float, q: float) -> Setting:
        return Setting(self.alpha / (p * q), p * self.init_a, p * self.lr_a, q * self.lr_b)


REFERENCE = Setting()


def trained(setting: Setting, *, eps: float = TINY_EPS, steps: int = 10) -> Tensor:
    """ΔW after `steps` steps at rank 3, starting from the same A times `init_a`."""
    made = Regression(3, setting.alpha)
    made.start(7, setting.init_a)
    made.learn(made.adam(setting.lr_a, setting.lr_b, eps), steps)
    return made.update()


@pytest.mark.parametrize(("p", "q"), [(3.7, 1.0), (1.0, 0.21), (0.05, 13.0)])
def test_two_numbers_decide_the_others_cancel(p: float, q: float) -> None:
    torch.testing.assert_close(trained(REFERENCE.rescaled(p, q)), trained(REFERENCE), rtol=1e-9, atol=1e-12)


def test_it_holds_only_as_eps_vanishes() -> None:
    def error(eps: float) -> float:
        reference = trained(REFERENCE, eps=eps)
        return float((trained(REFERENCE.rescaled(0.05, 13.0), eps=eps) - reference).norm() / reference.norm())

    errors = [error(eps) for eps in (1e-2, 1e-4, 1e-6, 1e-8)]
    assert errors[0] > 0.1
    assert all(smaller < 0.1 * larger for larger, smaller in itertools.pairwise(errors))


@pytest.mark.parametrize("number", Setting._fields)
def test_each_of_the_four_matters_by_itself(number: str) -> None:
    reference = trained(REFERENCE)
    doubled = REFERENCE._replace(**{number: 2 * getattr(REFERENCE, number)})
    assert (trained(doubled) - reference).norm() > 0.05 * reference.norm()


def test_lora_plus_is_a_move_along_the_second_number() -> None:
    """LR_A = η/λ and LR_B = η keep α · init_A · LR_B and multiply init_A / LR_A by λ. A single rate η with λ times the
    initial A and α/λ gives the same training."""
    ratio, lr = 16.0, REFERENCE.lr_b

    def plus(steps: int) -> Tensor:
        made = Regression(3)
        made.start(7)
        optimizer = create_loraplus_optimizer(
            made.model, torch.optim.Adam, lr=lr / ratio, loraplus_lr_ratio=ratio, eps=TINY_EPS
        )
        made.learn(optimizer, steps)
        return made.update()

    moved = Setting(alpha=ALPHA / ratio, init_a=ratio)
    for steps in (1, 2, 10):
        torch.testing.assert_close(plus(steps), trained(moved, steps=steps), rtol=1e-9, atol=1e-12)
    # The first step depends only on the first of these two numbers, the tenth on both.
    plain = trained(REFERENCE, steps=1)
    torch.testing.assert_close(plus(1), plain, rtol=1e-9, atol=1e-12)
    assert (plus(10) - trained(REFERENCE)).norm() > 0.05 * plus(10).norm()


def small_llama(dtype: torch.dtype) -> Any:
    model_config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(model_config, attn_implementation="eager", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_update_is_zero_at_the_start(dtype: torch.dtype) -> None:
    model = small_llama(dtype)
    tokens = torch.arange(20)[None]
    before = model(tokens).logits
    adapted: Any = add_adapter(model, LoraConfig(rank=4, targets="all"), seed=0)[0]
    assert torch.equal(adapted(tokens).logits, before)
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 14
    for layer in layers:
        assert not layer.get_delta_weight("default").any()
        limit = layer.in_features**-0.5
        largest = float(layer.lora_A["default"].weight.detach().abs().max())
        # PEFT initializes A in the base model's precision.
        assert 0.9 * limit < largest <= limit * (1 + torch.finfo(dtype).eps)


def test_an_adapter_is_applied_once_and_not_at_all_when_off() -> None:
    model, tokens = small_llama(torch.float32), torch.arange(20)[None]
    base = model(tokens).logits
    adapted: Any = add_adapter(model, LoraConfig(rank=4, targets="all"), seed=0)[0]
    layers: list[Any] = [*lora_layers(adapted).values()]
    for layer in layers:
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    learned = adapted(tokens).logits
    assert (learned - base).abs().max() > 0.1
    with adapted.disable_adapter():
        assert torch.equal(adapted(tokens).logits, base)
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(tokens).logits, learned, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "mlp", "attention", "head"),
    [
        # By hand, Σ (inputs + outputs): of gate, up and down; of q, k, v and o; of the output embedding.
        ("meta-llama/Llama-3.1-8B", 32, 32 * 3 * (4096 + 14336), 32 * (2 * 8192 + 2 * 5120), 4096 + 128256),
        ("Qwen/Qwen3-8B-Base", 36, 36 * 3 * (4096 + 12288), 36 * (2 * 8192 + 2 * 5120), 4096 + 151936),
    ],
)
def test_parameters_of_8b_models_from_their_configs_alone(
    name: str, layers: int, mlp: int, attention: int, head: int
) -> None:
    meta_model = load_meta_model(ModelConfig(name=name))
    for rank in (1, 32):
        found = coverage_of(meta_model, LoraConfig(rank=rank, targets="all+lm_head"))
        assert found.by_group == {"attention": rank * attention, "mlp": rank * mlp, "other": rank * head}
        plain = coverage_of(meta_model, LoraConfig(rank=rank, targets="all"))
        assert plain.by_group == {"attention": rank * attention, "mlp": rank * mlp}
        assert len(plain.modules) == 7 * layers
        assert coverage_of(meta_model, LoraConfig(rank=rank, targets="mlp")).trainable == rank * mlp
        if "Llama" in name:  # as in LoRA Without Regret, without the output embedding
            assert (mlp, attention, head) == (1_769_472, 851_968, 132_352)


# torch's FLOP counter does not know the in-place addmm.
IN_PLACE: dict[Any, Any] = {
    torch.ops.aten.addmm_: lambda total, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
}


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(1, 64, 64), (8, 64, 64), (4, 96, 32)])
def test_one_layer_costs_two_thirds_of_full_fine_tuning(rank: int, inputs: int, outputs: int) -> None:
    """Plus the share of the rank: (2 + 6r/N)/3 in total."""
    tokens = 5
    x = torch.randn(tokens, inputs, requires_grad=True)
    full = nn.Linear(inputs, outputs, bias=False)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as of_full:
        full(x).sum().backward()
    peft_config = PeftLoraConfig(r=rank, lora_alpha=32, target_modules=["0"])
    peft_config._register_custom_module({nn.Linear: LoraLinear})
    model = get_peft_model(nn.Sequential(nn.Linear(inputs, outputs, bias=False)), peft_config)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as of_lora:
        model(x).sum().backward()
    counted = of_lora.get_total_flops() / of_full.get_total_flops()
    if inputs == outputs:
        assert counted == pytest.approx((2 + 6 * rank / inputs) / 3)
    multiply_adds = MultiplyAdds(
        matrices=inputs * outputs, adapter=rank * (inputs + outputs), head=0, head_adapter=0, attended=0
    )
    work = Workload(steps=1, groups=1, completions=1, prompt_tokens=1, completion_tokens=tokens - 1)
    assert learning_flops(multiply_adds, work, prompts=1, method="full") == of_full.get_total_flops()
    assert learning_flops(multiply_adds, work, prompts=1, method="lora") == of_lora.get_total_flops()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_flops_of_a_model_match_torchs_count(method: Any) -> None:
    prompt, completion, rank, rows = 7, 5, 3, 2
    length = prompt + completion
    lora = LoraConfig(rank=rank, targets="all")
    model = small_llama(torch.float32)
    multiply_adds = MultiplyAdds.of(model, lora)
    policy = LogprobModel(add_adapter(model, lora, seed=0)[0].get_base_model() if method == "lora" else model, 1.0)
    samples = [
        TrainingSample(
            prompt_ids=tuple(range(prompt)),
            completion_ids=tuple(range(row, row + completion)),
            behaviour_logprobs=(0.0,) * completion,
            advantage=1.0,
            weight=1.0,
        )
        for row in range(rows)
    ]
    batch = collate(samples, 0, "padded")
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        policy(batch)[0].sum().backward()
    work = Workload(steps=1, groups=1, completions=rows, prompt_tokens=prompt, completion_tokens=completion)
    expected = learning_flops(multiply_adds, work, prompts=rows, method=method)
    # Plain attention also computes the half that the mask hides.
    expected += 3 * 2 * rows * multiply_adds.attended * (length**2 - length * (length + 1) / 2)
    if method == "lora":
        # The gradients of the inputs of the very first layer's q, k and v are not computed.
        expected -= 2 * rows * length * (32 * (32 + 16 + 16) + rank * 3 * 32)
    else:
        # A trained head recomputes its logits.
        expected += 2 * rows * completion * multiply_adds.head
    assert counter.get_total_flops() == expected
