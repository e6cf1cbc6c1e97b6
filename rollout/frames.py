"""Plain frames around a problem for models without a chat template, a chat template for them, and the instruction that
asks for a box."""

from __future__ import annotations

import re
from dataclasses import dataclass

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Frame:
    """Plain text around the problem, and the stop strings that end a completion."""

    text: str
    stop: tuple[str, ...] = ()


FRAMES: dict[str, Frame] = {
    "plain": Frame("{problem}\n"),
    "problem_solution": Frame("Problem:\n{problem}\n\nSolution:\n", ("\n\nProblem:", "\nProblem:")),
    "question_answer": Frame("Question: {problem}\nAnswer:", ("\nQuestion:", "\n\n\n")),
}

# Does not match LaTeX commands such as \ne and \nabla.
SPELT_NEWLINE = re.compile(r"\\n(?![a-z])")


def refuse_spelt_newline(key: str, text: str | None) -> None:
    """Raises `ValueError` for a text with a literal backslash and n where a newline is meant: shells do not turn them
    into a newline, and YAML does so only in double quotes. Otherwise the model would silently read the two characters,
    or never stop at them."""
    if text and SPELT_NEWLINE.search(text):
        way = f"{key} $'…\\n…'" if key.startswith("--") else f'"…\\n…" in a file, \'{key}="…\\n…"\' for a shell'
        raise ValueError(f"{key} is {text!r}: {chr(92)}n in it is a backslash and an n; a newline is written {way}")


# The plain format of Tulu 3, for models that have no chat template of their own.
TULU = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# Templates that can replace a model's own, by name.
CHAT_TEMPLATES = {"tulu": TULU}
