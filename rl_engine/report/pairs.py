"""Two evaluations of the same problems → their difference with its interval, and problems to read side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from evals.scoring.kept import KeptAnswer
from rl_engine.report.charts import SUITE_TITLES
from rl_engine.report.completions import shortened
from rl_engine.report.shown_run import ShownAdapter, ShownRun
from rl_engine.report.tables import SuiteChange

EACH = 8
"""Most problems shown of each kind: newly right, newly wrong, most mixed, longest, and any."""
ALL_OF_A_KIND = 40
"""Most problems of each kind in all pairs of a page together, so that many runs on many suites still fit on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """By how much the second evaluation scores higher than the first, paired by problem."""

    problems: int
    mean: float
    interval: tuple[float, float]
    """95 %, bootstrap over problems."""
    newly_right: int
    """Problems on which the second evaluation scores higher."""
    newly_wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    verdicts: tuple[str, ...]
    text: str
    extracted: str | None
    tokens: int
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedProblem:
    problem_id: str
    problem: str
    reference: str
    sides: tuple[Side, Side]
    history: tuple[tuple[int, float], ...]
    """(step, accuracy) for each evaluation of the run; empty when two runs are compared."""
    gain: float
    mixed: float
    """Variance of correctness, between 0 and 1/4."""
    longest: int
    """Tokens of the longer answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two evaluations side by side."""

    runs: tuple[int, int]
    suite: str
    labels: tuple[str, str]
    note: str
    gain: Gain | None
    """None if no problem is shared; `note` says why."""
    problems: tuple[PairedProblem, ...]


def pairs_of(runs: Sequence[ShownRun], names: Sequence[str]) -> list[Pair]:
    """The pairs of a page. For one run: its first version beside its best, on each suite. For several: the last version
    of the first run beside the last of each other run."""
    if len(runs) == 1:
        each = _each(len(_suites(runs[0])))
        return [pair for suite in _suites(runs[0]) for pair in _within(runs[0], suite, each)]
    both = [
        (other, suite) for other in range(1, len(runs)) for suite in _suites(runs[0]) if suite in _suites(runs[other])
    ]
    return [_between(runs, names, other, suite, _each(len(both))) for other, suite in both]


def _each(pairs: int) -> int:
    return max(1, min(EACH, ALL_OF_A_KIND // max(1, pairs)))


def gain_of(first: Mapping[str, KeptAnswer], second: Mapping[str, KeptAnswer]) -> Gain | None:
    """The gain over the problems that both evaluations share; None if there are none."""
    # scipy takes a second to load.
    import numpy as np

    from evals.scoring.estimators import paired

    shared = [problem for problem in first if problem in second]
    if not shared:
        return None
    scores = [np.array([answers[problem].accuracy for problem in shared]) for answers in (second, first)]
    found = paired(*scores)
    return Gain(
        problems=len(shared),
        mean=found.mean,
        interval=found.interval,
        newly_right=found.better,
        newly_wrong=found.worse,
    )


def gain_of_training(run: ShownRun, change: SuiteChange) -> Gain | None:
    """The gain from the first evaluation of a change to its last; None if their answers were not kept."""
    kept = {key.rpartition("-")[2]: answers for (suite, key), answers in run.answers.items() if suite == change.suite}
    # A supervised run's version numbers are its steps.
    both = [f"v{int(line.get('adapter/version', line['step'])):06d}" for line in (change.first, change.last)]
    return gain_of(*(kept[one] for one in both)) if run.shows_answers and kept.keys() >= {*both} else None


def _suites(run: ShownRun) -> list[str]:
    """Suites with kept answers, in the configuration's order."""
    found = {suite for suite, _ in run.answers} if run.shows_answers else set()
    asked = run.suites
    return sorted(found, key=lambda suite: (asked.index(suite) if suite in asked else len(asked), suite))


def _evaluated(run: ShownRun, suite: str) -> list[ShownAdapter]:
    """Versions whose answers were kept and that were asked as the last of them was, ordered by step."""
    found = [one for one in run.adapters if run.shows_answers and (suite, one.key) in run.answers]
    return [one for one in found if _asked(one, suite) == _asked(found[-1], suite)]


def _asked(adapter: ShownAdapter, suite: str) -> set[tuple[str, str]]:
    return {condition for condition, score in adapter.scores.items() if score.suite == suite}


def _within(run: ShownRun, suite: str, each: int) -> Iterable[Pair]:
    evaluated = _evaluated(run, suite)
    if len(evaluated) < 2:
        return
    first = evaluated[0]
    best = next((one for one in evaluated if one.is_best and one is not first), evaluated[-1])
    answers = [run.answers[suite, one.key] for one in (first, best)]
    history: dict[str, list[tuple[int, float]]] = {}
    for adapter in evaluated:
        for problem, answer in run.answers[suite, adapter.key].items():
            if adapter.step is not None:
                history.setdefault(problem, []).append((adapter.step, answer.accuracy))
    yield Pair(
        runs=(0, 0),
        suite=SUITE_TITLES.get(suite, suite),
        labels=(_label(first), _label(best)),
        note="The best version was chosen by this score, which is therefore optimistic." if best.is_best else "",
        gain=gain_of(*answers),
        problems=_chosen(answers[0], answers[1], history, each),
    )


def _label(adapter: ShownAdapter) -> str:
    if adapter.step == 0:
        return "before training"
    return f"best, {_step_of(adapter)}" if adapter.is_best else _step_of(adapter)


def _step_of(adapter: ShownAdapter) -> str:
    return adapter.key if adapter.step is None else f"step {adapter.step}"


def _between(runs: Sequence[ShownRun], names: Sequence[str], other: int, suite: str, each: int) -> Pair:
    ours, theirs = (_evaluated(run, suite)[-1] for run in (runs[0], runs[other]))
    conditions = [
        {(score.suite_version, score.decoding) for score in one.scores.values() if score.suite == suite}
        for one in (ours, theirs)
    ]
    answers = [runs[0].answers[suite, ours.key], runs[other].answers[suite, theirs.key]]
    # The same id with a different text is a different problem.
    shared = [one for one in answers[0] if one in answers[1] and answers[0][one].problem == answers[1][one].problem]
    answers = [{one: side[one] for one in shared} for side in answers]
    note = ""
    if not shared:
        note = "No problem was asked in both runs: nothing is paired."
    elif conditions[0].isdisjoint(conditions[1]):
        note = "The two were asked differently (see Adapters): the difference is not due to training alone."
    return Pair(
        runs=(0, other),
        suite=SUITE_TITLES.get(suite, suite),
        labels=(f"{names[0]}, {_step_of(ours)}", f"{names[other]}, {_step_of(theirs)}"),
        note=note,
        gain=gain_of(answers[0], answers[1]),
        problems=_chosen(answers[0], answers[1], {}, each),
    )


def _chosen(
    first: Mapping[str, KeptAnswer],
    second: Mapping[str, KeptAnswer],
    history: Mapping[str, list[tuple[int, float]]],
    each: int,
) -> tuple[PairedProblem, ...]:
    """Some problems of each kind; ties are broken by the digest of the id."""
    shared = [_paired(first[one], second[one], history.get(one, [])) for one in first if one in second]
    shared.sort(key=lambda one: hashlib.sha256(one.problem_id.encode()).hexdigest())
    newly_right = sorted((one for one in shared if one.gain > 0), key=lambda one: -one.gain)
    newly_wrong = sorted((one for one in shared if one.gain < 0), key=lambda one: one.gain)
    mixed = sorted((one for one in shared if one.mixed), key=lambda one: -one.mixed)
    longest = sorted(shared, key=lambda one: -one.longest)
    kinds = (newly_right, newly_wrong, mixed, longest, shared)
    return tuple({one.problem_id: one for kind in kinds for one in kind[:each]}.values())


def _paired(first: KeptAnswer, second: KeptAnswer, history: Sequence[tuple[int, float]]) -> PairedProblem:
    right = fmean([accuracy for _, accuracy in history] or [first.accuracy, second.accuracy])
    return PairedProblem(
        problem_id=first.problem_id,
        problem=first.problem,
        reference=first.reference,
        sides=(_side(first), _side(second)),
        history=tuple(history),
        gain=second.accuracy - first.accuracy,
        mixed=right * (1 - right),
        longest=max(first.tokens, second.tokens),
    )


def _side(answer: KeptAnswer) -> Side:
    return Side(
        verdicts=answer.verdicts,
        text=shortened(answer.completion),
        extracted=answer.extracted,
        tokens=answer.tokens,
        finish_reason=answer.finish_reason,
    )
