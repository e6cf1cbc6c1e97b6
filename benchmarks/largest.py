"""Nothing → the second task of claim 7, which has nothing to do with sums: naming the largest of several numbers.

    python -m benchmarks.largest

writes `largest_learn.jsonl` and `largest_test.jsonl` next to this file. `7 19 4?` is answered `\\boxed{19}`. No sum is
written with spaces, so nothing in the second task suggests answering sums differently than before.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

LEARNED, TESTED = 1280, 256
"""Numbers of questions: 40 steps of 32, and as many as the embedded model has held-out sums."""
HELD_OUT_SHARE = 0.1


def questions(seed: int) -> Iterator[tuple[str, int]]:
    """An endless stream of distinct questions with answers: the largest of three to six numbers up to 20."""
    rng, known = random.Random(seed), set[str]()
    while True:
        numbers = [rng.randint(1, 20) for _ in range(rng.randint(3, 6))]
        question = " ".join(map(str, numbers)) + "?"
        if question not in known:
            known.add(question)
            yield question, max(numbers)


def is_held_out(question: str) -> bool:
    """Whether a question is held out, as a function of the question, so that the two files never share one."""
    return hashlib.sha256(question.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def lines(count: int, *, held_out: bool) -> str:
    """`count` questions of a split as JSON Lines."""
    found: list[str] = []
    for question, answer in questions(seed=0):
        if len(found) == count:
            break
        if is_held_out(question) == held_out:
            row = {"prompt": question, "completion": f"\\boxed{{{answer}}}", "answer": str(answer)}
            found.append(json.dumps(row) + "\n")
    return "".join(found)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "largest_learn.jsonl").write_text(lines(LEARNED, held_out=False))
    (here / "largest_test.jsonl").write_text(lines(TESTED, held_out=True))
