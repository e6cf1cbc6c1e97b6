"""The seam between a step and whatever samples: everything the training loop may ask of a rollout engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rollout.config import WHOLE_CARD, SamplingConfig
from rollout.types import AdapterRef, Completion, Prompt, RolloutGroup, TokenScores
from rollout.work_items import PromptBatch, Request

# vLLM's allowed values; padding above the adapter's own rank costs speed, so the smallest that fits is taken.
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(eq=False)
class InFlight:
    """What an engine was asked for at once: completions in that order, each there or not yet. Others may be asked for
    meanwhile."""

    count: int
    assemble: Callable[[list[Completion]], list[RolloutGroup]]
    """All completions → the groups, one a prompt."""
    _sampled: dict[int, Completion] = field(default_factory=dict, init=False)

    @property
    def left(self) -> int:
        """Completions that are still sampled."""
        return self.count - len(self._sampled)

    @property
    def done(self) -> bool:
        return not self.left

    def take(self, place: int, completion: Completion) -> None:
        assert place not in self._sampled
        self._sampled[place] = completion

    def groups(self) -> list[RolloutGroup]:
        """To be called when all is done."""
        assert self.done
        return self.assemble([self._sampled[place] for place in range(self.count)])


class Engine(Protocol):
    """Samples completions from the base model or from a loaded adapter."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """One group of `sampling.n` completions a prompt, in the order of the prompts.

        `seeds` has one string a prompt. On CPU the completions are a function of it, the prompt, the adapter
        and the batch.
        """
        ...

    def load_adapter(self, ref: AdapterRef) -> None:
        """Make a published version available under `ref.key`. Raises when its files are not what was published."""
        ...

    def unload_adapter(self, ref: AdapterRef) -> None: ...

    def sleep(self) -> None:
        """Give the device's memory to the learner until `wake`; nothing to do where memory is not shared."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None:
        """End the engine. Nothing may be asked of it afterwards."""
        ...


class ExtendingEngine(Engine, Protocol):
    """An engine that also goes on with completions that a smaller limit, and maybe another version, left unfinished."""

    def extend(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        """The groups with every completion finished, or of `sampling.max_tokens` tokens; `seeds` as in `generate`."""
        ...


class StreamingEngine(ExtendingEngine, Protocol):
    """An engine that takes further work while it samples, and gives each batch back when it is there."""

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """Take what `generate` takes; nothing is sampled yet. What was begun earlier goes on beside it."""
        ...

    def begin_extending(
        self, groups: Sequence[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        """Take what `extend` takes, likewise."""
        ...

    def advance(self) -> list[InFlight]:
        """Sample a token of everything that was begun; the batches that are done since the last call, those that became
        so while `generate` or `extend` sampled beside them too. One without rows is done from the start, and not among
        them.

        What is raised out of it, a request to stop too, may leave an engine that can be closed and nothing else.
        Between two calls nothing is lost by leaving: what is begun goes on with the next.
        """
        ...


class ScoringEngine(Engine, Protocol):
    """An engine that also says how likely given tokens are; training asks for no such thing."""

    def score(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: AdapterRef | None
    ) -> list[TokenScores]:
        """Scores of the tokens of each (context, continuation), in order. All rows are served by the one adapter.

        Raises `ValueError` for a row without context or continuation, or longer than `max_model_len` less one.
        """
        ...


class PoolEngine(Engine, Protocol):
    """An engine that samples while its owner does something else."""

    lost: int
    """Workers that had to be given up so far."""

    @property
    def alive(self) -> int:
        """Workers that sample, or could."""
        ...

    def where(self) -> str:
        """On which machines the workers are, for people."""
        ...

    def mark(self) -> None:
        """Count `figures` from here on."""
        ...

    def figures(self) -> dict[str, float]:
        """How busy the workers were since `mark`: see `Activity.figures`."""
        ...

    def submit(self, batch: PromptBatch) -> Request:
        """Ask for what `generate` gives, from a version that is loaded and stays so until it is there.

        What is submitted is begun in this order; what is urgent, and `generate`, before the rest.
        """
        ...

    def extend(self, request: Request, sampling: SamplingConfig, adapter: AdapterRef | None) -> Request:
        """Go on with every completion that a request leaves unfinished, work item by work item as they come, up to
        `sampling.max_tokens` tokens: the answer has the whole groups."""
        ...

    def collect(self, request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        """Wait for the groups of a request, one a prompt in order; None where they are not there in time.

        Raises `PoolError` when they never will be.
        """
        ...


class EngineError(RuntimeError):
    """What samples cannot go on; the text says what happened first."""


class PoolError(EngineError):
    """A pool that cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What goes between a pool and its workers, in bytes at the most."""

    version_bytes: int = 0
    versions: int = 2
    """That a worker has at once."""
    whole_models: bool = False
    """Whether a version is every weight of a model: `rollout/pool/versions.py` says how it travels."""
    answer_bytes: int = 0
    """The answer to one work item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How many workers, where, and how long they may take."""

    workers: int | None
    """None: as many as the cluster has room for, at any time."""
    address: str | None
    """The address of a Ray cluster to join; None starts one on this machine."""
    cpus_per_worker: int
    gpus_per_worker: int = 0
    cards: tuple[str, ...] = ()
    """CUDA, in a cluster of one's own: this machine's cards that are the workers', as `visible_cards` names them."""
    prompts_per_piece: int
    start_timeout_s: float
    """What a worker may take to find its place, start its engine, or load an adapter."""
    completions_at_once: int = 1
    """A worker takes a further work item while it samples fewer completions than this: with 1, when it samples none.
    What is sampled beside others is rounded otherwise, so that on a CPU, where results are repeated bit for bit, an
    item is sampled alone. With more the engine is to be a `StreamingEngine`."""
    piece_timeout_s: float
    """What a worker may take to sample one work item, whatever it samples beside it."""
    sent: Sent = Sent()
    max_restarts: int
    """Incidents without a work item sampled in between, beyond which a pool that has no worker left gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine needs to know to start."""

    model: str
    """Directory or hub id."""
    dtype: Literal["bfloat16", "float32"]
    revision: str | None = None
    max_model_len: int
    """Prompt and completion together, in tokens."""
    lora_rank: int
    """Largest rank it will be given; 0 for none."""
    max_loras: int = 1
    """Adapters that sample side by side."""
    own_products: bool = True
    """CPU only: our arithmetic of adapters (`rollout/vllm/few_adapters.py`); off, vLLM's own, to compare."""
    max_num_seqs: int = 512
    kv_cache_gib: float = 2.0
    memory_fraction: float = WHOLE_CARD
    """CUDA only: share of each of its cards."""
    tensor_parallel_size: int = 1
    sleep: bool = False
    seed: int = 0
    ranks: int = 1
    """Processes of this run that hold an engine each under one launcher."""
    models_are_checked: bool = False
    """Whether who loads a whole model has compared its files with the manifest: a pool does so once a machine."""


def smallest_allowed_rank(rank: int) -> int:
    """The smallest `max_lora_rank` vLLM accepts for an adapter of this rank."""
    for allowed in VLLM_LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"lora.rank is {rank}; the sampler serves ranks up to {VLLM_LORA_RANKS[-1]}")


def sample_seed(seed: str, sample: int, start: int = 0) -> int:
    """The seed of one completion of a group: 63 bits of a hash, so that neighbouring seeds share nothing.

    What goes on after `start` tokens has another: the same would draw the same numbers again.
    """
    name = f"{seed}/{sample}/{start}" if start else f"{seed}/{sample}"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
