"""A sweep's summary → differences between arms that its own table does not compare, paired by seed, each at its best.

    python -m benchmarks.paired docs/regret/batch_rank/summary.json 'rank 64, 128 × 3' 'full, 128 × 3'

Prints the first arm minus the second, in the score's own unit. For two pairs it also prints the first difference minus
the second, paired by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rl_engine.config.file import ConfigError
from rl_engine.sweep.analysis import judged
from rl_engine.sweep.report import read_summary
from rl_engine.sweep.statistics import mean_over_seeds

Scores = Mapping[int, float]
"""Seed → score."""


def scores_of(summary: Path) -> dict[str, Scores]:
    """Arm → the scores that judge it, at its best axis value. Raises `ConfigError` if the file is not a summary."""
    config, _, analysis = read_summary(summary)
    return {
        report.arm.name: judged(config, next(one for one in report.points if one.axis_value == report.best.axis_value))
        for report in analysis.arms
        if report.best
    }


def difference(first: Scores, second: Scores) -> dict[int, float]:
    """First minus second, for the seeds that both have."""
    return {seed: score - second[seed] for seed, score in first.items() if seed in second}


def told(name: str, differences: Scores) -> str:
    """A line with the mean difference and its 95 % interval over seeds. Raises `ConfigError` if no seed is shared."""
    if not differences:
        raise ConfigError(f"{name}: no seed in common")
    found = mean_over_seeds([*differences.values()])
    interval = f" ({found.interval[0]:+.4f} … {found.interval[1]:+.4f})" if found.interval else ""
    return f"{name}: {found.value:+.4f}{interval}, {len(differences)} seeds"


def main(
    summary: Annotated[Path, typer.Argument(help="A sweep's summary.json.")],
    arms: Annotated[list[str], typer.Argument(help="Two arms to compare, or two pairs of them.")],
) -> None:
    """Print differences between arms."""
    try:
        scores = scores_of(summary)
        if unknown := [arm for arm in arms if arm not in scores]:
            raise ConfigError(f"no arm {unknown[0]!r} with a score: there are {'; '.join(scores)}")
        if len(arms) not in (2, 4):
            raise ConfigError("give two arms, or two pairs of them")
        pairs = [
            (f"{first} − {second}", difference(scores[first], scores[second]))
            for first, second in zip(arms[::2], arms[1::2], strict=True)
        ]
        lines = [told(*pair) for pair in pairs]
        if len(pairs) == 2:
            lines.append(told("the first − the second", difference(pairs[0][1], pairs[1][1])))
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
