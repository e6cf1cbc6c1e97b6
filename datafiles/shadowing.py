"""Our top-level packages, and libraries → a check that no file of the user's is imported in their place.

Read by its path and not imported, because this package's own name may be the one that is taken.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
# Libraries, all of them packages, after which users may call a file.
LIBRARIES = (
    "accelerate",
    "datasets",
    "deepspeed",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "numpy",
    "peft",
    "pydantic",
    "ray",
    "rich",
    "safetensors",
    "scipy",
    "sympy",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "typer",
    "vllm",
)


def refuse_shadowing(*names: str) -> None:
    """Raise `ImportError` if Python would import some other file instead of one of our packages of these names, or a
    file in the current directory instead of a library. `python -m` searches that directory first, and users tend to
    call a file of reward functions `rewards.py`. A command prints the error as one line and exits."""
    beside = [name for name in LIBRARIES if Path(f"{name}.py").is_file()]
    for name in (*names, *beside):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            continue
        place = Path(found.origin).resolve()
        if place != Path(f"{name}.py").resolve() if name in beside else place.is_relative_to(HERE / name):
            continue
        what = f"the library {name}" if name in beside else f"rl_engine's own package {name}"
        message = f"{found.origin} shadows {what}: rename it, or work in another directory"
        if sys.argv[:1] == ["-m"]:  # `python -m` is still looking for the command's module
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(message)
