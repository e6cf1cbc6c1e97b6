"""What `python -m evals` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evals.suites import find_suite, sampling_of
from rollout.models import needs_hub


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


def refuse_idle(options: EvalOptions) -> None:
    """Raises `ValueError` for an option that was given and has no effect beside the others."""
    suites = [find_suite(name) for name in options.suites]
    rates = {sampling_of(suite, n=options.samples, temperature=options.temperature).temperature for suite in suites}
    no_file = all(suite.source in ("arithmetic", "jsonl") for suite in suites)
    is_here = options.revision is not None and not needs_hub(options.model)
    for option, value, idle, why in (
        ("--data-dir", options.data_dir, no_file, f"{', '.join(options.suites)} is not read from a directory"),
        (
            "--top-p",
            options.top_p,
            rates == {0},
            "at temperature 0 the likeliest token is taken; give --temperature too",
        ),
        ("--revision", options.revision, is_here, f"--model {options.model} is on this machine, not read from the hub"),
    ):
        if value is not None and idle:
            raise ValueError(f"{option} is {value}, and has no effect: {why}")
