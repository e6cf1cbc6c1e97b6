"""Made-up stage outcomes and measurements of the GPU contact benchmark."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_contact.running import PASSED, Outcome
from benchmarks.gpu_contact.sizes import SIZES

CPU = SIZES["cpu"]


def outcome(name: str, *figures: dict[str, Any]) -> Outcome:
    return Outcome(name=name, asks="?", outcome=PASSED, figures=figures)


def sampling(arm: str, speed: float) -> dict[str, Any]:
    return {"kind": "sampling", "arm": arm, "sequences": 128, "tokens": 1024, "tokens_per_s": speed}
