"""What `python -m evals` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What an evaluation is told. None leaves a suite's own protocol."""

    model: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    adapters: tuple[str, ...] = ()
    """As given to `--adapter`: `[NAME=]DIR` each."""
    base: bool = True
    """Whether the base model is measured too."""
    suites: tuple[str, ...]
    data_dir: str | None = None
    train_data: str | None = None
    limit: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    max_tokens: int | None = None
    template: str = "auto"
    frame: str | None = None
    instruction: str | None = None
    """Sentence after the problem; empty for none."""
    seed: int = 0
    output: Path
    records: bool = False
    overwrite: bool = False
    batch: int = 256
    """Completions sampled between two savings."""
    workers: int = 2
    timeout_s: float = 5.0
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    kv_cache_gib: float = 2.0
    max_num_seqs: int = 512
