"""What `auto` resolves to on cards of several sizes, and what is refused there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config
from typer.testing import CliRunner

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError, read_config
from rl_engine.config.sft import SftConfig
from rl_engine.learner.ranks import Ranks
from rl_engine.plan import card
from rl_engine.plan.__main__ import app as plan
from rl_engine.plan.card import sampler_line, settle_card, settle_precision, settle_share
from rl_engine.plan.memory import PHASES, check_fits, estimate
from rl_engine.policy.attention import PACKED_SHARED, VARLEN
from rl_engine.policy.base_model import attention_of, layout_of
from rl_engine.run.memory import GIB, Available

CUDA = torch.device("cuda:0")
MIDDLE = ("train.problems_per_step=16", "sampling.n=8", "sampling.max_tokens=3000")
"""128 completions of 3,000 tokens."""


@pytest.fixture(scope="module")
def qwen() -> nn.Module:
    """The shape of Qwen2.5-1.5B."""
    model_config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(model_config)
    return model


def test_a_small_model_on_a_large_card_needs_no_sleep(qwen: nn.Module) -> None:
    config = load_config("deepmath.yaml", MIDDLE)
    assert (config.rollout.memory_fraction, config.rollout.sleep) == ("auto", "auto")
    settled = settle_share(config, qwen, 1, 80.0)
    assert settled.rollout.sleep is False
    memory = estimate(settled, qwen, 1, gpu_gib=80.0)
    needed = max(memory.needed(phase) for phase in PHASES)
    # All memory but the margin is used, or the sampler has nine tenths of the card.
    assert 74 < needed <= 76.001
    assert sampler_line(settled) == f"{settled.rollout.card_share:.0%} of the card, awake while the learner works"


def test_where_both_do_not_fit_the_sampler_sleeps(qwen: nn.Module) -> None:
    settled = settle_share(load_config("deepmath.yaml", MIDDLE), qwen, 1, 24.0)
    assert settled.rollout.sleep is True
    memory = estimate(settled, qwen, 1, gpu_gib=24.0)
    assert 0.9 * 24 < memory.needed("rollout") <= 0.9501 * 24
    check_fits(memory, Available(device_gib=24.0, host_gib=64.0))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("rollout.memory_fraction=0.3",), (0.3, False)),
        (("rollout.memory_fraction=0.9",), (0.9, True)),
        (("rollout.memory_fraction=0.3", "rollout.sleep=true"), (0.3, True)),
        (("rollout.memory_fraction=0.9", "rollout.sleep=false"), (0.9, False)),
    ],
)
def test_what_was_given_stays(given: tuple[str, ...], found: tuple[float, bool], qwen: nn.Module) -> None:
    """A sampler whose share does not fit beside the learner sleeps. If it was told not to, the run is refused."""
    rollout = settle_share(load_config("deepmath.yaml", [*MIDDLE, *given]), qwen, 1, 80.0).rollout
    assert (rollout.memory_fraction, rollout.sleep) == found


def test_a_share_is_of_what_is_free(qwen: nn.Module) -> None:
    """Another process holds half of the card. The rest is divided, in fractions of the whole card."""
    config = load_config("deepmath.yaml", [*MIDDLE, "rollout.sleep=true"])
    settled = settle_share(config, qwen, 1, 80.0, free_gib=40.0)
    assert 35 < estimate(settled, qwen, 1, gpu_gib=80.0).needed("rollout") <= 36


def test_a_card_of_its_own_is_a_workers_to_fill(qwen: nn.Module) -> None:
    pooled = settle_share(load_config("deepmath.yaml", [*MIDDLE, "rollout.placement=ray"]), qwen, 1, 80.0)
    assert pooled.rollout.memory_fraction == 0.9
    assert sampler_line(pooled) == "90% of a card of its own for each worker"
    # The recorded configuration can be run again.
    assert pooled.rollout.sleep == "auto"


def test_a_card_without_room_is_refused_by_the_estimate(qwen: nn.Module) -> None:
    settled = settle_share(load_config("deepmath.yaml", MIDDLE), qwen, 1, 6.0)
    memory = estimate(settled, qwen, 1, gpu_gib=6.0)
    with pytest.raises(ConfigError, match="this run would need about"):
        check_fits(memory, Available(device_gib=6.0, host_gib=64.0))


def test_on_a_cpu_nothing_is_shared_and_precision_is_float32() -> None:
    config = settle_precision(load_config("quickstart.yaml"), "cpu")
    assert config.model.dtype == "float32"
    assert settle_card(config, Ranks(0, 1, torch.device("cpu"))) is config


def test_the_rank_settles_on_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 24 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card())
    monkeypatch.setattr(card, "available", lambda ranks: Available(device_gib=23.0, host_gib=64.0))
    config = settle_precision(load_config("quickstart.yaml"), "cuda")
    assert config.model.dtype == "bfloat16"
    settled = settle_card(config, Ranks(0, 1, CUDA))
    assert settled.rollout.card_share == pytest.approx(0.85, abs=0.05)
    assert settled.rollout.sleep is False
    written = yaml.safe_load(settled.to_yaml())
    assert (written["model"]["dtype"], written["rollout"]["sleep"]) == ("bfloat16", False)


@pytest.mark.parametrize("name", ["quickstart.yaml", "gsm8k.yaml", "smollm2_arithmetic.yaml"])
def test_float32_with_an_adapter_is_refused_on_a_card(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.dtype is float32, .*: give bfloat16, or auto [^\n]*$"):
        settle_precision(load_config(name, ["model.dtype=float32"]), "cuda")
    whole = load_config(name, ["model.dtype=float32", "method=full"])
    assert settle_precision(whole, "cuda").model.dtype == "float32"


def test_supervised_training_samples_nothing_and_may_be_float32() -> None:
    config = read_config(SftConfig, "embedded.yaml", ["method=lora", "model.name=embedded"])
    assert settle_precision(config, "cuda").model.dtype == "float32"
    chosen = config.with_values("model", dtype="auto")
    assert settle_precision(chosen, "cuda").model.dtype == "bfloat16"


def test_a_resumed_run_keeps_the_precision_that_it_began_in(tmp_path: Path) -> None:
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(settle_precision(config, "cuda").to_yaml())
    assert settle_precision(config, "cpu", resume=True).model.dtype == "bfloat16"
    assert settle_precision(config, "cpu").model.dtype == "float32"


def test_a_run_of_a_cpu_does_not_go_on_in_float32_on_a_card(tmp_path: Path) -> None:
    """`auto` is no way out: on resume it means the precision that the run began in."""
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(settle_precision(config, "cpu").to_yaml())
    with pytest.raises(ConfigError, match=rf"16-bit values, and the run in {tmp_path} began in .* on a CPU$"):
        settle_precision(config, "cuda", resume=True)


def test_a_card_that_does_not_compute_in_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    config = settle_precision(load_config("quickstart.yaml"), "cuda")
    with pytest.raises(ValueError, match=r"^model\.dtype is bfloat16, which Tesla V100 does not support"):
        settle_card(config, Ranks(0, 1, CUDA))


def test_shared_prompts_on_a_card_lie_in_rows_without_padding() -> None:
    overrides = ["learner.layout=shared_prompt", "model.dtype=bfloat16"]
    config = load_config("quickstart.yaml", overrides)
    assert (layout_of(config, CUDA), attention_of(config, CUDA)) == (PACKED_SHARED, VARLEN)
    with pytest.raises(ConfigError, match=r"learner\.layout is shared_prompt, which on CUDA .*layout=padded or auto"):
        layout_of(load_config("quickstart.yaml", [*overrides, "model.dtype=float32", "method=full"]), CUDA)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.dtype=float32"], "model.dtype is float32"),
        (["method=full", "model.dtype=float32", "learner.layout=shared_prompt"], "learner.layout is"),
    ],
)
def test_a_plan_for_cards_refuses_what_a_run_there_would(overrides: list[str], words: str) -> None:
    for devices in (["--devices", "1x80"], ["--devices", "8x24"]):
        told = CliRunner().invoke(plan, ["--config", "quickstart.yaml", *overrides, *devices])
        assert (told.exit_code, words in told.output) == (2, True), told.output


def test_a_plan_shows_what_auto_comes_to() -> None:
    told = CliRunner().invoke(plan, ["--config", "quickstart.yaml", "--devices", "1x80"])
    assert "embedded, bfloat16, method lora" in told.output
    assert "awake" in told.output
