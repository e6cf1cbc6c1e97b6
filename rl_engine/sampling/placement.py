"""Configuration → the sampler: an engine in this rank's process, or workers in a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.queue import LocalQueue, RolloutQueue, StreamingQueue
from rl_engine.sampling.shared_pool import RankSharedPool
from rl_engine.sampling.transfer import transfer_of
from rollout.config import WHOLE_CARD
from rollout.engine import Engine, EngineSettings, PoolSettings, StreamingEngine
from rollout.models import locate_model
from rollout.pool.cards import visible_cards
from rollout.pool.environment import prepare_ray
from rollout.stopping import StopRequest
from rollout.vllm import start_engine


def start_queue(
    config: Config, ranks: Ranks, max_model_len: int, stop: StopRequest, engine: Engine | None = None
) -> RolloutQueue:
    """Start the queue that samples for this rank, on the given `engine` or on a new one. Afterwards torch's random
    state is that of the run's seed, wherever the engine is.

    Raises `ConfigError` when the placement is impossible, `PoolError` when no worker starts.
    """
    check_placement(config, ranks)
    queue: RolloutQueue
    if engine is not None:
        queue = LocalQueue(engine, ranks, stop)
    else:
        queue = PLACEMENTS[config.rollout.placement](config, ranks, max_model_len, stop)
    # By now vLLM has set the random state, or it is torch's default. Numbers that vLLM draws from it while sampling
    # affect nothing, because each completion has a seed of its own, but checkpoints store the state.
    torch.manual_seed(config.seed)
    return queue


def check_placement(config: Config, ranks: Ranks) -> None:
    """Raises `ConfigError` when the placement is impossible, as far as that is known before the sampler starts."""
    rollout = config.rollout
    if rollout.placement == "inprocess":
        if ranks.count > 1 and rollout.tensor_parallel_size > 1:
            raise ConfigError(
                f"rollout.tensor_parallel_size is {rollout.tensor_parallel_size} with {ranks.count} ranks: each rank "
                "holds a sampler of its own; run one rank, or set it to 1"
            )
        return
    if ranks.is_main:
        _pool_settings(config, ranks)


def _in_process(config: Config, ranks: Ranks, max_model_len: int, stop: StopRequest) -> LocalQueue | StreamingQueue:
    """On a CPU, batches are sampled as a whole, which is reproducible bit for bit. A GPU is not reproducible anyway, so
    requests are streamed and none waits for a batch."""
    rollout = config.rollout
    sleep = rollout.sleep is True and ranks.device.type == "cuda"
    engine = start_engine(_engine_settings(config, max_model_len, sleep=sleep, ranks=ranks.count))
    queue = StreamingQueue if ranks.device.type == "cuda" else LocalQueue
    return queue(engine, ranks, stop)


def start_shared_engine(
    configs: Sequence[Config], ranks: Ranks, max_model_len: int, adapters_at_once: int
) -> StreamingEngine:
    """Start an engine in this rank's process that serves several runs, with room for the largest of their adapters.

    It sleeps while a learner works only if one run has it to itself; otherwise other runs may be sampling.
    """
    first, *_ = configs  # all have the same sampler settings (`rl_engine/plan/concurrent.py`)
    sleep = first.rollout.sleep is True and ranks.device.type == "cuda"
    settings = _engine_settings(first, max_model_len, sleep=sleep, ranks=ranks.count)
    largest = max(config.lora.served_rank for config in configs)
    return start_engine(replace(settings, lora_rank=largest, max_loras=adapters_at_once))


def _in_workers(config: Config, ranks: Ranks, max_model_len: int, stop: StopRequest) -> RankSharedPool:
    """The main rank drives the workers, and the other ranks receive what they sampled.

    A worker that samples one work item at a time needs one adapter slot (`max_loras` 1), however many adapters are
    loaded, because an item belongs to one version. A worker that samples several items at a time gets a slot for each
    version, so that no version waits for another's long completions.
    """
    if not ranks.is_main:
        return RankSharedPool(None, ranks, stop)
    settings = _pool_settings(config, ranks)
    prepare_ray(settings.address)
    from rollout.pool.ray_pool import RayPool

    slots = 1 if settings.completions_at_once == 1 else config.rollout.max_staleness + 1
    engine = _engine_settings(config, max_model_len, sleep=False, ranks=1)
    pool = RayPool(replace(engine, max_loras=slots, models_are_checked=True), settings)
    return RankSharedPool(pool, ranks, stop)


PLACEMENTS: dict[str, Callable[[Config, Ranks, int, StopRequest], RolloutQueue]] = {
    "inprocess": _in_process,
    "ray": _in_workers,
}


def _engine_settings(config: Config, max_model_len: int, *, sleep: bool, ranks: int) -> EngineSettings:
    rollout = config.rollout
    return EngineSettings(
        model=locate_model(config.model.name),
        revision=config.model.revision,
        dtype=config.model.precision,
        max_model_len=max_model_len,
        lora_rank=config.lora.served_rank if config.method == "lora" else 0,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        memory_fraction=WHOLE_CARD if rollout.memory_fraction == "auto" else rollout.memory_fraction,
        tensor_parallel_size=rollout.tensor_parallel_size,
        sleep=sleep,
        seed=config.seed,
        ranks=ranks,
    )


def _pool_settings(config: Config, ranks: Ranks) -> PoolSettings:
    rollout = config.rollout
    gpus = rollout.tensor_parallel_size if ranks.device.type == "cuda" else 0
    return PoolSettings(
        workers=None if rollout.workers == "max" else rollout.workers,
        address=rollout.address,
        cpus_per_worker=rollout.cpus_per_worker,
        gpus_per_worker=gpus,
        cards=_free_cards(config, ranks) if gpus and rollout.address is None else (),
        prompts_per_piece=config.training_piece,
        completions_at_once=rollout.max_num_seqs if gpus else 1,
        start_timeout_s=rollout.start_timeout_s,
        piece_timeout_s=rollout.piece_timeout_s,
        max_restarts=rollout.max_restarts,
        sent=transfer_of(config),
    )


def _free_cards(config: Config, ranks: Ranks) -> tuple[str, ...]:
    """The names of the cards that are visible to this process and not used by the learner.

    Raises `ConfigError` when the workers need more.
    """
    rollout = config.rollout
    assert rollout.workers != "max"  # only a cluster allows that
    learners = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
    free = visible_cards(torch.cuda.device_count())[learners:]
    if rollout.workers * rollout.tensor_parallel_size > len(free):
        raise ConfigError(
            f"rollout.workers {rollout.workers} × rollout.tensor_parallel_size {rollout.tensor_parallel_size} needs "
            f"{rollout.workers * rollout.tensor_parallel_size} cards, and the learner's ranks ({learners}) leave "
            f"{len(free)} of those that CUDA shows here: lower rollout.workers, or join a cluster with rollout.address"
        )
    return free
