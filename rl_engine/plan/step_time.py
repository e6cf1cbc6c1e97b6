"""A step's tokens and operations, and the speed of a device → seconds of sampling and learning.

The speed is measured (in an earlier run), given (tokens per second), or taken from the GPU's data sheet, which gives a
bound. Devices work data parallel, as in the engine: groups are dealt out for sampling, completions for learning, and
all wait for the device with the most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.plan.flops import StepFlops
from rl_engine.plan.sizes import Devices, Widths, Workload
from rl_engine.policy.base_model import DTYPES
from rl_engine.run.memory import GIB
from rl_engine.run.records import METRICS, read_metrics
from rl_engine.run.trained_adapter import read_configuration

MEASURED = ("completion/tokens_mean", "time/rollout_s", "time/learn_s", "time/grade_s", "time/sync_s")
"""What a speed is computed from; of the first three, none can be 0."""


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
    """Completion tokens per second that one device samples and learns from."""

    sampling: float
    learning: float
    other_s: float = 0.0
    source: str
    completion_tokens: int | None = None
    """Mean completion length in the same measurement, as far as the plan's run allows it."""

    def predict(self, work: Workload, devices: Devices) -> StepTime:
        tokens = work.episodes * work.completion_tokens
        sampled_share = math.ceil(work.groups / devices.count) / work.groups
        learned_share = math.ceil(work.episodes / devices.count) / work.episodes
        return StepTime(
            sampling_s=tokens * sampled_share / self.sampling,
            learning_s=tokens * learned_share / self.learning,
            other_s=self.other_s,
        )


def measured(run: Path, config: Config, devices: int) -> Throughput:
    """The measured speed of an earlier run, over all its steps but the first, which includes the engine's warm-up.

    Raises `ConfigError` if the run has no such steps, used another model or method, or sampled further ahead, so that
    it waited for only a part of its sampling; or if its metrics.jsonl lacks a duration or has an impossible one.
    """
    found = read_configuration(run)
    ran = found[1] if found else None
    if not isinstance(ran, Config):
        raise ConfigError(
            f"--from: {run} is not a training run of this version of rl_engine, so its speed cannot be read; give the "
            "directory of one"
        )
    for key, theirs, ours in (
        ("model.name", ran.model.name, config.model.name),
        ("model.dtype", ran.model.dtype, config.model.dtype),
        ("method", ran.method, config.method),
    ):
        if theirs != ours:
            raise ConfigError(f"--from: {run} was measured with {key} {theirs}, and the plan is for {ours}")
    if ran.rollout.max_staleness > config.rollout.max_staleness:
        raise ConfigError(
            f"--from: {run} was measured with rollout.max_staleness {ran.rollout.max_staleness}, waiting for only a "
            f"part of its sampling, and the plan is for {config.rollout.max_staleness}"
        )
    steps = [line for line in read_metrics(run) if "time/step_s" in line][1:]
    if not steps:
        raise ConfigError(f"--from: {run} has not finished two steps, and the first is not measured: give a longer run")
    length, rollout_s, learn_s, grade_s, sync_s = (_mean_of(name, steps, run) for name in MEASURED)
    tokens = ran.completions_per_step * length
    return Throughput(
        sampling=tokens / rollout_s / devices,
        learning=tokens / learn_s / devices,
        other_s=grade_s + sync_s,
        source=f"measured in {run}, {len(steps)} steps on {devices} device{'s' * (devices > 1)}",
        completion_tokens=min(max(1, round(length)), config.sampling.max_tokens),
    )


def _mean_of(name: str, steps: Sequence[Mapping[str, float]], run: Path) -> float:
    for line in steps:
        if not 0 <= line.get(name, math.nan) < math.inf:
            raise ConfigError(
                f"--from: {run / METRICS} has {name} {line.get(name)} in step {line['step']:.0f}, from which no speed "
                "follows: remove that line, or give another run"
            )
    mean = fmean(line[name] for line in steps)
    if not mean and name in MEASURED[:3]:
        raise ConfigError(f"--from: {run / METRICS} has {name} 0 in every step, from which no speed follows")
    return mean


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSampler:
    """How vLLM's share of a GPU is used, in GiB on each of its cards; activations are counted as part of the cache."""

    weights: float
    kv_cache: float
    cards: int
    """Among which one sampler divides weights, cache and products (`rollout.tensor_parallel_size`)."""

    @classmethod
    def of(cls, config: Config, parameters: int, gib: float) -> GpuSampler:
        cards = config.rollout.tensor_parallel_size
        weights = parameters * DTYPES[config.model.precision].itemsize / cards / GIB
        return cls(weights=weights, kv_cache=max(0.0, config.rollout.card_share * gib - weights), cards=cards)

    def concurrent_sequences(self, config: Config, widths: Widths, work: Workload) -> int:
        """Number of sequences, prompt and completion, that fit the cache at once."""
        size = DTYPES[config.model.precision].itemsize
        one = widths.sequence_bytes(work.prompt_tokens + work.completion_tokens, size)
        return int(min(config.rollout.max_num_seqs, self.kv_cache * self.cards * GIB / one))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """A GPU's peak speed in the model's precision, its memory bandwidth, and the share of the peak that is reached."""

    tflops: float
    tb_per_s: float
    mfu: float

    def predict(
        self, config: Config, widths: Widths, sampler: GpuSampler, work: Workload, flops: StepFlops, devices: Devices
    ) -> StepTime:
        """Learning runs at the given share of the peak. Sampling follows the roofline of decoding: generating one token
        for every sequence takes reading all weights and all cached states once, or doing the multiply-adds, whichever
        takes longer. No engine is faster; how much slower it is must be measured.
        """
        per_s = self.tflops * 1e12 * self.mfu
        rows = math.ceil(work.groups / devices.count) * work.completions
        concurrent = min(rows, sampler.concurrent_sequences(config, widths, work))
        context = work.prompt_tokens + work.completion_tokens / 2
        one = widths.sequence_bytes(context, DTYPES[config.model.precision].itemsize)
        read = sampler.weights * GIB + concurrent * one / sampler.cards
        token_s = max(
            read / (self.tb_per_s * 1e12),
            concurrent * flops.sampling / (work.episodes * work.completion_tokens) / (per_s * sampler.cards),
        )
        learned_share = math.ceil(work.episodes / devices.count) / work.episodes
        return StepTime(
            sampling_s=token_s * work.completion_tokens * rows / concurrent,
            learning_s=(flops.learning + flops.recomputed) * learned_share / per_s,
            other_s=0.0,
        )
