"""What a run computes, holds and warns about, against figures worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig

from rl_engine.config import LoraConfig, load_config
from rl_engine.plan.capacity import capacity_of, supervised_bits
from rl_engine.plan.flops import MultiplyAdds, forward_flops, step_flops
from rl_engine.plan.forecast import forecast
from rl_engine.plan.lines import first_lines, lines_of
from rl_engine.plan.sizes import Widths, Workload
from rl_engine.plan.warnings import WARNINGS, warnings_of
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.lora.targets import adaptable, expert_rank
from rollout.config import ModelConfig
from rollout.models import auto_class
from tests.helpers.planned import HIDDEN, LAYERS, MLP, VOCABULARY, deepmath, planned

MATRICES = LAYERS * (2 * HIDDEN * 4096 + 2 * HIDDEN * 1024 + 3 * HIDDEN * MLP)

RANK_1 = LAYERS * (2 * 8192 + 2 * 5120 + 3 * (HIDDEN + MLP))

HEAD = HIDDEN * VOCABULARY

WORKERS = ("rollout.placement=ray", "rollout.workers=16")


def test_products_of_a_token_by_hand(meta_model: nn.Module) -> None:
    multiply_adds = MultiplyAdds.of(meta_model, LoraConfig(rank=4, targets="all+lm_head"))
    assert (multiply_adds.matrices, multiply_adds.adapter) == (MATRICES, 4 * RANK_1)
    assert (multiply_adds.head, multiply_adds.head_adapter) == (HEAD, 4 * (HIDDEN + VOCABULARY))
    assert multiply_adds.attended == LAYERS * 2 * 32 * 128
    embeddings_and_norms = HEAD + LAYERS * (2 * HIDDEN + 2 * 128) + HIDDEN
    assert MATRICES + HEAD + embeddings_and_norms == sum(parameter.numel() for parameter in meta_model.parameters())


def test_of_a_mixture_a_token_passes_the_active_experts_alone(tmp_path: Path) -> None:
    model_config = Qwen3MoeConfig(
        hidden_size=32,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=2,
        vocab_size=64,
    )
    model_config.save_pretrained(tmp_path)
    multiply_adds = MultiplyAdds.of(load_meta_model(ModelConfig(name=str(tmp_path))), LoraConfig(rank=6, targets="all"))
    heads = 32
    attention = 2 * 32 * heads + 2 * 32 * heads // 2
    assert multiply_adds.matrices == 2 * (attention + 2 * 3 * 32 * 24)
    # Rank 6 is 3 for each of two active experts; gate and up are one matrix of 32 → 48.
    of_attention = 6 * (2 * (32 + heads) + 2 * (32 + heads // 2))
    assert multiply_adds.adapter == 2 * (of_attention + 2 * 3 * (32 + 48 + 24 + 32))


@pytest.mark.parametrize(
    ("kind", "name", "beside"),
    [
        ("qwen3_5_moe", "num_experts_per_tok", {"shared_expert_intermediate_size": 16}),
        ("gemma4", "top_k_experts", {"intermediate_size": 16, "enable_moe_block": True}),
        ("mixtral", None, {}),
    ],
)
def test_experts_share_the_rank_of_a_wrapper_too(kind: str, name: str | None, beside: dict[str, Any]) -> None:
    """The number of active experts is in the language model's part of the configuration, under one of two names."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    if name is None:
        model_config = AutoConfig.for_model(kind, **sizes, intermediate_size=24, num_experts_per_tok=2)
    else:
        text = {**sizes, "num_experts": 8, "moe_intermediate_size": 24, name: 2, **beside}
        model_config = AutoConfig.for_model(kind, text_config=text)
    with torch.device("meta"):
        model = auto_class(model_config).from_config(model_config)
    assert [expert_rank(model, LoraConfig(rank=rank)) for rank in (6, 1)] == [3, 1]
    assert Widths.of(model).intermediate == 2 * 24 + (16 if beside else 0)
    experts = {path: layer for path, layer in adaptable(model).items() if layer.experts}
    assert experts
    of_experts = MultiplyAdds.of(model, LoraConfig(rank=6, targets=tuple(experts))).adapter
    assert of_experts == sum(2 * 3 * (layer.inputs + layer.outputs) for layer in experts.values())


def test_a_rank_of_its_own_costs_a_layer_its_own_multiply_adds(meta_model: nn.Module) -> None:
    plain, wide = (
        MultiplyAdds.of(meta_model, LoraConfig(rank=4, rank_pattern=pattern)) for pattern in ({}, {"down_proj": 8})
    )
    sizes = [layer for path, layer in adaptable(meta_model).items() if path.endswith("down_proj")]
    assert wide.adapter - plain.adapter == sum(4 * (layer.inputs + layer.outputs) for layer in sizes)


def test_layers_of_different_sizes_count_as_the_largest() -> None:
    """Gemma 4's heads are 512 wide in layers that attend to everything; Gemma 3n lists the width of each feed-forward
    layer."""
    for kind, name, largest in (("gemma4_text", "head_dim", 512), ("gemma3n_text", "intermediate", 96)):
        sizes = {"num_hidden_layers": 6, "hidden_size": 64, "vocab_size": 64}
        more = {"intermediate_size": [32] * 5 + [96], "num_kv_shared_layers": 0} if kind == "gemma3n_text" else {}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more))
        assert getattr(Widths.of(model), name) == largest


def test_a_pass_is_a_sum_over_tokens(meta_model: nn.Module) -> None:
    config = deepmath("sampling.n=3", "train.problems_per_step=2", "data.max_prompt_tokens=5", "sampling.max_tokens=4")
    multiply_adds, work = MultiplyAdds.of(meta_model, config.lora), Workload.of(config)

    def one(position: int, predicts: bool) -> int:
        return MATRICES + RANK_1 + position * multiply_adds.attended + predicts * HEAD

    prompt = sum(one(position, False) for position in range(1, 6))
    completion = sum(one(position, True) for position in range(6, 10))
    assert forward_flops(multiply_adds, work, prompts=1, adapted=True) == 2 * 2 * (prompt + 3 * completion)
    assert forward_flops(multiply_adds, work, prompts=3, adapted=True) == 2 * 2 * 3 * (prompt + completion)


def test_passes_made_again(meta_model: nn.Module) -> None:
    def recomputed(*overrides: str) -> float:
        config = deepmath("learner.gradient_checkpointing=false", *overrides)
        return step_flops(config, meta_model, Workload.of(config), method="lora", device_type="cuda").recomputed

    config = deepmath()
    multiply_adds, work = MultiplyAdds.of(meta_model, config.lora), Workload.of(config)
    forward = forward_flops(multiply_adds, work, prompts=16, adapted=True)
    base = forward_flops(multiply_adds, work, prompts=16, adapted=False)
    logits = 2 * 512 * 8192 * HEAD
    assert recomputed() == 0
    assert recomputed("learner.gradient_checkpointing=true") == pytest.approx(forward - logits)
    assert recomputed("loss.kl_coef=0.1") == pytest.approx(base)
    # The first update needs no separate scores: only the batches of later updates are scored beforehand.
    for loss in ("loss.sampler_correction=token_truncate", "loss.name=ppo_clip"):
        assert recomputed(loss) == 0
        assert recomputed(loss, "learner.updates_per_step=4") == pytest.approx(3 / 4 * forward)
        assert recomputed(loss, "learner.epochs_per_step=2") == pytest.approx(forward)
    assert recomputed("lora.targets=all+lm_head") == pytest.approx(logits + 2 * 512 * 8192 * (HIDDEN + VOCABULARY))


def test_a_cpu_computes_the_prompt_of_a_group_once(meta_model: nn.Module) -> None:
    config = deepmath("data.max_prompt_tokens=1000", "sampling.max_tokens=24")
    once, each = (
        step_flops(config, meta_model, Workload.of(config), method="lora", device_type=device_type)
        for device_type in ("cpu", "cuda")
    )
    assert once.sampling == each.sampling
    # All 16 copies but one, without logits: two passes of the frozen matrices, three of everything else.
    prompt = 1000 * (2 * MATRICES + 3 * RANK_1) + 3 * 1000 * 1001 / 2 * LAYERS * 2 * 32 * 128
    assert each.learning - once.learning == pytest.approx(2 * 32 * 15 * prompt)


def test_capacity_is_two_bits_a_parameter(meta_model: nn.Module) -> None:
    """An episode carries one bit of information."""
    # The paper's count for MATH: 10,000 problems × 32 completions against rank 1.
    made = planned(meta_model, "train.steps=400", "train.problems_per_step=25", "sampling.n=32")
    assert made.capacity.information_bits == 320_000
    assert made.capacity.bits == 2 * RANK_1 == 5_455_872
    assert made.capacity.share == pytest.approx(320_000 / 5_455_872)
    assert made.capacity.rank == 1
    for information, rank in (
        (2 * RANK_1, 1),
        (2 * RANK_1 + 1, 2),
        (2 * RANK_1 * 100.5, 101),
        (2 * RANK_1 * 513, None),
    ):
        assert capacity_of(meta_model, LoraConfig(rank=8), "lora", information).rank == rank
    full = capacity_of(meta_model, LoraConfig(), "full", 1.0)
    assert (full.bits, full.rank) == (2 * 8_190_735_360, None)
    assert supervised_bits(1000, math.log(2)) == pytest.approx(1000)
    assert supervised_bits(1000, 1.386) == pytest.approx(2000, rel=1e-3)


def test_the_lines_of_a_run_hold_the_same_figures(meta_model: nn.Module) -> None:
    lines = first_lines(deepmath("lora.alpha=2"), meta_model)
    assert list(lines) == ["capacity", "compute", "beware: alpha"]
    counted = lines_of(planned(meta_model))["parameters"]
    assert counted.startswith("2,727,936 of 8,190,735,360 trained (0.033%): attention 958,464, mlp 1,769,472")
    assert "5,455,872 bits" in lines["capacity"]
    assert "at most 153,600, 1 per episode (300 × 32 × 16): 2.82%; rank 1 holds it" in lines["capacity"]
    made = planned(meta_model)
    assert f"{made.lora.learning / made.full.learning:.3f}" == lines["compute"].rsplit(" ", 1)[1]
    # Attention has no weights, so LoRA saves less than a third of a long step.
    assert 2 / 3 < made.lora.learning / made.full.learning < 0.75
    full = first_lines(deepmath("method=full", "optim.lr=4e-6"), meta_model)
    assert "rank" not in full["capacity"]


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("batch", ("train.problems_per_step=129",), "2,064 completions per update"),
        ("rate", ("optim.lr=4e-6",), "below the range of LoRA"),
        ("rate", ("optim.lr=9e-5",), "above the range"),
        ("rate", ("method=full", "optim.lr=4e-5"), "a LoRA rate"),
        ("alpha", ("lora.alpha=2",), "0.0625 times"),
        ("targets", ("lora.targets=attention",), "leaves out the MLPs"),
        ("targets", ("lora.targets=[q_proj,v_proj]",), "leaves out the MLPs"),
        ("capacity", ("train.steps=20000",), "1.9 times what rank 1 can hold; rank 2 holds it all"),
        ("context", ("sampling.max_tokens=32000",), "context of 32,768"),
        ("reinforce", ("loss.name=reinforce", "learner.updates_per_step=2"), "makes 2 updates from a step"),
        ("reinforce", ("loss.name=reinforce", "learner.epochs_per_step=2"), "use loss.name=importance_sampling"),
        ("ratio", ("learner.updates_per_step=4", "learner.epochs_per_step=2"), "with 8 updates a step"),
        ("ratio", ("rollout.placement=ray", "rollout.max_staleness=3"), "with rollout.max_staleness 3"),
        ("workers", (*WORKERS, "rollout.prompts_per_piece=16"), "14 of rollout.workers 16 have nothing to sample"),
        ("workers", (*WORKERS, "rollout.prompts_per_piece=3"), "and auto would be 2"),
        (
            "workers",
            (*WORKERS, "rollout.workers=48"),
            "16 of rollout.workers 48 have nothing to sample: raise",
        ),
    ],
)
def test_each_warning_has_its_case(meta_model: nn.Module, name: str, overrides: tuple[str, ...], words: str) -> None:
    warnings = warnings_of(planned(meta_model, *overrides))
    assert list(warnings) == [name]
    assert words in warnings[name]


@pytest.mark.parametrize(
    "overrides",
    [
        ("loss.name=reinforce",),
        ("learner.updates_per_step=4",),
        ("rollout.placement=ray", "rollout.max_staleness=2"),
        ("learner.updates_per_step=8", "loss.name=ppo_clip"),
        ("learner.updates_per_step=8", "loss.sampler_correction=token_truncate"),
    ],
)
def test_what_is_bounded_or_hardly_off_policy_is_not_warned_of(
    meta_model: nn.Module, overrides: tuple[str, ...]
) -> None:
    assert warnings_of(planned(meta_model, *overrides)) == {}


@pytest.mark.parametrize(
    ("start", "warned"), [("pissa_niter_16", True), ("olora", True), ("default", False), ("orthogonal", False)]
)
def test_a_start_from_a_decomposition_is_warned_of(meta_model: nn.Module, start: str, warned: bool) -> None:
    assert ("init" in warnings_of(planned(meta_model, "lora.rank=2", f"lora.init={start}"))) == warned


def test_few_numbers_are_counted_and_have_no_rate_by_rule(meta_model: nn.Module) -> None:
    """Two bits for each number, whatever the rank. The recipes' rates and scales do not apply to them."""
    made = planned(meta_model, "lora.init=tiny", "lora.rank=2", "lora.numbers=100", "lora.alpha=8", "optim.lr=0.1")
    assert (made.groups, made.capacity.bits, made.rule) == ({"shared by all": 100}, 200, None)
    assert made.capacity.rank == planned(meta_model).capacity.rank
    lines = lines_of(made)
    assert f"; a plain adapter of rank {made.capacity.rank} holds it" in lines["capacity"]
    assert list(warnings_of(made)) == ["capacity"]
    assert "times what lora.numbers 100 can hold; of plain adapters rank" in warnings_of(made)["capacity"]


def test_pieces_leave_no_worker_idle_where_prompts_suffice(meta_model: nn.Module) -> None:
    """The documented recipe, 32 problems for 16 workers, needs no setting; what is sampled ahead counts as work too."""
    assert warnings_of(planned(meta_model, *WORKERS)) == {}
    assert deepmath(*WORKERS).training_piece == 2
    ahead = (*WORKERS, "rollout.workers=48", "rollout.max_staleness=1")
    assert warnings_of(planned(meta_model, *ahead)) == {}


@pytest.mark.parametrize("name", ["deepmath", "math", "gsm8k"])
def test_shipped_recipes_of_8b_models_call_for_no_warning(meta_model: nn.Module, name: str) -> None:
    assert warnings_of(forecast(load_config(name), meta_model, device_type="cuda")) == {}
    others = {"reinforce", "ratio", "workers"}
    assert set(WARNINGS) == {"batch", "rate", "alpha", "targets", "init", "capacity", "rank", "context"} | others


def test_a_small_model_may_learn_faster_than_the_recipes(make_config: Any) -> None:
    """A slower rate is warned about."""
    embedded = load_meta_model(make_config().model)
    assert warnings_of(forecast(make_config(), embedded, device_type="cpu")) == {}


def test_a_rank_that_no_layer_can_use_is_warned_of(make_config: Any) -> None:
    """Once, not for each layer. Its numbers beyond a layer's smaller side would be trained and served for nothing."""
    embedded = load_meta_model(make_config().model)
    for overrides, layers in (
        (["lora.rank=193"], 28),
        (["lora.rank_pattern={k_proj: 200}"], 4),
        (["method=full"], 0),
    ):
        warnings = warnings_of(forecast(make_config(*overrides), embedded, device_type="cpu"))
        assert ("rank" in warnings) == (layers > 0)
        if layers:
            assert f"is higher than {layers} layers are wide (model.layers.0." in warnings["rank"]
            assert "_proj has " in warnings["rank"]
    assert "rate" in warnings_of(forecast(make_config("optim.lr=1e-6"), embedded, device_type="cpu"))


def test_fewer_updates_of_the_same_batch_are_smaller_ones(meta_model: nn.Module) -> None:
    assert warnings_of(planned(meta_model, "train.problems_per_step=256", "learner.updates_per_step=2")) == {}
