"""Whole models in the pool: checked once per machine, sent in pieces to machines that do not see the files, only the
newest kept."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl_engine.learner.learner import Learner
from rollout.adapters import AdapterError, AdapterStore
from rollout.config import SamplingConfig
from rollout.pool.space import PIECE_BYTES, PIECES_KEPT
from rollout.pool.worker import PoolWorker
from rollout.types import AdapterRef, Problem, Prompt
from rollout.vllm import start_engine as make_vllm
from rollout.work_items import PromptBatch
from tests.helpers.pools import SAMPLING, PoolMaker, expected, log_of, prompt_of, seeds
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WEIGHTS = os.urandom(5_500)


def published(root: Path, version: int) -> AdapterRef:
    """A version whose weights make several pieces, with an empty file beside them."""

    def write(directory: Path) -> None:
        (directory / "weights").write_bytes(WEIGHTS + bytes([version]))
        (directory / "added_tokens").touch()

    return AdapterStore(root / "adapters").publish(version, write, {"kind": "full", "rank": 0, "weights": "weights"})


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The versions that workers were asked to look for, once per request."""
    from rollout.pool.worker_handle import WorkerHandle

    monkeypatch.setattr("rollout.pool.ray_pool.PING_EVERY_S", 0.2)
    asked, look = [], WorkerHandle.look

    def noted(self: WorkerHandle, ref: AdapterRef, *rest: Any) -> Any:
        asked.append(ref.key)
        return look(self, ref, *rest)

    monkeypatch.setattr(WorkerHandle, "look", noted)
    return asked


@pytest.fixture
def elsewhere(looked: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The workers do not see the publishing directory. The sizes in bytes of everything that is put into the store."""
    import ray

    from rollout.pool.worker_handle import WorkerHandle

    put, look, sizes = ray.put, WorkerHandle.look, []

    def noted(content: Any) -> Any:
        sizes.append(len(content))
        return put(content)

    monkeypatch.setattr("rollout.pool.versions.PIECE_BYTES", 1_000)
    monkeypatch.setattr(ray, "put", noted)
    monkeypatch.setattr(
        WorkerHandle, "look", lambda self, ref, *rest: look(self, replace(ref, path=Path("/none")), *rest)
    )
    return sizes


def copies(pool: Any, key: str) -> int:
    """The number of workers that have a copy of the version's files."""
    return sum((worker.files / key).is_dir() for worker in pool._workers if worker.find())


def test_workers_that_see_the_files_read_them_there(make_pool: PoolMaker, tmp_path: Path, looked: list[str]) -> None:
    """Only one of them checks the files; a worker that starts later gets only the newest version."""
    pool = make_pool(workers=3, cpus_per_worker=0)
    until(lambda: pool.alive == 3)
    prompts = [prompt_of(number, "slow") for number in range(6)]
    for version in (0, 1):
        ref = published(tmp_path, version)
        pool.load_adapter(ref)
        assert pool.generate(prompts, SAMPLING, ref, seeds(prompts)) == expected(prompts, ref)
        until(lambda: all(worker.loaded == {ref.key} for worker in pool._workers))  # noqa: B023 - called at once
    assert looked == ["policy-v000000", "policy-v000001"]
    assert len({pid for pid, _, _ in log_of(tmp_path)}) == 3
    assert copies(pool, "policy-v000001") == 0
    holder = next(iter(pool._versions["policy-v000001"]._copies.values())).holder
    os.kill(holder.pid, signal.SIGKILL)
    until(lambda: pool.lost == 1 and pool.alive == 3)
    until(lambda: all(worker.loaded == {"policy-v000001"} for worker in pool._workers))
    assert pool.generate(prompts, SAMPLING, ref, seeds(prompts)) == expected(prompts, ref)
    assert looked[2:] == ["policy-v000001"]
    assert (ref.path / "weights").is_file()
    # Earlier weights are gone from every engine.
    with pytest.raises(AdapterError, match=r"policy-v000000 is not loaded; loaded are \['policy-v000001'\]"):
        pool.submit(PromptBatch(prompts, SAMPLING, replace(ref, version=0), seeds(prompts)))


def test_a_machine_without_the_files_gets_them_once_in_pieces(
    make_pool: PoolMaker, tmp_path: Path, looked: list[str], elsewhere: list[int]
) -> None:
    pool = make_pool(workers=2, cpus_per_worker=0)
    until(lambda: pool.alive == 2)
    prompts = [prompt_of(number, "slow") for number in range(4)]
    for version in (0, 1):
        ref, elsewhere[:] = published(tmp_path, version), []
        pool.load_adapter(ref)
        assert pool.generate(prompts, SAMPLING, ref, seeds(prompts)) == expected(prompts, ref)
        until(lambda: all(worker.loaded == {ref.key} for worker in pool._workers))  # noqa: B023 - called at once
        # An empty file, six pieces of the weights of which the last is smaller, and the manifest.
        assert sorted(elsewhere)[-5:] == [1_000] * 5
        assert len(elsewhere) == 8
        assert not pool._versions[ref.key]._in_store
    # Once before the pieces are sent and once after.
    assert looked == ["policy-v000000"] * 2 + ["policy-v000001"] * 2
    until(lambda: (copies(pool, "policy-v000000"), copies(pool, "policy-v000001")) == (0, 1))
    holder = next(iter(pool._versions[ref.key]._copies.values())).holder
    os.kill(holder.pid, signal.SIGKILL)
    until(lambda: pool.lost == 1 and pool.alive == 2)
    until(lambda: all(worker.loaded == {ref.key} for worker in pool._workers))
    assert pool.generate(prompts, SAMPLING, ref, seeds(prompts)) == expected(prompts, ref)
    assert len(elsewhere) == 16


def test_a_model_that_was_damaged_on_the_way_never_samples(
    make_pool: PoolMaker, tmp_path: Path, elsewhere: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from rollout.engine import PoolError

    put = ray.put
    pool = make_pool(max_restarts=0)
    monkeypatch.setattr(ray, "put", lambda piece: put(piece + 1 if len(piece) == 1_000 else piece))
    ref, prompts = published(tmp_path, 0), [prompt_of(0)]
    pool.load_adapter(ref)
    with pytest.raises(PoolError, match=r"no sampling worker is left.* 1 failure.*sha256 differs"):
        pool.generate(prompts, SAMPLING, ref, seeds(prompts))
    assert not (tmp_path / "log").exists()


def test_a_worker_without_room_says_so_before_it_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker: Any = SimpleNamespace(scratch=SimpleNamespace(path=tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(OSError, match=r"whole-v000003 takes 16,000,000,000 more bytes, .* 1,000,000,000 free: set TM"):
        PoolWorker.take_piece(worker, "whole-v000003", "model.safetensors", 0, b"weights", 16 * 10**9)
    assert list(tmp_path.iterdir()) == []


def test_the_pieces_under_way_are_small() -> None:
    """A whole 8B model in bfloat16 is 16 GB."""
    assert PIECE_BYTES * PIECES_KEPT <= 2**30


def test_workers_sample_what_the_engine_in_process_samples(
    make_pool: PoolMaker,
    make_learner: Callable[..., Learner],
    whole_model_engine: Any,
    tokenizer: Any,
    tmp_path: Path,
    elsewhere: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, after each of two versions, the second of which is sent in pieces."""
    monkeypatch.setattr("rollout.pool.versions.PIECE_BYTES", 2**20)
    texts = ("3+4=?", "9+8+1=?", "7-5=?", "2+2=?")
    prompts = [
        Prompt(problem=Problem(id=text, text=text, answer=""), text=text, token_ids=tuple(tokenizer(text)["input_ids"]))
        for text in texts
    ]
    sampling, store = SamplingConfig(n=4, max_tokens=24), AdapterStore(tmp_path / "adapters", name="in_the_pool")
    learner = make_learner("method=full", "optim.lr=1e-4")
    pool = make_pool(whole_model_engine.settings, make_vllm, start_timeout_s=400, piece_timeout_s=400)
    for version in (1, 2):
        for parameter in learner.parameters.values():
            parameter.data += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version))
        weights = learner.weights()
        ref = store.publish(
            version,
            lambda directory: learner.trainable.write(directory, weights),  # noqa: B023 - called at once
            learner.trainable.manifest_entries(),
        )
        whole_model_engine.load_adapter(ref)
        pool.load_adapter(ref)
        alone = [
            group
            for start in (0, 2)
            for group in whole_model_engine.generate(
                prompts[start : start + 2], sampling, ref, seeds(prompts)[start : start + 2]
            )
        ]
        assert pool.generate(prompts, sampling, ref, seeds(prompts)) == alone
        assert {completion.adapter for group in alone for completion in group.completions} == {ref.key}
    assert max(elsewhere) == 2**20
