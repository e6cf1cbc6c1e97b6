"""Several runs on one card: as many at a time as it has room for, which may be one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_engine.config import Config, load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.concurrent import Place, check_together, lines_together, plan_together
from rl_engine.plan.memory import PHASES, check_fits
from rl_engine.plan.sizes import Devices
from rl_engine.run.memory import GIB, Available
from rl_engine.sampling.placement import start_shared_engine
from rl_engine.sweep.placement import estimate_together
from rl_engine.train.resolve import resolve_settings, resolve_together

ON_CARD = Ranks(0, 1, torch.device("cuda:0"))
SETTINGS = ("train.problems_per_step=16", "sampling.n=8", "sampling.max_tokens=3000", "optim.lr=1e-5")
ROOMY, TIGHT, SMALL = 80.0, 40.0, 16.0
"""In GiB: a card on which the sampler of an 8B model stays awake, one on which it has to sleep, and one that is too
small."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Give the machine a card with the given GiB."""

    def give(gib: float) -> None:
        class Card:
            total_memory = gib * GIB

        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card())
        for module in ("card", "concurrent"):
            room = Available(device_gib=gib - 0.5, host_gib=256.0)
            monkeypatch.setattr(f"rl_engine.plan.{module}.available", lambda _, room=room: room)

    return give


@pytest.fixture
def runs(tmp_path: Path) -> list[Config]:
    return [
        load_config("deepmath.yaml", [*SETTINGS, f"lora.rank={rank}", f"output_dir={tmp_path}/{rank}"])
        for rank in (1, 2, 4)
    ]


def test_a_card_with_room_for_one_run_takes_one_at_a_time(card: Callable[[float], None], runs: list[Config]) -> None:
    """The sampler sleeps while the run learns, as it would alone. Awake beside three learners, it would need more than
    there is."""
    card(TIGHT)
    alone = resolve_settings(runs[2], ON_CARD, resume=False)
    assert alone.rollout.sleep is True
    settled, at_once = resolve_together(runs, ON_CARD, None, resume=False)
    assert at_once == 1
    assert {(each.rollout.sleep, each.rollout.memory_fraction) for each in settled} == {
        (True, alone.rollout.memory_fraction)
    }
    place = Place.here(ON_CARD)
    check_together(settled, place, at_once)
    for each in settled:
        check_fits(place.alone(each), place.room)
    assert lines_together(settled, place, at_once) == {
        "together": "1 of 3 runs at a time, on one base model and one sampler"
    }


def test_a_card_with_room_for_all_keeps_the_sampler_awake(card: Callable[[float], None], runs: list[Config]) -> None:
    card(ROOMY)
    settled, at_once = resolve_together(runs, ON_CARD, None, resume=False)
    assert (at_once, {each.rollout.sleep for each in settled}) == (3, {False})
    check_together(settled, Place.here(ON_CARD), at_once)


def test_what_was_asked_for_and_does_not_fit_is_refused(card: Callable[[float], None], runs: list[Config]) -> None:
    card(TIGHT)
    settled, at_once = resolve_together(runs, ON_CARD, 2, resume=False)
    with pytest.raises(ConfigError, match=r"^2 runs together: .*; or let fewer run at once: --together$"):
        check_together(settled, Place.here(ON_CARD), at_once)
    with pytest.raises(ConfigError, match=r"^together=2: .* or give a smaller together$"):
        estimate_together(runs, 2, 1)


def test_a_card_without_room_for_one_run_is_refused(card: Callable[[float], None], runs: list[Config]) -> None:
    card(SMALL)
    settled, at_once = resolve_together(runs, ON_CARD, None, resume=False)
    assert at_once == 1
    with pytest.raises(ConfigError, match=r"^this run would need about"):
        check_together(settled, Place.here(ON_CARD), at_once)


def test_the_sampler_sleeps_for_all_if_it_has_to_for_one(card: Callable[[float], None], runs: list[Config]) -> None:
    """One sampler serves the runs one after the other, with one share that suffices for the largest of them."""
    card(TIGHT)
    light = load_config("qwen3_math.yaml", [*SETTINGS, "sampling.max_tokens=256", "output_dir=light"])
    heavy = load_config("qwen3_math.yaml", [*SETTINGS, "sampling.max_tokens=16000", "output_dir=heavy"])
    sleeps = {resolve_settings(each, ON_CARD, resume=False).rollout.sleep for each in (light, heavy)}
    assert sleeps == {False, True}
    settled, at_once = resolve_together([light, heavy], ON_CARD, 1, resume=False)
    assert (at_once, {each.rollout.sleep for each in settled}) == (1, {True})
    check_together(settled, Place.here(ON_CARD), at_once)


def test_the_plan_says_what_the_run_will_do(card: Callable[[float], None], runs: list[Config]) -> None:
    for gib in (ROOMY, TIGHT):
        card(gib)
        _, at_once = resolve_together(runs, ON_CARD, None, resume=False)
        (told,) = plan_together(runs, [Devices(count=1, gib=gib)])
        assert told[f"1 × {gib:g} GiB: together"].startswith(f"{at_once} of 3 runs at a time")


def test_the_engine_that_they_share_sleeps_for_one_at_a_time(
    card: Callable[[float], None], runs: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("rollout.vllm.engine.VllmEngine", started.append)
    for gib in (TIGHT, ROOMY):
        card(gib)
        settled, at_once = resolve_together(runs, ON_CARD, None, resume=False)
        start_shared_engine(settled, ON_CARD, 4096, at_once)
    asleep, awake = started
    assert (asleep.sleep, asleep.max_loras) == (True, 1)
    assert (awake.sleep, awake.max_loras) == (False, 3)


def test_one_at_a_time_needs_what_the_largest_needs_alone(card: Callable[[float], None], runs: list[Config]) -> None:
    card(TIGHT)
    settled, at_once = resolve_together(runs, ON_CARD, None, resume=False)
    place = Place.here(ON_CARD)
    together, alone = place.together(settled, at_once), place.alone(settled[2])
    for phase in PHASES:
        assert together.needed(phase) == pytest.approx(alone.needed(phase))
