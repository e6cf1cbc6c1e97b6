"""Configuration → the keys that have no effect, and why.

A user who sets such a key expects something that does not happen, and may train on the wrong data or compare two equal
runs. Effects that depend on the machine or on the model's files (CUDA-only keys, `learner.zero_stage` on one rank,
`lora.expert_rank` without experts) are not checked: a configuration is written on one machine and run on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from datafiles.formats import has_splits, is_file_name
from evals.suites import GENERATOR, SUITES
from rl_engine.config.fields import as_yaml, fields
from rl_engine.config.loss import CLIP_BOUNDS
from rollout.config import SourceConfig
from rollout.models import EMBEDDED, from_home
from rollout.prompts.generated import REASONING_GYM
from rollout.prompts.problems import ARITHMETIC, GENERATED, HUB

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A condition under which some keys have no effect.

    Example: `Rule(keys=("loss.kl_penalty",), depends_on=("loss.kl_coef",), idle=lambda of: of["loss.kl_coef"] == 0,
    why="loss.kl_coef is 0", instead="give loss.kl_coef too")`
    """

    keys: tuple[str, ...]
    """Keys, or sections that stand for all keys in them; keys that a command lacks are skipped."""
    depends_on: tuple[str, ...]
    """The keys that `idle` reads."""
    idle: Callable[[Values], bool]
    """Takes the values of all keys; a key that the command lacks is None."""
    why: str
    instead: str


MAKES_ITS_OWN = GENERATED | {"random_pairs"}
POOL = (
    "rollout.workers",
    "rollout.address",
    "rollout.cpus_per_worker",
    "rollout.prompts_per_piece",
    "eval.prompts_per_piece",
    "rollout.start_timeout_s",
    "rollout.piece_timeout_s",
    "rollout.max_restarts",
)
MEASURING = (
    "eval.every",
    "eval.at_start",
    "eval.limit",
    "eval.n",
    "eval.temperature",
    "eval.top_p",
    "eval.top_k",
    "eval.min_p",
    "eval.max_tokens",
    "eval.prompts_per_piece",
    "eval.data_dir",
)
SUMS = (
    "data.arithmetic.terms",
    "data.arithmetic.largest",
    "data.arithmetic.wording",
    "data.arithmetic.direct_share",
)
# Values accepted although the key has no effect: no evaluations in between if there are none at all, and a former
# default that runs with a pool have in their configuration.
NOTHING: Values = {"eval.every": 0, "rollout.sleep": True}


def _is_here(model: str) -> bool:
    return model == EMBEDDED or (from_home(model) / "config.json").is_file()


def _has_no_file(suite: str) -> bool:
    return SUITES[suite].source == GENERATOR if suite in SUITES else is_file_name(suite)


def _sources(of: Values) -> set[str]:
    return {of["data.source"], *(one.source for one in of["data.mix"] or ())}


def _makes_sums(of: Values) -> bool:
    return ARITHMETIC in _sources(of)


def _asks_sums(of: Values) -> bool:
    """Whether the suite `held_out` consists of sums: it follows the generated training data, and is sums without
    any."""
    return "held_out" in (of["eval.suites"] or ()) and not _sources(of) & GENERATED


def _has_splits(source: str, path: str | None) -> bool:
    return source == HUB if path is None else has_splits(Path(path))


RULES = (
    Rule(
        keys=("together",),
        depends_on=("command",),
        idle=lambda of: of["command"] == "sft",
        why="each cell of command {command} runs alone",
        instead="leave it out, or give command=train",
    ),
    Rule(
        keys=("data.path", "data.test_path", "data.columns"),
        depends_on=("data.source",),
        idle=lambda of: of["data.source"] in MAKES_ITS_OWN,
        why="data.source {data.source} makes its own problems and reads no file",
        instead="give data.source=file too, for a file of your own",
    ),
    Rule(
        keys=("data.name", "data.subset", "data.revision"),
        depends_on=("data.path",),
        idle=lambda of: of["data.path"] is not None,
        why="data.path ({data.path}) is read instead of the hub",
        instead="leave one of the two out",
    ),
    Rule(
        keys=("data.name", "data.subset", "data.revision"),
        depends_on=("data.source",),
        idle=lambda of: of["data.source"] != HUB,
        why="no hub dataset is chosen by name: data.source is {data.source}",
        instead="give data.source=hub too, or leave it out",
    ),
    Rule(
        keys=("data.task", "data.task_settings"),
        depends_on=("data.source",),
        idle=lambda of: of["data.source"] != REASONING_GYM,
        why="no task is generated: data.source is {data.source}",
        instead="give data.source=reasoning_gym too, or leave it out",
    ),
    Rule(
        keys=("data.split",),
        depends_on=("data.source", "data.path"),
        idle=lambda of: not _has_splits(of["data.source"], of["data.path"]),
        why="neither a hub dataset nor a directory of several splits is read: data.source is "
        "{data.source}, data.path {data.path}",
        instead="give data.source=hub too, or leave it out",
    ),
    Rule(
        keys=SUMS,
        depends_on=("data.source", "data.mix", "eval.suites"),
        idle=lambda of: not _makes_sums(of) and not _asks_sums(of),
        why="nothing generates sums: data.source is {data.source}",
        instead="give data.source=arithmetic too, or leave it out",
    ),
    Rule(
        keys=("data.arithmetic.count",),
        depends_on=("data.source", "data.mix"),
        idle=lambda of: not _makes_sums(of),
        why="no sums are generated for training: data.source is {data.source}",
        instead="say how many problems in data.limit",
    ),
    Rule(
        keys=("data.arithmetic.count",),
        depends_on=("data.limit", "data.level"),
        idle=lambda of: of["data.limit"] is not None and of["data.level"] is None,
        why="data.limit ({data.limit}) says how many problems are generated",
        instead="leave one of the two out",
    ),
    Rule(
        keys=("data.arithmetic.count",),
        depends_on=("data.mix", "data.level"),
        idle=lambda of: (
            of["data.level"] is None
            and {one.limit is None for one in of["data.mix"] or () if one.source == ARITHMETIC} == {False}
        ),
        why="every source of sums in data.mix has a limit, which says how many are generated",
        instead="leave one of the two out",
    ),
    Rule(
        keys=("data.random_pairs",),
        depends_on=("data.source",),
        idle=lambda of: of["data.source"] != "random_pairs",
        why="data.source is {data.source}",
        instead="give data.source=random_pairs too, or leave it out",
    ),
    Rule(
        keys=("data.test_path", "eval.every", "eval.at"),
        depends_on=("data.test_size",),
        idle=lambda of: of["data.test_size"] == 0,
        why="data.test_size is 0, so there is nothing to test on",
        instead="give data.test_size too, or leave it out",
    ),
    Rule(
        keys=("eval.at",),
        depends_on=("train.steps",),
        idle=lambda of: of["train.steps"] is not None and all(step > of["train.steps"] for step in of["eval.at"]),
        why="the run ends after train.steps ({train.steps})",
        instead="give steps before that, or leave it out",
    ),
    Rule(
        keys=("data.chat_template",),
        depends_on=("prompt.template",),
        idle=lambda of: of["prompt.template"] != "chat",
        why="prompt.template {prompt.template} writes the prompts",
        instead="give prompt.template=chat, or leave it out",
    ),
    Rule(
        keys=("model.revision",),
        depends_on=("model.name",),
        idle=lambda of: _is_here(of["model.name"]),
        why="model.name {model.name} is read from this machine, not from the hub",
        instead="leave it out",
    ),
    Rule(
        keys=("lora",),
        depends_on=("method",),
        idle=lambda of: of["method"] == "full",
        why="method=full trains every weight and no adapter",
        instead="give method=lora, or leave it out",
    ),
    Rule(
        keys=("lora.numbers",),
        depends_on=("lora.init",),
        idle=lambda of: of["lora.init"] != "tiny",
        why="lora.init {lora.init} trains A and B whole",
        instead="give lora.init=tiny too, or leave it out",
    ),
    Rule(
        keys=("rewards.format_think",),
        depends_on=("rewards.format_weight",),
        idle=lambda of: of["rewards.format_weight"] == 0,
        why="rewards.format_weight is 0, so the form is not rewarded",
        instead="give rewards.format_weight too",
    ),
    Rule(
        keys=("rewards.overlong_buffer_tokens",),
        depends_on=("rewards.overlong_weight",),
        idle=lambda of: of["rewards.overlong_weight"] == 0,
        why="rewards.overlong_weight is 0, so length costs nothing",
        instead="give rewards.overlong_weight too",
    ),
    Rule(
        keys=("rewards.repetition_ngram",),
        depends_on=("rewards.repetition_weight",),
        idle=lambda of: of["rewards.repetition_weight"] == 0,
        why="rewards.repetition_weight is 0, so repetition costs nothing",
        instead="give rewards.repetition_weight too",
    ),
    Rule(
        keys=("rewards.function_weight",),
        depends_on=("rewards.function",),
        idle=lambda of: of["rewards.function"] is None,
        why="there is no rewards.function to weigh",
        instead="give rewards.function too",
    ),
    Rule(
        keys=POOL,
        depends_on=("rollout.placement",),
        idle=lambda of: of["rollout.placement"] == "inprocess",
        why="it applies to workers, and rollout.placement inprocess has none",
        instead="give rollout.placement=ray too, or leave it out",
    ),
    Rule(
        keys=("rollout.sleep",),
        depends_on=("rollout.placement",),
        idle=lambda of: of["rollout.placement"] == "ray",
        why="the workers of rollout.placement ray have their cards to themselves and never sleep",
        instead="leave it out",
    ),
    Rule(
        keys=("loss.correction_min", "loss.correction_max"),
        depends_on=("loss.sampler_correction", "loss.name"),
        idle=lambda of: (
            of["loss.sampler_correction"] == "none"
            or (of["loss.sampler_correction"] == "auto" and of["loss.name"] not in CLIP_BOUNDS)
        ),
        why="loss.sampler_correction {loss.sampler_correction} corrects nothing with loss.name {loss.name}",
        instead="give loss.sampler_correction too",
    ),
    Rule(
        keys=("loss.kl_penalty",),
        depends_on=("loss.kl_coef",),
        idle=lambda of: of["loss.kl_coef"] == 0,
        why="loss.kl_coef is 0, so there is no KL penalty",
        instead="give loss.kl_coef too",
    ),
    Rule(
        keys=("learner.attention",),
        depends_on=("learner.layout",),
        idle=lambda of: of["learner.layout"] == "shared_prompt",
        why="learner.layout shared_prompt has an attention of its own",
        instead="give learner.layout=padded or packed, or leave it out",
    ),
    Rule(
        keys=MEASURING,
        depends_on=("eval.suites",),
        idle=lambda of: of["eval.suites"] == (),
        why="eval.suites is empty, so nothing is evaluated",
        instead="give eval.suites too, as eval.suites=[held_out,gsm8k]",
    ),
    Rule(
        keys=("eval.top_p", "eval.top_k", "eval.min_p"),
        depends_on=("eval.temperature",),
        idle=lambda of: of["eval.temperature"] == 0,
        why="eval.temperature is 0: the likeliest token is taken",
        instead="give eval.temperature too",
    ),
    Rule(
        keys=("eval.data_dir",),
        depends_on=("eval.suites",),
        idle=lambda of: bool(of["eval.suites"]) and all(map(_has_no_file, of["eval.suites"])),
        why="none of eval.suites ({eval.suites}) is read from it",
        instead="leave it out",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A key that has no effect, with a value other than its default."""

    key: str
    value: Any
    depends_on: tuple[str, ...]
    line: str
    """Message: key, value, reason and way out."""


def idle_keys(config: BaseModel) -> Iterator[Idle]:
    """The keys of a configuration that have no effect, each once, by the first rule that applies. Keys in a source of
    `data.mix` are reported as `data.mix`, because a list is always set as a whole."""
    infos = dict(fields(type(config)))
    values = _Values({key: attrgetter(key)(config) for key in infos})
    yield from _idle(infos, values, lambda text: text)
    of_source = {f"data.{key}": info for key, info in fields(SourceConfig)}
    for number, source in enumerate(values["data.mix"] or ()):
        own = {key: attrgetter(key.removeprefix("data."))(source) for key in of_source}
        for one in _idle(of_source, _Values(values | own | {"data.mix": ()}), lambda text: text.replace("data.", "")):
            yield replace(one, key="data.mix", depends_on=(), line=f"data.mix.{number}: {one.line}")


def _idle(infos: Mapping[str, FieldInfo], values: _Values, label_of: Callable[[str], str]) -> Iterator[Idle]:
    """As `idle_keys`, for the keys in `infos`. `label_of` rewrites the key names in a text as the user knows them."""
    reported = set()
    for rule in RULES:
        wanted = [key for key in infos if any(f"{key}.".startswith(f"{name}.") for name in rule.keys)]
        if not wanted or any(values[key] is None and key not in infos for key in rule.depends_on[:1]):
            continue
        if not rule.idle(values):
            continue
        for key in wanted:
            value = values[key]
            if key in reported or value in (infos[key].get_default(call_default_factory=True), NOTHING.get(key, ...)):
                continue
            reported.add(key)
            why = label_of(rule.why)
            for name in rule.depends_on:
                why = why.replace(f"{{{label_of(name)}}}", as_yaml(values[name]))
            shown = repr(value) if isinstance(value, str) else as_yaml(value)
            line = f"{label_of(key)} is {shown}, and has no effect: {why}; {label_of(rule.instead)}"
            yield Idle(key=key, value=value, depends_on=rule.depends_on, line=line)


class _Values(dict[str, Any]):
    def __missing__(self, key: str) -> None:
        return None
