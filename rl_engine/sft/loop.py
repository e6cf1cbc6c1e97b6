"""TRL's trainer callbacks → what a supervised run measures, records and saves at each step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from rl_engine.config.sft import SftConfig
from rl_engine.learner.gradients import GradientGuard
from rl_engine.policy.trainable import TrainablePolicy
from rl_engine.run.checkpoint import Checkpoints, RunState
from rl_engine.run.console import RunConsole
from rl_engine.run.records import Records
from rl_engine.run.resumption import planned_length
from rl_engine.sft.batches import Batches
from rl_engine.sft.examples import Examples
from rl_engine.sft.state import tensors_of
from rl_engine.sft.trainer import log_loss
from rollout.stopping import Stopped, StopRequest

# Columns of the console: title, width, metric and its format.
COLUMNS = (
    ("loss", 8, "loss", ".4f"),
    ("test", 8, "test/log_loss", ".4f"),
    ("rate", 8, "lr", ".1e"),
    ("grad", 8, "grad_norm", ".2e"),
    ("tokens/s", 8, "throughput/tokens_per_s", ",.0f"),
    ("step s", 6, "time/step_s", ".2f"),
)
STEP_WIDTH = 11


@dataclass
class SftRun(TrainerCallback):
    """The parts of a run, its progress, and its reactions to the callbacks of TRL's trainer."""

    config: SftConfig
    examples: Examples
    batches: Batches
    trainable: TrainablePolicy
    optimizer: torch.optim.Optimizer
    guard: GradientGuard
    checkpoints: Checkpoints
    records: Records
    console: RunConsole
    stop: StopRequest
    config_hash: str
    chat_template: str | None
    """The text of the one that replaces the model's own, if any."""
    step: int
    """Number of finished steps."""
    unrecorded: dict[str, float] | None
    """Metrics of the last finished step, if an earlier process was stopped before recording them."""
    trainer: Any = field(default=None, init=False)
    _step_s: list[float] = field(default_factory=list, init=False)
    _step_start: float = field(default=0.0, init=False)
    _skipped: int = field(default=0, init=False)
    """Updates skipped since the last line of metrics."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_start = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._skipped += not self.guard.allows()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step_s.append(time.monotonic() - self._step_start)
        self.step += 1
        last = self.step == self.batches.steps
        control.should_training_stop = self.stop.asked
        control.should_log = self.stop.asked or last or self.measures or self.step % self.config.log.every == 0
        if not control.should_log:
            self.save_if_due()

    def save_if_due(self) -> None:
        """Save a checkpoint if one is due after the current step, which is recorded by now: every `checkpoint.every`
        steps, and before a stopped run exits."""
        every = self.config.checkpoint.every
        last = self.step == self.batches.steps
        # Also after the last step if checkpoints are kept, so that the run can be resumed with more steps.
        if (self.stop.asked and not last) or (every > 0 and (last or self.step % every == 0)):
            self.save()

    def save(self, unrecorded: dict[str, float] | None = None) -> None:
        """Save a checkpoint after the current step; see `RunState.unrecorded`."""
        self.records.check_place()
        state = RunState(
            step=self.step,
            position=self.step * self.config.train.batch_size,
            version=0,
            config_hash=self.config_hash,
            planned_steps=planned_length(self.config, self.batches.steps),
            unrecorded=unrecorded,
        )
        self.checkpoints.save(state, tensors_of(self.trainable, self.optimizer))

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" not in logs:
            return  # the trainer's own summary at the end
        count, seconds = len(self._step_s), sum(self._step_s)
        self._step_s.clear()
        tokens = self.batches.tokens[self.step] - self.batches.tokens[self.step - count]
        metrics = {
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "updates/skipped": float(self._skipped),
            "time/step_s": seconds / count,
            "throughput/tokens_per_s": tokens / seconds,
        }
        self._skipped = 0
        self.record({name: value for name, value in metrics.items() if math.isfinite(value)})
        self.save_if_due()

    @property
    def measures(self) -> bool:
        """Whether to measure the test log loss after the current step."""
        wanted = self.config.eval
        due = self.step in (0, self.batches.steps, *wanted.at) or (wanted.every > 0 and self.step % wanted.every == 0)
        return due and bool(self.examples.test)

    def record(self, metrics: dict[str, float]) -> None:
        """Write the current step's line to metrics.jsonl and to the console.

        On a request to stop while the test log loss is being measured, the step is saved with its metrics and `Stopped`
        is raised; the resumed run measures again.
        """
        line = {"step": self.step, "tokens": self.batches.learned[self.step], **metrics}
        if self.measures:
            try:
                with self.stop.raised():
                    line["test/log_loss"] = log_loss(self.trainer, self.examples.test)
            except Stopped:
                if self.step:
                    self.save(metrics)
                raise
        self.records.metrics(line)
        cells = [format(line[name], form) if name in line else "" for _, _, name, form in COLUMNS]
        self.console.note(_row(f"{self.step}/{self.batches.steps}", cells))

    def titles(self) -> None:
        self.console.note(_row("step", [title for title, *_ in COLUMNS]))


def _row(step: str, cells: Sequence[str]) -> str:
    return " ".join([step.rjust(STEP_WIDTH), *(c.rjust(w) for c, (_, w, *_) in zip(cells, COLUMNS, strict=True))])
