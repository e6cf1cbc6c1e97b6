"""The packages that lie beside this one → found there, whatever else has their names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NAMES = ("rewards", "rollout", "evals")


def check_ours() -> None:
    """Raises `ImportError` where Python would import another's file for one of ours. `python -m` looks into the current
    directory first, and `rewards.py` is what a person calls a file of reward functions. A command says it in a line."""
    for name in NAMES:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().is_relative_to(HERE / name):
            continue
        message = f"{found.origin} shadows rl_engine's own package {name}: rename it, or work in another directory"
        if sys.argv[:1] == ["-m"]:  # Python is still looking for the command
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(message)
