"""rollouts/ → a bounded, deterministic selection of groups to read: some problems of every step, across the run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from rewards import Verdict
from rl_engine.run.records import read_rollouts, rollout_files

STEPS = 256
"""Most steps that are read; in a longer run, only every second, fourth, … step is."""
SAMPLES = 8
"""Most completions shown per group."""
CHARACTERS = 20_000
"""Length of the longest text shown in full; longer ones have their middle left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCompletion:
    text: str
    verdict: str
    reward: float
    advantage: float
    tokens: int
    finish_reason: str
    extracted: str | None
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """One problem at one step, with the first of its completions."""

    step: int
    problem_id: str
    problem: str
    reference: str
    prompt: str
    samples: int
    """Completions of the group, shown or not."""
    accuracy: float
    """Accuracy over all completions of the group, shown or not."""
    completions: tuple[ShownCompletion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCompletions:
    """The groups of a run's rollouts that are shown, ordered by step, and how many there are in total."""

    groups: tuple[ShownGroup, ...]
    steps_total: int
    """Steps of the run; 0 if it has no completions. The user may have deleted the files of some steps, which is not
    reported as damage."""
    steps_read: int
    groups_total: int
    """Groups in the steps that were read."""
    is_full: bool
    """Whether the budget was used up before all requested problems were included."""
    damaged: tuple[str, ...] = ()
    """One line for each file in rollouts/ that is left out because it cannot be read."""


NO_COMPLETIONS = ShownCompletions(groups=(), steps_total=0, steps_read=0, groups_total=0, is_full=False)


def shown_completions(
    run: Path, *, problems: int, budget_bytes: int, recorded: Collection[int] = ()
) -> ShownCompletions:
    """Select what to show: at most `problems` groups per step, and at most `budget_bytes` of JSON in total. `recorded`
    are the steps whose files are complete: an unreadable file of another step is still being written.

    Problems that occur at more steps come first, so that their history can be followed. Ties are broken by the digest
    of the id, which is independent of difficulty. If the budget is too small, whole rounds of one group per step are
    left out, and the last round kept is thinned evenly over the steps.
    """
    files = rollout_files(run)
    read, ids_of_steps, damaged = [], [], list[str]()
    for step in _spread([*files]):
        path, changed_ns = files[step], files[step].stat().st_mtime_ns
        try:
            ids_of_steps.append(_problem_ids(path, changed_ns))
        except ValueError as error:
            damaged += [str(error)] if step in recorded else []
        else:
            read.append((path, changed_ns))
    occurrences = Counter(problem for ids in ids_of_steps for problem in ids)

    def preference(problem: str) -> tuple[int, str]:
        return -occurrences[problem], hashlib.sha256(problem.encode()).hexdigest()

    rounds: list[tuple[int, int, ShownGroup]] = []
    for index, ((path, changed_ns), ids) in enumerate(zip(read, ids_of_steps, strict=True)):
        chosen = tuple(sorted(ids, key=preference)[:problems])
        for place, group in enumerate(_groups(path, changed_ns, chosen)):
            rounds.append((place, _halving(index), group))
    kept = []
    left_bytes = budget_bytes
    for _, _, group in sorted(rounds, key=lambda entry: entry[:2]):
        left_bytes -= bytes_in_page(group)
        if left_bytes < 0:
            break
        kept.append(group)
    return ShownCompletions(
        groups=tuple(sorted(kept, key=lambda group: group.step)),
        steps_total=len(files.keys() | {*recorded}) if files else 0,
        steps_read=len(read),
        groups_total=sum(len(ids) for ids in ids_of_steps),
        is_full=len(kept) < len(rounds),
        damaged=tuple(damaged),
    )


def bytes_in_page(group: ShownGroup) -> int:
    """Size in the page, including escapes: a `<` takes six bytes."""
    return len(htmlsafe_json_dumps(asdict(group)))


def _spread(steps: list[int]) -> list[int]:
    """At most `STEPS` evenly spaced steps, plus the last. The stride only doubles, so a growing run keeps to steps
    chosen before."""
    stride = 1
    while len(steps) > stride * STEPS:
        stride *= 2
    return [step for index, step in enumerate(steps) if index % stride == 0 or index == len(steps) - 1]


def _halving(index: int) -> int:
    """Sort key under which every prefix of 0, 1, 2, … is spread evenly over the whole (van der Corput)."""
    return int(f"{index:016b}"[::-1], 2)


# Cached between refreshes with --watch. The modification time is part of the key, since files are only ever replaced.
@lru_cache(maxsize=2 * STEPS)
def _problem_ids(path: Path, _changed_ns: int) -> tuple[str, ...]:
    rows: list[Any] = read_rollouts(path)
    for number, row in enumerate(rows, 1):
        try:
            _group([row])
            hash(row["problem_id"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read (line {number} is not a completion)") from error
    return tuple(dict.fromkeys(row["problem_id"] for row in rows))


@lru_cache(maxsize=2 * STEPS)
def _groups(path: Path, _changed_ns: int, chosen: tuple[str, ...]) -> list[ShownGroup]:
    """The groups of the chosen problems, in that order."""
    rows: dict[str, list[dict[str, Any]]] = {problem: [] for problem in chosen}
    for row in read_rollouts(path):
        if row["problem_id"] in rows:
            rows[row["problem_id"]].append(row)
    return [_group(group) for group in rows.values()]


def _group(rows: list[dict[str, Any]]) -> ShownGroup:
    first = rows[0]
    return ShownGroup(
        step=first["step"],
        problem_id=first["problem_id"],
        problem=first["problem"],
        reference=first["reference"],
        prompt=shortened(first["prompt"]),
        samples=len(rows),
        accuracy=fmean(row["verdict"] == Verdict.CORRECT for row in rows),
        completions=tuple(
            ShownCompletion(
                text=shortened(row["completion"]),
                verdict=row["verdict"],
                reward=row["reward"],
                advantage=row["advantage"],
                tokens=row["completion_tokens"],
                finish_reason=row["finish_reason"],
                extracted=row["extracted"],
                adapter=" → ".join(_adapters(row)),
            )
            for row in rows[:SAMPLES]
        ),
    )


def _adapters(row: dict[str, Any]) -> list[str]:
    """The versions that sampled it, in order; runs from before partial rollouts name only one."""
    return [adapter for adapter, _ in row["legs"]] if "legs" in row else [row["adapter"]]


def shortened(text: str) -> str:
    """The text, with the middle replaced by a note if it is very long."""
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
