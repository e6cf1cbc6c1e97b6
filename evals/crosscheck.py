"""GSM8K completions → where our verdicts differ from those of lm-evaluation-harness.

    python -m evals.crosscheck FILE.samples.jsonl.gz [--output DISAGREEMENTS.jsonl]

Their verdict is from the flexible extraction of their task `gsm8k` (the last number anywhere) and their exact match, by
their own code and task file; this needs `pip install lm_eval`. Ours is from the grader with the suites' answer form.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evals.command import exit_explained, exit_with_error, lasting_console
from evals.suites import ANSWER_FORMS
from rewards import GradeItem, Grader, GradeResult, RewardConfig, Verdict
from rewards.command import Command, Disagreements, Shown, Workers, write_rows
from rewards.records import BadRecord, read_rows, refuse_existing
from rewards.streams import check_heard

FILTER = "flexible-extract"
TAIL = 160

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class Theirs:
    """lm-evaluation-harness's judgement of one completion."""

    extracted: str
    correct: bool


def gsm8k_task() -> dict[str, Any]:
    """The definition of their task. Raises `ModuleNotFoundError` if lm_eval is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("lm_eval is not installed: pip install lm_eval")
    task: dict[str, Any] = yaml.safe_load(
        (Path(found.origin).parent / "tasks/gsm8k/gsm8k.yaml").read_text(encoding="utf-8")
    )
    return task


def judged_by_them(pairs: Sequence[tuple[str, str]]) -> list[Theirs]:
    """Their judgements of (completion, reference) pairs."""
    task = gsm8k_task()
    instance_of = importlib.import_module("lm_eval.api.instance").Instance
    exact_match = importlib.import_module("lm_eval.api.metrics").exact_match_hf_evaluate
    ensemble_of = importlib.import_module("lm_eval.filters").build_filter_ensemble
    steps = next(entry["filter"] for entry in task["filter_list"] if entry["name"] == FILTER)
    (metric,) = task["metric_list"]
    options = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    instances = [
        instance_of(request_type="generate_until", doc={}, arguments=("", {}), idx=0, resps=[text]) for text, _ in pairs
    ]
    components = [(step["function"], {k: v for k, v in step.items() if k != "function"}) for step in steps]
    ensemble_of(FILTER, components).apply(instances)
    extracted = [str(instance.filtered_resps[FILTER]) for instance in instances]
    return [
        Theirs(text, bool(exact_match([text], [reference], **options)["exact_match"]))
        for text, (_, reference) in zip(extracted, pairs, strict=True)
    ]


def kind_of(ours: GradeResult, theirs: Theirs) -> str:
    """The kind of disagreement, or empty if both agree."""
    right = ours.verdict is Verdict.CORRECT
    if right == theirs.correct:
        return ""
    return (
        f"{'ours' if right else 'theirs'} correct, {'theirs' if right else 'ours'} not: {ours.verdict}, {ours.detail}"
    )


@app.command(cls=Command, epilog="Example: python -m evals.crosscheck scores.samples.jsonl.gz")
def main(
    file: Annotated[Path, typer.Argument(help="Samples from `python -m evals --records`, or rows of the same form.")],
    reference: Annotated[str, typer.Option(help="Field of the reference answer.")] = "reference",
    output: Disagreements = None,
    show: Shown = 2,
    workers: Workers = 2,
) -> None:
    """Compare our verdicts on GSM8K completions with those of lm-evaluation-harness."""
    console = lasting_console()
    try:
        refuse_existing(output)
        rows = list(read_rows(file, required=("completion", reference)))
        pairs = [(str(row["completion"]), str(row[reference])) for row in rows]
        theirs = judged_by_them(pairs)
    except (BadRecord, OSError) as error:
        exit_explained(error)
    except ModuleNotFoundError as error:
        exit_with_error(str(error), 2)
    with Grader.from_config(RewardConfig(workers=workers, answer_forms=ANSWER_FORMS)) as grader:
        ours = grader.grade([GradeItem(completion=text, reference=gold) for text, gold in pairs])
    found = [
        {
            "kind": kind_of(mine, other),
            "id": row.get("problem_id", row.get("id")),
            "reference": gold,
            "ours": mine.extracted,
            "theirs": other.extracted,
            "completion": text,
        }
        for row, (text, gold), mine, other in zip(rows, pairs, ours, theirs, strict=True)
        if kind_of(mine, other)
    ]
    print_counts(console, ours, theirs)
    print_kinds(console, found, show)
    write_rows(output, found)
    check_heard()


def print_counts(console: Console, ours: Sequence[GradeResult], theirs: Sequence[Theirs]) -> None:
    """Print the two-by-two table and the agreement."""
    counts = Counter((mine.verdict is Verdict.CORRECT, other.correct) for mine, other in zip(ours, theirs, strict=True))
    table = Table("", "lm-eval: correct", "lm-eval: wrong")
    for right, name in ((True, "ours: correct"), (False, "ours: not correct")):
        table.add_row(name, str(counts[right, True]), str(counts[right, False]))
    console.print(table)
    same = counts[True, True] + counts[False, False]
    console.print(f"the same verdict on {same:,} of {len(ours):,} ({same / len(ours):.1%})")


def print_kinds(console: Console, found: Sequence[dict[str, Any]], show: int) -> None:
    for kind, count in Counter(row["kind"] for row in found).most_common():
        console.print(f"{count:6,}  {escape(kind)}")
        for row in [row for row in found if row["kind"] == kind][:show]:
            what = f"reference {row['reference']!r}, ours {row['ours']!r}, theirs {row['theirs']!r}"
            tail = " ".join(row["completion"][-TAIL:].split())
            console.print(f"        {escape(str(row['id']))}: {escape(what)}; ends: {escape(tail)}", soft_wrap=True)


if __name__ == "__main__":
    app()
