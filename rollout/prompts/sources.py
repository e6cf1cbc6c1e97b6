"""The datasets known by name, and which of their columns hold problem and answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from datafiles.rows import Row


def after_hashes(row: Row) -> str:
    """GSM8K writes the answer after `####`, with thousands separators."""
    return str(row["answer"]).rpartition("####")[2].replace(",", "").strip()


def last_box(row: Row) -> str:
    """MATH writes the answer in the last `\\boxed{…}` (or `\\fbox{…}`) of the solution."""
    solution = str(row["solution"])
    start = max(solution.rfind("\\boxed{"), solution.rfind("\\fbox{"))
    if start < 0:
        return ""
    depth = 0
    opened = solution.index("{", start)
    for position in range(opened, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0:
            return solution[opened + 1 : position]
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """A hub dataset and the roles of its columns."""

    path: str
    revision: str | None = None
    """Commit; the newest if absent. Evaluation suites pin one, so that a score identifies what it was measured on."""
    configs: tuple[str | None, ...] = (None,)
    splits: tuple[str, ...] = ("train",)
    problem: str = "problem"
    answer: str | Callable[[Row], str] = "answer"
    reads: tuple[str, ...] = ()
    """Additional columns that a callable `answer` needs."""
    level: str | None = None
    subject: str | None = None
    excludes: str | None = None
    """Name of a source whose problems are excluded: MATH without MATH-500."""


MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

SOURCES: dict[str, HubDataset] = {
    "gsm8k": HubDataset(
        path="openai/gsm8k", configs=("main",), problem="question", answer=after_hashes, reads=("answer",)
    ),
    "gsm8k_test": HubDataset(
        path="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        configs=("main",),
        splits=("test",),
        problem="question",
        answer=after_hashes,
        reads=("answer",),
    ),
    "math": HubDataset(
        path="EleutherAI/hendrycks_math",
        configs=MATH_SUBJECTS,
        splits=("train", "test"),
        answer=last_box,
        reads=("solution",),
        level="level",
        subject="type",
        excludes="math500",
    ),
    "math_test": HubDataset(
        path="EleutherAI/hendrycks_math",
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
        configs=MATH_SUBJECTS,
        splits=("test",),
        answer=last_box,
        reads=("solution",),
        level="level",
        subject="type",
    ),
    "math500": HubDataset(
        path="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        splits=("test",),
        level="level",
        subject="subject",
    ),
    # The other columns of DeepMath-103K are 2 GB of solutions.
    "deepmath": HubDataset(
        path="zwhe99/DeepMath-103K",
        problem="question",
        answer="final_answer",
        level="difficulty",
        subject="topic",
    ),
    "aime2024": HubDataset(path="HuggingFaceH4/aime_2024", revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a"),
    "aime2025": HubDataset(
        path="math-ai/aime25", revision="563bb8404243c5f09de6ec262f2db674fe5bce9b", splits=("test",)
    ),
    "aime2026": HubDataset(path="MathArena/aime_2026", revision="10b4e45b7a503075d4da8a0d57916a4f06ce6bd2"),
}
