"""Inputs made to hang, crash, blow up or escape: each gets a verdict within the limit, and nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import Grader

LIMIT_S = 2.0
SLACK_S = 8.0
"""On top of the time limit and its extra second, for a machine that is busy with other things."""


@pytest.fixture(scope="module")
def strict_grader() -> Iterator[Grader]:
    with Grader(workers=2, timeout_s=LIMIT_S) as grader:
        grader.grade([("\\boxed{1}", "1")])
        yield grader


def box(text: str) -> str:
    return "\\boxed{" + text + "}"


TOWER = "9^{9^{9^{9}}}"
HOSTILE = {
    "tower": (box(TOWER), "5"),
    "tower_reference": (box("5"), TOWER),
    "tower_in_function": (box(r"\cos(10^{100000000})"), "0.5"),
    "tower_of_sines": (box(r"\sinh(\sinh(\sinh(30)))"), "5"),
    "tower_in_cosine": (box(r"\cos(\sinh(\sinh(30)))"), "5"),
    "million_digits": (box("9" * 1_000_000), "5"),
    "million_digits_reference": (box("5"), "9" * 1_000_000),
    "factorials": (box("((100!)!)!"), "5"),
    "big_factorial": (box("100000!"), "5"),
    "big_binomial": (box(r"\binom{1000000}{500000}"), "5"),
    "big_root": (box(r"\sqrt{10^{100000}+1}"), "10^{50000}"),
    "big_sum": (box(r"\sum_{n=1}^{10^{9}} n"), "5"),
    "big_sum_reference": (box("5"), r"\sum_{n=1}^{10^{9}} n"),
    "integral": (box("0.4"), r"\int_0^1 \sin(\sin(\sin(x^x))) dx"),
    "expansion": (box("(a+b+c+d)^{60}"), "(d+c+b+a)^{60}+1"),
    "nested_roots": (box("\\sqrt{x+" * 40 + "1" + "}" * 40), "x"),
    "open_braces": ("{" * 100_000, "5"),
    "open_boxes": ("\\boxed{" * 100_000, "5"),
    "nested_boxes": ("\\boxed{" * 100_000 + "5" + "}" * 100_000, "5"),
    "parentheses": (box("(" * 900 + "1" + ")" * 900), "1"),
    "many_boxes": ("\\boxed{1} or " * 50_000 + box("5"), "5"),
    "megabyte": ("x" * 1_000_000, "5"),
    "megabyte_of_newlines": (box("5") + "\n" * 1_000_000 + "x", "6"),
    "dollars": ("$" * 500_000 + box("5"), "6"),
    "thoughts": ("<think>" * 50_000 + box("5"), "5"),
    "comments": ("<!--" * 50_000 + box("5"), "5"),
    "verbatim": ("\\verb|" * 50_000 + box("6"), "5"),
    "turns": ("<|im_start|>" * 50_000 + box("5"), "5"),
    "nul": (box("5\x00"), "5"),
    "surrogate": (box("\ud800"), "\udfff"),
    "long_list": (box(",".join(map(str, range(400)))), ",".join(map(str, range(399, -1, -1)))),
    "long_chain": (box("x=" * 300 + "5"), "6"),
    "zero_division": (box("1/0"), "5"),
    "indeterminate": (box(r"\infty-\infty"), "0"),
    "huge_exponent": (box("1e999999999"), "5"),
    "tiny_exponent": (box("1e-999999999"), "0"),
    "backslashes": (box("\\" * 998), "5"),
    "matrix_bomb": (box("\\begin{pmatrix}" * 50 + "1" + "\\end{pmatrix}" * 50), "1"),
    "empty_pair": ("", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_item_gets_a_verdict_in_time(name: str, strict_grader: Grader) -> None:
    begin = time.monotonic()
    (result,) = strict_grader.grade([HOSTILE[name]])
    assert time.monotonic() - begin < LIMIT_S + 1.0 + SLACK_S
    assert result.verdict != "correct"
    assert result.verdict != "error", result.detail


def test_neighbours_are_not_touched(strict_grader: Grader) -> None:
    """Hostile items among ordinary ones: each ordinary item gets the verdict that it gets alone."""
    items = []
    for hostile in HOSTILE.values():
        items += [(box("2x+3"), "3+2x"), hostile, (box("7"), "8")]
    results = strict_grader.grade(items)
    assert all(result.verdict == "correct" for result in results[0::3])
    assert all(result.verdict == "incorrect" for result in results[2::3])


@pytest.mark.parametrize(
    "payload",
    [
        '__import__("os").system("touch {}")',
        "open('{}', 'w').write('x')",
        r"\input{{{}}}\write18{{touch {}}}",
        "eval(compile(\"open('{}','w')\", 'x', 'exec'))",
        "lambda: __import__('pathlib').Path('{}').touch()",
    ],
)
def test_code_in_an_answer_does_not_run(payload: str, strict_grader: Grader, tmp_path: Path) -> None:
    target = tmp_path / "made"
    text = payload.replace("{{", "{").replace("}}", "}").replace("{}", str(target))
    results = strict_grader.grade([(box(text), "5"), (box("5"), text), (text, text)])
    assert not target.exists()
    assert all(result.verdict != "correct" for result in results)


def test_limits_hold_in_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward function that misbehaves meets the same limits: memory, files, time, sudden exit."""
    (tmp_path / "misbehaving.py").write_text(
        "import os, time\n"
        "def run(completion, reference, problem):\n"
        "    if problem == 'memory': x = [0] * 10**9\n"
        "    if problem == 'file': open(reference, 'w').write('x' * 100)\n"
        "    if problem == 'exit': os._exit(3)\n"
        "    if problem == 'hang': time.sleep(600)\n"
        "    if problem == 'raise': raise KeyError('mine')\n"
        "    if problem == 'nan': return float('nan')\n"
        "    return None if problem == 'none' else 0.5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    from rewards import GradeItem, RewardConfig

    config = RewardConfig(workers=2, timeout_s=LIMIT_S, function="misbehaving:run")
    kinds = ["memory", "file", "exit", "hang", "raise", "nan", "none", ""]
    with Grader.from_config(config) as grader:
        results = grader.grade([GradeItem(completion=box("5"), reference="5", problem=kind) for kind in kinds])
    verdicts = dict(zip(kinds, (result.verdict for result in results), strict=True))
    assert verdicts["memory"] == verdicts["exit"] == verdicts["raise"] == verdicts["nan"] == "error"
    assert verdicts["hang"] == "timeout"
    assert results[0].detail == "out of memory (rewards.memory_mib is 1,024)"
    assert "mine" in results[4].detail
    assert not results[6].scored
    assert results[7].reward == 1.5
