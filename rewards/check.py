"""Is a problem file fit to train on? Ungradable references, repeats, overlap with evaluation files.

    python -m rewards.check DATA.jsonl [--against EVAL.jsonl …] [--output REPORT.jsonl]

Every reference is graded against itself, in the same workers that grade training. Exit status 1 when a
reference cannot be graded or a problem overlaps a file given with --against, so that a script can stop.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from rewards import overlap
from rewards.config import RewardConfig
from rewards.grader import Grader
from rewards.records import BadRecord, Row, chunks, read_rows
from rewards.types import GradeItem, Verdict

CHUNK = 500

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing a user should look at."""

    kind: str
    """`unusable`, `ungradable`, `text_only`, `repeat` or `overlap`."""
    id: str
    what: str


def load(path: Path) -> list[Row]:
    """The rows of a problem file; one without an id is known by its place."""
    rows = read_rows(path, required=("problem", "answer"))
    return [
        {"id": f"{path.name}-{number}", **row, "answer": "" if row["answer"] is None else row["answer"]}
        for number, row in enumerate(rows, 1)
    ]


def usable(rows: list[Row]) -> tuple[list[Row], list[Finding]]:
    """The rows that training would take, and why it drops the others."""
    kept: list[Row] = []
    found: list[Finding] = []
    seen: set[str] = set()
    for row in rows:
        if reason := _unusable(row, seen):
            found.append(Finding("unusable", str(row["id"]), reason))
        else:
            seen.add(str(row["id"]))
            kept.append(row)
    return kept, found


def _unusable(row: Row, seen: set[str]) -> str:
    for field in ("problem", "answer"):
        if isinstance(row[field], list | dict):
            return f"its {field} is a {type(row[field]).__name__}, not a text"
    if row["problem"] is None or not str(row["problem"]).strip():
        return "no problem"
    return "id seen before" if str(row["id"]) in seen else ""


def different(rows: list[Row]) -> int:
    """How many problems there are, spacing aside."""
    return len({" ".join(str(row["problem"]).split()) for row in rows})


def ungradable(rows: list[Row], grader: Grader, progress: Progress) -> list[Finding]:
    """References that are not correct against themselves."""
    found = []
    task = progress.add_task("grading references against themselves", total=len(rows))
    for chunk in chunks(iter(rows), CHUNK):
        results = grader.check_references([str(row["answer"]) for row in chunk])
        for row, result in zip(chunk, results, strict=True):
            if result.verdict is not Verdict.CORRECT:
                found.append(
                    Finding("ungradable", str(row["id"]), f"{row['answer']!r}: {result.verdict}, {result.detail}")
                )
        progress.advance(task, len(chunk))
    return found


def text_only(rows: list[Row], workers: int, timeout_s: float, progress: Progress) -> list[Finding]:
    """References that only their own text can equal: graded, but an answer in other words is missed."""
    config = RewardConfig(workers=workers, timeout_s=timeout_s, function="rewards.second_opinion:understands")
    found = []
    task = progress.add_task("reading references", total=len(rows))
    with Grader.from_config(config) as grader:
        for chunk in chunks(iter(rows), CHUNK):
            results = grader.grade([GradeItem(completion="", reference=str(row["answer"])) for row in chunk])
            for row, result in zip(chunk, results, strict=True):
                if result.terms.get("function") == 0.0:
                    found.append(Finding("text_only", str(row["id"]), repr(row["answer"])))
            progress.advance(task, len(chunk))
    return found


def _problems(rows: list[Row], prefix: str = "") -> list[tuple[str, str]]:
    return [(f"{prefix}{row['id']}", str(row["problem"])) for row in rows]


def repeats(rows: list[Row]) -> list[Finding]:
    return [Finding("repeat", pair.left, f"{pair.kind} with {pair.right}") for pair in overlap.within(_problems(rows))]


def overlaps(rows: list[Row], other: Path) -> list[Finding]:
    """Problems that an evaluation file holds as well."""
    pairs = overlap.between(_problems(rows), _problems(load(other), f"{other.name}:"))
    return [Finding("overlap", pair.left, f"{pair.kind} with {pair.right}") for pair in pairs]


@app.command()
def main(
    data: Annotated[Path, typer.Argument(help="Problem file: JSON Lines with id, problem, answer.")],
    against: Annotated[list[Path] | None, typer.Option(help="Evaluation file; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write every finding here as JSON Lines.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Grading processes.")] = 2,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Time limit of one reference.")] = 5.0,
    show: Annotated[int, typer.Option(min=0, help="Findings of each kind to print.")] = 10,
) -> None:
    """Check a problem file before training on it."""
    console = Console()
    try:
        rows, findings = usable(load(data))
        if not rows:
            raise BadRecord(f"{data} has no usable problem: {findings[0].what if findings else 'it is empty'}")
        with Progress(console=console, transient=True) as progress:
            with Grader(workers=workers, timeout_s=timeout_s) as grader:
                findings += ungradable(rows, grader, progress)
            findings += text_only(rows, workers, timeout_s, progress)
        with console.status("looking for repeats"):
            findings += repeats(rows)
            for other in against or []:
                findings += overlaps(rows, other)
    except BadRecord as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from None
    _report(console, data, rows, findings, show)
    if output is not None:
        lines = [json.dumps({"kind": f.kind, "id": f.id, "what": f.what}) + "\n" for f in findings]
        output.write_text("".join(lines), encoding="utf-8")
    if any(finding.kind in {"ungradable", "overlap"} for finding in findings):
        raise typer.Exit(1)


_MEANING = {
    "unusable": "rows without a problem, or with an id seen before; training drops them",
    "ungradable": "references that cannot be graded; training drops them",
    "text_only": "references that only their own text can equal",
    "repeat": "pairs inside the file that repeat each other",
    "overlap": "pairs that overlap another file",
}


def _report(console: Console, data: Path, rows: list[Row], findings: list[Finding], show: int) -> None:
    counts = Counter(finding.kind for finding in findings)
    count = different(rows)
    repeated = f"{count} different problems of {len(rows)}" if count < len(rows) else f"{count} problems"
    console.print(escape(f"{data}: {repeated}"), soft_wrap=True)
    for kind, meaning in _MEANING.items():
        console.print(f"  {counts[kind]:6d}  {meaning}")
        for finding in [f for f in findings if f.kind == kind][:show]:
            console.print(f"          {escape(finding.id)}: {escape(finding.what)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
