"""The run directory: configuration, metrics.jsonl and rollouts."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datafiles.text import json_lines
from rl_engine.config import Config, EvalConfig
from rl_engine.config.fields import value_at
from rl_engine.config.file import RUN_CONFIG
from rl_engine.config.sft import SftConfig
from rl_engine.run.origin.inputs import inputs_of
from rl_engine.run.origin.starts import STARTS, is_last, note_end, note_start, read_starts, recorder_of
from rl_engine.run.resumption import RESUMED, note_resumption
from rl_engine.run.services import TRACKED_AS, Sink, open_sinks
from rollout.files.durable import naming, write_rows, write_synced
from rollout.files.ownership import MARKER, marking

if TYPE_CHECKING:
    from rl_engine.learner.groups import GradedGroup

METRICS = "metrics.jsonl"
MERGED = "merged"
PLOT = "curves.png"
REPORT = "report.html"
WRITTEN = (
    MARKER,
    RUN_CONFIG,
    RESUMED,
    STARTS,
    METRICS,
    TRACKED_AS,
    "rollouts",
    "adapters",
    "checkpoints",
    "evals",
    MERGED,
    "tensorboard",
    PLOT,
    REPORT,
)
"""All names that a run writes into its directory."""
ASKING = ("limit", "n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "data_dir")
"""The keys of `eval` on which the score of a version depends."""
ASKED = "asked"
"""The key of `with_asking`, which is no metric."""


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without a last line that a crash cut short. A value of null, as pandas writes
    it, is one that was not measured, and is left out."""
    path = run / METRICS
    found = [*json_lines(path, grows=True)] if path.is_file() else []
    for values in found:
        numbers = isinstance(values, dict) and all(isinstance(value, int | float | None) for value in values.values())
        if not numbers or values.get("step") is None or not math.isfinite(values["step"]):
            raise ValueError(f"{path} holds a line that is not a step's: {json.dumps(values)[:80]!r}: remove it")
    return [{key: value for key, value in values.items() if value is not None} for values in found]


def asked_alike(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl whose suites were asked as they are now: a resumed run may be told another number of
    problems, another temperature, and its earlier scores then say nothing about the new ones.

    Raises `ValueError` if the record of its starts cannot be read.
    """
    lines, starts = read_metrics(run), read_starts(run)
    asked = [_asked_by(start) for start in starts]
    return [line for line in lines if not asked or asked[recorder_of(line["step"], starts)] == asked[-1]]


def with_asking(lines: Sequence[Mapping[str, float]], starts: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The lines, each with `ASKED`, the number of the way in which its suites were asked, if there is more than one."""
    asked = [_asked_by(start) for start in starts]
    ways = [asked.index(asked[recorder_of(line["step"], starts)]) for line in lines] if asked else []
    if len({*ways}) < 2:
        return [{**line} for line in lines]
    return [{**line, ASKED: way} for line, way in zip(lines, ways, strict=True)]


def _asked_by(start: Mapping[str, Any]) -> list[Any]:
    """A key that came after that start had its default."""
    return [value_at(start, f"settings.eval.{key}", getattr(EvalConfig(), key)) for key in ASKING]


def best_version(lines: Sequence[dict[str, float]], suite: str, there: Collection[int]) -> int | None:
    """The first version with the highest score on a suite, among those that still exist; None if none was evaluated.
    Version 0, with which training began, counts only where it is higher than all others.

    Computed from the metrics each time, because a resumed run drops later lines, and their scores must not count.
    """
    key = f"eval/{suite}/avg"
    scored = [line for line in lines if key in line and line["adapter/version"] in there]
    if not scored:
        return None
    return int(max(scored, key=lambda line: (line[key], line["adapter/version"] > 0))["adapter/version"])


def rollout_files(run: Path) -> dict[int, Path]:
    """Step → the file with its completions, in order of steps."""
    found = ((re.match(r"step([0-9]+)\.jsonl", path.name), path) for path in (run / "rollouts").glob("step*.jsonl*"))
    return dict(sorted((int(step[1]), path) for step, path in found if step))


def read_rollouts(path: Path) -> list[dict[str, Any]]:
    """The completions in a step's file. Raises a one-line `ValueError` if it is damaged, or, in a run of an earlier
    version, still being written; it is complete once the step's line is in metrics.jsonl."""
    if path.stat().st_size == 0:  # gzip reads it as no lines
        raise ValueError(f"{path} cannot be read (it is empty)")
    return [*json_lines(path)]


@dataclass
class Records:
    """Writes the files of a run. Main rank only."""

    run: Path
    config: Config | SftConfig
    on_first_step: Callable[[], None] = lambda: None
    """Called after each recorded step, not only the first."""
    _sinks: list[Sink] = field(default_factory=list, init=False)
    _start: str = field(default="", init=False)
    """This process's line in starts.jsonl."""

    def open(self, done: int) -> None:
        """Continue after step `done`, −1 for a new run. Records of later steps are dropped, as they will be
        repeated."""
        self.run.mkdir(parents=True, exist_ok=True)
        # The marker comes first: without it the directory must not be replaced, and alone it does not count as a run.
        if not (self.run / MARKER).is_file():
            write_synced(self.run / MARKER, marking(self.config.output_dir))
        kept = [line for line in read_metrics(self.run) if line["step"] <= done]
        if done >= 0:
            note_resumption(self.run, self.config, done, kept)
        write_synced(self.run / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        write_synced(self.run / RUN_CONFIG, self.config.to_yaml())
        # After the configuration, which would otherwise seem edited if the process died between the two.
        write_synced(self.run / MARKER, marking(self.config.output_dir))
        recorded = kept[-1]["step"] if kept else -1
        settings = self.config.model_dump(mode="json")
        self._start = note_start(self.run, done, recorded, inputs_of(self.config), settings)
        for step, path in rollout_files(self.run).items():
            if step > done:
                path.unlink()
        self._sinks = open_sinks(self.run, self.config, done)

    def check_place(self) -> None:
        """Raises `OSError` if the directory was moved, removed, or given to another run, which must get no files of
        this one. The lock does not prevent it: it is a file in there, and goes with it."""
        if not is_last(self.run, self._start):
            raise OSError(
                f"output_dir: {self.run} was moved, removed or replaced while this process trained in it. A run that "
                "was moved can be resumed where it is now: --resume --config THERE/config.yaml"
            )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Any file that is missed inside the block, such as an adapter's or a plot's, is reported as `check_place` does
        if the whole directory is gone."""
        try:
            yield
        except OSError:
            if self._start:  # the main rank's
                self.check_place()
            raise

    def metrics(self, line: dict[str, float]) -> None:
        """Append one step's line and pass it to every service."""
        self.check_place()
        path = self.run / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            # Checkpoints are synced, and must not be ahead of the records that precede them.
            file.flush()
            os.fsync(file.fileno())
        if line["step"] > 0:
            self.on_first_step()
        for sink in self._sinks:
            sink.log(line)

    def rollouts(self, step: int, graded: Sequence[GradedGroup], advantages: Sequence[Sequence[float]]) -> None:
        """Write all completions of a step, compressed, one JSON object per line."""
        self.check_place()
        directory = self.run / "rollouts"
        directory.mkdir(exist_ok=True)
        rows = (row for group, of_it in zip(graded, advantages, strict=True) for row in _rows(step, group, of_it))
        write_rows(directory / f"step{step:06d}.jsonl.gz", rows)

    def close(self) -> None:
        # Every line has been written already. If the disk is too full for a sink's final output, the error that ended
        # the run matters more.
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()
        with contextlib.suppress(OSError):
            if is_last(self.run, self._start):
                note_end(self.run)


def _rows(step: int, group: GradedGroup, advantages: Sequence[float]) -> Iterator[dict[str, Any]]:
    prompt, completions = group.rollout.prompt, group.rollout.completions
    for index, (completion, result) in enumerate(zip(completions, group.results, strict=True)):
        yield {
            "step": step,
            "problem_id": prompt.problem.id,
            "sample": index,
            "problem": prompt.problem.text,
            "reference": prompt.problem.answer,
            "prompt": prompt.text,
            "completion": completion.text,
            "extracted": result.extracted,
            "verdict": result.verdict.value,
            "reward": result.reward,
            "advantage": advantages[index],
            "adapter": completion.adapter,
            "legs": [[segment.adapter, segment.tokens] for segment in completion.segments],
            "prompt_tokens": len(prompt.token_ids),
            "completion_tokens": len(completion.token_ids),
            # The tokens sampled and trained on: encoding the text again may give others.
            "prompt_ids": prompt.token_ids,
            "completion_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            # Why it gives no learning signal, if it does not.
            **({} if result.scored else {"scored": False, "detail": result.detail}),
        }
