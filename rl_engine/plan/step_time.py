"""A step's tokens and operations, and how fast a card is → seconds of sampling and learning.

The speed is measured (a run of one's own), given (tokens a second), or the card's data sheet, which gives a bound. Data
parallel over cards, as the engine works: groups of completions are dealt out to be sampled, completions to be learned
from, and the card with most of them is waited for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.plan.budget import StepFlops, Workload
from rl_engine.plan.memory import Widths
from rl_engine.policy.base_model import DTYPES
from rl_engine.run.peaks import GIB
from rl_engine.run.records import METRICS, read_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """Cards of one kind.

    Example: `Devices(count=8, gib=80.0)`
    """

    count: int
    gib: float

    @classmethod
    def parse(cls, text: str) -> Devices:
        """`8x80` or `8x80GiB`. Raises `ConfigError` for anything else."""
        count, _, gib = text.lower().removesuffix("gib").partition("x")
        try:
            devices = cls(count=int(count), gib=float(gib))
        except ValueError as error:
            raise ConfigError(f"--devices: {text!r} is not COUNTxGIB, as in 8x80") from error
        if devices.count < 1 or not 0 < devices.gib < math.inf:
            raise ConfigError(f"--devices: {text!r}; a count of at least 1 and a memory above 0 GiB are wanted")
        return devices


def busiest(items: int, count: int) -> float:
    """The share of the items that the card with most of them has."""
    return -(-items // count) / items


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
    """Completion tokens a second of one card, sampled and learned from."""

    sampling: float
    learning: float
    other_s: float = 0.0
    source: str
    completion_tokens: int | None = None
    """Mean length that was measured with it."""

    def predict(self, work: Workload, devices: Devices) -> StepTime:
        tokens = work.episodes * work.completion_tokens
        return StepTime(
            sampling_s=tokens * busiest(work.groups, devices.count) / self.sampling,
            learning_s=tokens * busiest(work.episodes, devices.count) / self.learning,
            other_s=self.other_s,
        )


def measured(run: Path, config: Config, cards: int) -> Throughput:
    """What a run of one's own did, over its steps after the first, which has the engine's warm-up in it.

    Raises `ConfigError` where there is no such run, it has no steps, or it had another model or method.
    """
    if not (run / METRICS).is_file() or not (run / "config.yaml").is_file():
        raise ConfigError(f"--from: {run} is not a run's directory: {METRICS} and config.yaml are wanted")
    ran = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
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
        sampling=tokens / mean("time/rollout_s") / cards,
        learning=tokens / mean("time/learn_s") / cards,
        other_s=mean("time/grade_s") + mean("time/sync_s"),
        source=f"measured in {run}, {len(steps)} steps on {cards} device(s)",
        completion_tokens=round(mean("completion/tokens_mean")),
    )


def kv_bytes(widths: Widths, size: int) -> int:
    """Keys and values of one token, in a precision of `size` bytes."""
    return 2 * widths.layers * widths.kv_heads * widths.head_dim * size


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSampler:
    """How vLLM's share of a card is used, in GiB; its activations come out of the cache's part."""

    weights: float
    kv_cache: float
    tokens: int
    """That the cache holds."""

    @classmethod
    def of(cls, config: Config, widths: Widths, parameters: int, gib: float) -> CardSampler:
        size = DTYPES[config.model.dtype].itemsize
        weights = parameters * size / GIB
        room = max(0.0, config.rollout.memory_fraction * gib - weights)
        return cls(weights=weights, kv_cache=room, tokens=int(room * GIB / kv_bytes(widths, size)))

    def side_by_side(self, config: Config, work: Workload) -> int:
        """Whole sequences that fit the cache at once."""
        whole = work.prompt_tokens + work.completion_tokens
        return min(config.rollout.max_num_seqs, self.tokens // whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """A card's peak in the model's precision, its memory's bandwidth, and the share of the peak that is reached."""

    tflops: float
    tb_per_s: float
    mfu: float

    def predict(
        self, config: Config, widths: Widths, sampler: CardSampler, work: Workload, flops: StepFlops, devices: Devices
    ) -> StepTime:
        """Learning at the share of the peak. Sampling by the roofline of decoding: a token of every sequence needs all
        weights and their keys and values read once, or its products computed, whichever takes longer. No engine is
        faster; how much slower it is must be measured.
        """
        per_s = self.tflops * 1e12 * self.mfu
        rows = -(-work.groups // devices.count) * work.completions
        together = min(rows, sampler.side_by_side(config, work))
        context = work.prompt_tokens + work.completion_tokens / 2
        read = sampler.weights * GIB + together * context * kv_bytes(widths, DTYPES[config.model.dtype].itemsize)
        token_s = max(
            read / (self.tb_per_s * 1e12), together * flops.sampling / (work.episodes * work.completion_tokens) / per_s
        )
        return StepTime(
            sampling_s=token_s * work.completion_tokens * rows / together,
            learning_s=(flops.learning + flops.again) * busiest(work.episodes, devices.count) / per_s,
            other_s=0.0,
        )
