"""Suite name → problems. A suite's version goes up with any change that can move a score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rollout.config import DataConfig
from rollout.problems import load_problems
from rollout.types import Problem

HELD_OUT_SEED = 1
HELD_OUT_COUNT = 256


@dataclass(frozen=True, slots=True)
class Suite:
    """A fixed set of problems.

    Example: `Suite("aime2024", "aime2024", "aime2024", version=1)`
    """

    name: str
    source: str
    """Entry of the sources table."""
    file: str
    """Name of its file, without `.jsonl`, under a data directory."""
    version: int


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("held_out", "arithmetic", "", version=1),
        Suite("gsm8k", "gsm8k_test", "gsm8k_test", version=1),
        Suite("math500", "math500", "math500", version=1),
        Suite("math", "math_test", "math_test", version=1),
        Suite("aime2024", "aime2024", "aime2024", version=1),
        Suite("aime2025", "aime2025", "aime2025", version=1),
        Suite("aime2026", "aime2026", "aime2026", version=1),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name, or one made of a JSON Lines file.

    Raises `ValueError` for a name that is neither.
    """
    if name in SUITES:
        return SUITES[name]
    if name.endswith(".jsonl"):
        return Suite(Path(name).stem, "jsonl", name, version=1)
    raise ValueError(f"no suite {name!r}: known are {', '.join(SUITES)}, or give a .jsonl file")


def suite_needs_hub(suite: Suite, data_dir: str | None) -> bool:
    return suite.source not in ("arithmetic", "jsonl") and data_dir is None


def load_suite(suite: Suite, training: DataConfig, data_dir: str | None, limit: int | None) -> list[Problem]:
    """The suite's problems, in their own order.

    `held_out` is the part of the training's generator that training never sees, so it needs its settings.
    """
    if suite.source == "arithmetic":
        data = DataConfig(source="arithmetic", arithmetic=training.arithmetic, limit=limit or HELD_OUT_COUNT)
        return load_problems(data, split="held_out", seed=HELD_OUT_SEED).problems
    path = None
    if suite.source == "jsonl":
        path = suite.file
    elif data_dir is not None:
        path = str(Path(data_dir) / f"{suite.file}.jsonl")
    data = DataConfig(source=suite.source, path=path, limit=limit)
    return load_problems(data, split="held_out", seed=HELD_OUT_SEED).problems
