"""The state of a run ↔ a checkpoint: complete or absent, verified by digest before use; nothing in it is pickled."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl_engine.config.file import ConfigError
from rl_engine.learner.ranks import Ranks
from rollout.adapters import MANIFEST, AdapterError, read_manifest, sha256_of, write_manifest
from rollout.files.durable import discard, numbered, remove_leftovers, written_aside

log = logging.getLogger(__name__)

TENSORS = "learner.safetensors"
STATE = "state.json"
RNG = "rng.torch"
"""Name of torch's random state among the tensors; building a run draws from it, so it is restored last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run after a step.

    Example: `RunState(step=20, position=1280, version=20, config_hash="5c…")`
    """

    step: int
    position: int
    """Problems taken by the cursor so far."""
    version: int
    """Version of the adapter that samples next."""
    config_hash: str
    drawing: dict[str, Any] = field(default_factory=dict)
    """State of the problem order besides the position: with `data.replay`, the problems without learning signal."""
    planned_steps: int | None = None
    """The run's length, if the rate of its steps depends on it."""
    unrecorded: dict[str, float] | None = None
    """The step's line for metrics.jsonl, if the run was stopped before writing it: a resumed run first evaluates this
    step and records it."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """`step000010/`, `step000020/`, … in one directory, of which the newest `keep` are kept."""

    root: Path
    keep: int

    def save(self, state: RunState, tensors: dict[str, Tensor], rng: Tensor | None = None) -> None:
        """Write a checkpoint. `rng`: torch's random state after the step, by default the current one."""
        target = self.root / f"step{state.step:06d}"
        if self._is_intact(target):
            return  # a resumed run was stopped before its first step: this is the checkpoint it came from
        with written_aside(target) as scratch:
            save_file({**tensors, RNG: torch.get_rng_state() if rng is None else rng}, scratch / TENSORS)
            (scratch / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
            write_manifest(scratch, {"step": state.step})
        # Later steps exist only if the run resumed from an earlier one, for example past a damaged one: drop them.
        steps = self._steps()
        kept = [step for step in steps if step <= state.step][-self.keep :]
        for step in steps.keys() - set(kept):
            discard(steps[step])
        remove_leftovers(self.root, "step")

    def newest(self) -> tuple[RunState, dict[str, Tensor]] | None:
        """The newest undamaged checkpoint; damaged ones are skipped with a warning.

        Raises `AdapterError` if there are checkpoints but all of them are damaged.
        """
        found = list(reversed(self._steps().values()))
        for path in found:
            if not self._is_intact(path):
                continue
            return _read_state(path / STATE), load_file(path / TENSORS)
        if found:
            raise AdapterError(f"every checkpoint in {self.root} is damaged: --overwrite starts over")
        return None

    def _is_intact(self, path: Path) -> bool:
        """Whether a checkpoint exists and is undamaged; warns if it exists but is damaged."""
        if not path.exists():
            return False
        try:
            manifest = read_manifest(path)
            if not {TENSORS, STATE} <= manifest["files"].keys():
                raise AdapterError(f"{path}: its manifest does not list {TENSORS} and {STATE}")
        except AdapterError as error:
            log.warning("checkpoint %s is damaged and skipped: %s", path.name, error)
            return False
        return True

    def _steps(self) -> dict[int, Path]:
        """Step → its checkpoint, oldest first."""
        return numbered(self.root, "step")


def newest_on_all(checkpoints: Checkpoints, ranks: Ranks) -> tuple[RunState, dict[str, Tensor]] | None:
    """The newest checkpoint, after checking that all ranks found the same one. Collective.

    Raises `AdapterError` if all checkpoints that a rank finds are damaged, `ConfigError` if the ranks find different
    ones.
    """
    found, error = None, ""
    try:
        found = checkpoints.newest()
    except AdapterError as failure:
        error = str(failure)
    step = found[0].step if found else None
    digest = sha256_of(checkpoints.root / f"step{step:06d}" / MANIFEST) if step is not None else ""
    seen = ranks.gather([(step, digest, error)])
    if errors := [error for _, _, error in seen if error]:
        raise AdapterError(errors[0])
    if len({*seen}) > 1:
        steps = ", ".join(f"rank {rank} {'none' if step is None else step}" for rank, (step, _, _) in enumerate(seen))
        raise ConfigError(
            f"{checkpoints.root}: the ranks do not see the same newest checkpoint (after step: {steps}): put "
            "output_dir on a file system that all ranks share"
        )
    return found


def _read_state(path: Path) -> RunState:
    try:
        return RunState(**json.loads(path.read_text(encoding="utf-8")))
    except TypeError as error:
        raise AdapterError(f"{path} was written by another version of this program: {error}") from error
