"""The interface between the training loop and whatever samples: everything the loop may ask of a rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rollout.config import WHOLE_CARD, SamplingConfig
from rollout.types import AdapterRef, Completion, Prompt, RolloutGroup, TokenScores
from rollout.work_items import PromptBatch, Request

# The values vLLM allows. Padding beyond the adapter's rank costs speed, so the smallest value that fits is used.
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(eq=False)
class InFlight:
    """A batch of completions requested at once, in order, each finished or still pending. Other batches may be in
    flight at the same time."""

    count: int
    assemble: Callable[[list[Completion]], list[RolloutGroup]]
    """All completions → the groups, one per prompt."""
    _sampled: dict[int, Completion] = field(default_factory=dict, init=False)
    _failure: Exception | None = field(default=None, init=False)

    @property
    def left(self) -> int:
        """Number of completions still pending."""
        return self.count - len(self._sampled)

    @property
    def done(self) -> bool:
        return self._failure is not None or not self.left

    def take(self, place: int, completion: Completion) -> None:
        assert place not in self._sampled
        self._sampled[place] = completion

    def fail(self, error: Exception) -> None:
        """Give the batch up: whoever asks for its groups gets this error, and the other batches go on."""
        self._failure = error

    def groups(self) -> list[RolloutGroup]:
        """Assemble the groups; call only when it is done. Raises what it failed with."""
        assert self.done
        if self._failure is not None:
            raise self._failure
        return self.assemble([self._sampled[place] for place in range(self.count)])


class Engine(Protocol):
    """Samples completions from the base model or from a loaded adapter."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """Sample one group of `sampling.n` completions per prompt, in the order of the prompts.

        `seeds` has one string per prompt. On CPU the completions are a function of the seed, the prompt, the adapter
        and the batch.
        """
        ...

    def load_adapter(self, ref: AdapterRef) -> None:
        """Make a published version available under `ref.key`. Raises if its files differ from what was published."""
        ...

    def unload_adapter(self, ref: AdapterRef) -> None: ...

    def sleep(self) -> None:
        """Release the device's memory to the learner until `wake`; does nothing if memory is not shared."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """Shut down the engine. It must not be used afterwards."""
        ...


class ExtendingEngine(Engine, Protocol):
    """An engine that can also continue completions that a smaller limit, maybe under another version, cut off."""

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """Continue each completion until it finishes or has `sampling.max_tokens` tokens; `seeds` as in `generate`."""
        ...


class StreamingEngine(ExtendingEngine, Protocol):
    """An engine that accepts further work while it samples and returns each batch when it is done."""

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """Queue a batch, with the arguments of `generate`; samples nothing yet. Earlier batches continue alongside."""
        ...

    def begin_extending(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """Queue a batch to continue, with the arguments of `extend`; samples nothing yet."""
        ...

    def advance(self) -> list[InFlight]:
        """Sample one token for everything in flight. Returns the batches finished since the last call, including those
        that finished while `generate` or `extend` sampled alongside. A batch without rows is done from the start and is
        never returned.

        After an exception, a request to stop included, the engine may be good for nothing but `close`. Between two
        calls it is safe to leave: the next call continues what is in flight.
        """
        ...


class ScoringEngine(Engine, Protocol):
    """An engine that can also score given tokens. Training does not use this."""

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: AdapterRef | None
    ) -> list[TokenScores]:
        """Score the continuation of each (context, continuation) pair, in order. One adapter serves all rows.

        Raises `ValueError` for a row with an empty context or continuation, or longer than `max_model_len` − 1.
        """
        ...


class PoolEngine(Engine, Protocol):
    """An engine that samples while its owner does something else."""

    lost: int
    """Workers given up so far."""

    @property
    def alive(self) -> int:
        """Number of workers that are sampling or ready to."""
        ...

    def where(self) -> str:
        """The machines the workers are on, as text for the user."""
        ...

    def mark(self) -> None:
        """Start counting for `figures`."""
        ...

    def figures(self) -> dict[str, float]:
        """How busy the workers were since `mark`: see `Activity.figures`."""
        ...

    def submit(self, batch: PromptBatch) -> Request:
        """Request what `generate` returns, from a version that is loaded and stays loaded until the answer is there.

        Requests start in the order they are submitted, urgent ones and `generate` before the rest.
        """
        ...

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """Continue every completion that a request leaves unfinished, up to `sampling.max_tokens` tokens, work item by
        work item as they arrive. The answer contains the complete groups."""
        ...

    def collect(self, request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        """Wait for the groups of a request, one per prompt in order. Returns None if they are not there in time.

        Raises `PoolError` if they never will be.
        """
        ...


class EngineError(RuntimeError):
    """The sampler cannot continue; the message gives the first cause."""


class NanError(EngineError):
    """The model computes NaN. Whichever engine samples from these weights would."""


class PoolError(EngineError):
    """A pool of workers cannot continue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Upper bounds, in bytes, on what a pool and its workers exchange."""

    version_bytes: int = 0
    versions: int = 2
    """Versions that a worker holds at once."""
    whole_models: bool = False
    """Whether a version holds all weights of a model: see `rollout/pool/versions.py` for how it travels."""
    answer_bytes: int = 0
    """The answer to one work item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How many workers a pool has, where they run, and how long they may take."""

    workers: int | None
    """None for as many as the cluster has room for at any time."""
    address: str | None
    """The address of a Ray cluster to join; None starts one on this machine."""
    cpus_per_worker: int
    gpus_per_worker: int = 0
    cards: tuple[str, ...] = ()
    """CUDA, if the run starts its own cluster: this machine's cards for the workers, as `visible_cards` names them."""
    prompts_per_piece: int
    start_timeout_s: float
    """Longest time for a worker to be scheduled, to start its engine, or to load an adapter."""
    completions_at_once: int = 1
    """A worker accepts another work item while it samples fewer completions than this; 1 means one item at a time.
    Rounding depends on what is sampled alongside, so on a CPU, where results must repeat bit for bit, an item is
    sampled alone. Values above 1 require a `StreamingEngine`."""
    piece_timeout_s: float
    """Longest time for a worker to sample one work item, whatever it samples alongside."""
    sent: Sent = Sent()
    max_restarts: int
    """A pool without workers gives up after more failures than this with no work item sampled in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings an engine is started with."""

    model: str
    """Directory or hub id."""
    dtype: Literal["bfloat16", "float32"]
    revision: str | None = None
    max_model_len: int
    """Prompt and completion together, in tokens."""
    lora_rank: int
    """Largest rank of any adapter it will load; 0 for no adapters."""
    max_loras: int = 1
    """Adapters that may sample in the same batch."""
    own_products: bool = True
    """CPU only: use our adapter kernels (`rollout/vllm/few_adapters.py`); off, vLLM's own, for comparison."""
    max_num_seqs: int = 512
    kv_cache_gib: float = 2.0
    memory_fraction: float = WHOLE_CARD
    """CUDA only: fraction of the memory of each of its cards."""
    tensor_parallel_size: int = 1
    sleep: bool = False
    seed: int = 0
    ranks: int = 1
    """Processes under one launcher that each hold an engine of this run."""
    models_are_checked: bool = False
    """Whether the caller already verified a whole model's files: a pool does so once per machine."""


def smallest_allowed_rank(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM accepts for an adapter of this rank."""
    for allowed in VLLM_LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"lora.rank is {rank}; the sampler serves ranks up to {VLLM_LORA_RANKS[-1]}")


def sample_seed(seed: str, sample: int, start: int = 0) -> int:
    """The seed of one completion of a group: 63 bits of a hash, so that neighbouring seeds are unrelated.

    A continuation after `start` tokens gets another seed: the same one would repeat the same draws.
    """
    name = f"{seed}/{sample}/{start}" if start else f"{seed}/{sample}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
