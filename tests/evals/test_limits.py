"""Control groups in the layout that containers and schedulers write, in a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evals.launch import limits
from evals.launch.limits import memory_room, thread_settings, usable_cores


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def grouped(tmp_path: Path, line: str, files: dict[str, str]) -> dict[str, Path]:
    """A process in the group that `line` names, with the files of the groups."""
    (tmp_path / "memberships").write_text(f"1:devices:/\n{line}\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    return {"root": tmp_path, "memberships": tmp_path / "memberships"}


@pytest.mark.parametrize(
    ("line", "group", "limit", "used"),
    [
        ("0::/job", "job", "memory.max", "memory.current"),
        ("0::/", ".", "memory.max", "memory.current"),
        ("4:memory:/a/b", "memory/a", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_the_memory_of_a_control_group_is_all_there_is(
    tmp_path: Path, line: str, group: str, limit: str, used: str
) -> None:
    assert memory_room(**grouped(tmp_path, line, {})) is None
    files = {f"{group}/{limit}": "1000", f"{group}/{used}": "700"}
    assert memory_room(**grouped(tmp_path, line, files)) == 300
    assert memory_room(**grouped(tmp_path, line, {f"{group}/memory.stat": "inactive_file 100"})) == 400


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus 2
        ("0::/a/b", {"a/cpu.max": "350000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": "9000000 100000"}, 64),
    ],
)
def test_no_more_threads_than_a_control_group_has_processors_for(
    line: str, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    """Libraries would start 64, and each would wait for a thread that is being throttled."""
    assert usable_cores(**grouped(tmp_path, line, files)) == cores
    assert usable_cores(tmp_path, tmp_path / "none") == 64


@pytest.mark.parametrize(
    ("cores", "environment", "told"),
    [
        (6, {}, {"OMP_NUM_THREADS": "6"}),
        (6, {"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": "6"}),
        (6, {"OMP_NUM_THREADS": "4,2"}, {}),
        (6, {"LOCAL_WORLD_SIZE": "4"}, {"OMP_NUM_THREADS": "1"}),
        (64, {}, {}),
    ],
)
def test_libraries_get_the_core_count_where_they_miscount(
    cores: int, environment: dict[str, str], told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "usable_cores", lambda: cores)
    assert thread_settings(environment) == told
