"""Rows → problems with their answers, and a counted reason for each row that is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafiles.cells import (
    Asked,
    UnusableError,
    answer_in,
    asked_in,
    cell,
    for_json,
    has_column,
    held_in,
    named,
    paths_of,
    plain,
)
from datafiles.formats import is_table
from datafiles.rows import Drop, Row

# Usual names of the columns, for guesses in messages. The likeliest come first, because a file may have several.
OTHER_NAMES = {
    "problem": (
        *("problem", "question", "messages", "conversations", "prompt", "query", "problem_text", "problem_statement"),
        *("instruction", "input", "text"),
    ),
    "answer": (
        *("answer", "final_answer", "expected_answer", "ground_truth", "reference", "target", "label", "output"),
        "solution",
    ),
}


CHOICES = ("choices", "options")
"""What columns of choices are called, of which the answer names one."""
INPUT = "input"
"""What Alpaca's files call the column of what an `instruction` is about."""
NO_INPUT = frozenset({"<noinput>", "n/a", "none", "nan"})
"""What stands in that column, in any case, where an instruction has none."""
UNASKED_INPUT = "its input is in a column that instruction does not repeat: join the two"
LETTER = re.compile(r"\(?([A-Ja-j])\)?\.?")
WORD = re.compile(r"\w+")
# After a word, a hyphen is no sign and a full stop no decimal point: `level-3`, `Lv.5`.
NUMBER = re.compile(r"(?:(?<!\w)-)?(?:\d+(?:\.\d+)?|(?<!\w)\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of a file's columns, by default the project's own. `a.b` is field b of the mapping a."""

    problem: str = "problem"
    answer: str | None = "answer"
    level: str | None = "level"
    subject: str | None = "subject"
    id: str | None = "id"

    @property
    def named(self) -> list[str]:
        return [name for name in (self.problem, self.answer, self.level, self.subject, self.id) if name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemRow:
    """A row that can be asked and graded."""

    id: str
    asked: Asked
    answer: str
    """Empty only if answers are not needed."""
    level: str
    subject: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The columns beside problem and answer, in a form that JSON can carry; empty unless asked for."""


def problem_rows(
    rows: Iterable[tuple[str, Row]],
    columns: Columns,
    drop: Drop,
    *,
    extract: Callable[[Row], str] | None = None,
    need_answer: bool = True,
    with_extra: bool = False,
) -> Iterator[ProblemRow]:
    """The rows that have a problem, an answer and an id not seen before. `extract` gets the answer from a row if it has
    no column of its own."""
    seen: set[str] = set()
    for where, row in rows:
        try:
            asked = asked_in(cell(row, columns.problem), columns.problem)
            answer = extract(row) if extract else answer_in(cell(row, columns.answer), columns.answer or "answer")
        except UnusableError as reason:
            drop(str(reason), where)
            continue
        identifier = plain(cell(row, columns.id)) or where.replace(":", "-")
        if not asked.text:
            drop(f"no {columns.problem}", where)
        elif not answer and need_answer:
            drop(f"no {columns.answer or 'answer'}", where)
        elif unasked_input(row, columns.problem, asked.text) and INPUT not in columns.named:
            drop(UNASKED_INPUT, where)
        elif unasked := _unasked_choices(row, columns, asked.text, answer):
            drop(f"its answer names one of its {unasked}, a column that {columns.problem} does not repeat", where)
        elif identifier in seen:
            drop("id seen before", where)
        elif not _is_text(identifier + asked.text + asked.system + answer):
            drop("not valid text: it contains half of a surrogate pair", where)
        else:
            seen.add(identifier)
            yield ProblemRow(
                id=identifier,
                asked=asked,
                answer=answer,
                level=plain(cell(row, columns.level)),
                subject=plain(cell(row, columns.subject)),
                extra=_others(row, columns) if with_extra else {},
            )


def unasked_input(row: Row, column: str, asked: str) -> bool:
    """Whether an instruction comes with an input in a column of its own, as in Alpaca's files, that it does not repeat:
    nobody could answer it."""
    given = row.get(INPUT) if column.rpartition(".")[2] == "instruction" else None
    if not isinstance(given, str) or given.strip().lower() in NO_INPUT:
        return False
    return _squeezed(given) not in _squeezed(asked)


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _unasked_choices(row: Row, columns: Columns, asked: str, answer: str) -> str:
    """The column of choices that the prompt does not show, though the answer is the letter or the number of one."""
    name = next((name for name in CHOICES if name in row and name not in columns.named), "")
    held = held_in(row.get(name))
    if isinstance(held, Mapping):
        held = held.get("text", list(held.values()))  # ARC's way, and {"A": …}
    if not isinstance(held, list) or not held:
        return ""
    texts = [text for choice in held if (text := plain(choice))]
    names_one = LETTER.fullmatch(answer) or (answer.isdecimal() and int(answer) < len(held))
    is_place = isinstance(cell(row, columns.answer), int) and all(isinstance(choice, str) for choice in held)
    is_value = not is_place and any(answer in WORD.findall(text) for text in texts)  # 3 of a choice $3$
    shown = sum(text in asked for text in texts)  # a number among the choices may be one of the problem's own
    return name if names_one and not is_value and shown <= len(texts) / 2 else ""


def _others(row: Row, columns: Columns) -> dict[str, Any]:
    given = (columns.problem, columns.answer)
    return {str(name): for_json(value) for name, value in row.items() if name not in given}


def _is_text(text: str) -> bool:
    """Whether a text can be encoded. JSON can spell lone surrogates, which no encoding and no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def columns_of_file(row: Row, path: Path, key: str) -> tuple[str, str]:
    """Two parts of a message: the columns of a file's first row, and what to do if these are not column names."""
    names = named(paths_of(row))
    if not is_table(path, key):
        return f"its columns are {names}", ""
    remedy = ", or put a line of names above the rows if it has none"
    if len(row) == 1:
        remedy += "; cells end with a comma, a semicolon or a tab"
    return f"its columns are {names}, by its first line", remedy


def missing_columns(row: Row, columns: Columns, path: Path, key: str, *, need_answer: bool, option: str | None) -> str:
    """The message for a file whose first row lacks the columns to be read; empty if it has them.

    `option` is the setting that names a column, with `{role}` and `{name}` to fill in; None if there is none.
    """
    wanted = {"problem": columns.problem, **({"answer": columns.answer or "answer"} if need_answer else {})}
    missing = {role: column for role, column in wanted.items() if not has_column(row, column)}
    if not missing:
        return ""
    there = paths_of(row)
    guesses = {role: _likeliest(role, there) for role in missing}
    way = "rename them in the file"
    if option is not None:
        ways = [option.format(role=role, name=name) for role, name in guesses.items()]
        way = f"say which it is with {' '.join(ways)}"
    description, remedy = columns_of_file(row, path, key)
    return f"no column {' and no column '.join(map(repr, missing.values()))}; {description}: {way}{remedy}"


def _likeliest(role: str, there: Sequence[str]) -> str:
    """The column whose last name part is a usual name for a problem or an answer; `NAME` if there is none."""
    lasts = {name: name.lower().rpartition(".")[2] for name in there}
    return next((name for known in OTHER_NAMES[role] for name in there if lasts[name] == known), "NAME")


def number_in(level: str) -> float | None:
    """The first number in a level: 5 for `Level 5` and `level-5`, 0.25 for a pass rate of 0.25 or .25. None if there is
    none, or if a comma in it makes it two: 0,25 is a quarter, but 1,500 need not be one and a half."""
    found = NUMBER.search(level)
    return float(found[0]) if found and not re.match(r",\d", level[found.end() :]) else None
