"""Cells of users' files → the text of a problem, its system prompt, its answer; or the reason why one is unusable."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_NAMED = 40
# The names of the user's and the system's role in chats.
ASKING, SETTING = frozenset({"user", "human"}), frozenset({"system", "developer"})
GROUND_TRUTH = "ground_truth"
ROLE_NAMES = frozenset({"role", "from"})
"""The keys under which a turn of a chat names its speaker."""
# `["72"]` or `['72']`, without another unescaped quotation mark of the same kind inside.
LONE_ITEM = re.compile(r"""\[\s*(["'])((?:\\.|(?!\1)[^\\])*)\1\s*\]""", re.DOTALL)
ESCAPED = re.compile(r"""\\(?:([\\"'])|u([0-9a-fA-F]{4}))""")
EATEN = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
# Whitespace counts as an eaten escape only before the rest of a command that is not itself a word.
EATEN_ESCAPE = re.compile(
    r"[\a\b\v\f](?=[a-z])|\t(?=(?:imes|ext|extbf|extrm|heta|frac|binom|riangle|ilde|au)(?![a-z]))"
    r"|\r(?=(?:ight|ho|angle|floor|ceil|vert)(?![a-z]))|\n(?=(?:eq|otin|abla)(?![a-z]))"
)
# The beginning of a mapping, or list of mappings, written as text; and the gap between two items of a NumPy array,
# which has no comma.
WRITTEN = re.compile(r"""\s*(?:\[\s*)?\{\s*["']""")
BETWEEN_ITEMS = re.compile(r"\}\s*\n\s*\{")
UNREADABLE = ValueError, SyntaxError, TypeError, RecursionError, MemoryError
# NuminaMath's placeholders for a missing answer.
NO_ANSWERS = frozenset({"proof", "notfound"})


class UnusableError(ValueError):
    """A cell that cannot be used. The message is the reason under which its row is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The content of a problem column."""

    text: str
    system: str = ""
    """The chat's system turn, if any."""
    continues: bool = False
    """Whether other turns of the chat, such as examples or a dialogue, precede the problem."""


def cell(row: Mapping[str, Any], column: str | None) -> Any:
    """The value of a column; None if absent. `a.b` is field b of the mapping a, unless a column has that whole name."""
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
    """The names of a row's columns, and the dotted names of the fields in columns that are mappings."""
    held = {name: held_in(value) for name, value in row.items()}
    inner = [f"{name}.{path}" for name, value in held.items() if isinstance(value, Mapping) for path in paths_of(value)]
    return [*map(str, row), *inner]


def named(paths: Sequence[str]) -> str:
    """The columns of a row, for messages; shortened, because a mapping by id that was taken for one row has an id per
    column."""
    more = f" … ({len(paths):,} in all)" if len(paths) > MOST_NAMED else ""
    return ", ".join(paths[:MOST_NAMED]) + more or "none"


def held_in(value: Any) -> Any:
    """A value; or, if it is a text that is just a mapping or list of mappings, the parsed object. The text may be JSON,
    as people put it into text columns, or Python syntax, as pandas writes it into CSV cells."""
    if isinstance(value, str) and WRITTEN.match(value):
        for read, text in (
            (json.loads, value),
            (ast.literal_eval, value.strip()),
            (ast.literal_eval, BETWEEN_ITEMS.sub("}, {", value.strip())),
        ):
            with warnings.catch_warnings(), contextlib.suppress(*UNREADABLE):
                warnings.simplefilter("ignore", SyntaxWarning)  # about an unescaped backslash
                found = read(text)
                if isinstance(found, dict) or (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
                    return found
    return value


def turns_in(value: Any) -> Any:
    """A value; or, if it is a text that holds a chat, the chat's turns. Any other text is itself the problem, even if
    it is JSON."""
    held = held_in(value)
    return held if isinstance(held, list) and has_roles(held) else value


def has_roles(items: Sequence[Any]) -> bool:
    """Whether the items are the turns of a chat."""
    return all(isinstance(turn, Mapping) and ROLE_NAMES & turn.keys() for turn in items)


def plain(value: Any) -> str:
    """A scalar as text; empty for None, and for NaN, which pandas writes for None."""
    nothing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if nothing else str(value).strip()


def asked_in(value: Any, column: str) -> Asked:
    """The problem: a text, or a chat's last user turn together with the system turn. Any turn after it is an answer.

    Raises `UnusableError` if the value is neither a text nor a chat.
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
    """The text of a value: a text as written, possibly in parts, or a scalar; empty if there is none.

    Raises `UnusableError` for anything else.
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
    """The answer: a text, number or boolean, by itself, in a list of one, or under `ground_truth`; list and mapping may
    be written as text. Empty if there is none. A number that is no text is written without the digits that are binary
    rounding.

    Raises `UnusableError` for anything else.
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
    if isinstance(value, float):
        value = decimal_of(value)
    # White space at the beginning may be what is left of \frac, \text or \theta.
    text = _lone_item(plain(unescaped(value) if isinstance(value, str) else value))
    return "" if text.lower() in NO_ANSWERS else text


def decimal_of(value: float) -> float:
    """The decimal that a binary fraction was meant to be: 0.3 for 0.1 + 0.2, whose digits after the fifteenth are
    rounding, and 1.6 for 1.600000023841858, a number that was stored in single precision."""
    rounded = float(f"{value:.15g}")
    if value in (rounded, round(value)):
        return value
    with contextlib.suppress(OverflowError):  # too large for single precision
        single = struct.pack("f", value)
        if struct.unpack("f", single)[0] == value:
            return next(short for n in range(6, 10) if struct.pack("f", short := float(f"{value:.{n}g}")) == single)
    return rounded


def unescaped(text: str) -> str:
    r"""Restore backslashes of LaTeX that a string escape has eaten, such as the "\f" of an unescaped \frac in JSON."""
    return text if text.isprintable() else EATEN_ESCAPE.sub(lambda match: "\\" + EATEN[match.group()], text)


def _lone_item(text: str) -> str:
    """The item of a one-item list that was written as text: `["72"]`, as in verl's Skywork-OR1 files, or `['72']`, as
    pandas writes a list into CSV. Any other text is returned unchanged: `[72]` is mathematics."""
    lone = LONE_ITEM.fullmatch(text)
    # Only these escapes: the `\f` of unescaped LaTeX is not a form feed.
    return ESCAPED.sub(lambda found: found[1] or chr(int(found[2], 16)), lone[2]).strip() if lone else text


def for_json(value: Any) -> Any:
    """The value in a form that JSON can carry to another process, with dates and the like as text."""
    return json.loads(json.dumps(value, default=str))


def _not_a_text(value: Any, column: str) -> str:
    kind = "bytes" if isinstance(value, bytes) else "a list" if isinstance(value, list) else "a mapping"
    return f"{column} is {kind}, not a text"
