"""Runs → one self-contained HTML file, with styles, scripts and data inside it."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rl_engine.report.charts import GROUPS, charts_of
from rl_engine.report.descriptions import descriptions_of
from rl_engine.report.formulas import FORMULA, formulas_of
from rl_engine.report.origins import headline_of, origin_of, settings_of_its_own
from rl_engine.report.pairs import Pair, pairs_of
from rl_engine.report.shown_run import ShownRun, read_run
from rl_engine.report.tables import changes_of, conditions_of, differences_of, overview_of
from rl_engine.report.warnings import warnings_of
from rl_engine.run.records import ASKED
from rollout.files.durable import replacing

PROBLEMS = 4
"""Problems shown per step by default."""
COMPLETIONS_BYTES = 10_000_000
"""Most bytes of completions in a page, for all runs together. Everything else is far smaller."""
LINES = 2_000
"""Most steps drawn per run; in a longer run, only every second, third, … step, and all steps with an evaluation."""
TITLE_END = " · rl_engine</title>"
"""Every page's title ends like this, which identifies the file as one of our reports."""
SCRIPTS = ("charts.js", "formulas.js", "completions.js", "pairs.js", "page.js")


def write_report(directories: Sequence[Path], output: Path) -> Path:
    """Write the page of these run directories.

    Raises `ValueError` for a directory that is not a run.
    """
    return write_page(read_runs(directories, PROBLEMS), output)


def read_runs(directories: Sequence[Path], problems: int) -> list[ShownRun]:
    """Read the runs in these directories; they share the page's budget for completions evenly."""
    budget_bytes = COMPLETIONS_BYTES // len(directories)
    return [read_run(directory, problems=problems, budget_bytes=budget_bytes) for directory in directories]


def write_page(runs: Sequence[ShownRun], output: Path, reload_s: float | None = None) -> Path:
    """Write the page atomically, so that no browser sees half of it. `reload_s`: how often it reloads itself."""
    output.parent.mkdir(parents=True, exist_ok=True)
    # A run and a `--watch` process may write the same page at the same time.
    with replacing(output, f"{os.getpid()}.partial") as scratch:
        scratch.write_text(page_of(runs, reload_s), encoding="utf-8")
    return output


def is_report(path: Path) -> bool:
    """Whether a file is one of our reports."""
    return TITLE_END.encode() in path.read_bytes()


def page_of(runs: Sequence[ShownRun], reload_s: float | None = None) -> str:
    """The page's HTML. Text from runs is escaped by the template, or embedded as JSON that is only read as text."""
    script = "\n".join(_own(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    names = names_of(runs)
    pairs = pairs_of(runs, names)
    changes = changes_of(runs)
    headlines = [
        headline_of(run, [change for change in changes if change.run == index]) for index, run in enumerate(runs)
    ]
    return (
        _environment()
        .get_template("page.html")
        .render(
            names=names,
            runs=runs,
            overviews=[overview_of(run) for run in runs],
            changes=changes,
            headlines=headlines,
            warnings=[warnings_of(run) for run in runs],
            origins=[origin_of(run) for run in runs],
            own_settings=[settings_of_its_own(run) for run in runs],
            pairs=pairs,
            conditions=[conditions_of(run) for run in runs],
            differences=differences_of(runs),
            data=_data(names, runs, pairs, reload_s),
            style=Markup(_own("page.css")),
            script=Markup(script),
            script_digest=digest,
        )
    )


def names_of(runs: Sequence[ShownRun]) -> list[str]:
    """The runs' display names: the shortest path endings, of equal length, that tell them apart."""
    paths = [run.path.resolve().parts for run in runs]
    for length in range(1, max(map(len, paths))):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(run.path) for run in runs]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rl_engine.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` writes <, >, & and ' as \u003c …, so that no completion can close the element that contains it.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["percent"] = _percent
    environment.filters["points"] = _points
    environment.filters["tokens"] = _tokens
    return environment


def _own(name: str) -> str:
    return resources.files("rl_engine.report").joinpath("assets", name).read_text(encoding="utf-8")


def _percent(score: float) -> str:
    return f"{100 * score:.1f}"


def _points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _tokens(mean: float | None) -> str:
    if mean is None:
        return "—"
    return f"{mean:,.1f}" if mean < 100 else f"{mean:,.0f}"


def _data(
    names: Sequence[str], runs: Sequence[ShownRun], pairs: Sequence[Pair], reload_s: float | None
) -> dict[str, Any]:
    """The data that the scripts read."""
    keys = {key for run in runs for line in run.lines for key in line}
    return {
        "reload_s": reload_s,
        "charts": [asdict(chart) for chart in charts_of(keys)],
        "groups": GROUPS,
        "keys": sorted(keys - {"step", ASKED}),
        "meanings": descriptions_of(sorted(keys)),
        "pairs": [asdict(pair) for pair in pairs],
        "formula": FORMULA.pattern,
        "formulas": formulas_of(_texts(runs, pairs)),
        "runs": [
            {"name": name, "metrics": _columns(run.lines), **asdict(run.completions)}
            for name, run in zip(names, runs, strict=True)
        ],
    }


def _texts(runs: Sequence[ShownRun], pairs: Sequence[Pair]) -> Iterator[str]:
    """All texts of problems and completions that are shown."""
    for group in (group for run in runs for group in run.completions.groups):
        yield group.problem
        yield from (completion.text for completion in group.completions)
    for problem in (problem for pair in pairs for problem in pair.problems):
        yield problem.problem
        yield from (side.text for side in problem.sides)


def _columns(lines: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Metric → its values over the steps, to eight digits; None where a step has no value or it is not finite."""
    stride = math.ceil(len(lines) / LINES) or 1
    kept = [
        line
        for index, line in enumerate(lines)
        if index % stride == 0 or line is lines[-1] or any(key.startswith("eval/") for key in line)
    ]

    def digits(value: float | None) -> float | None:
        return None if value is None or not math.isfinite(value) else float(f"{value:.8g}")

    return {key: [digits(line.get(key)) for line in kept] for key in sorted({key for line in kept for key in line})}
