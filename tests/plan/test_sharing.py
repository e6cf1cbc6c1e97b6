"""Which runs can train together, how they are named, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.concurrent import Place, check_together, plan_together, settle_together
from rl_engine.plan.sharing import groups_of, named, why_not_together
from rl_engine.plan.sizes import Devices
from rl_engine.run.memory import Available

MAY_DIFFER = (
    "lora.rank=64",
    "lora.alpha=8",
    "lora.targets=[q_proj]",
    "lora.init=pissa",
    "lora.plus_ratio=16",
    "optim.lr=0.1",
    "loss.name=cispo",
    "loss.baseline=leave_one_out",
    "seed=3",
    "sampling.temperature=0.7",
    "sampling.n=4",
    "sampling.max_tokens=32",
    "train.steps=3",
    "data.arithmetic.largest=5",
    "rewards.format_weight=0.1",
    "learner.zero_stage=2",
    "eval.every=1",
)


@pytest.mark.parametrize("setting", MAY_DIFFER)
def test_what_an_adapter_of_its_own_is_for_may_differ(setting: str, make_config: Callable[..., Config]) -> None:
    assert why_not_together(make_config(), make_config(setting)) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=full"], "method is full"),
        (["learner.zero_stage=3"], "learner.zero_stage is 3"),
        (["rollout.placement=ray"], "rollout.placement is ray"),
        (["model.dtype=bfloat16"], "model.dtype is bfloat16, and float32 there"),
        (["model.name=Qwen/Qwen3-0.6B"], "model.name is Qwen/Qwen3-0.6B, and embedded there"),
        (["rollout.kv_cache_gib=1"], "rollout.kv_cache_gib is 1.0, and 2.0 there"),
    ],
)
def test_what_is_shared_may_not(settings: list[str], words: str, make_config: Callable[..., Config]) -> None:
    first, second = make_config(), make_config(*settings)
    why = why_not_together(first, second)
    assert why is not None
    assert why.startswith(words)
    assert "\n" not in why
    assert why_not_together(second, first) is not None


def test_runs_fall_into_groups_in_the_order_given(tmp_path: Path) -> None:
    def at(name: str, *settings: str) -> Config:
        return load_config(
            "quickstart.yaml", [f"output_dir={tmp_path}/cells/{name}/run", "model.dtype=float32", *settings]
        )

    half = "model.dtype=bfloat16"
    groups = groups_of([at("a"), at("b", "method=full"), at("c", half), at("d", "lora.rank=8"), at("e", half)])
    assert [[cell.name for cell in group.cells] for group in groups] == [["a", "d"], ["b"], ["c", "e"]]
    assert [line for group in groups for line in group.apart] == [
        "b trains alone: method is full: every weight of its model is its own",
        "c does not train together with a: model.dtype is bfloat16, and float32 there",
    ]
    with pytest.raises(ConfigError, match="two of the configurations have"):
        groups_of([at("a"), at("b"), at("a", "seed=1")])
    assert [cell.name for cell in named([at("a")])] == ["run"]
    inside = [at("a", "output_dir=runs/a"), at("b", "output_dir=runs/a/../a/b")]
    assert [cell.name for cell in named(inside)] == ["runs/a", "runs/a/../a/b"]
    with pytest.raises(ConfigError, match="two of the configurations have"):
        named([at("a", "output_dir=runs/a"), at("b", "output_dir=runs/b/../a")])


def test_memory_is_one_base_and_a_slot_each(make_config: Callable[..., Config], ranks: Ranks) -> None:
    configs = [make_config(f"lora.rank={rank}") for rank in (1, 8, 64, 64)]
    here = replace(Place.here(ranks), room=Available(device_gib=100, host_gib=100))
    alone, concurrent = here.alone(configs[2]), here.together(configs, 3)
    for name in ("base weights", "sampler weights", "KV cache", "libraries", "activations", "grading"):
        assert concurrent.part(name) == alone.part(name)
    for name in ("adapter", "Adam's moments", "sampler adapter"):
        assert concurrent.part(name) == pytest.approx(3 * alone.part(name))
    # Memory that the allocator keeps: a share of the activations for the process, and one for each run in it.
    assert alone.part("heap slack") == pytest.approx(alone.part("activations") / 2)
    assert concurrent.part("heap slack") == pytest.approx(alone.part("activations"))
    assert [settle_together(configs, here, wanted)[1] for wanted in (None, 3, 9)] == [4, 3, 4]
    full = replace(here, room=Available(device_gib=1, host_gib=1))
    with pytest.raises(ConfigError, match=r"4 runs together: .* or let fewer run at once: --together"):
        check_together(configs, full, settle_together(configs, full, None)[1])
    # On a GPU, as many as fit, unless the user gives a number.
    shares = zip((1, 8, 64, 64), (0.5, 0.4, 0.5, 0.6), strict=True)
    configs = [make_config(f"lora.rank={rank}", f"rollout.memory_fraction={share}") for rank, share in shares]
    needed = max(here.together(configs, 2).needed(phase) for phase in ("rollout", "learn", "sync"))
    room = Available(device_gib=needed, host_gib=100)
    assert settle_together(configs, replace(here, room=room, on_gpu=True), None)[1] == 2


def test_a_plan_of_several_says_what_they_need_together(tmp_path: Path) -> None:
    configs = [
        load_config("quickstart.yaml", [f"output_dir={tmp_path}/{name}", "model.dtype=float32", *settings])
        for name, settings in {"a": (), "b": ("lora.rank=8",), "c": ("method=full",)}.items()
    ]
    here, full = plan_together(configs, [])
    assert here["runs"] == "a, b"
    assert here["this machine: together"].startswith("2 of 2 runs at a time")
    assert "2 processes would need" in here["this machine: memory"]
    assert "c trains alone: method is full: every weight of its model is its own" in full
    (card, _) = plan_together(configs, [Devices(count=1, gib=80.0)])
    assert card["1 × 80 GiB: together"].startswith("2 of 2 runs at a time")
