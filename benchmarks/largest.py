"""Nothing → the second task of claim 7, which sums have nothing to do with: naming the largest of some numbers.

    python -m benchmarks.largest

writes `largest_learn.jsonl` and `largest_test.jsonl` beside this file. `7 19 4?` is answered `\\boxed{19}`: no sum is
written with spaces, so that nothing in the second task says that sums should be answered otherwise than they were.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

LEARNED, TESTED = 1280, 256
"""Questions: 40 steps of 32, and as many as the embedded model has held-out sums."""
HELD_OUT_SHARE = 0.1


def questions(seed: int) -> Iterator[tuple[str, int]]:
    """Endless different questions with their answers: the largest of three to six numbers up to 20."""
    rng, known = random.Random(seed), set[str]()
    while True:
        numbers = [rng.randint(1, 20) for _ in range(rng.randint(3, 6))]
        question = " ".join(map(str, numbers)) + "?"
        if question not in known:
            known.add(question)
            yield question, max(numbers)


def is_held_out(question: str) -> bool:
    """A function of the question, so that the two files never share one."""
    return hashlib.sha256(question.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def lines(count: int, *, held_out: bool) -> str:
    """JSON Lines of so many questions of a split."""
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
