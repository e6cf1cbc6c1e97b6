"""Configuration with `auto` values → the resolved one, which runs and is recorded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rl_engine.plan.card import settle_card, settle_precision, settle_rate
from rl_engine.plan.concurrent import Place, settle_together
from rl_engine.run.console import RunConsole
from rl_engine.run.origin.inputs import pin_revision
from rl_engine.run.resumption import began_with, settings_before
from rl_engine.sampling.transfer import check_room
from rollout.hub import commit_of


def resolve_settings(config: Config, ranks: Ranks, *, resume: bool) -> Config:
    """Resolve every `auto` that can be resolved before the data is read.

    Raises `ConfigError` if this machine has no room to send adapters to a pool of workers on it.
    """
    config = ranks.broadcast(settle_card(_but_for_the_card(config, ranks, resume=resume), ranks))
    check_room(config)
    return config


def resolve_together(
    configs: Sequence[Config], ranks: Ranks, wanted: int | None, *, resume: bool
) -> tuple[list[Config], int]:
    """Like `resolve_settings`, for runs that share a sampler. Also returns how many are in progress at a time:
    `wanted`, or as many as the machine allows."""
    configs = [_but_for_the_card(config, ranks, resume=resume) for config in configs]
    settled, at_once = ranks.broadcast(settle_together(configs, Place.here(ranks), wanted))
    for config in settled:
        check_room(config)
    return settled, at_once


def _but_for_the_card(config: Config, ranks: Ranks, *, resume: bool) -> Config:
    config = settle_precision(config, ranks.device.type, resume=resume)
    config = settle_rate(config, RunConsole(quiet=not ranks.is_main, steps=config.train.steps), resume=resume)
    return resolve_pieces(config, resume=resume)


def pinned(configs: Sequence[Config], *, resume: bool) -> list[Config]:
    """The configurations, of runs that share a base model, with its commit on the hub. Runs that begin take the one
    that resumed runs began with.

    Raises `ConfigError` if resumed runs began with different ones.
    """
    found = [pin_revision(config, resume=resume) for config in configs]
    if len({config.model.revision for config in found}) == 1:
        return found
    resumed = [resume and settings_before(Path(config.output_dir)) is not None for config in found]
    commits = {
        config.model.revision or commit_of(config.model.name): config.output_dir
        for config in itertools.compress(found, resumed)
    }
    if len(commits) > 1:
        told = ", ".join(f"{run} with {commit}" for commit, run in commits.items())
        raise ConfigError(
            f"model.name ({found[0].model.name}): the runs began with different commits of it ({told}): resume each "
            "by a command of its own"
        )
    commit = next(iter(commits), found[0].model.revision)
    return [
        config if goes_on else config.with_values("model", revision=commit)
        for config, goes_on in zip(found, resumed, strict=True)
    ]


def resolve_pieces(config: Config, *, resume: bool) -> Config:
    """Replace `auto` in `rollout.prompts_per_piece` by a number if workers sample.

    The size of a work item affects rounding, and so the numbers of a run: a resumed run keeps the size it began with,
    however many workers it has now.
    """
    rollout = config.rollout
    if rollout.prompts_per_piece != "auto":
        return config
    found = began_with(Path(config.output_dir), "rollout", "prompts_per_piece") if resume else None
    if not isinstance(found, int):
        found = "auto" if rollout.placement == "inprocess" else config.training_piece
    return config.with_values("rollout", prompts_per_piece=found)


def resolve_eval_pieces(config: Config, problems: int, *, resume: bool) -> Config:
    """Like `resolve_pieces`, for `eval.prompts_per_piece`, once the number of problems per evaluation is known."""
    if config.eval.prompts_per_piece != "auto" or config.rollout.placement == "inprocess" or not problems:
        return config
    found = began_with(Path(config.output_dir), "eval", "prompts_per_piece") if resume else None
    piece = found if isinstance(found, int) else config.eval_piece(problems)
    return config.with_values("eval", prompts_per_piece=piece)
