"""Plain texts around a problem, for models without a chat template, one such template, and the instruction that asks
for a box."""

from __future__ import annotations

import re
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

# Not where LaTeX goes on: ne, nabla.
SPELT_NEWLINE = re.compile(r"\\n(?![a-z])")


def refuse_spelt_newline(key: str, text: str | None) -> None:
    """Raises `ValueError` for a text with a backslash and an n where a line is to end: no shell makes a newline of
    them, and YAML does in double quotes alone. Nobody would see what the model reads then, or never stops at."""
    if text and SPELT_NEWLINE.search(text):
        way = f"{key} $'…\\n…'" if key.startswith("--") else f'"…\\n…" in a file, \'{key}="…\\n…"\' for a shell'
        raise ValueError(f"{key} is {text!r}: {chr(92)}n in it is a backslash and an n; a newline is written {way}")


# The plain format of Tulu 3, for models that have no chat template of their own.
TULU = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# In place of a model's own, by name.
CHAT_TEMPLATES = {"tulu": TULU}
