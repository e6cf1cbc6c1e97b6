"""The memory that a pool's adapters and answers take, calculated by hand, and the message if there is too little."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.engine import Sent
from rollout.pool.space import (
    LARGEST_ON_DISK,
    LONGEST_DIRECTORY,
    SMALLEST_STORE,
    FreeSpace,
    lacks,
    needed_bytes,
    store_bytes,
    too_long,
    too_small,
)

GIB = 2**30
# Rank 512 on an 8B model, on policy.
LARGE = Sent(version_bytes=5 * GIB, versions=2, answer_bytes=GIB // 2)
AMPLE = FreeSpace(shared=200 * GIB, scratch=2000 * GIB)


@pytest.fixture(autouse=True)
def _short_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where these tests run, TMPDIR may be too long for Ray."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")


def test_a_store_holds_every_version_and_what_is_under_way() -> None:
    assert needed_bytes(LARGE) == int(1.1 * 10.5 * GIB)
    assert store_bytes(LARGE, 8, AMPLE) == needed_bytes(LARGE) + int(1.1 * 8 * GIB)
    # Completions may spill to disk; versions may not.
    assert store_bytes(LARGE, 8, replace(AMPLE, shared=15 * GIB)) == 15 * GIB
    assert store_bytes(LARGE, 8, replace(AMPLE, shared=1)) == needed_bytes(LARGE)
    assert store_bytes(Sent(), 8, AMPLE) == SMALLEST_STORE


def test_what_fits_is_not_reported() -> None:
    assert lacks(LARGE, 8, AMPLE) is None
    small = Sent(version_bytes=GIB, versions=3)
    assert needed_bytes(small) < LARGEST_ON_DISK
    assert lacks(small, 2, FreeSpace(shared=0, scratch=10 * GIB)) is None
    assert too_small(LARGE, 12 * GIB, "10.0.0.1") is None


def test_of_a_whole_model_few_pieces_are_in_the_store() -> None:
    """An 8B model in bfloat16 can be sent through a store that is too small for a whole version."""
    sent = Sent(version_bytes=16 * GIB, whole_models=True, answer_bytes=GIB)
    assert needed_bytes(sent) == int(1.1 * 2 * GIB)
    assert needed_bytes(replace(sent, version_bytes=GIB // 2)) == int(1.1 * 1.5 * GIB)
    assert lacks(sent, 8, FreeSpace(shared=3 * GIB, scratch=GIB)) is None
    why = too_small(sent, GIB, "10.0.0.1")
    assert why is not None
    assert f"--object-store-memory={needed_bytes(sent)}" in why
    assert "pieces of a whole model of 16.00 GiB are sent there" in why
    assert why.endswith("train an adapter (method=lora)")


@pytest.mark.parametrize(
    ("sent", "free", "words"),
    [
        (
            LARGE,
            replace(AMPLE, shared=8 * GIB),
            ["/dev/shm has 8.00 GiB free", "--shm-size", "lower lora.rank"],
        ),
        (
            replace(LARGE, versions=4),
            replace(AMPLE, scratch=100 * GIB),
            [
                "rollout.workers is 8, and each writes down 4 versions of 5.00 GiB, 160.00 GiB in all",
                "set TMPDIR",
                "lower rollout.max_staleness",
            ],
        ),
        (Sent(version_bytes=GIB), FreeSpace(shared=0, scratch=17 * GIB), ["has 17.00 GiB free"]),
        (Sent(), replace(AMPLE, files=256), ["256 open files", "need 300", "ulimit -n", "rollout.placement=inprocess"]),
    ],
)
def test_what_does_not_fit_is_reported_with_the_way_out(sent: Sent, free: FreeSpace, words: list[str]) -> None:
    why = lacks(sent, 8, free)
    assert why is not None
    assert all(word in why for word in words), why
    assert "\n" not in why


def test_what_just_fits_fits() -> None:
    sent = Sent(version_bytes=GIB, versions=2)
    exact = FreeSpace(shared=0, scratch=2 * 2 * GIB + needed_bytes(sent))
    assert lacks(sent, 2, exact) is None
    why = lacks(sent, 2, replace(exact, scratch=exact.scratch - 1))
    assert why is not None
    assert "max_staleness" not in why  # on policy, there is no version to give up
    assert too_small(sent, needed_bytes(sent), "10.0.0.1") is None
    assert too_small(sent, needed_bytes(sent) - 1, "10.0.0.1") is not None
    longest = Path("/" + (LONGEST_DIRECTORY - 1) * "x")
    assert too_long(longest) is None
    assert too_long(Path(f"{longest}x")) is not None


def test_a_machine_with_too_small_a_store_is_named() -> None:
    """It belongs to a cluster that the run has joined."""
    why = too_small(LARGE, GIB, "10.0.0.1")
    assert why is not None
    assert "the object store of 10.0.0.1 has 1.00 GiB, and 2 versions of 5.00 GiB" in why
    assert f"--object-store-memory={needed_bytes(LARGE)}" in why


def test_too_long_a_directory_is_reported_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/scratch/of/a/user/with/a/name")
    why = lacks(Sent(), 1, AMPLE)
    assert why is not None
    assert why.startswith("/scratch/of/a/user/with/a/name/rl_engine_ray_xxxxxxxx has too long a name")
