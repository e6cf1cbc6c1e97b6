"""The configuration a run began with and the one it is resumed with → which changes are allowed."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rl_engine.config.fields import fields, value_at
from rl_engine.config.run import Config
from rl_engine.config.sft import SftConfig


class ResumeRule(enum.Enum):
    """How a key may change when a run is resumed."""

    FREE = enum.auto()
    """May change: no trained number depends on it."""
    ROUNDING = enum.auto()
    """May change: the mathematics stay the same, but the order of sums may differ, so bitwise equality ends."""
    LENGTH = enum.auto()
    """May grow: the result equals that of a run planned with the greater length from the start."""
    FIXED = enum.auto()
    """Must not change."""


Table = Mapping[ResumeRule, tuple[str, ...]]
# Keys of both kinds of run.
FIXED = (
    "seed",
    "method",
    "model",
    "data.source",
    "data.name",
    "data.subset",
    "data.split",
    "data.revision",
    "data.task",
    "data.task_settings",
    "data.columns",
    "data.arithmetic",
    "data.limit",
    "data.shuffle",
    "prompt",
    "lora",
    "optim",
)
# Every key of a configuration is listed under exactly one rule, by its own name or that of its section.
TRAIN: Table = {
    ResumeRule.FREE: (
        "output_dir",
        "data.path",  # the contents count: see the digest of the problems
        "rewards.workers",
        "rewards.timeout_s",
        "rewards.memory_mib",
        "rollout.workers",
        "rollout.address",
        "rollout.start_timeout_s",
        "rollout.piece_timeout_s",
        "rollout.max_restarts",
        "rollout.sleep",
        "rollout.memory_fraction",  # CUDA only, where nothing repeats bit for bit anyway
        "rollout.max_kl",
        "rollout.max_logprob_gap",
        "eval",
        "checkpoint",
        "log",
    ),
    ResumeRule.ROUNDING: (
        "rollout.placement",
        "rollout.cpus_per_worker",
        "rollout.prompts_per_piece",
        "rollout.max_num_seqs",
        "rollout.kv_cache_gib",
        "rollout.tensor_parallel_size",
        "learner.zero_stage",
        "learner.offload_optimizer",
        "learner.tokens_per_microbatch",
        "learner.attention",
        "learner.layout",
        "learner.gradient_checkpointing",
    ),
    ResumeRule.LENGTH: ("train.steps",),
    ResumeRule.FIXED: (
        *FIXED,
        "data.mix",
        "data.level",
        "data.replay",
        "data.max_prompt_tokens",
        "sampling",
        "rewards.answer_forms",
        "rewards.format_weight",
        "rewards.format_think",
        "rewards.overlong_weight",
        "rewards.overlong_buffer_tokens",
        "rewards.repetition_weight",
        "rewards.repetition_ngram",
        "rewards.function",
        "rewards.function_arguments",
        "rewards.function_weight",
        "rewards.correct_weight",
        "rewards.mask_truncated",
        "rewards.mask_unscored",
        "rollout.max_staleness",
        "rollout.leg_tokens",
        "loss",
        "learner.updates_per_step",
        "learner.epochs_per_step",
        "train.problems_per_step",
        "train.max_problems_per_step",
    ),
}
SFT: Table = {
    ResumeRule.FREE: ("output_dir", "data.path", "data.test_path", "eval", "checkpoint", "log"),
    ResumeRule.ROUNDING: ("train.microbatch_size", "train.attention", "train.gradient_checkpointing"),
    ResumeRule.LENGTH: ("train.steps", "train.epochs"),
    ResumeRule.FIXED: (
        *FIXED,
        "data.random_pairs",
        "data.chat_template",
        "data.seed",
        "data.test_size",
        "data.max_tokens",
        "data.packing",
        "train.batch_size",
    ),
}
# If left at auto, or unset, a resumed run keeps the values that these were resolved to when it began.
KEPT = ("model.dtype", "model.revision", "optim.lr", "rollout.prompts_per_piece", "eval.prompts_per_piece")
TABLES: Mapping[type[BaseModel], Table] = {Config: TRAIN, SftConfig: SFT}


def rules_of(table: Table, key: str) -> list[ResumeRule]:
    """The rules that a dotted key is listed under: exactly one, in a correct table."""
    parts = key.split(".")
    names = {".".join(parts[: depth + 1]) for depth in range(len(parts))}
    return [rule for rule, entries in table.items() for entry in entries if entry in names]


def fixed_values(config: Config | SftConfig) -> dict[str, Any]:
    """The values that determine a run's numbers, by key."""
    values, table = config.model_dump(mode="json"), TABLES[type(config)]
    return {key: value_at(values, key) for key, _ in fields(type(config)) if rules_of(table, key) == [ResumeRule.FIXED]}


@dataclass(frozen=True, slots=True)
class Changed:
    """A key whose value has changed."""

    key: str
    old: Any
    new: Any
    rule: ResumeRule
    reason: str = ""
    """Why the change is refused, if the rule alone does not say."""

    def __str__(self) -> str:
        return f"{self.key} was {self.old!r} and is {self.new!r}" + (f" ({self.reason})" if self.reason else "")

    @property
    def is_refused(self) -> bool:
        return self.rule is ResumeRule.FIXED or bool(self.reason)


def changes(old: Mapping[str, Any], config: Config | SftConfig) -> list[Changed]:
    """The differences from an earlier run's configuration, a nested mapping; keys that it lacks had their defaults."""
    new, table = config.model_dump(mode="json"), TABLES[type(config)]
    found = []
    for key, info in fields(type(config)):
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        was, now = value_at(old, key, default), value_at(new, key)
        if _plain(was) != _plain(now) and not (now in ("auto", None) and key in KEPT):
            rule = rules_of(table, key)[0]
            reason = _reason(was, now, config) if rule is ResumeRule.LENGTH else ""
            found.append(Changed(key, was, now, rule, reason))
    return found


def _reason(old: Any, new: Any, config: Config | SftConfig) -> str:
    """Why a length may not change like this; empty if it may."""
    if old is None or new is None or new < old:
        return "it may be raised, not lowered"
    if config.optim.schedule != "constant":
        return f"with optim.schedule {config.optim.schedule} the rate of every step depends on it"
    if isinstance(config, SftConfig) and config.data.is_endless:
        return f"without data.limit it says how many examples data.source {config.data.source} makes and shuffles"
    return ""


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
