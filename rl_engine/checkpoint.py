"""The state of a run ↔ a checkpoint: complete or absent, checked by digest before it is believed."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl_engine.learner_state import load_state, save_state
from rollout.adapters import AdapterError, read_manifest, write_manifest, written_aside

log = logging.getLogger(__name__)

TENSORS = "learner.safetensors"
STATE = "state.json"
RNG = "rng.torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands after a step.

    Example: `RunState(step=20, position=1280, version=20, config_hash="5c…")`
    """

    step: int
    position: int
    """Problems taken by the cursor so far."""
    version: int
    """Version of the adapter that samples next."""
    config_hash: str


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """`step000010/`, `step000020/`, … under one directory, the newest `keep` of them."""

    root: Path
    keep: int

    def save(self, state: RunState, tensors: dict[str, Tensor]) -> None:
        target = self.root / f"step{state.step:06d}"
        with written_aside(target) as scratch:
            save_state({**tensors, RNG: torch.get_rng_state()}, scratch / TENSORS)
            (scratch / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n")
            write_manifest(scratch, {"step": state.step})
        for old in self._all()[self.keep :]:
            shutil.rmtree(old)

    def newest(self) -> tuple[RunState, dict[str, Tensor]] | None:
        """The newest undamaged checkpoint; a damaged one is passed over with a warning. Restores torch's RNG.

        Raises `AdapterError` when there are checkpoints and every one of them is damaged.
        """
        found = self._all()
        for path in found:
            try:
                read_manifest(path)
            except AdapterError as error:
                log.warning("checkpoint %s is damaged and passed over: %s", path.name, error)
                continue
            state = RunState(**json.loads((path / STATE).read_text()))
            tensors = load_state(path / TENSORS)
            torch.set_rng_state(tensors.pop(RNG))
            return state, tensors
        if found:
            raise AdapterError(f"every checkpoint in {self.root} is damaged")
        return None

    def _all(self) -> list[Path]:
        """Newest first."""
        return sorted(self.root.glob("step[0-9]*"), reverse=True)
