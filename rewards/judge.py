"""One completion and its reference → a judgement. Runs in the worker."""

from __future__ import annotations

from dataclasses import dataclass

from math_verify import LatexExtractionConfig, parse, verify

from rewards.types import Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, the answer it is about, and the name of the rule that decided."""

    verdict: Verdict
    extracted: str | None
    rule: str


def warm_up() -> None:
    """Load every lazy part of the parser once, before workers are forked."""
    judge_completion("\\boxed{\\frac{1}{2}x}", "\\frac{x}{2}", forms=("boxed",))


def _last_box(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + 6, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 7 : i].strip()
    return None


def judge_completion(completion: str, reference: str, *, forms: tuple[str, ...]) -> Judgement:
    answer = _last_box(completion)
    if answer is None:
        return Judgement(Verdict.NO_ANSWER, None, "no_box")
    if not reference.strip():
        return Judgement(Verdict.UNPARSEABLE, answer, "empty_reference")
    if answer == reference:
        return Judgement(Verdict.CORRECT, answer, "same_text")
    config = (LatexExtractionConfig(),)
    gold = parse(f"${reference}$", config, parsing_timeout=None)
    target = parse(f"\\boxed{{{answer}}}", config, parsing_timeout=None)
    if not gold or not target:
        return Judgement(Verdict.UNPARSEABLE, answer, "unparseable")
    correct = verify(gold, target, timeout_seconds=None)
    return Judgement(Verdict.CORRECT if correct else Verdict.INCORRECT, answer, "math_verify")
