"""How often the verifier accepts a reference in another form, and rejects a wrong answer.

    python -m benchmarks.reference_forms [--data-dir ../shared/data] [--references 2000] [--show]

Takes references from MATH, DeepMath and DAPO, and writes each in up to five other correct forms and five wrong ones, by
the rules of `benchmarks.answer_forms`.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.answer_forms import CORRECT, WRONG, Form
from rewards import Grader

FILES = ("math_train.jsonl", "math_test_minus500.jsonl", "deepmath_sample.jsonl", "dapo_math.jsonl")
FORMS_EACH = 5


def references(data_dir: Path, count: int) -> list[str]:
    """Distinct references from the files, the same ones each time, equally many from each."""
    chosen: list[str] = []
    for file in FILES:
        rows = (data_dir / file).read_text(encoding="utf-8").splitlines()
        answers = sorted({json.loads(row)["answer"] for row in rows} - set(chosen))
        chosen += random.Random(file).sample(answers, min(len(answers), math.ceil(count / len(FILES))))
    return chosen[:count]


def written(reference: str, forms: dict[str, Form], offset: int) -> Iterator[tuple[str, str]]:
    """Yield (rule, completion) for the first five rules that apply, rarer ones first; the last four rotate."""
    names = list(forms)
    common = names[-4:]
    shift = offset % len(common)
    applied = 0
    for name in (*names[:-4], *common[shift:], *common[:shift]):
        completion = forms[name](reference)
        if completion is not None and applied < FORMS_EACH:
            applied += 1
            yield name, completion


Case = tuple[str, str, str, bool]
"""(rule, reference, completion, whether the completion is right)."""


def cases(data_dir: Path, count: int) -> list[Case]:
    return [
        (rule, reference, completion, forms is CORRECT)
        for offset, reference in enumerate(references(data_dir, count))
        for forms in (CORRECT, WRONG)
        for rule, completion in written(reference, forms, offset)
    ]


def misjudged(grader: Grader, written_cases: list[Case]) -> list[tuple[Case, str]]:
    """Cases whose verdict differs from what the rule intended, with the verdict."""
    results = grader.grade([(completion, reference) for _, reference, completion, _ in written_cases])
    return [
        (case, str(result.verdict))
        for case, result in zip(written_cases, results, strict=True)
        if (result.verdict == "correct") != case[3]
    ]


def main(
    data_dir: Annotated[Path, typer.Option(help="Directory with the files of problems.")] = Path("../shared/data"),
    count: Annotated[int, typer.Option("--references", help="How many references.")] = 2000,
    show: Annotated[bool, typer.Option(help="Print every case that was misjudged.")] = False,
) -> None:
    """Print the shares of correct and of wrong forms that were judged correctly and, last, of both together."""
    made = cases(data_dir, count)
    with Grader(workers=2) as grader:
        failed = misjudged(grader, made)
    if show:
        for (rule, reference, completion, right), verdict in failed:
            print(f"{'missed' if right else 'ACCEPTED'} {rule} ({verdict}): {reference!r} as {completion!r}")
    for right, what in ((True, "correct forms accepted"), (False, "wrong forms refused")):
        total = sum(case[3] is right for case in made)
        wrong = Counter(case[0] for case, _ in failed if case[3] is right)
        print(
            f"{what}: {total - wrong.total()} of {total} ({1 - wrong.total() / total:.2%}) {dict(wrong.most_common(8))}"
        )
    print(f"reference forms ratio {1 - len(failed) / len(made):.4f}")


if __name__ == "__main__":
    typer.run(main)
