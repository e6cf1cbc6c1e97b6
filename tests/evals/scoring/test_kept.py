"""The answers that an evaluation keeps: every verdict, and one text per problem."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from evals.scoring.kept import keep_answers, kept_answers, kept_path
from evals.scoring.outcomes import Outcome, Sample
from rewards import Verdict
from rollout.types import Problem


def outcome(problem_id: str, *verdicts: Verdict) -> Outcome:
    samples = [
        Sample(text=f"text {place}", extracted=None, verdict=verdict, detail="", tokens=place, finish_reason="stop")
        for place, verdict in enumerate(verdicts)
    ]
    problem = Problem(id=problem_id, text="1+1?", answer="2")
    return Outcome(problem=problem, adapter="policy-v000001", samples=tuple(samples))


def test_answers_come_back_and_are_the_same_bytes(tmp_path: Path) -> None:
    outcomes = [outcome("a", Verdict.CORRECT, Verdict.INCORRECT), outcome("b", Verdict.NO_ANSWER, Verdict.ERROR)]
    directory = tmp_path / "run" / "evals"
    path = kept_path(directory, "held_out", "policy-v000001")
    keep_answers(directory, "held_out", "policy-v000001", outcomes)
    found = kept_answers(path)
    assert {name: answer.accuracy for name, answer in found.items()} == {"a": 0.5, "b": 0.0}
    assert found["a"].verdicts == ("correct", "incorrect")
    assert (found["b"].completion, found["b"].reference) == ("text 0", "2")
    first = path.read_bytes()
    keep_answers(directory, "held_out", "policy-v000001", outcomes)
    assert path.read_bytes() == first
    # RFC 1952: flags (none: no name of the file follows) and four bytes of its time, which would differ tomorrow.
    assert first[3:8] == bytes(5)
    assert [file.name for file in directory.iterdir()] == [path.name]


def test_an_absent_file_is_empty_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = kept_path(tmp_path, "s", "a")
    assert kept_answers(path) == {}
    keep_answers(tmp_path, "s", "a", [outcome("a", Verdict.CORRECT)])
    whole = path.read_bytes()
    other = gzip.compress(b'{"problem_id": "a"}\n')
    for damaged in (whole[:-12], whole[:30] + b"\0\0\0" + whole[33:], b"text", gzip.compress(b"{"), other, b"\x1f\x8b"):
        path.write_bytes(damaged)
        remedy = ": mend that line, or remove it" if damaged == b"text" else ""  # nobody mends a packed file
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read [(].*[)]{remedy}$"):
            kept_answers(path)
