"""The measurements of `benchmarks.pool` → simulations of the same runs, and of runs with many more workers.

    python -m benchmarks.pool_model [MEASURED.json] [--workers 1,4,16] [--tails 0.5,1,1.5] [--staleness 0,1,2,4]

`benchmarks/pool_simulation.py` describes what is simulated, how, and what is left out. The first table compares
simulated with measured times for the arms that were run. Learning and sync times are taken from the arms with k = 0, so
there the comparison tests only sampling; with k = 1 it also tests how learner and workers share the cores, for which
nothing is fitted.

The other tables are for runs that were not made: each worker has its own cores, the learner has `--learner-ranks` such
machines and divides its work ideally, steps are larger, and completion lengths are lognormal. `--tails` are the
standard deviations of the logarithm of the length, which is cut off at `--max-tokens`; all have the same mean. Pieces
have the size that `rollout.prompts_per_piece: auto` gives them. All costs are those of the measured machine.

The last table shows the cost of workers that die, each `--failures` times an hour and replaced after `--start-s`: the
share of time in which workers do not sample, and the share of tokens sampled in vain. It has pieces and continuous
admission, in which a worker takes a prompt whenever one of its own is done.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from matplotlib.axes import Axes
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]

from benchmarks.pool_measured import ARMS, MEASURED, PHASES, Measured
from benchmarks.pool_setting import Costs, Failures, Setting, StepWork
from benchmarks.pool_simulation import simulate, steady
from rl_engine.drawing.style import COLOURS, MARKERS, legends_under, name_panel, paper_figure, paper_style
from rollout.work_items import piece_size

POOLED = "2 workers, k = 0"
"""The arm whose costs the larger runs use."""
STEADY = 4
"""Number of steps over which simulated times are averaged."""


def mean_of_cut(location: float, tail: float, limit: float) -> float:
    """E[min(X, limit)] of a lognormal X whose logarithm has mean `location` and standard deviation `tail`."""
    z = (math.log(limit) - location) / tail
    below = math.exp(location + tail**2 / 2) * norm.cdf(z - tail)
    return float(below + limit * norm.sf(z))


def lognormal_lengths(shape: tuple[int, ...], mean: float, tail: float, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw lengths between 1 and `limit` tokens whose mean is `mean`, up to rounding and chance.

    Raises `ValueError` if the mean is not below the limit.
    """
    if not mean < limit:
        raise ValueError(f"a mean of {mean:g} tokens is not below the limit of {limit:,}")
    location = brentq(lambda at: mean_of_cut(at, tail, limit) - mean, -20.0, math.log(limit) + 20)
    drawn = np.random.default_rng(seed).lognormal(location, tail, shape)
    lengths: npt.NDArray[np.int64] = np.clip(np.rint(drawn), 1, limit).astype(np.int64)
    return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Results for a run with many workers."""

    step_s: float
    idle: float
    """Share of time in which workers do not sample."""
    lost: float
    """Tokens sampled in vain, relative to those that were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The size of a run with many workers."""

    problems: int
    samples: int
    mean_tokens: float
    max_tokens: int
    learner_ranks: int
    signal: float
    """Share of tokens that are learned from."""

    def steps(self, tail: float, staleness: int) -> list[StepWork]:
        """Enough steps to reach a steady state, with the same completions whatever the workers and the staleness."""
        shape = (self.problems, self.samples)
        lengths = [
            lognormal_lengths(shape, self.mean_tokens, tail, self.max_tokens, seed)
            for seed in range(1 + 2 * (staleness + 1) + STEADY)
        ]
        return [StepWork(lengths=each, learned_tokens=self.signal * float(each.sum())) for each in lengths]

    def step_s(self, costs: Costs, workers: int, tail: float, staleness: int) -> float:
        """Mean time from one steady step to the next."""
        return self.answer(costs, workers, tail, staleness).step_s

    def answer(
        self,
        costs: Costs,
        workers: int,
        tail: float,
        staleness: int,
        *,
        continuous: bool = False,
        failures: Failures | None = None,
    ) -> Answer:
        """Means over steady steps, each counted to the beginning of the next."""
        setting = Setting(
            workers=workers,
            staleness=staleness,
            prompts_per_piece=piece_size(self.problems, workers),
            learner_ranks=self.learner_ranks,
            continuous=continuous,
            failures=failures,
        )
        work = self.steps(tail, staleness)
        # The first step that waits after those sampled at the start finds more completions ready than later steps do.
        steps = steady(staleness + 1, simulate(costs, setting, work))
        seconds = sum(step.step_s + step.between_s for step in steps)
        return Answer(
            step_s=seconds / len(steps),
            idle=1 - sum(step.busy_s for step in steps) / (seconds * workers),
            lost=sum(step.lost_tokens for step in steps) / sum(one.tokens for one in steady(staleness + 1, work)),
        )


Curves = dict[float, dict[int, list[float]]]
"""Tail → staleness → step seconds for each number of workers."""


def comparison(measured: Measured) -> list[str]:
    """Table of the seconds of each phase, simulated / measured, and the error of the simulated step."""
    titles = [phase.removesuffix("_s") for phase in (*PHASES, "step_s")]
    rows = [f"{'simulated / measured, s':24}" + "".join(f"{title:>16}" for title in titles) + f"{'off by':>10}"]
    for name in ARMS:
        steps = measured.simulated(name)
        cells = []
        for phase in (*PHASES, "step_s"):
            made = statistics.median(getattr(step, phase) for step in steps)
            seen = measured.median(name, lambda step: getattr(step, phase))  # noqa: B023
            cells.append(f"{f'{made:.2f} / {seen:.2f}':>16}")
        rows.append(f"{name:24}" + "".join(cells) + f"{error_of(measured, name):>+10.1%}")
    return rows


def error_of(measured: Measured, name: str) -> float:
    """Error of the simulated median step, relative to the measured one."""
    made = statistics.median(step.step_s for step in measured.simulated(name))
    return made / measured.median(name, lambda step: step.step_s) - 1


def table(curves: dict[int, list[float]], workers: Sequence[int], tail: float) -> list[str]:
    rows = [f"{f'tail {tail:g}: step, s':>20}" + "".join(f"{f'k = {staleness}':>10}" for staleness in curves)]
    for index, count in enumerate(workers):
        cells = "".join(f"{seconds[index]:10,.1f}" for seconds in curves.values())
        rows.append(f"{f'{count:,} workers':>20}" + cells)
    return rows


def failing(scale: Scale, costs: Costs, workers: Sequence[int], tail: float, failures: Failures) -> list[str]:
    """Table of step time, idle share and lost tokens, with and without failures, in pieces and admitted
    continuously."""
    arms: dict[str, dict[str, Any]] = {
        "pieces": {},
        "pieces, failures": {"failures": failures},
        "continuous": {"continuous": True},
        "continuous, failures": {"continuous": True, "failures": failures},
    }
    rows = [f"tail {tail:g}: step, s; idle; tokens lost"]
    for staleness in (0, 1):
        rows.append(f"{f'k = {staleness}':>20}" + "".join(f"{name:>26}" for name in arms))
        for count in workers:
            found = [scale.answer(costs, count, tail, staleness, **arm) for arm in arms.values()]
            cells = "".join(f"{f'{one.step_s:,.1f}; {one.idle:.0%}; {one.lost:.2%}':>26}" for one in found)
            rows.append(f"{f'{count:,} workers':>20}" + cells)
    return rows


def draw(measured: Measured, curves: Curves, workers: Sequence[int], path: Path) -> None:
    """Draw the arms that were run, measured and simulated, and a panel for each tail."""
    with paper_style():
        figure, (first, *panels) = paper_figure(1 + len(curves))
        _draw_arms(measured, first)
        for axes, (tail, by_staleness) in zip(panels, curves.items(), strict=True):
            axes.sharey(panels[0])
            for (staleness, seconds), colour, marker in zip(by_staleness.items(), COLOURS, MARKERS, strict=False):
                axes.loglog(workers, seconds, f"{marker}-", color=colour, label=f"k = {staleness}")
            name_panel(axes, f"Simulated, tail {tail:g}", "seconds of a step")
            axes.set_xlabel("workers")
        legends_under(figure, {axes: axes.get_legend_handles_labels()[0] for axes in (first, panels[-1])})
        figure.savefig(path)


def _draw_arms(measured: Measured, axes: Axes) -> None:
    """Draw the lowest, median and highest measured step, with the simulated one next to it."""
    for place, name in enumerate(ARMS):
        seconds = [step.step_s for steps in measured.steps_of(name) for step in steps]
        middle = statistics.median(seconds)
        spread = [[middle - min(seconds)], [max(seconds) - middle]]
        axes.errorbar(middle, place, xerr=spread, fmt="o", color=COLOURS[0], label="" if place else "measured")
        made = statistics.median(step.step_s for step in measured.simulated(name))
        axes.plot(made, place + 0.2, "D", color=COLOURS[1], label="" if place else "simulated")
    axes.set_yticks(range(len(ARMS)), list(ARMS))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of a step")
    name_panel(axes, "This machine", "")


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(
    measured: Annotated[Path, typer.Argument(help="What benchmarks.pool wrote.")] = MEASURED,
    workers: Annotated[str, typer.Option(help="Numbers of workers.")] = "1,4,16,64,256,1024,4096",
    tails: Annotated[str, typer.Option(help="Standard deviations of the length's logarithm.")] = "0.5,1,1.5",
    staleness: Annotated[str, typer.Option(help="Values of rollout.max_staleness.")] = "0,1,2,4",
    problems: Annotated[int, typer.Option(min=1, help="Problems in a step.")] = 4096,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 8,
    mean_tokens: Annotated[float, typer.Option(min=1, help="Mean length of a completion, in tokens.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length of the longest completion, in tokens.")] = 8192,
    learner_ranks: Annotated[int, typer.Option(min=1, help="Learner machines, each like the measured one.")] = 128,
    failures: Annotated[float, typer.Option(min=0, help="Deaths of each worker in an hour.")] = 0.05,
    start_s: Annotated[float, typer.Option(min=0, help="Seconds until a new worker samples.")] = 120,
) -> None:
    """Print simulated and measured times, then the step time by workers, tail and staleness; draw both."""
    found = Measured.read(measured)
    print("\n".join(comparison(found)))
    counts, tail_values = [int(value) for value in numbers(workers)], numbers(tails)
    steps = found.work()
    scale = Scale(
        problems=problems,
        samples=samples,
        mean_tokens=mean_tokens,
        max_tokens=max_tokens,
        learner_ranks=learner_ranks,
        signal=sum(step.learned_tokens for step in steps) / sum(step.tokens for step in steps),
    )
    costs = found.costs(POOLED)
    curves: Curves = {}
    for tail in tail_values:
        curves[tail] = {
            int(k): [scale.step_s(costs, count, tail, int(k)) for count in counts] for k in numbers(staleness)
        }
        print("\n".join(table(curves[tail], counts, tail)), flush=True)
    dying = Failures(per_hour=failures, start_s=start_s)
    for tail in tail_values[-1:]:
        print("\n".join(failing(scale, costs, [count for count in counts if count >= 64], tail, dying)), flush=True)
    draw(found, curves, counts, measured.with_suffix(".png"))
    worst = max(abs(error_of(found, name)) for name in ARMS)
    print(f"simulated step to the measured one, furthest of {len(ARMS)} arms ratio {1 + worst:.2f}")


if __name__ == "__main__":
    typer.run(main)
