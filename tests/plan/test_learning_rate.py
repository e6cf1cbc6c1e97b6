"""The rule for the learning rate: the published values, what changes them, and how it explains itself."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3Config

from rl_engine.config import Method
from rl_engine.plan.card import settle_rate
from rl_engine.plan.learning_rate import learning_rate, rate_of_run
from rl_engine.policy.base_model import load_model_config
from rl_engine.run.console import RunConsole

LLAMA_8B, QWEN3_8B, QWEN3_06B = ("llama", 4096), ("qwen3", 4096), ("qwen3", 1024)
EMBEDDED = ("qwen3", 192)


def rate(model: tuple[str, int], method: Method = "lora", steps: int = 1000, *, rl: bool = False) -> float:
    return learning_rate(*model, method=method, steps=steps, reinforcement=rl).value


def said(model: tuple[str, int], method: Method = "lora", steps: int = 1000, *, rl: bool = False) -> str:
    return learning_rate(*model, method=method, steps=steps, reinforcement=rl).describe()


@pytest.mark.parametrize(("model", "published"), [(LLAMA_8B, 2.856e-4), (QWEN3_8B, 4.73e-4), (QWEN3_06B, 5.27e-4)])
def test_supervised_rates_are_those_published(model: tuple[str, int], published: float) -> None:
    assert rate(model) == pytest.approx(published, rel=1e-3)
    assert rate(model, "full") == pytest.approx(published / 10, rel=1e-3)


@pytest.mark.parametrize(("steps", "ratio"), [(99, 15), (100, 10)])
def test_short_runs_of_lora_take_half_as_much_again(steps: int, ratio: int) -> None:
    assert rate(LLAMA_8B, steps=steps) / rate(LLAMA_8B, "full", steps=steps) == pytest.approx(ratio)
    assert rate(LLAMA_8B, "full", steps=steps) == rate(LLAMA_8B, "full")
    assert ("fewer than 100" in said(LLAMA_8B, steps=steps)) == (ratio == 15)


def test_an_unknown_family_gets_the_part_without_family() -> None:
    """The explanation names the family."""
    assert rate(("gemma3", 4096)) == pytest.approx(5e-4)
    assert rate(("gemma3", 1024), rl=True) == pytest.approx(4e-5)
    for rl in (False, True):
        told = said(("gemma3", 4096), rl=rl)
        assert told.count("nothing was fitted to the family 'gemma3'") == 1 + rl  # the supervised rule is told too
        assert "^" not in told
        assert "fitted to the family" not in said(LLAMA_8B, rl=rl)


def test_reinforcement_learning_starts_at_4e_5() -> None:
    """It stays within the recipes' range."""
    assert rate(LLAMA_8B, rl=True) == rate(QWEN3_8B, rl=True) == 4e-5
    assert rate(("llama", 8192), rl=True) == pytest.approx(4e-5 * 2**-0.781)
    # 1.85e-4 and 3.7e-6 before they are limited to the range.
    assert rate(("llama", 576), rl=True) == 8e-5
    assert rate(("llama", 2**17), rl=True) == 1e-5
    assert "kept within the range: 8e-05" in said(("llama", 576), rl=True)
    assert "× (4096/8192)^0.781 = 2.33e-05, since those recipes have hidden size 4096" in said(("llama", 8192), rl=True)
    for words in ("kept within", "those recipes have"):
        assert words not in said(LLAMA_8B, rl=True)
    assert rate(LLAMA_8B, rl=True, steps=57) == 4e-5, "the recipe it comes from is as short"


@pytest.mark.parametrize(("steps", "ratio"), [(57, 15), (300, 10)])
def test_full_fine_tuning_takes_the_same_share_of_it(steps: int, ratio: int) -> None:
    assert rate(QWEN3_8B, "full", steps, rl=True) == pytest.approx(4e-5 / ratio)


def test_a_small_model_gets_no_recipe_and_a_reason() -> None:
    """The explanation also gives the rate of the supervised rule."""
    text = said(EMBEDDED, rl=True)
    assert "hidden size 192 is far below" in text
    assert "hidden size" not in said(QWEN3_8B, rl=True)
    supervised = 5e-5 * 10 * (2000 / 192) ** 0.0775
    assert f"supervised rule: {supervised:.3g}: 5e-05 × 10 (LoRA) × (2000/192)^0.0775 (Qwen)" in text
    assert text.count("tinker-cookbook") == 2


def test_the_rate_of_a_run_counts_its_updates(make_config: Any) -> None:
    """Family and hidden size come from the model's configuration."""
    llama = LlamaConfig(hidden_size=8192)
    config = make_config("train.steps=30", "learner.updates_per_step=3")
    assert rate_of_run(config, llama) == learning_rate("llama", 8192, method="lora", steps=90, reinforcement=True)
    full = make_config("train.steps=30", "learner.updates_per_step=4", "method=full")
    expected = learning_rate("qwen3", 1024, method="full", steps=120, reinforcement=True)
    assert rate_of_run(full, Qwen3Config(hidden_size=1024)) == expected


def test_auto_is_the_rules_and_a_number_is_itself(make_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    auto = make_config("model.name=embedded", "optim.lr=auto")
    console = RunConsole(quiet=False, steps=0)
    assert settle_rate(auto, console).optim.lr == rate_of_run(auto, load_model_config(auto.model)).value
    assert "by rule" in capsys.readouterr().out
    assert settle_rate(auto.with_values("optim", lr=3e-4), console).optim.lr == 3e-4
    assert not capsys.readouterr().out
