"""Outcomes ↔ a file of one evaluation: for each problem all verdicts, and one answer to read.

Two versions or two runs can be compared problem by problem with these files, long after they were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datafiles.text import json_lines
from evals.scoring.outcomes import Outcome
from rewards import Verdict
from rollout.files.durable import write_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """A problem's line in the file: all verdicts, and the first sample."""

    problem_id: str
    problem: str
    reference: str
    verdicts: tuple[str, ...]
    """One per sample."""
    completion: str
    extracted: str | None
    tokens: int
    finish_reason: str

    @property
    def accuracy(self) -> float:
        """The fraction of samples that are correct."""
        return sum(verdict == Verdict.CORRECT for verdict in self.verdicts) / len(self.verdicts)


def kept_path(directory: Path, suite: str, adapter: str) -> Path:
    """The file's path, next to the report of the same evaluation, `<suite>-<adapter>.json`."""
    return directory / f"{suite}-{adapter}.jsonl.gz"


def keep_answers(directory: Path, suite: str, adapter: str, outcomes: Sequence[Outcome]) -> None:
    """Write the file. The same outcomes give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(kept_path(directory, suite, adapter), (asdict(_answer_of(outcome)) for outcome in outcomes))


def kept_answers(path: Path) -> dict[str, KeptAnswer]:
    """Problem id → its line; empty if there is no such file, as in runs of earlier versions.

    Raises `ValueError`, with a one-line message, if the file cannot be read. It was written atomically, so it has been
    damaged since.
    """
    try:
        rows = [*json_lines(path)]
        return {row["problem_id"]: KeptAnswer(**{**row, "verdicts": tuple(row["verdicts"])}) for row in rows}
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _answer_of(outcome: Outcome) -> KeptAnswer:
    first = outcome.samples[0]
    return KeptAnswer(
        problem_id=outcome.problem.id,
        problem=outcome.problem.text,
        reference=outcome.problem.answer,
        verdicts=tuple(sample.verdict.value for sample in outcome.samples),
        completion=first.text,
        extracted=first.extracted,
        tokens=first.tokens,
        finish_reason=first.finish_reason,
    )
