"""Our top-level packages → a check that nothing else with their names is imported in their place.

Read by its path and not imported, because this package's own name may be the one that is taken.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def check_ours(*names: str) -> None:
    """Raise `ImportError` if Python would import some other file instead of one of our packages. `python -m` searches
    the current directory first, and users tend to call a file of reward functions `rewards.py`. A command prints the
    error as one line and exits."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve().is_relative_to(HERE / name):
            continue
        message = f"{found.origin} shadows rl_engine's own package {name}: rename it, or work in another directory"
        if sys.argv[:1] == ["-m"]:  # `python -m` is still looking for the command's module
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(message)
