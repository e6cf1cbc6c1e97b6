"""Plain texts around a problem, for models without a chat template, one such template, and the instruction that asks
for a box."""

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

# The plain format of Tulu 3, for models that have no chat template of their own.
TULU = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# In place of a model's own, by name.
CHAT_TEMPLATES = {"tulu": TULU}
