"""Cells as people's files hold them → the text of a problem, its system prompt, its answer; or a reason why not."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_NAMED = 40
# What the one who asks and the one who sets the scene are called in chats.
ASKING, SETTING = frozenset({"user", "human"}), frozenset({"system", "developer"})
GROUND_TRUTH = "ground_truth"
ROLE_NAMES = frozenset({"role", "from"})
"""What a turn of a chat says its speaker by."""
# `["72"]` or `['72']`, without another quotation mark of its kind inside.
LONE_ITEM = re.compile(r"""\[\s*(["'])((?:\\.|(?!\1)[^\\])*)\1\s*\]""", re.DOTALL)
ESCAPED = re.compile(r"""\\(?:([\\"'])|u([0-9a-fA-F]{4}))""")
EATEN = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
# White space is one only before the rest of a command that is no word.
EATEN_ESCAPE = re.compile(
    r"[\a\b\v\f](?=[a-z])|\t(?=(?:imes|ext|extbf|extrm|heta|frac|binom|riangle|ilde|au)(?![a-z]))"
    r"|\r(?=(?:ight|ho|angle|floor|ceil|vert)(?![a-z]))|\n(?=(?:eq|otin|abla)(?![a-z]))"
)
# A mapping or a list of mappings that was written as text, and two of NumPy's items, which no comma parts.
WRITTEN = re.compile(r"""\s*(?:\[\s*)?\{\s*["']""")
BETWEEN_ITEMS = re.compile(r"\}\s*\n\s*\{")
UNREADABLE = ValueError, SyntaxError, TypeError, RecursionError, MemoryError
# What NuminaMath has in the place of an answer.
NO_ANSWERS = frozenset({"proof", "notfound"})


class UnusableError(ValueError):
    """A cell that cannot be used; the text is the reason that is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a problem column says."""

    text: str
    system: str = ""
    """The system turn of a chat."""
    continues: bool = False
    """Whether other turns of the chat come before it, examples or a dialogue."""


def cell(row: Mapping[str, Any], column: str | None) -> Any:
    """The value of a column; `a.b` is b in the mapping a, where no column has the whole name. None where it is not."""
    if column is None:
        return None
    if column in row:
        return row[column]
    head, _, rest = column.partition(".")
    inner = held_in(row.get(head)) if rest else None
    return cell(inner, rest) if isinstance(inner, Mapping) else None


def has_column(row: Mapping[str, Any], column: str) -> bool:
    head, _, rest = column.partition(".")
    inner = held_in(row.get(head)) if rest else None
    return column in row or (isinstance(inner, Mapping) and has_column(inner, rest))


def paths_of(row: Mapping[str, Any]) -> list[str]:
    """The names of a row's columns and of what lies in those that are mappings."""
    held = {name: held_in(value) for name, value in row.items()}
    inner = [f"{name}.{path}" for name, value in held.items() if isinstance(value, Mapping) for path in paths_of(value)]
    return [*map(str, row), *inner]


def named(paths: Sequence[str]) -> str:
    """The columns of a row, for people. A mapping by id, taken for one row, would be told with all its ids."""
    more = f" … ({len(paths):,} in all)" if len(paths) > MOST_NAMED else ""
    return ", ".join(paths[:MOST_NAMED]) + more or "none"


def held_in(value: Any) -> Any:
    """A value, or of a text that is nothing but a mapping or a list of mappings what it says: written as JSON, by
    whoever put it into a column of text, or as Python does, by pandas in a cell of CSV."""
    if isinstance(value, str) and WRITTEN.match(value):
        for read, text in (
            (json.loads, value),
            (ast.literal_eval, value.strip()),
            (ast.literal_eval, BETWEEN_ITEMS.sub("}, {", value.strip())),
        ):
            with warnings.catch_warnings(), contextlib.suppress(*UNREADABLE):
                warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash that nobody has escaped
                found = read(text)
                if isinstance(found, dict) or (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
                    return found
    return value


def turns_in(value: Any) -> Any:
    """A value, or of a text that holds a chat its turns. Any other text is what is asked, though it be JSON."""
    held = held_in(value)
    return held if isinstance(held, list) and has_roles(held) else value


def has_roles(items: Sequence[Any]) -> bool:
    """Whether they are the turns of a chat."""
    return all(isinstance(turn, Mapping) and ROLE_NAMES & turn.keys() for turn in items)


def plain(value: Any) -> str:
    """A lone value as text; nothing for None, nor for the NaN that stands for it in what pandas writes."""
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if nothing else str(value).strip()


def asked_in(value: Any, column: str) -> Asked:
    """The problem: a text, or of a chat the last turn of the user, with the system turn. What follows it is an answer.

    Raises `UnusableError` for what is neither.
    """
    value = turns_in(value)
    if not isinstance(value, list | Mapping):
        return Asked(text=text_in(value, column).strip())
    if not (isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value)):
        raise UnusableError(_not_a_text(value, column))
    said: dict[str, str] = {}
    turns, continues = 0, False
    for turn in value:
        role = turn.get("role", turn.get("from"))
        part = "asked" if role in ASKING else "system" if role in SETTING else str(role)
        continues, turns = continues or (part == "asked" and turns > 0), turns + (part != "system")
        said[part] = text_in(turn.get("content", turn.get("value")), column)
    if "asked" not in said:
        raise UnusableError(f"{column} has no turn of the user")
    return Asked(text=said["asked"].strip(), system=said.get("system", "").strip(), continues=continues)


def text_in(value: Any, column: str) -> str:
    """What is said: a text as it is written, which may come in parts, or a lone value; empty for none.

    Raises `UnusableError` for what is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if not all(isinstance(part, Mapping) and part.get("type", "text") == "text" for part in value):
            raise UnusableError(f"{column} has a turn that is not text alone")
        return "".join(text_in(part.get("text"), column) for part in value)
    if isinstance(value, bytes | Mapping):
        raise UnusableError(_not_a_text(value, column))
    return plain(value)


def answer_in(value: Any, column: str) -> str:
    """The answer: text, a number or a truth value, alone, in a list of one or under `ground_truth`, either of which may
    be written as text; empty where there is none.

    Raises `UnusableError` for what is none of these.
    """
    held = held_in(value)
    if isinstance(held, Mapping) and GROUND_TRUTH in held:
        value = held
    while isinstance(value, list | Mapping):
        if isinstance(value, Mapping) and GROUND_TRUTH in value:
            value = value[GROUND_TRUTH]
        elif isinstance(value, list) and len(value) <= 1:
            value = value[0] if value else None
        else:
            raise UnusableError(_not_a_text(value, column))
    if isinstance(value, bytes):
        raise UnusableError(_not_a_text(value, column))
    if isinstance(value, float) and not math.isfinite(value):
        raise UnusableError(f"{column} is not a finite number")
    # White space at the beginning may be what is left of \frac, \text or \theta.
    text = _lone_item(plain(unescaped(value) if isinstance(value, str) else value))
    return "" if text.lower() in NO_ANSWERS else text


def unescaped(text: str) -> str:
    r"""LaTeX of which a string escape has eaten backslashes, as "\f" of \frac in JSON, with them again."""
    return text if text.isprintable() else EATEN_ESCAPE.sub(lambda match: "\\" + EATEN[match.group()], text)


def _lone_item(text: str) -> str:
    """The text in a list of one that was written as text: `["72"]`, as in verl's files of Skywork-OR1, or `['72']`, as
    pandas writes a list into CSV. Nothing else is such an answer: `[72]` is one of mathematics."""
    lone = LONE_ITEM.fullmatch(text)
    # Of the escapes only these: LaTeX that somebody has not escaped is no form feed.
    return ESCAPED.sub(lambda found: found[1] or chr(int(found[2], 16)), lone[2]).strip() if lone else text


def for_json(value: Any) -> Any:
    """The value as JSON can carry it to another process: dates and the like as text."""
    return json.loads(json.dumps(value, default=str))


def _not_a_text(value: Any, column: str) -> str:
    kind = "bytes" if isinstance(value, bytes) else "a list" if isinstance(value, list) else "a mapping"
    return f"{column} is {kind}, not a text"
