"""Verdicts per second: our grader against plain in-process math-verify, on the same completions.

    python -m benchmarks.grading [--data-dir ../shared/data] [--workers 2] [--limit N]

Completions resemble a policy's: the reference solution with a boxed answer, which in every second one is the answer to
another problem. `GSM8K` has integer answers, `MATH-500` everything else. Each set is graded by a fresh grader and
without repeated pairs, so that the cache by (answer, reference) helps only as much as in training. math-verify grades
one completion after the other in this process, with its own time limits.
"""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from rewards import GradeItem, Grader

SETS = {"GSM8K": ("gsm8k_test.jsonl", 3000.0), "MATH-500": ("math500.jsonl", 400.0)}
PEER_LIMIT = 500
_LAST_BOX = re.compile(r"\\boxed\s*\{")


def load(path: Path, limit: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows[:limit] if limit else rows


def completions(rows: list[dict[str, Any]]) -> list[GradeItem]:
    """A solution per problem; every second one ends in the answer of the next problem."""
    items = []
    for number, row in enumerate(rows):
        answer = row["answer"] if number % 2 == 0 else rows[(number + 1) % len(rows)]["answer"]
        # The steps without their boxes, then one box, as a trained policy writes.
        steps = _LAST_BOX.sub("{", row["solution"])
        text = f"{steps}\n\nTherefore, the answer is $\\boxed{{{answer}}}$."
        items.append(GradeItem(completion=text, reference=row["answer"]))
    return items


def ours(items: list[GradeItem], workers: int) -> tuple[float, list[bool]]:
    with Grader(workers=workers) as grader:
        grader.grade(items[:1] * workers)  # start the workers, a cost paid once per run
        begin = time.perf_counter()
        results = grader.grade(items)
        seconds = time.perf_counter() - begin
    return len(items) / seconds, [result.verdict == "correct" for result in results]


def peer(items: list[GradeItem]) -> tuple[float, list[bool]]:
    """math-verify as used in its README."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)
    parse("$1$")
    begin = time.perf_counter()
    verdicts = [bool(verify(parse(f"${item.reference}$"), parse(item.completion))) for item in items]
    return len(items) / (time.perf_counter() - begin), verdicts


def main(
    data_dir: Annotated[Path, typer.Option(help="Directory with gsm8k_test.jsonl and math500.jsonl.")] = Path(
        "../shared/data"
    ),
    workers: Annotated[int, typer.Option(help="Grading processes.")] = 2,
    limit: Annotated[int, typer.Option(help="Problems per set; 0 takes all.")] = 0,
) -> None:
    """Print verdicts per second and, last, the ratio to math-verify on MATH-500."""
    ratio = 0.0
    for name, (file, goal) in SETS.items():
        items = completions(load(data_dir / file, limit))
        speed, verdicts = ours(items, workers)
        peer_items = items[:PEER_LIMIT]
        peer_speed, peer_verdicts = peer(peer_items)
        same = sum(a == b for a, b in zip(verdicts, peer_verdicts, strict=False))
        print(
            f"{name}: {speed:,.0f} verdicts/s with {workers} workers (goal {goal:,.0f}), "
            f"math-verify {peer_speed:,.0f}/s, "
            f"{sum(verdicts)} of {len(items)} correct, {same} of {len(peer_items)} verdicts as math-verify's"
        )
        ratio = speed / peer_speed
    print(f"grading ratio {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
