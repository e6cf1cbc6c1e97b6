"""A sweep's results → table.md, summary.json and figures; summary.json alone → table and figures again."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from evals.launch.limits import usable_cores
from evals.scoring.versions import package_versions
from rl_engine.config.file import ConfigError
from rl_engine.sweep.analysis import Analysis, ArmReport, Best, Found, analyse, curves_at, known_curve, reference_of
from rl_engine.sweep.cells import arms_of
from rl_engine.sweep.config import SweepConfig
from rl_engine.sweep.results import Result, parsed
from rl_engine.sweep.statistics import SeedEstimate
from rollout.files.durable import write_synced
from rollout.files.ownership import replaced

SUMMARY, TABLE = "summary.json", "table.md"
FORMAT = 1
TABLE_BEGINS = "Score: `"
COLUMNS = 12
"""Most steps shown in the table of curves."""
Rows = list[list[str]]
"""The first row holds the titles."""


def write_report(config: SweepConfig, found: Found) -> Analysis:
    """Write everything a sweep reports into its output directory."""
    analysis = analyse(config, found)
    summary = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "spread": analysis.spread and analysis.spread.deviation,
        "spread_degrees_of_freedom": analysis.spread and analysis.spread.freedom,
        "arms": [{"name": report.arm.name, "best": report.best and asdict(report.best)} for report in analysis.arms],
    }
    # One result per line keeps the file readable and its diffs small. Of an error only one line is kept; the log
    # has the rest.
    head = json.dumps(strict_json(summary), indent=1).removesuffix("\n}")
    results = [asdict(replace(result, error=reason_of(result.error))) for result in found.values()]
    lines = ",\n".join(f"  {json.dumps(result)}" for result in results)
    write_synced(config.output / SUMMARY, f'{head},\n "results": [\n{lines}\n ]\n}}\n')
    draw_report(config, found, analysis, config.output)
    return analysis


def read_summary(summary: Path) -> tuple[SweepConfig, Found, Analysis]:
    """Read a summary.json. Raises `ConfigError` if it does not exist or is something else."""
    if not summary.is_file():
        message = f"is a directory: give {summary / SUMMARY}" if summary.is_dir() else "does not exist"
        raise ConfigError(f"--redraw: {summary} {message}")
    try:
        values = json.loads(summary.read_text(encoding="utf-8"))
        config = SweepConfig.model_validate(values["config"])
        results = [parsed(result) for result in values["results"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{summary} is not the summary of a sweep: {error}") from error
    found = {result.cell: result for result in results}
    return config, found, analyse(config, found)


def redraw(summary: Path) -> tuple[SweepConfig, Analysis]:
    """Redraw table and figures next to a summary.json, from it alone. Raises `ConfigError` for any other file."""
    config, found, analysis = read_summary(summary)
    replaced({summary.parent / TABLE: lambda path: path.read_bytes().startswith(TABLE_BEGINS.encode())}, "--redraw")
    draw_report(config, found, analysis, summary.parent)
    return config, analysis


def draw_report(config: SweepConfig, found: Found, analysis: Analysis, directory: Path) -> None:
    from rl_engine.sweep.figures import draw  # matplotlib takes a second, and --help does not need it

    write_synced(directory / TABLE, table(config, found, analysis))
    draw(config, found, analysis, directory)


def strict_json(tree: Any) -> Any:
    """Replace non-finite numbers, which lie beyond the axis, by None: JSON has no infinity."""
    if isinstance(tree, dict):
        return {key: strict_json(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [strict_json(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def environment() -> dict[str, Any]:
    """The system and package versions that produced the numbers."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": usable_cores(),
        "versions": package_versions(),
    }


def best_rows(config: SweepConfig, analysis: Analysis) -> Rows:
    """One row per arm: where it is best, how well it scores there, and how that compares with the reference."""
    axis, reference = config.axis, config.reference
    # Say how many degrees of freedom the first intervals rest on: Student's t with 1 is wide, with 12 nearly normal.
    between = "between the values"
    between += f" (t, {analysis.spread.freedom} d.f.)" if analysis.spread else ""
    titles = ["arm", f"best {axis}", between, "good range", "score there", "seeds"]
    titles += [f"best / {reference}'s", f"score − {reference}'s"] if reference else []
    return [titles, *([one.arm.name, *_best_cells(config, one, analysis)] for one in analysis.arms)]


def _best_cells(config: SweepConfig, report: ArmReport, analysis: Analysis) -> list[str]:
    best, compared = report.best, bool(config.reference)
    if best is None:
        return ["no value with all seeds"] + [""] * (6 if compared else 4)
    cells = [
        f"{best.axis_value:g}",
        _written(best.best, ".2g"),
        _range(config, best, report),
        _written(best.score, ".3f"),
        str(best.seeds),
    ]
    if compared and best.comparison:
        cells += [_written(best.comparison.best_ratio, ".2g"), _written(best.comparison.score_difference, "+.3f")]
    elif compared and report.arm.family != config.reference:
        counterpart = reference_of(config, report.arm, [one.arm for one in analysis.arms])
        cells += [f"no {config.reference} at the same values"] * (counterpart is None)
    return cells + [""] * ((7 if compared else 5) - len(cells))


def _range(config: SweepConfig, best: Best, report: ArmReport) -> str:
    """The good range; an end at the edge of the known axis is marked, as the range may extend beyond it."""
    low, high = best.good_range
    known, _ = known_curve(config, report.points)
    ends = known[0].axis_value, known[-1].axis_value
    open_low, open_high = low <= ends[0] * (1 + 1e-9), high >= ends[1] * (1 - 1e-9)
    width = _written(best.good_decades, ".2f")
    at_most, at_least = "≤ " if open_low else "", "≥ " if open_high else ""
    more = "≥ " if open_low or open_high else ""
    return f"{at_most}{low:.2g} – {at_least}{high:.2g}: {more}{width} decades"


def _written(estimate: SeedEstimate, form: str) -> str:
    """`0.93 (0.91 … 0.95)`, with `beyond` for values beyond the axis and `unknown` for those that cannot be known."""
    value = format(estimate.value, form) if math.isfinite(estimate.value) else "beyond"
    if math.isnan(estimate.value):
        return "unknown"
    if estimate.interval is None:
        return value
    low, high = (format(end, form) if math.isfinite(end) else "beyond" for end in estimate.interval)
    return f"{value} ({low} … {high})"


def score_rows(config: SweepConfig, analysis: Analysis) -> Rows:
    """One row per arm, one column per axis value: mean score (number of seeds), and how many cells failed."""
    values = sorted({point.axis_value for report in analysis.arms for point in report.points})
    rows = [["arm", *(f"{value:g}" for value in values)]]
    for report in analysis.arms:
        cells = {point.axis_value: "" for point in report.points}
        for point in report.points:
            scores = [*point.scores.values()]
            shown = [f"{fmean(scores):.3f} ({len(scores)})"] if scores else []
            shown += [f"{point.failed} failed"] if point.failed else []
            cells[point.axis_value] = ", ".join(shown)
        rows.append([report.arm.name, *(cells.get(value, "") for value in values)])
    return rows


def curve_rows(config: SweepConfig, found: Found) -> Rows:
    """One row per arm and axis value, one column per step: the score's metric, averaged over seeds. Empty if it is
    known only before and after training."""
    places = [(arm, value) for arm in arms_of(config) for value in arm.axis_values]
    curves = []
    for arm, value in places:
        steps, values = curves_at(config, arm, value, found, config.score.metric)
        curves.append(dict(zip(steps, map(fmean, values), strict=True)))
    steps = sorted({step for curve in curves for step in curve})
    if len(steps) < 3:
        return []
    shown = [*steps[: -1 : math.ceil(len(steps) / COLUMNS)], steps[-1]]
    rows = [["arm", config.axis, *map(str, shown)]]
    for (arm, value), curve in zip(places, curves, strict=True):
        if curve:
            rows.append([arm.name, f"{value:g}", *(f"{curve[step]:.3f}" if step in curve else "" for step in shown)])
    return rows


def table(config: SweepConfig, found: Found, analysis: Analysis) -> str:
    """The report as Markdown."""
    score = config.score
    done = [result for result in found.values() if result.status == "done"]
    spread = analysis.spread
    seeds = f" Spread between seeds: {spread.deviation:.3f}, of {spread.freedom} degrees of freedom." if spread else ""
    parts = [
        f"{TABLE_BEGINS}{score.metric}`, {score.at if isinstance(score.at, str) else f'mean of the last {score.at}'}, "
        f"{score.mode}. {len(done)} runs done in {sum(result.seconds for result in done) / 3600:.2f} hours of runs, "
        f"{len(found) - len(done)} failed.{seeds} In brackets: 95 %.",
        markdown(best_rows(config, analysis)),
        f"Mean score (seeds) by `{config.axis}`:",
        markdown(score_rows(config, analysis)),
        *_curves(config, found),
        *_failures([result for result in found.values() if result.status != "done"]),
    ]
    return "\n\n".join(parts) + "\n"


def _curves(config: SweepConfig, found: Found) -> list[str]:
    rows = curve_rows(config, found)
    return [f"`{config.score.metric}` by step, mean over seeds:", markdown(rows)] if rows else []


def _failures(failed: Sequence[Result]) -> list[str]:
    if not failed:
        return []
    return ["Failed:", "\n".join(f"- {r.cell}: {r.status}: {reason_of(r.error)}" for r in failed)]


def reason_of(text: str) -> str:
    """The line of a run's output that says why it failed: its own error line, or else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (own or lines or [""])[-1]


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def console_table(rows: Rows) -> Table:
    drawn = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn
