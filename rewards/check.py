"""Problem file → what makes it unfit for training: ungradable references, repeats, overlap with evaluation files.

    python -m rewards.check DATA [--against EVAL.jsonl …] [--output REPORT.jsonl]

Every reference is graded against itself, in the same kind of workers that grade in training. The exit status is 1 if
a reference cannot be graded or a problem overlaps a file given with --against, so that a script can stop.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from datafiles.cells import has_column
from datafiles.formats import HELD_OUT
from datafiles.leaving import leave_tidily
from datafiles.problems import Columns, ProblemRow, missing_columns, problem_rows
from datafiles.rows import remedy, rows_of
from datafiles.text import TextFileError
from rewards import overlap
from rewards.command import Command, Workers, exit_code, print_error, write_rows
from rewards.config import RewardConfig
from rewards.grader import Grader
from rewards.records import BadRecord, chunks, refuse_existing
from rewards.streams import check_heard, lasting
from rewards.types import GradeItem, Verdict

CHUNK = 500

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem with the file that the user should look at."""

    kind: str
    """`unusable`, `ungradable`, `text_only`, `left_out`, `repeat` or `overlap`."""
    id: str
    what: str


def load(path: Path, columns: Columns, key: str, split: str | None = None) -> tuple[list[ProblemRow], list[Finding]]:
    """The rows that training would keep, read as training reads them, and why it drops the others. Rows without an
    answer are kept here, to be reported as ungradable.

    Raises `BadRecord` if no row is left.
    """
    found: list[Finding] = []

    def drop(reason: str, where: str) -> None:
        if reason != "blank line":
            found.append(Finding("unusable", where, reason))

    kept = list(problem_rows(rows_of(path, drop, key, split), columns, drop, need_answer=False))
    _, first = next(rows_of(path, lambda *_: None, key, split), ("", None))
    if first is not None and not any(row.answer for row in kept):
        message = missing_columns(first, columns, path, key, need_answer=True, option="--{role}={name}")
        if message:
            raise BadRecord(f"{key}: {path} has {message}")
    if not kept:
        raise BadRecord(f"{key}: {path} has no usable problem: {_first(found)}")
    return kept, found


def _first(found: list[Finding]) -> str:
    return f"{found[0].what} ({found[0].id}){remedy(each.what for each in found)}" if found else "it is empty"


def different(rows: list[ProblemRow]) -> int:
    """The number of distinct problems, ignoring whitespace."""
    return len({" ".join(row.asked.text.split()) for row in rows})


def ungradable(rows: list[ProblemRow], grader: Grader, progress: Progress) -> list[Finding]:
    """References that are not graded correct against themselves."""
    found = []
    task = progress.add_task("grading references against themselves", total=len(rows))
    for chunk in chunks(iter(rows), CHUNK):
        results = grader.check_references([row.answer for row in chunk])
        for row, result in zip(chunk, results, strict=True):
            if result.verdict is not Verdict.CORRECT:
                found.append(Finding("ungradable", row.id, f"{row.answer!r}: {result.verdict}, {result.detail}"))
        progress.advance(task, len(chunk))
    return found


def text_only(rows: list[ProblemRow], workers: int, timeout_s: float, progress: Progress) -> list[Finding]:
    """References that only their own text can equal: they can be graded, but an answer in other words is missed."""
    config = RewardConfig(workers=workers, timeout_s=timeout_s, function="rewards.second_opinion:understands")
    found = []
    task = progress.add_task("reading references", total=len(rows))
    with Grader.from_config(config) as grader:
        for chunk in chunks(iter(rows), CHUNK):
            results = grader.grade([GradeItem(completion="", reference=row.answer) for row in chunk])
            for row, result in zip(chunk, results, strict=True):
                if result.terms.get("function") == 0.0:
                    found.append(Finding("text_only", row.id, repr(row.answer)))
            progress.advance(task, len(chunk))
    return found


def left_out(rows: list[ProblemRow]) -> list[Finding]:
    """Problems that come after other turns of a chat: training asks only the user's last turn."""
    return [Finding("left_out", row.id, f"asked is {row.asked.text[:80]!r}") for row in rows if row.asked.continues]


def _problems(rows: list[ProblemRow], prefix: str = "") -> list[tuple[str, str]]:
    return [(f"{prefix}{row.id}", row.asked.text) for row in rows]


def repeats(rows: list[ProblemRow]) -> list[Finding]:
    return [Finding("repeat", pair.left, f"{pair.kind} with {pair.right}") for pair in overlap.within(_problems(rows))]


def overlaps(rows: list[ProblemRow], other: Path, columns: Columns) -> list[Finding]:
    """Problems that are also in an evaluation file, whose columns have the data's names or the project's defaults. From
    a file with several splits, the same is read as in an evaluation."""
    key, split = "--against", HELD_OUT
    _, first = next(rows_of(other, lambda *_: None, key, split), ("", {}))
    others, _ = load(other, columns if has_column(first, columns.problem) else Columns(), key, split)
    pairs = overlap.between(_problems(rows), _problems(others, f"{other.name}:"))
    return [Finding("overlap", pair.left, f"{pair.kind} with {pair.right}") for pair in pairs]


@app.command(cls=Command, epilog="Example: python -m rewards.check train.jsonl --against test.jsonl")
def main(
    data: Annotated[Path, typer.Argument(help="Problem file, in any format that training reads.")],
    problem: Annotated[str, typer.Option(help="Column of the question, as in data.columns.problem.")] = "problem",
    answer: Annotated[
        str, typer.Option(help="Column of the reference answer; a.b is field b of mapping a.")
    ] = "answer",
    against: Annotated[
        list[Path] | None, typer.Option(help="Evaluation file to check for overlap; may be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every finding here as JSON Lines.")] = None,
    workers: Workers = 2,
    timeout_s: Annotated[float, typer.Option(min=0.1, max=600, help="Time limit for one reference, in seconds.")] = 5.0,
    show: Annotated[int, typer.Option(min=0, help="How many findings of each kind to print.")] = 10,
) -> None:
    """Check a problem file before training on it."""
    leave_tidily()
    console = Console(file=lasting("stdout"))
    try:
        refuse_existing(output)
        columns = Columns(problem=problem, answer=answer)
        rows, findings = load(data, columns, "DATA")
        with Progress(console=console, transient=True) as progress:
            with Grader(workers=workers, timeout_s=timeout_s) as grader:
                findings += ungradable(rows, grader, progress)
            findings += text_only(rows, workers, timeout_s, progress)
        findings += left_out(rows)
        with console.status("looking for repeats"):
            findings += repeats(rows)
            for other in against or []:
                findings += overlaps(rows, other, columns)
    except (BadRecord, TextFileError, OSError) as error:
        print_error(str(error), exit_code(error))
        raise typer.Exit(exit_code(error)) from None
    _report(console, data, rows, findings, show)
    write_rows(output, ({"kind": f.kind, "id": f.id, "what": f.what} for f in findings))
    check_heard()
    if any(finding.kind in {"ungradable", "overlap"} for finding in findings):
        raise typer.Exit(1)


_MEANING = {
    "unusable": "rows without a problem, or with an id seen before; training drops them",
    "ungradable": "references that cannot be graded; training drops them",
    "text_only": "references that only their own text can equal",
    "left_out": "problems that follow other turns of a chat; training drops those turns",
    "repeat": "pairs inside the file that repeat each other",
    "overlap": "pairs that overlap another file",
}


def _report(console: Console, data: Path, rows: list[ProblemRow], findings: list[Finding], show: int) -> None:
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
