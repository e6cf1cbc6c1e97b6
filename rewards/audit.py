"""Where do other judges disagree with the verdicts of a rollout file? For finding false negatives by eye.

    python -m rewards.audit ROLLOUTS.jsonl [--output DISAGREEMENTS.jsonl]

Every completion is graded again and shown to two other judges: equal text or number, and math-verify with
lenient settings. A completion that is not correct for us but for one of them may be a false negative; one
that is correct for us and for none of them may be a false positive. Neither is an error by itself.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn

from datafiles.settings import read_settings
from rewards.command import Command, say_error, write_rows
from rewards.config import AnswerForm, RewardConfig
from rewards.grader import Grader
from rewards.records import BadRecord, Row, chunks, read_rows, refuse_existing
from rewards.second_opinion import MATH_VERIFY, PLAIN
from rewards.types import GradeItem, GradeResult, Verdict

CHUNK = 1000
FORMS: tuple[str, ...] = get_args(AnswerForm)
BOXED = ("boxed",)
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
    """Where the run whose completions these are looked for answers; boxed where no run lies around the file.

    Raises `ValueError` for a configuration that is damaged.
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


def disagreements(path: Path, config: RewardConfig, progress: Progress) -> tuple[int, list[Row]]:
    """Number of completions read, and what was found."""
    found: list[Row] = []
    count = 0
    task = progress.add_task("grading again", total=None)
    with Grader.from_config(config) as grader:
        for chunk in chunks(read_rows(path, required=("completion", "reference", "verdict")), CHUNK):
            results = grader.grade([_item(row) for row in chunk])
            found += [f for row, result in zip(chunk, results, strict=True) if (f := compare(row, result))]
            count += len(chunk)
            progress.update(task, description=f"grading again: {count} completions, {len(found)} disagreements")
    return count, found


@app.command(cls=Command, epilog="Example: python -m rewards.audit runs/x/rollouts/step000001.jsonl.gz")
def main(
    rollouts: Annotated[Path, typer.Argument(help="Rollout file, .jsonl or .jsonl.gz.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every disagreement here as JSON Lines.")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option(help="Answer form; may be repeated. Default: the run's, or boxed.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of grading processes.")] = 2,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, max=600, help="Time limit for grading one completion, in seconds.")
    ] = 10.0,
    show: Annotated[int, typer.Option(min=0, help="How many disagreements of each kind to print.")] = 10,
) -> None:
    """List completions on which other judges disagree with the verdict."""
    console = Console()
    try:
        refuse_existing(output)
        for name in set(form or ()) - {*FORMS}:
            raise BadRecord(f"--form is {name!r}: known are {', '.join(FORMS)}")
        config = RewardConfig.model_validate(
            {
                "workers": workers,
                "timeout_s": timeout_s,
                "answer_forms": form or forms_of(rollouts),
                "function": "rewards.second_opinion:opinions",
            }
        )
        columns, quiet = (SpinnerColumn(), TextColumn("{task.description}")), not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
            count, found = disagreements(rollouts, config, progress)
    except (ValueError, OSError) as error:
        say_error(str(error), 2)
        raise typer.Exit(2) from None
    counts = Counter(row["kind"] for row in found)
    console.print(f"{escape(str(rollouts))}: {count} completions", soft_wrap=True)
    for kind, meaning in KINDS.items():
        console.print(f"  {counts[kind]:6d}  {kind}: {meaning}")
        for row in [r for r in found if r["kind"] == kind][:show]:
            where = f"step {row['step']}, {row['problem_id']}, sample {row['sample']}"
            what = f"reference {row['reference']!r}, answer {row['extracted']!r}: {row['verdict']} by {row['rule']}"
            console.print(f"          {escape(f'{where}: {what}')}", soft_wrap=True, highlight=False)
    write_rows(output, found)


if __name__ == "__main__":
    app()
