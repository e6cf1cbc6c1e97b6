"""Results of a suite → tables for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datafiles.markdown import as_markdown
from evals.command import print_table
from evals.results import SuiteResult
from evals.scoring.estimators import Difference
from evals.scoring.report import EvalReport, PartScore, powers_of_two
from rollout.config import SamplingConfig

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text whose first column names the row."""

    header: Row
    rows: Sequence[Row]
    title: str = ""


def print_result(result: SuiteResult, console: Console) -> None:
    console.print(f"\n[bold]{escape(headline(result))}[/bold]", soft_wrap=True)
    for grid in grids_of(result):
        table = Table(box=box.SIMPLE_HEAD, title=grid.title or None, title_justify="left", title_style="bold")
        for number, name in enumerate(grid.header):
            table.add_column(escape(name), justify="right" if number else "left")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        print_table(table, console)
    for line in lines_of(result):
        console.print(escape(line), soft_wrap=True)


def markdown_of(result: SuiteResult) -> str:
    parts = [f"## {as_markdown(headline(result))}"]
    for grid in grids_of(result):
        rule = "|".join(["---", *["---:"] * (len(grid.header) - 1)])
        rows = [" | ".join(map(as_markdown, row)) for row in (grid.header, *grid.rows)]
        table = "\n".join([f"| {rows[0]} |", f"|{rule}|", *(f"| {row} |" for row in rows[1:])])
        parts.append(f"**{grid.title}**\n\n{table}" if grid.title else table)
    parts += ["\n".join(f"- {line}" for line in lines_of(result))] if lines_of(result) else []
    return "\n\n".join(parts) + "\n"


def headline(result: SuiteResult) -> str:
    """One line about what was measured, and how."""
    prepared, report = result.prepared, result.reports[0]
    s = prepared.sampling
    how = "greedy" if s.temperature == 0 else f"temperature {s.temperature:g}, {_kept(s)}"
    return (
        f"{prepared.suite.name} v{prepared.suite.version}: {report.problems:,} problems × {report.samples}, {how}, "
        f"at most {s.max_tokens:,} tokens, template {prepared.prompt.template}"
    )


def _kept(sampling: SamplingConfig) -> str:
    """The truncation of the sampling distribution."""
    given = {"top_p": sampling.top_p, **sampling.truncation()}
    return ", ".join(f"{key} {value:g}" for key, value in given.items())


def grids_of(result: SuiteResult) -> list[Grid]:
    reports = result.reports
    grids = [_scores(reports)]
    if reports[0].samples > 2:
        grids.append(_by_k(reports))
    grids += [
        _by_part(f"by {what}", {report.adapter: parts for report, parts in zip(reports, columns, strict=True)})
        for what, columns in (
            ("level", [report.by_level for report in reports]),
            ("subject", [report.by_subject for report in reports]),
        )
        if columns[0]
    ]
    return grids


def lines_of(result: SuiteResult) -> list[str]:
    """Comparisons with the base model, and remarks for the reader."""
    remarks = [result.contamination.describe()] if result.contamination else []
    return [
        *(difference_line(label, difference) for label, difference in result.differences.items()),
        *(f"warning: {remark}" for remark in (*result.prepared.remarks, *remarks)),
    ]


def difference_line(label: str, difference: Difference) -> str:
    low, high = difference.interval
    chance = "p < 0.001" if difference.p_value < 0.001 else f"p = {difference.p_value:.3f}"
    return (
        f"{label} − base: {100 * difference.mean:+.1f} points (95 % {100 * low:+.1f} to {100 * high:+.1f}), {chance} "
        f"({difference.test}; better on {difference.better:,} problems, worse on {difference.worse:,})"
    )


def _scores(reports: Sequence[EvalReport]) -> Grid:
    samples = reports[0].samples
    several = (f"pass@{samples}", f"maj@{samples}") if samples > 1 else ()
    header = (
        "", f"avg@{samples} (95 %)", *several, "tokens", "right", "wrong", "cut off", "no answer", "failed", "tokens/s",
    )  # fmt: skip
    rows = []
    for report in reports:
        verdicts = report.verdicts
        both = (report.pass_at[samples], report.maj_at[samples]) if several else ()
        rows.append(
            (
                report.adapter,
                score(report.avg, report.interval),
                *(percent(estimate.value) for estimate in both),
                f"{report.tokens_mean:,.1f}",
                *("–" if t is None else f"{t:,.1f}" for t in (report.tokens_mean_correct, report.tokens_mean_wrong)),
                percent(report.truncated_frac),
                percent(verdicts["no_answer"]),
                percent(sum(verdicts[name] for name in ("unparseable", "timeout", "error"))),
                "–" if report.tokens_per_s is None else f"{report.tokens_per_s:,.0f}",
            )
        )
    return Grid(header, rows)


def _by_k(reports: Sequence[EvalReport]) -> Grid:
    ks = powers_of_two(reports[0].samples)
    rows = [
        (f"{report.adapter}, {what}", *(score(estimates[k].value, estimates[k].interval) for k in ks))
        for report in reports
        for what, estimates in (("pass@k", report.pass_at), ("maj@k", report.maj_at))
    ]
    return Grid(("", *(f"k = {k}" for k in ks)), rows)


def _by_part(title: str, columns: Mapping[str, Mapping[str, PartScore]]) -> Grid:
    names = list(next(iter(columns.values())))
    rows = [
        (name, str(next(iter(columns.values()))[name].problems),
         *(score(parts[name].avg, parts[name].interval) for parts in columns.values()))
        for name in names
    ]  # fmt: skip
    return Grid((title, "problems", *columns), rows)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def score(value: float, interval: tuple[float, float]) -> str:
    """A score and its interval, in per cent."""
    low, high = (100 * end for end in interval)
    return f"{100 * value:.1f} % ({low:.1f}–{high:.1f})"
