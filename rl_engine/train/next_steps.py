"""A finished run → the commands to run next, with the run's own paths filled in."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from rl_engine.config import Config
from rl_engine.run.memory import GIB
from rollout.engine import smallest_allowed_rank
from rollout.models import locate_model
from rollout.prompts.problems import GENERATED, parts_of
from rollout.servable import serving_precision

NAME = "trained"
"""The name under which the adapter is served."""


def next_steps(config: Config, adapter: Path) -> dict[str, str]:
    """Purpose → command: the report, an evaluation of the adapter if there are suites for it, a server for it."""
    lora = config.method == "lora"
    run = Path(config.output_dir)
    revision = ["--revision", config.model.revision] if lora and config.model.revision else []
    serve = [*server(config, locate_model(config.model.name) if lora else str(adapter)), *revision]
    if lora:
        serve += ["--enable-lora", "--max-lora-rank", str(smallest_allowed_rank(config.lora.served_rank))]
        serve += ["--lora-modules", f"{NAME}={adapter}"]
    commands = {"read what it did: metrics, completions, adapters": ["python", "-m", "rl_engine.report", str(run)]}
    if suites := suites_to_score(config):
        model = config.model.name if lora else str(adapter)
        score = ["python", "-m", "evals", "--model", model, *revision, *(["--adapter", str(adapter)] if lora else [])]
        # Scores match the run's only in the run's precision: name it wherever `auto` would choose another.
        if config.model.dtype not in ("auto", serving_precision("auto", model, adapter=lora)):
            score += ["--dtype", config.model.dtype]
        score += ["--suite", ",".join(suites), *read_from(config), "--output", str(run / "evals" / "after.json")]
        commands["score it beside its base model" if lora else "score it"] = score
    commands[f"serve it, as the model {NAME!r}" if lora else "serve it"] = serve
    return {purpose: shlex.join(words) for purpose, words in commands.items()}


def server(config: Config, model: str) -> list[str]:
    """The command that starts vLLM's server for a model, on a machine like this one."""
    if torch.cuda.is_available():
        return ["vllm", "serve", model, "--dtype", config.model.dtype]
    # In vLLM's CPU build the `vllm` command looks for a package of that name and does not find it. By default the
    # server takes nearly all of the machine's memory and compiles; the context length is set to what the cache holds.
    cache = ["--kv-cache-memory-bytes", str(int(config.rollout.kv_cache_gib * GIB)), "--max-model-len", "auto"]
    start = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*start, "--dtype", config.model.dtype, "--enforce-eager", *cache]


def suites_to_score(config: Config) -> tuple[str, ...]:
    """The run's own suites, or else the held-out part of its generated problems. User data have no such part."""
    generated = any(part.config.source in GENERATED for part in parts_of(config.data))
    return config.eval.suites or (("held_out",) if generated else ())


def read_from(config: Config) -> list[str]:
    """The option for the suites' directory. The columns of files are those of the run, which the adapter names."""
    return ["--data-dir", config.eval.data_dir] if config.eval.data_dir else []
