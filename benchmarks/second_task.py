"""The runs of a sweep of the second task → what is left of the first task: accuracy, KL and a figure.

    python -m benchmarks.second_task runs/claims/second_task
    python -m benchmarks.second_task runs/claims/second_task_rl
    python -m benchmarks.second_task docs/regret/second_task --redraw

For each arm and each length of training, the runs at the best rate for the second task are measured: greedy accuracy on
the held-out sums that the embedded model was made for and on the second task's questions, and KL(base‖policy) on the
sums' prompts. Supervised runs are evaluated by `python -m evals`; reinforcement learning runs have already evaluated
both tasks during training. KL is measured by `python -m evals.forgetting`, for the last versions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from matplotlib.ticker import PercentFormatter

from rl_engine.drawing.style import (
    FULL_COLOUR,
    MARKERS,
    legend_below,
    name_panel,
    paper_figure,
    paper_style,
    rank_colour,
)
from rl_engine.sweep.cells import cell_of
from rl_engine.sweep.figures import FORMATS
from rl_engine.sweep.report import SUMMARY, environment, read_summary
from rl_engine.sweep.results import Curve
from rl_engine.sweep.statistics import mean_over_seeds
from rollout.adapters import PEFT_CONFIG

FIRST, SECOND = "held_out", "benchmarks/largest_test.jsonl"
OWN_FIRST, OWN_SECOND = "eval/held_out/avg", "eval/largest_test/avg"
"""The same two tasks in the metrics of reinforcement learning runs."""
LOG_LOSS = "test/log_loss"
MAX_TOKENS = "72"
RESULTS, FIGURE = "forgetting.json", "learned_against_kept"
REFERENCE = "full"
LEVEL = 0.3
"""Accuracy on the second task at which runs that learn at different speeds are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One run on the second task."""

    arm: str
    seed: int
    rate: float
    curves: Mapping[str, Curve]
    directory: Path
    """Directory of its last version."""

    @property
    def steps(self) -> int:
        return max(step for points in self.curves.values() for step, _ in points)

    @property
    def label(self) -> str:
        return f"{self.arm}, {self.steps} steps, seed {self.seed}"

    @property
    def is_full(self) -> bool:
        return not (self.directory / PEFT_CONFIG).is_file()

    @property
    def is_supervised(self) -> bool:
        return LOG_LOSS in self.curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a run has learned after `steps` steps, and what is left of the first task."""

    arm: str
    seed: int
    steps: int
    rate: float
    second_task_log_loss: float | None
    """On the second task's test questions, in nats per answer token; None for runs that were given no answers."""
    second_task_accuracy: float
    first_task_accuracy: float
    kl_base: float | None
    """KL(base‖policy) on the first task's prompts, in nats per token, k3 estimator; None before the last version."""


def trained_runs(sweep: Path) -> list[Trained]:
    """The runs that judge each arm at its best rate, ordered by arm, steps and seed; without the seeds that chose the
    rate if there are others."""
    config, found, analysis = read_summary(sweep / SUMMARY)
    runs = []
    for report in analysis.arms:
        if report.best is None:
            continue
        for seed in config.confirm_seeds or config.seeds:
            result = found.get(cell_of(config, report.arm, report.best.axis_value, seed).name)
            if result is not None and result.score is not None:
                runs.append(
                    Trained(
                        arm=report.arm.family,
                        seed=seed,
                        rate=report.best.axis_value,
                        curves=result.curves,
                        directory=(sweep / "cells" / result.cell / "run" / "adapters" / "latest").resolve(),
                    )
                )
    return runs


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def engines_of(runs: Sequence[Trained]) -> list[list[Trained]]:
    """Runs grouped by engine: adapters share one, while a whole model replaces the base and needs its own."""
    adapters = [one for one in runs if not one.is_full]
    return [adapters, *([one] for one in runs if one.is_full)]


def adapters(runs: Sequence[Trained]) -> list[str]:
    return [word for one in runs for word in ("--adapter", f"{one.label}={one.directory}")]


def accuracies(runs: Sequence[Trained], place: Path) -> dict[str, tuple[float, float]]:
    """Label → greedy accuracy on the first and on the second task, for the base model too."""
    output, found = place / "accuracy.json", dict[str, tuple[float, float]]()
    common = ("--suite", f"{FIRST},{SECOND}", "--problem", "prompt", "--answer", "answer", "--max-tokens", MAX_TOKENS)
    for some in engines_of(runs):
        whole = some[0] if some and some[0].is_full else None
        model = ("--model", str(whole.directory), "--dtype", "float32") if whole else ("--model", "embedded")
        asked = [] if whole else adapters(some)
        run("evals", *model, "--output", str(output), "--overwrite", *common, *asked)
        first, second = (suite["rows"] for suite in json.loads(output.read_text())["suites"])
        for row, other in zip(first, second, strict=True):
            found[whole.label if whole else row["adapter"]] = (row["avg"], other["avg"])
    return found


def divergences(runs: Sequence[Trained], place: Path) -> list[tuple[Trained, float]]:
    """Each run with its KL(base‖policy)."""
    output, found = place / "kl.json", dict[str, float]()
    for some in engines_of(runs):
        run(
            *("evals.forgetting", "--model", "embedded", "--tasks", "", "--prompts", FIRST, "--max-tokens", MAX_TOKENS),
            *("--samples", "1", "--output", str(output), "--overwrite", *adapters(some)),
        )
        for policy in json.loads(output.read_text())["policies"]:
            if policy["divergence"] is not None:
                # NAME-v000320
                found[policy["label"].rpartition("-v")[0]] = policy["divergence"]["kl"]
    return [(one, found[one.label]) for one in runs]


def after_supervision(runs: Sequence[Trained], place: Path) -> tuple[tuple[float, float], list[Left]]:
    """The base model's accuracy on both tasks, and each run's at its end."""
    right = accuracies(runs, place)
    lefts = [
        Left(
            arm=one.arm,
            seed=one.seed,
            steps=one.steps,
            rate=one.rate,
            second_task_log_loss=one.curves[LOG_LOSS][-1][1],
            second_task_accuracy=right[one.label][1],
            first_task_accuracy=right[one.label][0],
            kl_base=None,
        )
        for one in runs
    ]
    return right["base"], lefts


def by_own_evaluations(runs: Sequence[Trained]) -> tuple[tuple[float, float], list[Left]]:
    """Like `after_supervision`, for runs that evaluated their versions on both tasks."""
    lefts = [
        Left(
            arm=one.arm,
            seed=one.seed,
            steps=step,
            rate=one.rate,
            second_task_log_loss=None,
            second_task_accuracy=second,
            first_task_accuracy=first,
            kl_base=None,
        )
        for one in runs
        for (step, first), (_, second) in zip(one.curves[OWN_FIRST], one.curves[OWN_SECOND], strict=True)
    ]
    start = next(one for one in lefts if one.steps == 0)
    return (start.first_task_accuracy, start.second_task_accuracy), [one for one in lefts if one.steps]


def measure(sweep: Path) -> dict[str, Any]:
    """Measure every run at a best rate, and the base model."""
    runs = trained_runs(sweep)
    moved = {(one.arm, one.steps, one.seed): divergence for one, divergence in divergences(runs, sweep)}
    supervised = all(one.is_supervised for one in runs)
    base, lefts = after_supervision(runs, sweep) if supervised else by_own_evaluations(runs)
    measured = [replace(one, kl_base=moved.get((one.arm, one.steps, one.seed))) for one in lefts]
    before = dict(zip(("first_task_accuracy_before", "second_task_accuracy_before"), base, strict=True))
    return {**before, "environment": environment(), "runs": [asdict(one) for one in measured]}


def means(lefts: Sequence[Left]) -> list[Left]:
    """Means over seeds, for each arm and length."""
    groups: dict[tuple[str, int], list[Left]] = {}
    for one in lefts:
        groups.setdefault((one.arm, one.steps), []).append(one)
    return [
        Left(
            arm=arm,
            seed=-1,
            steps=steps,
            rate=own[0].rate,
            second_task_log_loss=mean_of([one.second_task_log_loss for one in own]),
            second_task_accuracy=fmean(one.second_task_accuracy for one in own),
            first_task_accuracy=fmean(one.first_task_accuracy for one in own),
            kl_base=mean_of([one.kl_base for one in own]),
        )
        for (arm, steps), own in groups.items()
    ]


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean; None if any value is None."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def kept_at(lefts: Sequence[Left], before: tuple[float, float], level: float) -> float | None:
    """What is left of the first task when a run first reaches `level` on the second, interpolated linearly between its
    evaluations; None if it never does. `before`: the base model's accuracy on the first and on the second task."""
    path = [(before[1], before[0]), *((one.second_task_accuracy, one.first_task_accuracy) for one in lefts)]
    for (learned, kept), (learned_then, kept_then) in pairwise(path):
        if learned < level <= learned_then:
            return kept + (kept_then - kept) * (level - learned) / (learned_then - learned)
    return None


def by_seed(lefts: Sequence[Left], arm: str) -> dict[int, list[Left]]:
    """Seed → an arm's runs, by number of steps."""
    own = sorted((one for one in lefts if one.arm == arm), key=lambda one: one.steps)
    return {seed: [one for one in own if one.seed == seed] for seed in sorted({one.seed for one in own})}


def told(differences: Sequence[float]) -> str:
    """The mean in per cent or points, with a 95 % interval over seeds."""
    if not differences:
        return ""
    found = mean_over_seeds(differences)
    interval = found.interval and f" ({100 * found.interval[0]:.1f} … {100 * found.interval[1]:.1f})"
    return f"{100 * found.value:.1f}{interval or ''}, {len(differences)} seeds"


def comparisons(lefts: Sequence[Left], before: tuple[float, float]) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of arm, steps, and what it has learned and kept more than the reference, in points, paired by seed; then the
    same at `LEVEL` on the second task, with what is kept there, also for the reference."""
    runs = {arm: by_seed(lefts, arm) for arm in dict.fromkeys(one.arm for one in lefts)}
    theirs = runs[REFERENCE]
    for arm, ours in runs.items():
        for place, one in enumerate(next(iter(ours.values())) if arm != REFERENCE else ()):
            pairs = [(ours[seed][place], theirs[seed][place]) for seed in ours if seed in theirs]
            learned = [mine.second_task_accuracy - other.second_task_accuracy for mine, other in pairs]
            kept = [mine.first_task_accuracy - other.first_task_accuracy for mine, other in pairs]
            yield arm, str(one.steps), told(learned), told(kept), ""
        at = {seed: kept_at(run, before, LEVEL) for seed, run in ours.items()}
        others = {seed: kept_at(run, before, LEVEL) for seed, run in theirs.items()}
        found = {seed: kept for seed, kept in at.items() if kept is not None}
        gaps = [kept - other for seed, kept in found.items() if (other := others.get(seed)) is not None]
        yield arm, f"at {LEVEL:.0%}", "", told(gaps) if arm != REFERENCE else "", told([*found.values()])


def draw(lefts: Sequence[Left], base: float, path: Path, options: dict[str, Any]) -> None:
    """Draw what was kept over what was learned: a line per arm through its lengths, a dot per run."""
    with paper_style():
        figure, (axes,) = paper_figure()
        arms = list(dict.fromkeys(one.arm for one in lefts))
        for arm, marker in zip(arms, MARKERS, strict=False):
            whole = arm.startswith("full")
            colour = FULL_COLOUR if whole else rank_colour(int(arm.split()[1]))
            own = [one for one in lefts if one.arm == arm]
            middle = means(own)
            axes.plot(*_places(own), marker, color=colour, markersize=2, alpha=0.5)
            axes.plot(*_places(middle), f"{marker}{'--' if whole else '-'}", color=colour, label=arm)
        axes.axhline(base, color="grey", linestyle=":", linewidth=1, label=f"before training: {base:.1%}")
        axes.set_xlabel("accuracy on the second task, %")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        name_panel(axes, "Accuracy on the first task", "%")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        legend_below(figure, axes.get_legend_handles_labels()[0])
        figure.savefig(path, **options)


def _places(lefts: Sequence[Left]) -> tuple[list[float], list[float]]:
    return [one.second_task_accuracy for one in lefts], [one.first_task_accuracy for one in lefts]


def main(
    sweep: Annotated[Path, typer.Argument(help="Output directory of a sweep of the second task.")],
    redraw: Annotated[bool, typer.Option(help=f"Draw again from its {RESULTS}; measure nothing.")] = False,
) -> None:
    """Measure how much of the first task is left after the second."""
    if not redraw:
        (sweep / RESULTS).write_text(json.dumps(measure(sweep), indent=1) + "\n")
    facts = json.loads((sweep / RESULTS).read_text())
    lefts = [Left(**one) for one in facts["runs"]]
    for ending, options in FORMATS.items():
        draw(lefts, facts["first_task_accuracy_before"], sweep / f"{FIGURE}.{ending}", dict(options))
    print("| arm | steps | rate | seeds | second task, log loss | second task | first task | KL |\n" + "|---" * 8 + "|")
    for one in means(lefts):
        count = sum((other.arm, other.steps) == (one.arm, one.steps) for other in lefts)
        loss = "" if one.second_task_log_loss is None else f"{one.second_task_log_loss:.3f}"
        moved = "" if one.kl_base is None else f"{one.kl_base:.2f}"
        print(
            f"| {one.arm} | {one.steps} | {one.rate:g} | {count} | {loss} | "
            f"{one.second_task_accuracy:.1%} | {one.first_task_accuracy:.1%} | {moved} |"
        )
    before = facts["first_task_accuracy_before"], facts["second_task_accuracy_before"]
    print(f"\n| arm | steps | second − {REFERENCE}'s | first − {REFERENCE}'s | first |\n" + "|---" * 5 + "|")
    for cells in comparisons(lefts, before):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
