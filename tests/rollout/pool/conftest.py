"""One Ray cluster for all tests of the pool, and pools in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout.engine import EngineSettings
from rollout.pool.scratch import ScratchDirectory
from tests.helpers.pools import SETTINGS, PoolMaker, rays_processes, scripted
from tests.helpers.scripted_engine import ScriptedEngine


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Path]:
    """A local cluster for all tests; nothing of it may be left once it is shut down."""
    from rollout.pool.local_cluster import leave_ray, start_ray

    scratch = ScratchDirectory.make("rl_engine_ray_test_")
    start_ray(4, scratch.path)
    yield scratch.path
    # Other tests may have Ray processes too: those of this cluster name its directory, or are children of such a
    # process.
    family: dict[psutil.Process, str] = {}
    for process in rays_processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # a worker that a test has just killed
            if str(scratch.path) in " ".join(process.cmdline()):
                family |= {each: each.name() for each in (process, *process.children(recursive=True))}
    leave_ray()
    scratch.remove()
    _, alive = psutil.wait_procs(list(family), timeout=60)
    assert family
    assert not [family[process] for process in alive]


@pytest.fixture
def make_pool(ray_cluster: Path, tmp_path: Path) -> Iterator[PoolMaker]:
    """Makes pools with a scripted engine, whose script is in `tmp_path`, and by default a single worker."""
    from rollout.pool.ray_pool import RayPool

    made = []

    def make(engine: EngineSettings | None = None, factory: Any = ScriptedEngine, **settings: Any) -> Any:
        made.append(RayPool(engine or scripted(tmp_path), replace(SETTINGS, **{"workers": 1, **settings}), factory))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
