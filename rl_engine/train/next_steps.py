"""A finished run → the commands that come next, with its own paths."""

from __future__ import annotations

import shlex
from pathlib import Path

from rl_engine.config import Config
from rollout.engine import smallest_allowed_rank
from rollout.models import locate_model

NAME = "trained"
"""What the adapter is called where it is served."""


def next_steps(config: Config, adapter: Path) -> dict[str, str]:
    """Purpose → command: the report, a score of the adapter, a server of it."""
    lora = config.method == "lora"
    run = Path(config.output_dir)
    suites = ",".join(config.eval.suites) or "gsm8k"
    score = ["python", "-m", "evals", "--model", config.model.name if lora else str(adapter)]
    score += ["--adapter", str(adapter)] if lora else []
    score += ["--suite", suites, "--output", str(run / "evals" / "after.json")]
    score += ["--data-dir", config.eval.data_dir] if config.eval.data_dir else []
    serve = ["vllm", "serve", locate_model(config.model.name) if lora else str(adapter), "--dtype", config.model.dtype]
    if lora:
        serve += ["--enable-lora", "--max-lora-rank", str(smallest_allowed_rank(config.lora.served_rank))]
        serve += ["--lora-modules", f"{NAME}={adapter}"]
    commands = {
        "read what it did: metrics, completions, adapters": ["python", "-m", "rl_engine.report", str(run)],
        "score it beside its base model" if lora else "score it": score,
        f"serve it, as the model {NAME!r}" if lora else "serve it": serve,
    }
    return {purpose: shlex.join(words) for purpose, words in commands.items()}
