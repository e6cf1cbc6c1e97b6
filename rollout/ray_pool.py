"""Prompts → completions, by workers on this machine or on many: a Ray actor each, with the in-process engine inside.

The only file that imports ray. Work is handed out in pieces of a few prompts. A piece is sampled as one batch whichever
worker takes it and whenever, so what comes back depends on neither. A worker that dies, hangs, fails or answers from
another adapter is replaced, and its piece is given out again: no prompt is lost and none counted twice.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Read by ray when it is imported: nothing may be reported to anyone from a run.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from rollout.adapters import AdapterError, read_manifest, sha256_of, written_aside
from rollout.config import SamplingConfig
from rollout.engine import BASE, EngineSettings
from rollout.types import AdapterRef, Prompt, RolloutGroup

log = logging.getLogger(__name__)

# The object store holds the adapter and the prompts and completions under way.
STORE_BYTES = 512 * 2**20
# Nobody waits for a worker longer than this at a stretch, so that a signal is heard.
POLL_S = 1.0


class PoolError(RuntimeError):
    """No worker is left; the text ends with what happened to the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How many workers, where, and how long they may take."""

    workers: int
    address: str | None
    """Of a Ray cluster to join; None starts one on this machine."""
    prompts_per_piece: int
    start_timeout_s: float
    """For a worker to start its engine and load the adapter."""
    piece_timeout_s: float
    """For a worker to sample one piece."""
    max_restarts: int
    """Workers replaced over the life of the pool; beyond it the pool goes on with those that are left."""
    cpus_per_worker: int


class Worker:
    """The actor: an engine, and the adapters it was sent."""

    def __init__(self, settings: EngineSettings) -> None:
        from rollout.vllm_engine import VllmEngine  # here, in the actor's own process

        self._directory = TemporaryDirectory(prefix="rl_engine_adapters_")
        self._loaded: list[str] = []
        self._engine = VllmEngine(settings)

    def load_adapter(self, ref: AdapterRef, files: dict[str, bytes]) -> str:
        """Write, verify and load a version; its manifest's digest, as found here."""
        path = Path(self._directory.name) / ref.key
        with written_aside(path) as scratch:
            for name, content in files.items():
                (scratch / name).write_bytes(content)
        self._engine.load_adapter(replace(ref, path=path))
        self._loaded.append(ref.key)
        return sha256_of(path / "manifest.json")

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._engine.unload_adapter(ref)
        self._loaded.remove(ref.key)
        shutil.rmtree(Path(self._directory.name) / ref.key)

    def loaded(self) -> list[str]:
        """Keys of the versions it has, once the engine stands and everything asked before is done."""
        return self._loaded

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        return self._engine.generate(prompts, sampling, adapter, seeds)

    def sleep(self) -> None:
        self._engine.sleep()

    def wake(self) -> None:
        self._engine.wake()


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Consecutive prompts of one call, sampled as one batch."""

    number: int
    prompts: Sequence[Prompt]
    seeds: Sequence[str]


Complaint = str | None


@dataclass(frozen=True, slots=True)
class _Call:
    """What a worker was asked, until when it may take, and what is wrong with an answer, if anything is."""

    worker: Any
    deadline: float
    check: Callable[[Any], Complaint]
    piece: _Piece | None = None
    """What it samples; None for any other request."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A call that is over. `groups` is None where its piece has to be sampled again."""

    piece: _Piece | None
    groups: list[RolloutGroup] | None


@dataclass
class RayPool:
    """An `Engine` of many workers. `close` ends them, and the local cluster if there is one."""

    engine: EngineSettings
    settings: PoolSettings
    lost: int = field(default=0, init=False)
    """Workers that had to be given up."""
    _idle: list[Any] = field(default_factory=list, init=False, repr=False)
    _calls: dict[Any, _Call] = field(default_factory=dict, init=False, repr=False)
    _adapters: dict[str, tuple[AdapterRef, Any]] = field(default_factory=dict, init=False, repr=False)
    """Loaded versions by key, with their files in the object store."""
    _first_cause: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.settings.address is None:
            ray.init(
                num_cpus=self.settings.workers * self.settings.cpus_per_worker,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        else:
            ray.init(address=self.settings.address, log_to_driver=False, logging_level=logging.ERROR)
        for _ in range(self.settings.workers):
            self._start_worker()
        self._until_all_answered()

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """See `Engine.generate`."""
        size = self.settings.prompts_per_piece
        pieces = [
            _Piece(number, prompts[start : start + size], seeds[start : start + size])
            for number, start in enumerate(range(0, len(prompts), size))
        ]
        waiting, done = deque(pieces), dict[int, list[RolloutGroup]]()
        check = partial(_not_sampled_from, adapter.key if adapter else BASE)
        while len(done) < len(pieces):
            while self._idle and waiting:
                worker, piece = self._idle.pop(), waiting.popleft()
                handle = worker.generate.remote(piece.prompts, sampling, adapter, piece.seeds)
                self._expect(handle, worker, self.settings.piece_timeout_s, check, piece)
            for ended in self._next_ended():
                if ended.piece is not None and ended.groups is None:
                    waiting.appendleft(ended.piece)
                elif ended.piece is not None and ended.groups is not None:
                    done[ended.piece.number] = ended.groups
        return [group for number in range(len(pieces)) for group in done[number]]

    def load_adapter(self, ref: AdapterRef) -> None:
        """See `Engine.load_adapter`: every worker gets the files, checks them and says what it has."""
        if ref.key in self._adapters:
            raise AdapterError(f"{ref.key} is already loaded: names are never reused")
        if sha256_of(ref.path / "manifest.json") != ref.sha256:
            raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
        names = ["manifest.json", *read_manifest(ref.path)["files"]]
        files = ray.put({name: (ref.path / name).read_bytes() for name in names})
        # Known before they are asked: a worker that takes the place of another loads it too.
        self._adapters[ref.key] = (ref, files)
        self._ask_all("load_adapter", ref, files, check=partial(_not_loaded, ref.sha256))

    def unload_adapter(self, ref: AdapterRef) -> None:
        self._adapters.pop(ref.key, None)
        self._ask_all("unload_adapter", ref)

    def sleep(self) -> None:
        self._ask_all("sleep")

    def wake(self) -> None:
        self._ask_all("wake")

    def close(self) -> None:
        for worker in [*self._idle, *(call.worker for call in self._calls.values())]:
            ray.kill(worker)
        ray.shutdown()

    def _ask_all(self, verb: str, *arguments: Any, check: Callable[[Any], Complaint] = lambda _: None) -> None:
        """Ask every worker, and wait until each has answered or been replaced."""
        self._until_all_answered()
        workers, self._idle = self._idle, []
        for worker in workers:
            handle = getattr(worker, verb).remote(*arguments)
            self._expect(handle, worker, self.settings.start_timeout_s, check)
        self._until_all_answered()

    def _start_worker(self) -> None:
        """A new worker with every loaded version. Ray queues the calls until the engine stands."""
        on_gpu = ray.cluster_resources().get("GPU", 0) > 0
        remote: Any = ray.remote(
            num_cpus=self.settings.cpus_per_worker,
            num_gpus=self.engine.tensor_parallel_size if on_gpu else 0,
            max_restarts=0,
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": str(self.settings.cpus_per_worker),
                    # Each engine would bind its threads to the same first cores.
                    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                }
            },
        )(Worker)
        worker = remote.remote(self.engine)
        for ref, files in self._adapters.values():
            worker.load_adapter.remote(ref, files)
        loaded = [ref.key for ref, _ in self._adapters.values()]
        self._expect(
            worker.loaded.remote(),
            worker,
            self.settings.start_timeout_s,
            lambda keys: None if keys == loaded else f"it has {keys} loaded, not {loaded}",
        )

    def _expect(
        self,
        handle: Any,
        worker: Any,
        timeout_s: float,
        check: Callable[[Any], Complaint],
        piece: _Piece | None = None,
    ) -> None:
        self._calls[handle] = _Call(worker, time.monotonic() + timeout_s, check, piece)

    def _until_all_answered(self) -> None:
        while self._calls:
            self._next_ended()

    def _next_ended(self) -> list[_Ended]:
        """Calls that ended since last asked. A worker whose answer is missing or wrong is given up.

        Raises `PoolError` when no worker is left.
        """
        if not self._calls and not self._idle:
            raise PoolError(f"no sampling worker is left ({self.lost} were lost). The first: {self._first_cause}")
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=POLL_S) if self._calls else ([], [])
        now = time.monotonic()
        late = [handle for handle, call in self._calls.items() if call.deadline < now and handle not in ready]
        ended = []
        for handle in [*ready, *late]:
            call = self._calls.pop(handle)
            answer, complaint = _answer(handle) if handle in ready else (None, "it did not answer in time")
            complaint = complaint or call.check(answer)
            if complaint is None:
                self._idle.append(call.worker)
            else:
                self._give_up(call.worker, complaint)
            ended.append(_Ended(call.piece, None if complaint else answer))
        return ended

    def _give_up(self, worker: Any, cause: str) -> None:
        """End a worker and, while restarts are left, start another in its place."""
        self.lost += 1
        self._first_cause = self._first_cause or cause
        ray.kill(worker)
        replaced = self.lost <= self.settings.max_restarts
        then = "another takes its place" if replaced else f"{len(self._idle) + len(self._calls)} are left"
        log.warning("a sampling worker was lost, %s; %s", cause, then)
        if replaced:
            self._start_worker()


def _not_sampled_from(adapter: str, groups: Sequence[RolloutGroup]) -> Complaint:
    found = {completion.adapter for group in groups for completion in group.completions}
    return None if found == {adapter} else f"it sampled from {', '.join(sorted(found))} when asked for {adapter}"


def _not_loaded(sha256: str, found: str) -> Complaint:
    return None if found == sha256 else f"the version it loaded has digest {found[:12]}…, not {sha256[:12]}…"


def _answer(handle: Any) -> tuple[Any, Complaint]:
    """What a call returned, or why it did not."""
    try:
        return ray.get(handle, timeout=POLL_S), None
    except RayTaskError as error:
        return None, f"it failed: {error.cause!r}"
    except RayError as error:
        # Of an actor that died, the first line says how; what follows is Ray's advice.
        return None, f"it died or its answer was lost: {str(error).splitlines()[0]}"
