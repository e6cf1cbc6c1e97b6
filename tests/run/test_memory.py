"""The memory that a phase was measured to take, and the memory that is available."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import psutil
import pytest
import torch

from rl_engine.learner.ranks import Ranks
from rl_engine.run import memory as measuring
from rl_engine.run.memory import GIB, PhasePeaks, available


def test_the_peak_of_a_phase_is_seen_after_it_was_freed() -> None:
    gc.collect()  # so that memory left by other tests is not freed in between
    peaks = PhasePeaks(torch.device("cpu"))
    with peaks.peak_gib("rollout"):
        before = psutil.Process().memory_info().rss / GIB
    # 200 MiB that no allocator held before, freed at once.
    with peaks.peak_gib("learn"), mmap.mmap(-1, 200 * 2**20) as fresh:
        for _ in range(200):
            fresh.write(bytes(2**20))
    with peaks.peak_gib("sync"):
        pass
    if not peaks.exact:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert peaks.gib["learn"] - before == pytest.approx(200 / 1024, abs=0.02)
    assert peaks.gib["sync"] == pytest.approx(before, abs=0.02)
    assert list(peaks.metrics()) == ["memory/rollout_gib", "memory/learn_gib", "memory/sync_gib"]
    assert peaks.metrics() == {}  # a phase that a step did not have is not reported again


def test_without_a_mark_to_set_back_the_end_of_the_phase_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says so, once."""
    monkeypatch.setattr(measuring, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    peaks = PhasePeaks(torch.device("cpu"))
    for _ in range(2):
        with peaks.peak_gib("learn"):
            pass
    assert peaks.gib["learn"] == pytest.approx(psutil.Process().memory_info().rss / GIB, abs=0.02)
    assert caplog.text.count("is not writable") == 1


def test_available_is_what_is_free_with_what_this_process_holds(ranks: Ranks) -> None:
    room = available(ranks)
    assert room.device_gib == room.host_gib
    assert 0 < room.device_gib <= psutil.virtual_memory().total / GIB


class Card:
    """A card of 80 GiB as torch and the driver report it. The learner's allocations come and go, and 48 GiB belong to a
    sampler, which sleeps while torch still counts them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.learner = self.peak = 0
        self.asleep = False
        self.others = 1
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: self._mark())
        patch.setattr(torch.cuda, "memory_reserved", lambda device: (self.learner + 48) * GIB)
        patch.setattr(torch.cuda, "max_memory_reserved", lambda device: (self.peak + 48) * GIB)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: ((80 - self.taken) * GIB, 80 * GIB))

    @property
    def taken(self) -> int:
        return self.others + self.learner + (0 if self.asleep else 48)

    def _mark(self) -> None:
        self.peak = self.learner

    def hold(self, gib: int) -> None:
        self.learner = gib
        self.peak = max(self.peak, gib)


def test_on_a_card_a_sleeping_sampler_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    peaks = PhasePeaks(torch.device("cuda:0"))
    card.hold(4)
    with peaks.peak_gib("rollout"):
        pass
    card.asleep = True
    with peaks.peak_gib("learn"):
        card.hold(30)
        card.hold(6)
    assert peaks.gib == {"rollout": 1 + 4 + 48, "learn": 1 + 30}
    # What the learner freed is available, and counted once, although torch has it reserved.
    assert available(Ranks(0, 1, torch.device("cuda:0"))).device_gib == 80 - 1 - 6


def test_a_card_that_failed_is_not_asked_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would answer with the same failure again and hide the first one."""

    def failed(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", failed)
    peaks = PhasePeaks(torch.device("cuda:0"))
    with pytest.raises(ValueError, match="what came first"), peaks.peak_gib("learn"):
        raise ValueError("what came first")
    assert peaks.metrics() == {}
