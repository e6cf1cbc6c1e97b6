"""A step's tokens and operations, and how fast a device is → seconds of sampling and learning.

The speed is measured (a run of one's own), given (tokens a second), or the GPU's data sheet, which gives a bound. Data
parallel over devices, as the engine works: groups of completions are dealt out to be sampled, completions to be
learned from, and the device with most of them is waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.plan.flops import StepFlops
from rl_engine.plan.sizes import Devices, Widths, Workload
from rl_engine.policy.base_model import DTYPES
from rl_engine.run.peaks import GIB
from rl_engine.run.records import read_metrics
from rl_engine.run.trained import read_configuration


def most_per_device(items: int, devices: int) -> int:
    """The items that the device with most of them is dealt."""
    return math.ceil(items / devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Predicted seconds of one step."""

    sampling_s: float
    learning_s: float
    other_s: float
    """Grading and publishing."""

    @property
    def step_s(self) -> float:
        return self.sampling_s + self.learning_s + self.other_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Completion tokens a second of one device, sampled and learned from."""

    sampling: float
    learning: float
    other_s: float = 0.0
    source: str
    completion_tokens: int | None = None
    """Mean length that was measured with it."""

    @classmethod
    def given(cls, sampling: float, learning: float) -> Throughput:
        return cls(sampling=sampling, learning=learning, source="given by --tokens-per-s")

    def predict(self, work: Workload, devices: Devices) -> StepTime:
        tokens = work.episodes * work.completion_tokens
        sampled_share = most_per_device(work.groups, devices.count) / work.groups
        learned_share = most_per_device(work.episodes, devices.count) / work.episodes
        return StepTime(
            sampling_s=tokens * sampled_share / self.sampling,
            learning_s=tokens * learned_share / self.learning,
            other_s=self.other_s,
        )


def measured(run: Path, config: Config, devices: int) -> Throughput:
    """The speed of a run of one's own, over its steps after the first, which has the engine's warm-up in it.

    Raises `ConfigError` where it has no steps, or had another model or method.
    """
    found = read_configuration(run)
    ran = found[1] if found else None
    if not isinstance(ran, Config):
        raise ConfigError(f"--from: {run} is no run of rl_engine.train of this version: its steps cannot be told")
    for key, theirs, ours in (
        ("model.name", ran.model.name, config.model.name),
        ("model.dtype", ran.model.dtype, config.model.dtype),
        ("method", ran.method, config.method),
    ):
        if theirs != ours:
            raise ConfigError(f"--from: {run} was measured with {key} {theirs}, and the plan is for {ours}")
    steps = [line for line in read_metrics(run) if "time/step_s" in line][1:]
    if not steps:
        raise ConfigError(f"--from: {run} has not finished two steps")

    def mean(name: str) -> float:
        return fmean(line[name] for line in steps)

    tokens = ran.train.problems_per_step * ran.sampling.n * mean("completion/tokens_mean")
    return Throughput(
        sampling=tokens / mean("time/rollout_s") / devices,
        learning=tokens / mean("time/learn_s") / devices,
        other_s=mean("time/grade_s") + mean("time/sync_s"),
        source=f"measured in {run}, {len(steps)} steps on {devices} device(s)",
        completion_tokens=round(mean("completion/tokens_mean")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSampler:
    """How vLLM's share of a GPU is used, in GiB; its activations come out of the cache's part."""

    weights: float
    kv_cache: float

    @classmethod
    def of(cls, config: Config, parameters: int, gib: float) -> GpuSampler:
        weights = parameters * DTYPES[config.model.precision].itemsize / GIB
        return cls(weights=weights, kv_cache=max(0.0, config.rollout.card_share * gib - weights))

    def concurrent_sequences(self, config: Config, widths: Widths, work: Workload) -> int:
        """Sequences of prompt and completion that fit the cache at once."""
        size = DTYPES[config.model.precision].itemsize
        one = widths.sequence_bytes(work.prompt_tokens + work.completion_tokens, size)
        return min(config.rollout.max_num_seqs, int(self.kv_cache * GIB / one))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """A GPU's peak in the model's precision, its memory's bandwidth, and the share of the peak that is reached."""

    tflops: float
    tb_per_s: float
    mfu: float

    def predict(
        self, config: Config, widths: Widths, sampler: GpuSampler, work: Workload, flops: StepFlops, devices: Devices
    ) -> StepTime:
        """Learning at the share of the peak. Sampling by the roofline of decoding: a token of every sequence needs all
        weights and what its sequence keeps read once, or its multiply-adds done, whichever takes longer. No engine is
        faster; how much slower it is must be measured.
        """
        per_s = self.tflops * 1e12 * self.mfu
        rows = most_per_device(work.groups, devices.count) * work.completions
        concurrent = min(rows, sampler.concurrent_sequences(config, widths, work))
        context = work.prompt_tokens + work.completion_tokens / 2
        one = widths.sequence_bytes(context, DTYPES[config.model.precision].itemsize)
        read = sampler.weights * GIB + concurrent * one
        token_s = max(
            read / (self.tb_per_s * 1e12),
            concurrent * flops.sampling / (work.episodes * work.completion_tokens) / per_s,
        )
        learned_share = most_per_device(work.episodes, devices.count) / work.episodes
        return StepTime(
            sampling_s=token_s * work.completion_tokens * rows / concurrent,
            learning_s=(flops.learning + flops.recomputed) * learned_share / per_s,
            other_s=0.0,
        )
