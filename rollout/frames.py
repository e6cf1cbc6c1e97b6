"""Plain texts around a problem, for models without a chat template, and the instruction that asks for a box."""

from __future__ import annotations

from dataclasses import dataclass

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Frame:
    """A plain text around the problem, and what ends a completion under it."""

    text: str
    stop: tuple[str, ...] = ()


FRAMES: dict[str, Frame] = {
    "plain": Frame("{problem}\n"),
    "problem_solution": Frame("Problem:\n{problem}\n\nSolution:\n", ("\n\nProblem:", "\nProblem:")),
    "question_answer": Frame("Question: {problem}\nAnswer:", ("\nQuestion:", "\n\n\n")),
}
