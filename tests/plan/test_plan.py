"""What a run will ask for: every figure worked out by hand for Qwen3-8B, every warning met, and the command's page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig
from typer.testing import CliRunner

from rl_engine.config import Config, LoraConfig, load_config
from rl_engine.config.file import ConfigError
from rl_engine.plan.__main__ import app
from rl_engine.plan.capacity import capacity_of, supervised_bits
from rl_engine.plan.devices import on_gpus, on_this_cpu
from rl_engine.plan.flops import MultiplyAdds, forward_flops, step_flops
from rl_engine.plan.forecast import Forecast, first_lines, forecast, lines_of
from rl_engine.plan.sizes import Devices, Widths, Workload
from rl_engine.plan.step_time import DataSheet, GpuSampler, Throughput, measured
from rl_engine.plan.warnings import WARNINGS
from rl_engine.policy.base_model import load_meta_model
from rl_engine.policy.lora.targets import adaptable, expert_rank
from rl_engine.run.peaks import GIB
from rollout.config import ModelConfig
from rollout.models import auto_class

ROOT = Path(__file__).parents[2]
LAYERS, HIDDEN, MLP, VOCABULARY = 36, 4096, 12288, 151936
MATRICES = LAYERS * (2 * HIDDEN * 4096 + 2 * HIDDEN * 1024 + 3 * HIDDEN * MLP)
RANK_1 = LAYERS * (2 * 8192 + 2 * 5120 + 3 * (HIDDEN + MLP))
HEAD = HIDDEN * VOCABULARY


WORKERS = ("rollout.placement=ray", "rollout.workers=16")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that holds a config and nothing else."""
    directory = tmp_path_factory.mktemp("models") / "Qwen3-8B-Base"
    model_config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
    )
    model_config.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def meta_model(qwen: Path) -> nn.Module:
    model: nn.Module = load_meta_model(ModelConfig(name=str(qwen)))
    return model


def deepmath(*overrides: str) -> Config:
    return load_config("deepmath.yaml", overrides)


def planned(meta_model: nn.Module, *overrides: str, **lengths: int) -> Forecast:
    return forecast(deepmath(*overrides), meta_model, device_type="cuda", **lengths)


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
    """What a token passes through stands in the language model's part of the configuration, by one of two names."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    if name is None:
        model_config = AutoConfig.for_model(kind, **sizes, intermediate_size=24, num_experts_per_tok=2)
    else:
        text = {**sizes, "num_experts": 8, "moe_intermediate_size": 24, name: 2, **beside}
        model_config = AutoConfig.for_model(kind, text_config=text)
    with torch.device("meta"):
        model = auto_class(model_config).from_config(model_config)
    assert expert_rank(model, LoraConfig(rank=6)) == 3
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
    """Gemma 4's heads are 512 wide where they attend to everything; Gemma 3n lists its feed-forward widths."""
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
    # Scored before the first update is what is learned from after it.
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
    # All 16 copies but one, and no logits in them: two passes of the frozen matrices, three of all else.
    prompt = 1000 * (2 * MATRICES + 3 * RANK_1) + 3 * 1000 * 1001 / 2 * LAYERS * 2 * 32 * 128
    assert each.learning - once.learning == pytest.approx(2 * 32 * 15 * prompt)


def test_capacity_is_two_bits_a_parameter(meta_model: nn.Module) -> None:
    """And information a bit an episode."""
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
        ("batch", ("train.problems_per_step=129",), "2,064 completions an update"),
        ("rate", ("optim.lr=4e-6",), "below the range of LoRA"),
        ("rate", ("optim.lr=9e-5",), "above the range"),
        ("rate", ("method=full", "optim.lr=4e-5"), "that of a LoRA"),
        ("alpha", ("lora.alpha=2",), "0.0625 times"),
        ("targets", ("lora.targets=attention",), "leaves out the MLPs"),
        ("targets", ("lora.targets=[q_proj,v_proj]",), "leaves out the MLPs"),
        ("capacity", ("train.steps=20000",), "1.9 times what rank 1 can hold; rank 2 holds it all"),
        ("context", ("sampling.max_tokens=32000",), "context of 32,768"),
        ("reinforce", ("loss.name=reinforce", "learner.updates_per_step=2"), "learns 2 times from a step"),
        ("reinforce", ("loss.name=reinforce", "learner.epochs_per_step=2"), "use importance_sampling"),
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
    warnings = planned(meta_model, *overrides).warnings
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
    assert planned(meta_model, *overrides).warnings == {}


@pytest.mark.parametrize(
    ("start", "warned"), [("pissa_niter_16", True), ("olora", True), ("default", False), ("orthogonal", False)]
)
def test_a_start_from_a_decomposition_is_warned_of(meta_model: nn.Module, start: str, warned: bool) -> None:
    assert ("init" in planned(meta_model, "lora.rank=2", f"lora.init={start}").warnings) == warned


def test_few_numbers_are_counted_and_have_no_rate_by_rule(meta_model: nn.Module) -> None:
    """Two bits each, whatever the rank; recipes' rates and scales say nothing of them."""
    made = planned(meta_model, "lora.init=tiny", "lora.rank=2", "lora.numbers=100", "lora.alpha=8", "optim.lr=0.1")
    assert (made.groups, made.capacity.bits, made.rule) == ({"shared by all": 100}, 200, None)
    assert made.capacity.rank == planned(meta_model).capacity.rank
    lines = lines_of(made)
    assert f"; a plain adapter of rank {made.capacity.rank} holds it" in lines["capacity"]
    assert list(made.warnings) == ["capacity"]
    assert "times what lora.numbers 100 can hold; of plain adapters rank" in made.warnings["capacity"]


def test_pieces_leave_no_worker_idle_where_prompts_suffice(meta_model: nn.Module) -> None:
    """The documented recipe, 32 problems for 16 workers, by itself; and what is sampled ahead is work too."""
    assert planned(meta_model, *WORKERS).warnings == {}
    assert deepmath(*WORKERS).training_piece == 2
    ahead = (*WORKERS, "rollout.workers=48", "rollout.max_staleness=1")
    assert planned(meta_model, *ahead).warnings == {}


@pytest.mark.parametrize("name", ["deepmath", "math", "gsm8k"])
def test_shipped_recipes_of_8b_models_call_for_no_warning(meta_model: nn.Module, name: str) -> None:
    assert forecast(load_config(name), meta_model, device_type="cuda").warnings == {}
    others = {"reinforce", "ratio", "workers"}
    assert set(WARNINGS) == {"batch", "rate", "alpha", "targets", "init", "capacity", "context"} | others


def test_a_small_model_may_learn_faster_than_the_recipes(make_config: Any) -> None:
    """And not slower."""
    embedded = load_meta_model(make_config().model)
    assert forecast(make_config(), embedded, device_type="cpu").warnings == {}
    assert "rate" in forecast(make_config("optim.lr=1e-6"), embedded, device_type="cpu").warnings


def test_fewer_updates_of_the_same_batch_are_smaller_ones(meta_model: nn.Module) -> None:
    assert planned(meta_model, "train.problems_per_step=256", "learner.updates_per_step=2").warnings == {}


@pytest.mark.parametrize(("text", "parsed"), [("8x80", (8, 80.0)), ("1x24GiB", (1, 24.0)), ("64X141.5", (64, 141.5))])
def test_devices_are_a_count_and_a_memory(text: str, parsed: tuple[int, float]) -> None:
    devices = Devices.parse(text)
    assert (devices.count, devices.gib) == parsed


@pytest.mark.parametrize("text", ["80", "x80", "0x80", "8x-1", "8xinf", "8xnan", "eightx80"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--devices"):
        Devices.parse(text)


def test_a_given_speed_is_waited_for_on_the_busiest_device(meta_model: nn.Module) -> None:
    work = Workload.of(deepmath())
    speed = Throughput(sampling=1000.0, learning=2000.0, other_s=3.0, source="given")
    tokens = 32 * 16 * 8192
    for count, groups, completions in ((1, 32, 512), (8, 4, 64), (20, 2, 26), (64, 1, 8)):
        time = speed.predict(work, Devices(count=count, gib=80))
        assert time.sampling_s == pytest.approx(tokens * groups / 32 / 1000)
        assert time.learning_s == pytest.approx(tokens * completions / 512 / 2000)
        assert time.step_s == pytest.approx(time.sampling_s + time.learning_s + 3)


def test_a_data_sheet_bounds_decoding_by_what_must_be_read(meta_model: nn.Module) -> None:
    made = planned(meta_model, "rollout.memory_fraction=0.6")
    widths = Widths.of(meta_model)
    assert widths.kv_bytes(2) == 2 * 36 * 8 * 128 * 2
    sampler = GpuSampler.of(made.config, made.total, 80.0)
    weights = made.total * 2
    assert sampler.kv_cache == pytest.approx(48 - weights / GIB)
    held = int((48 * GIB - weights) / (9216 * 147_456))
    assert sampler.concurrent_sequences(made.config, widths, made.work) == held == 25
    card = DataSheet(tflops=989, tb_per_s=3.35, mfu=0.4)
    fit = on_gpus(made, Devices(count=8, gib=80.0), card)
    assert (fit.groups, fit.idle, fit.concurrent_sequences, fit.refusals) == (4, 0, 25, ())
    token_s = (weights + 25 * (1024 + 4096) * 147_456) / 3.35e12
    assert fit.time is not None
    assert fit.time.sampling_s == pytest.approx(token_s * 8192 * 64 / 25)
    learning = made.lora.learning + made.lora.recomputed
    assert fit.time.learning_s == pytest.approx(learning / 8 / (0.4 * 989e12))
    # With memory to spare, and a slow processor, multiply_adds are what is waited for.
    slow = on_gpus(made, Devices(count=8, gib=80.0), DataSheet(tflops=1, tb_per_s=1000, mfu=1)).time
    assert slow is not None
    assert slow.sampling_s == pytest.approx(made.lora.sampling / 8 / 1e12)


def test_cards_without_a_group_and_cards_without_room_are_told(meta_model: nn.Module) -> None:
    made = planned(meta_model, "rollout.memory_fraction=0.45")
    many = on_gpus(made, Devices(count=64, gib=80.0), None)
    assert (many.groups, many.idle, many.time) == (1, 32, None)
    small = on_gpus(made, Devices(count=1, gib=24.0), DataSheet(tflops=100, tb_per_s=1, mfu=0.4))
    assert small.time is None
    memory, cache = small.refusals
    assert "24.0 GiB are available" in memory
    assert "and one sequence takes 1.27 GiB: raise rollout.memory_fraction, which is 0.45" in cache


def test_the_data_sheet_of_a_card_is_no_use_on_a_cpu(make_config: Any) -> None:
    made = forecast(make_config(), load_meta_model(make_config().model), device_type="cpu")
    with pytest.raises(ConfigError, match="--devices"):
        on_this_cpu(made, DataSheet(tflops=1, tb_per_s=1, mfu=1))
    fit = on_this_cpu(made, Throughput(sampling=1000, learning=500, source="given"))
    assert fit.time is not None
    assert fit.time.step_s == pytest.approx(64 * 8 * 72 * (1 / 1000 + 1 / 500))


@pytest.fixture
def finished(tmp_path: Path, make_config: Any) -> Path:
    """A run of three steps, the first of which was slow."""
    run = tmp_path / "finished"
    run.mkdir()
    config = make_config()
    (run / "config.yaml").write_text(config.to_yaml())
    lines: list[dict[str, float]] = [{"step": 0, "eval/held_out/avg": 0.5}]
    for step, rollout_s in ((1, 50.0), (2, 2.0), (3, 4.0)):
        times = {"time/rollout_s": rollout_s, "time/learn_s": 2.0, "time/grade_s": 0.5, "time/sync_s": 0.25}
        lines.append({"step": step, "completion/tokens_mean": 20.0, "time/step_s": rollout_s + 2.75, **times})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_run_of_ones_own_measures_the_speed(finished: Path, make_config: Any) -> None:
    config = make_config("sampling.max_tokens=60", "train.problems_per_step=32")
    speed = measured(finished, config, 2)
    # 512 completions of 20 tokens in 2 and in 4 seconds, on two devices.
    assert speed.sampling == pytest.approx(2 * 10240 / 6 / 2)
    assert speed.learning == pytest.approx(10240 / 2 / 2)
    assert (speed.other_s, speed.completion_tokens) == (0.75, 20)


def test_the_same_run_again_is_predicted_to_take_as_long(finished: Path, make_config: Any) -> None:
    speed = measured(finished, make_config(), 1)
    time = speed.predict(Workload.of(make_config(), completion_tokens=20), Devices(count=1, gib=1))
    assert time.step_s == pytest.approx((4.75 + 6.75) / 2)


def test_another_models_run_measures_nothing_here(finished: Path, tmp_path: Path, make_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"method lora, and the plan is for full"):
        measured(finished, make_config("method=full"), 1)
    values = yaml.safe_load((finished / "config.yaml").read_text())
    for text, told in (("a: [", "config.yaml is damaged"), (yaml.safe_dump({**values, "new": 1}), "of this version")):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "metrics.jsonl").touch()
        (tmp_path / "other" / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"^[^\n]*{told}[^\n]*$"):
            measured(tmp_path / "other", make_config(), 1)
    (finished / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ConfigError, match="has not finished two steps"):
        measured(finished, make_config(), 1)


def plan(*arguments: str | Path) -> tuple[int, str]:
    # The command forbids the hub by the environment; other tests are not to see it.
    done = CliRunner(env={"HF_HUB_OFFLINE": "1"}).invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stderr if done.exit_code else done.stdout


def test_the_command_on_this_machine_with_a_measured_speed(finished: Path) -> None:
    code, output = plan("--config", "quickstart", "--from", finished, "--supervised-tokens", "1000000")
    assert code == 0, output
    rows = {match[1]: match[2] for match in re.finditer(r"^(\S.*?) {2,}(\S.*?) *$", output, re.MULTILINE)}
    assert rows["a step, s"] == "5.75"
    assert rows["supervised"].endswith("995,460 bits: 3410.98%; rank 35 holds it")
    assert rows["parameters"].startswith("14,592 of 1,775,744 trained")
    assert "2 steps on 1 device(s): 3,413 completion tokens per second sampled and 5,120 learned from" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens-per-s", "1", "2", "--card", "1", "2"), "give one of"),
        (("--tokens-per-s", "1", "0"), "above 0"),
        (("--devices", "80"), "COUNTxGIB"),
        (("lora.rnak=2",), "did you mean lora.rank"),
        (("model.name=./absent",), "not a model directory"),
    ],
)
def test_what_cannot_be_planned_is_said_plainly(arguments: tuple[str, ...], message: str) -> None:
    code, output = plan("--config", "quickstart", *arguments)
    assert (code, message in output) == (2, True), output


def test_the_page_is_what_the_command_prints(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/plan.md shows the command and its output: run again here, from a directory with a config.json alone."""
    assert [path.name for path in qwen.iterdir()] == ["config.json"]
    monkeypatch.chdir(qwen.parent)
    page = (ROOT / "docs" / "plan.md").read_text().partition("## Qwen3-8B-Base")[2]
    block = re.search(r"^    python -m rl_engine\.plan (.*?)\n\n(    .*?)\n\n(?=\S)", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    code, output = plan(*block[1].replace("\\\n", " ").split())
    assert code == 0, output
    assert output.split() == block[2].split()
