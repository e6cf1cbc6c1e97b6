"""An engine, and a pool of two workers → the costs of the parts of sampling, which the simulation takes as input.

Nothing else runs meanwhile. Batches of several sizes, cut off at several lengths, are timed, and the costs of a call, a
sequence, a decoding step and a token are fitted to them (`pool_setting.Decoding`), by non-negative least squares of the
relative error.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls  # type: ignore[import-untyped]

from benchmarks.pool_setting import Decoding
from benchmarks.rollout import write_adapter
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import Engine, EngineSettings, PoolError, PoolSettings
from rollout.types import AdapterRef, Prompt

WORKERS = 2
CUTS = (8, 24, 72)
"""Token limits of the timed batches."""
CANARY_PROMPTS, CANARY_TOKENS = 2, 8
"""Same values as in `rl_engine/train/assemble.py` and `rl_engine/sampling/publish.py`."""
HANDLES = (2, 4096)
"""Numbers of open calls at which the driver is timed."""
DRIVER_REPEATS = 50
Timed = list[tuple[float, npt.NDArray[np.int64]]]
"""(seconds, completion lengths) of each batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Costs in seconds; see `pool_setting.Costs`."""

    worker: Decoding
    worker_error: float
    """Median relative error of the fit."""
    engine: Decoding
    """In process, using all cores."""
    engine_error: float
    all_busy: float
    """Speed of a worker while the other samples a batch of the same size, relative to a worker alone."""
    canary_s: float
    load_s: float
    send_s: float
    answer_s: float
    scan_s: float

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Parts:
        decodings = {name: Decoding(**facts[name]) for name in ("worker", "engine")}
        return cls(**{**facts, **decodings})

    def describe(self) -> str:
        """A description for the user."""
        fits = {"a worker": (self.worker, self.worker_error), "in process": (self.engine, self.engine_error)}
        lines = [
            f"a batch {name}: {d.call_s * 1e3:.1f} ms, {d.sequence_s * 1e3:.2f} a sequence, {d.longest_s * 1e3:.2f} a "
            f"decoding step and {d.token_s * 1e3:.3f} a token (fitted; median error {error:.1%})"
            for name, (d, error) in fits.items()
        ]
        lines.append(
            f"canary {self.canary_s * 1e3:.0f} ms, load {self.load_s * 1e3:.0f}; a worker beside another "
            f"{self.all_busy:.2f} as fast as alone; driver {self.send_s * 1e3:.2f} ms a call, "
            f"{self.answer_s * 1e3:.2f} an answer and {self.scan_s * 1e6:.2f} µs for each call under way"
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the engines are asked to sample."""

    engine: EngineSettings
    prompts: Sequence[Prompt]
    samples: int
    prompts_per_piece: int
    cpus_per_worker: int
    repeats: int


def measure_parts(question: Question) -> Parts:
    """Measure each engine in its own process, because vLLM binds its process to cores."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as process:
        alone = process.submit(time_engine, question).result()
        pool = process.submit(time_pool, question).result()
    return Parts(**alone, **pool)


def fit(timed: Timed) -> tuple[Decoding, float]:
    """Return (costs of the parts, median relative error)."""
    features = np.array([[1, len(lengths), lengths.max(), lengths.sum()] for _, lengths in timed], dtype=float)
    took = np.array([seconds for seconds, _ in timed])
    found, _ = nnls(features / took[:, None], np.ones(len(took)))
    error = float(np.median(np.abs(features @ found / took - 1)))
    return Decoding(**dict(zip(("call_s", "sequence_s", "longest_s", "token_s"), found.tolist(), strict=True))), error


def time_engine(question: Question) -> dict[str, Any]:
    """Time an in-process engine, with batches up to a whole step."""
    from rollout.vllm.engine import VllmEngine

    with closing(VllmEngine(question.engine)) as engine, tempfile.TemporaryDirectory() as scratch:
        adapter = _publish(scratch, question, 0)
        engine.load_adapter(adapter)
        decoding, error = fit(_time_batches(engine, question, adapter, _sizes(len(question.prompts))))
    return {"engine": decoding, "engine_error": error}


def time_pool(question: Question) -> dict[str, Any]:
    """Time two workers, including everything that Ray adds."""
    from rollout.pool.environment import prepare_ray

    prepare_ray(None)
    from rollout.pool.ray_pool import RayPool

    settings = PoolSettings(
        workers=WORKERS,
        address=None,
        cpus_per_worker=question.cpus_per_worker,
        prompts_per_piece=question.prompts_per_piece,
        start_timeout_s=600,
        piece_timeout_s=600,
        max_restarts=0,
    )
    with closing(RayPool(question.engine, settings)) as pool, tempfile.TemporaryDirectory() as scratch:
        while pool.alive < WORKERS:
            if pool.lost:
                raise PoolError(f"one of {WORKERS} workers did not start")
            time.sleep(0.1)
        adapter = _publish(scratch, question, 0)
        pool.load_adapter(adapter)
        decoding, error = fit(_time_batches(pool, question, adapter, _sizes(question.prompts_per_piece)))
        return {
            "worker": decoding,
            "worker_error": error,
            "all_busy": _all_busy(pool, question, adapter),
            **_sync(pool, question, scratch),
            **_driver(),
        }


def _sizes(most: int) -> list[int]:
    """1, 4, 16, … prompts, and `most`."""
    return [*(4**power for power in range(most.bit_length()) if 4**power < most), most]


def _publish(directory: str, question: Question, version: int) -> AdapterRef:
    store = AdapterStore(Path(directory))
    return store.publish(version, lambda place: write_adapter(place, question.engine.model), {"rank": 1})


def _timed(
    engine: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef, seed: str
) -> tuple[float, npt.NDArray[np.int64]]:
    """Return (seconds, completion lengths) of one batch."""
    begin = time.perf_counter()
    groups = engine.generate(prompts, sampling, adapter, [f"{seed}/{index}" for index in range(len(prompts))])
    seconds = time.perf_counter() - begin
    return seconds, np.array([len(c.token_ids) for group in groups for c in group.completions])


def _time_batches(engine: Engine, question: Question, adapter: AdapterRef, sizes: Sequence[int]) -> Timed:
    """Time every size and cut `repeats` times, each time with other completions, after a warm-up round."""
    timed = []
    for repeat in range(question.repeats + 1):
        for size in sizes:
            for cut in CUTS:
                sampling = SamplingConfig(n=question.samples, max_tokens=cut)
                timed.append(_timed(engine, question.prompts[:size], sampling, adapter, f"parts/{repeat}/{cut}"))
    return timed[len(timed) // (question.repeats + 1) :]


def _all_busy(pool: Engine, question: Question, adapter: AdapterRef) -> float:
    """Speed of a worker when both sample the same piece, relative to one sampling it alone; measured alternately."""
    prompts = question.prompts[: question.prompts_per_piece]
    sampling = SamplingConfig(n=question.samples, max_tokens=max(CUTS))
    ratios = []
    for repeat in range(2 * question.repeats):
        alone, lengths = _timed(pool, prompts, sampling, adapter, f"busy/{repeat}")
        both, twice = _timed(pool, [*prompts, *prompts], sampling, adapter, f"busy/{repeat}")
        ratios.append(float(twice.sum()) / both / WORKERS / (float(lengths.sum()) / alone))
    return statistics.median(ratios)


def _sync(pool: Engine, question: Question, directory: str) -> dict[str, float]:
    """Seconds of a canary, and of loading a version, as the extra time of a canary right after it."""
    prompts, canary = question.prompts[:CANARY_PROMPTS], SamplingConfig(n=1, max_tokens=CANARY_TOKENS)
    canaries, loads = [], []
    for version in range(1, 2 * question.repeats + 1):
        ref = _publish(directory, question, version)
        begin = time.perf_counter()
        pool.load_adapter(ref)
        _timed(pool, prompts, canary, ref, "canary")
        behind = time.perf_counter() - begin
        alone, _ = _timed(pool, prompts, canary, ref, "canary")
        canaries.append(alone)
        loads.append(behind - alone)
        pool.unload_adapter(ref)
    return {"canary_s": statistics.median(canaries), "load_s": max(0.0, statistics.median(loads))}


def _driver() -> dict[str, float]:
    """What a call costs the process that sends it and takes its answer, with few and with many other open calls."""
    import ray

    class Quick:
        def answer(self) -> None: ...

        def hang(self) -> None:
            time.sleep(3600)

    quick, slow = (ray.remote(num_cpus=0)(Quick).remote() for _ in range(2))
    ray.get(quick.answer.remote())
    under_way: list[Any] = []
    sends, answers = [], {}
    for count in HANDLES:
        under_way += [slow.hang.remote() for _ in range(count - len(under_way))]
        took = []
        for _ in range(DRIVER_REPEATS):
            begin = time.perf_counter()
            handle = quick.answer.remote()
            sends.append(time.perf_counter() - begin)
            time.sleep(0.01)
            begin = time.perf_counter()
            handles = list(dict.fromkeys([*under_way, handle]))
            # As in `RayPool`.
            ray.wait(handles, num_returns=1, timeout=1.0)
            ready, _ = ray.wait(handles, num_returns=len(handles), timeout=0)
            ray.get(ready)
            took.append(time.perf_counter() - begin)
        answers[count] = statistics.median(took)
    for actor in (quick, slow):
        ray.kill(actor)
    few, many = HANDLES
    scan_s = max(0.0, (answers[many] - answers[few]) / (many - few))
    return {"send_s": statistics.median(sends), "answer_s": answers[few], "scan_s": scan_s}
