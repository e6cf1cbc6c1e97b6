"""Configuration → the bytes sent to and from a pool's workers, and whether this machine has room for them."""

from __future__ import annotations

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.policy.base_model import DTYPES, load_meta_model
from rl_engine.policy.lora.targets import coverage_of
from rollout.engine import Sent
from rollout.pool.space import FreeSpace, lacks
from rollout.work_items import LARGEST_PIECE

FP32 = 4
# Size of a pickled sampled token: its id, its log-probability and its characters.
TOKEN_BYTES = 20


def transfer_of(config: Config) -> Sent:
    """Upper bounds on what a run's workers are sent and what they return."""
    evaluation = config.eval
    most = LARGEST_PIECE if evaluation.prompts_per_piece == "auto" else evaluation.prompts_per_piece
    tokens = max(
        config.training_piece * config.sampling.n * config.sampling.max_tokens,
        most * evaluation.n * (evaluation.max_tokens or config.sampling.max_tokens) if evaluation.suites else 0,
    )
    return Sent(
        version_bytes=_version_bytes(config),
        whole_models=config.method == "full",
        # The new version arrives before the oldest is dropped.
        versions=config.rollout.max_staleness + 2,
        answer_bytes=tokens * TOKEN_BYTES,
    )


def _version_bytes(config: Config) -> int:
    meta_model = load_meta_model(config.model)
    if config.method == "full":
        weights = sum(parameter.numel() for parameter in meta_model.parameters())
        return int(weights) * DTYPES[config.model.dtype].itemsize
    return coverage_of(meta_model, config.lora).published * FP32


def check_room(config: Config) -> None:
    """Raises `ConfigError` if this machine has no room to send adapters to a pool on it. The machines of an existing
    cluster are checked when it is joined."""
    if config.rollout.placement != "ray" or config.rollout.address is not None:
        return
    workers = config.rollout.workers
    assert workers != "max"  # only a cluster allows that
    if (why := lacks(transfer_of(config), workers, FreeSpace.here())) is not None:
        raise ConfigError(why)
