"""Configuration → what samples: an engine in this rank's process, or workers in a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.queue import LocalQueue, RolloutQueue, StreamingQueue
from rl_engine.sampling.sent import sent_by
from rl_engine.sampling.shared_pool import RankSharedPool
from rollout.config import WHOLE_CARD
from rollout.engine import Engine, EngineSettings, PoolSettings, StreamingEngine
from rollout.models import locate_model
from rollout.pool.cards import visible_cards
from rollout.pool.environment import prepare_ray
from rollout.stopping import StopRequest


def start_queue(
    config: Config, ranks: Ranks, max_model_len: int, stop: StopRequest, engine: Engine | None = None
) -> RolloutQueue:
    """What samples for this rank, by an `engine` that is there or by one of its own. Leaves torch's random numbers at
    the run's seed, wherever the engine is.

    Raises `ConfigError` when it cannot be placed so, `PoolError` when no worker starts.
    """
    check_placement(config, ranks)
    queue: RolloutQueue
    if engine is not None:
        queue = LocalQueue(engine, ranks, stop)
    else:
        queue = PLACEMENTS[config.rollout.placement](config, ranks, max_model_len, stop)
    # By now they are vLLM's, or as torch chose for this process. What vLLM draws of them while it samples decides
    # nothing, each completion having a seed of its own, but checkpoints hold their state.
    torch.manual_seed(config.seed)
    return queue


def check_placement(config: Config, ranks: Ranks) -> None:
    """Raises `ConfigError` when the sampler cannot be placed so, as far as that is known before it starts."""
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
    """On a CPU what is sampled together is repeated bit for bit; on a GPU nothing is, and nothing waits for a batch."""
    rollout = config.rollout
    from rollout.vllm import start_engine

    sleep = rollout.sleep is True and ranks.device.type == "cuda"
    engine = start_engine(_engine_settings(config, max_model_len, sleep=sleep, ranks=ranks.count))
    queue = StreamingQueue if ranks.device.type == "cuda" else LocalQueue
    return queue(engine, ranks, stop)


def start_shared_engine(
    configs: Sequence[Config], ranks: Ranks, max_model_len: int, adapters_at_once: int
) -> StreamingEngine:
    """An engine in this rank's process that serves several runs, with room for the largest adapter of any.

    It sleeps for the learner only where one run has it for itself: else others may be at their completions.
    """
    from rollout.vllm import start_engine

    first, *_ = configs  # of the sampler's settings all have one value (`rl_engine/plan/company.py`)
    sleep = first.rollout.sleep is True and ranks.device.type == "cuda"
    settings = _engine_settings(first, max_model_len, sleep=sleep, ranks=ranks.count)
    largest = max(config.lora.served_rank for config in configs)
    return start_engine(replace(settings, lora_rank=largest, max_loras=adapters_at_once))


def _in_workers(config: Config, ranks: Ranks, max_model_len: int, stop: StopRequest) -> RankSharedPool:
    """The main rank drives the workers, and the others hear of what they sampled.

    Where a worker samples one work item at a time, one adapter does, however many are loaded (`max_loras` 1): an item
    is of one version. Where it samples several, no version waits for another's long completions.
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
        sent=sent_by(config),
    )


def _free_cards(config: Config, ranks: Ranks) -> tuple[str, ...]:
    """The cards that this process was given and the learner does not use, by name.

    Raises `ConfigError` when the workers need more.
    """
    rollout = config.rollout
    assert rollout.workers != "max"  # that is of a cluster
    learners = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count))
    free = visible_cards(torch.cuda.device_count())[learners:]
    if rollout.workers * rollout.tensor_parallel_size > len(free):
        raise ConfigError(
            f"rollout.workers {rollout.workers} × rollout.tensor_parallel_size {rollout.tensor_parallel_size} cards "
            f"are wanted, and {learners} learner rank(s) leave {len(free)} of those that CUDA shows here: ask for "
            "fewer workers, or give the address of a cluster in rollout.address"
        )
    return free
