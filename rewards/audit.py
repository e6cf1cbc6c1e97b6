"""Rollouts → completions on which other judges disagree with the verdict, to find false negatives by eye.

    python -m rewards.audit RUN_OR_ROLLOUTS … [--output DISAGREEMENTS.jsonl]

Every completion is graded again and given to two other judges: equality of text or number, and math-verify with
lenient settings. A completion that one of them accepts and we do not may be a false negative; one that we accept
and neither of them does may be a false positive. Neither is an error by itself.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn

from datafiles.leaving import leave_tidily
from datafiles.settings import read_settings
from rewards.command import Command, Disagreements, Shown, Workers, exit_code, print_error, write_rows
from rewards.config import AnswerForm, RewardConfig
from rewards.grader import Grader
from rewards.records import BadRecord, Row, chunks, read_rows, refuse_existing
from rewards.streams import check_heard, lasting
from rewards.types import MATH_VERIFY, PLAIN, GradeItem, GradeResult, Verdict

CHUNK = 1000
FORMS: tuple[str, ...] = get_args(AnswerForm)
BOXED = ("boxed",)
SUFFIXES = (".jsonl", ".jsonl.gz")
KINDS = {
    "false_negative?": "not correct for us, correct for another judge",
    "false_positive?": "correct for us, for no other judge",
    "verdict_changed": "the recorded verdict differs from today's",
    "undecided": "graded with a timeout or an error today",
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def compare(row: Row, result: GradeResult) -> Row | None:
    """The disagreement about one completion, or None."""
    opinions = int(result.terms.get("function", 0.0))
    if result.verdict in {Verdict.TIMEOUT, Verdict.ERROR}:
        kind = "undecided"
    elif result.verdict is not Verdict.CORRECT and opinions:
        kind = "false_negative?"
    elif result.verdict is Verdict.CORRECT and not opinions:
        kind = "false_positive?"
    elif row["verdict"] != result.verdict:
        kind = "verdict_changed"
    else:
        return None
    return {
        "kind": kind,
        "step": row.get("step"),
        "problem_id": row.get("problem_id"),
        "sample": row.get("sample"),
        "reference": row["reference"],
        "extracted": result.extracted,
        "recorded": row["verdict"],
        "verdict": str(result.verdict),
        "rule": result.detail,
        "plain": bool(opinions & PLAIN),
        "math_verify": bool(opinions & MATH_VERIFY),
    }


def forms_of(rollouts: Path) -> tuple[str, ...]:
    """The answer forms of the run that wrote this file, or boxed if the file is not in a run directory.

    Raises `ValueError` if the run's configuration is damaged.
    """
    config = rollouts.absolute().parent.parent / "config.yaml"
    settings = read_settings(config).get("rewards") if config.is_file() else None
    return tuple(settings.get("answer_forms") or BOXED) if isinstance(settings, dict) else BOXED


def _item(row: Row) -> GradeItem:
    return GradeItem(
        completion=str(row["completion"]),
        reference=str(row["reference"]),
        problem=str(row.get("problem", "")),
        prompt=str(row.get("prompt", "")),
    )


def rollout_files(given: Sequence[Path]) -> list[Path]:
    """The rollout files to audit: the given files, and those in the given runs or other directories, sorted by name.

    Raises `BadRecord` for a directory without such files.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = path / "rollouts" if (path / "rollouts").is_dir() else path
        files = sorted(file for file in inside.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
        if not files:
            raise BadRecord(f"{inside} holds no .jsonl or .jsonl.gz file: give a run, or files of rollouts")
        found += files
    return list(dict.fromkeys(found))


def disagreements(files: Sequence[Path], config: RewardConfig, progress: Progress) -> tuple[int, list[Row]]:
    """The number of completions graded, and the disagreements found."""
    found: list[Row] = []
    count = 0
    task = progress.add_task("grading again", total=None)
    with Grader.from_config(config) as grader:
        for path in files:
            for chunk in chunks(read_rows(path, required=("completion", "reference", "verdict")), CHUNK):
                results = grader.grade([_item(row) for row in chunk])
                compared = (compare(row, result) for row, result in zip(chunk, results, strict=True))
                found += [{"file": str(path), **row} for row in compared if row]
                count += len(chunk)
                progress.update(task, description=f"grading again: {count} completions, {len(found)} disagreements")
    return count, found


@app.command(cls=Command, epilog="Example: python -m rewards.audit runs/x --output disagreements.jsonl")
def main(
    rollouts: Annotated[list[Path], typer.Argument(help="Runs, or files of rollouts (.jsonl or .jsonl.gz).")],
    output: Disagreements = None,
    form: Annotated[
        list[str] | None, typer.Option(help="Answer form; may be repeated. Default: the run's, or boxed.")
    ] = None,
    workers: Workers = 2,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, max=600, help="Time limit for grading one completion, in seconds.")
    ] = 10.0,
    show: Shown = 10,
) -> None:
    """List completions on which other judges disagree with the verdict."""
    leave_tidily()
    console = Console(file=lasting("stdout"))
    count, found = 0, list[Row]()
    try:
        refuse_existing(output)
        for name in set(form or ()) - {*FORMS}:
            raise BadRecord(f"--form is {name!r}: known are {', '.join(FORMS)}")
        files = rollout_files(rollouts)
        columns, quiet = (SpinnerColumn(), TextColumn("{task.description}")), not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
            for forms, of_a_run in groupby(files, lambda file: tuple(form or ()) or forms_of(file)):
                config = RewardConfig.model_validate(
                    {
                        "workers": workers,
                        "timeout_s": timeout_s,
                        "answer_forms": forms,
                        "function": "rewards.second_opinion:opinions",
                    }
                )
                graded, more = disagreements([*of_a_run], config, progress)
                count, found = count + graded, [*found, *more]
    except (ValueError, OSError) as error:
        print_error(str(error), exit_code(error))
        raise typer.Exit(exit_code(error)) from None
    what = str(files[0]) if len(files) == 1 else f"{len(files)} files"
    _report(console, f"{what}: {count} completions", found, show)
    write_rows(output, found)
    check_heard()


def _report(console: Console, heading: str, found: list[Row], show: int) -> None:
    counts = Counter(row["kind"] for row in found)
    console.print(escape(heading), soft_wrap=True)
    for kind, meaning in KINDS.items():
        console.print(f"  {counts[kind]:6d}  {kind}: {meaning}")
        for row in [r for r in found if r["kind"] == kind][:show]:
            where = f"{Path(row['file']).name}, step {row['step']}, {row['problem_id']}, sample {row['sample']}"
            what = f"reference {row['reference']!r}, answer {row['extracted']!r}: {row['verdict']} by {row['rule']}"
            console.print(f"          {escape(f'{where}: {what}')}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
