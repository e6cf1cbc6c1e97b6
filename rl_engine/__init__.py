"""Reinforcement learning of reasoning on LoRA adapters: `from rl_engine import load_config, train, evaluate, read_run`.

Each name is loaded on first use, so `import rl_engine` is fast. docs/python.md shows how to use them.
"""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_engine.api.configuration import load_config
    from rl_engine.api.evaluation import evaluate
    from rl_engine.api.process import CommandError
    from rl_engine.api.run import Run, read_run
    from rl_engine.api.training import train, train_steps

__version__ = "0.1.0"
__all__ = ["CommandError", "Run", "evaluate", "load_config", "read_run", "train", "train_steps"]

# `train` is not in this table: the package of that name is itself callable.
_HOMES = {
    "CommandError": "rl_engine.api.process",
    "Run": "rl_engine.api.run",
    "evaluate": "rl_engine.api.evaluation",
    "load_config": "rl_engine.api.configuration",
    "read_run": "rl_engine.api.run",
    "train_steps": "rl_engine.api.training",
}

_SHADOWING = Path(__file__).parents[1] / "datafiles" / "shadowing.py"
runpy.run_path(str(_SHADOWING))["refuse_shadowing"]("datafiles", "rewards", "rollout", "evals")


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("rl_engine.train")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
