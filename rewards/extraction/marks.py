"""The marks with which models and chat templates begin and end thoughts and turns.

Each family is a row of a table. `rewards.extraction.turns` decides what a mark means for the answer.
"""

from __future__ import annotations

import re
from functools import lru_cache

_THOUGHTS: tuple[tuple[str, str], ...] = (
    # `think`: DeepSeek, Qwen and most others. The other names: Reflection, Claude-like prompts, home-made templates.
    *(
        (f"<{name}>", f"</{name}>")
        for name in ("think", "thinking", "thoughts?", "reasoning", "scratchpad", "analysis")
    ),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|think_start\|>", r"<\|think_end\|>"),
    ("◁think▷", "◁/think▷"),  # Kimi
    (r"<\|im_start\|>\s*think\b", r"<\|im_start\|>\s*answer\b"),  # s1
    (r"\[unused16\]", r"\[unused17\]"),  # Pangu
    (
        r"<\|channel\|>\s*analysis\s*<\|message\|>",  # gpt-oss
        r"<(?:\|end\|>\s*<\|start\|>\s*assistant\s*<)?\|channel\|>\s*final\s*<\|message\|>",
    ),
)


def _after_first(mark: str) -> str:
    """The pattern of a mark without its first character."""
    first = mark[:2] if mark[0] == "\\" else mark[0]
    return f"(?<={first}){mark.removeprefix(first)}"


_THOUGHT_MARK = re.compile(
    r"[<\[◁](?:"  # one set of first characters, for which the regex engine can search at full speed
    + "|".join(
        f"(?P<open_{i}>{_after_first(opening)})|(?P<close_{i}>{_after_first(closing)})"
        for i, (opening, closing) in enumerate(_THOUGHTS)
    )
    + ")",
    re.IGNORECASE,
)

_FOREIGN = r"(?:user|system|human|tool|developer|think)\b"
_OWN = r"(?:assistant|model|gpt)\b"
_NEUTRAL = (
    r"<\|(?:im_start|im_sep|begin_of_text|startoftext|start_header_id|end_header_id|assistant|begin_of_solution"
    r"|START_OF_TURN_TOKEN|CHATBOT_TOKEN|START_RESPONSE|start|message)\|>|<｜(?:Assistant|begin▁of▁sentence)｜>"
    r"|<(?:s|bos|start_of_turn|seed:bos)>|\[/INST\]"
)
LEADING_MARKS = re.compile(rf"(?:\s*(?:{_NEUTRAL})(?!\s*{_FOREIGN})(?:\s*{_OWN}(?=[\s<:]|$))?){{1,8}}\s*")
"""The template's marks before the policy's own words, if the completion includes them."""
TURN_MARK = re.compile(
    r"<\|im_start\|>(?!\s*(?:think|answer)\b)|<\|(?:im_end|im_sep|eot_id|eom_id|start_header_id|endoftext|end_of_text|user|assistant|system|return"
    r"|END_OF_TURN_TOKEN|START_OF_TURN_TOKEN|END_RESPONSE)\|>"
    r"|<\|end\|>(?!\s*<\|start\|>\s*assistant\s*<\|channel\|>)|<\|start\|>(?!\s*assistant\s*<\|channel\|>)"
    r"|<(?:start_of_turn|end_of_turn|eos|seed:eos)>|\[/?INST\]|</s>|<｜(?:User|Assistant|end▁of▁sentence)｜>"
)
PLAIN_TURN = re.compile(
    r"\n[ \t]*(?:#+[ \t]*|\*\*)?(?:(?P<speaker>User|Human|Assistant|System)|Instruction|Q|Question|Problem|Prompt)"
    r"(?:\*\*)?[ \t]*(?:\d+[ \t]*)?(?::|\n)",
)
ROLE_WORDS = re.compile(
    r"<\|?[^<>|\n]{1,30}\|?>|<｜[^<>\n]{1,30}｜>|[<\[][/\w|｜]{1,20}[>\]]|\b(?:user|assistant|model|human|system)\b:?",
    re.IGNORECASE,
)
_ANSWERING = re.compile(
    rf"(?:{_NEUTRAL})(?!\s*{_FOREIGN})(?:\s*{_OWN})?|(?:^|\n)[ \t]*(?:\*\*)?(?:Assistant|Solution|Answer)(?:\*\*)?:"
)
_PROMPT_END = 2_000
"""Number of characters at the end of a prompt that are searched: more than any template adds after the problem."""


def thought_marks(text: str, start: int = 0) -> list[re.Match[str]]:
    """All thought marks in a text from `start` on, in order; `mark_of` classifies them."""
    if "<" in text or "]" in text or "▷" in text:
        return list(_THOUGHT_MARK.finditer(text, start))
    return []


def mark_of(match: re.Match[str]) -> tuple[str, str]:
    """Classify a thought mark: ("open" or "close", family)."""
    kind, _, family = (match.lastgroup or "").partition("_")
    return kind, family


@lru_cache(maxsize=4096)
def open_thought(prompt: str) -> str:
    r"""The mark of the thought that a prompt leaves open, or "": "<think>" for "…<|assistant|>\n<think>\n".

    Only a mark in the turn that the policy continues counts, not one that the instructions mention.
    """
    end = prompt[-_PROMPT_END:]
    turns = list(_ANSWERING.finditer(end))
    marks = thought_marks(end, turns[-1].end() if turns else 0)
    if not marks or mark_of(marks[-1])[0] != "open":
        return ""
    if not turns and end[marks[-1].end() :].strip():
        return ""
    return marks[-1].group()
