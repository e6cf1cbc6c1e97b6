r"""A box → the formula that it is a part of: -5 of `x = -\left(\boxed{5}\right)`, 5 cm of `\boxed{5}\text{ cm}`.

What stands at a box may change what is said, and a box may be set into a sum, a root or a fraction; then the whole
term, between the relation before it and the one after it, is what the text states. Only marks that are known to do
that are taken along: at any other, such as a word or an unknown command, the formula ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rewards.extraction.boxes import Box, find_boxes
from rewards.extraction.units_after import is_unit, with_unit_after
from rewards.spelling.split import RELATIONS

REACH = 240
MAX_BRACKETS = 10
PARAGRAPH = 2_000

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|\d+(?:\.\d+)?|[A-Za-z]+|\s+|.", re.DOTALL)
_SPACES = frozenset({r"\,", r"\;", r"\:", r"\!", r"\ ", "~"})
_SIZES = frozenset(
    rf"\{name}{side}" for name in ("left", "right", "big", "Big", "bigg", "Bigg") for side in ("", "l", "r")
)
_UNSEEN = _SIZES | {r"\displaystyle"}
_OPEN, _CLOSE = {"(": ")", "[": "]", "{": "}"}, {")": "(", "]": "[", "}": "{"}
_SIGNS = frozenset({"+", "-", "−", "±", r"\pm", r"\mp"})
_OPERATORS = _SIGNS | {
    *("*", "/", "^", "×", "·", "÷", "∪", "∩", r"\cdot", r"\times", r"\div", r"\ast", r"\cup", r"\cap", r"\setminus")
}
_FUNCTIONS = frozenset(
    {
        *(r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc", r"\arcsin", r"\arccos", r"\arctan"),
        *(r"\sinh", r"\cosh", r"\tanh", r"\log", r"\ln", r"\lg", r"\exp", r"\gcd", r"\lcm"),
    }
)
_WITH_ARGUMENTS = frozenset({r"\frac", r"\dfrac", r"\tfrac", r"\cfrac", r"\sqrt", r"\binom", r"\dbinom", r"\tbinom"})
_BOXES = frozenset({r"\boxed", r"\Boxed", r"\fbox"})
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|omega"
_SYMBOLS = frozenset({r"\pi", "π", r"\infty", "∞", "√", *(rf"\{name}" for name in _GREEK.split("|"))})
_AFTER = frozenset({"%", r"\%", "°", "!"})
_MODULUS = frozenset({r"\pmod", r"\bmod", r"\mod"})
_RELATIONS = frozenset(
    {*RELATIONS, "≈", "⇒", "→", r"\Rightarrow", r"\Longrightarrow", r"\rightarrow", r"\leq", r"\geq"}
)

_DELIMITER = re.compile(r"(?<!\\)(?:\$\$?|\\[\[\]()])|\\(?:begin|end)(?=\{)")
_ENDS_BEFORE = re.compile(r"(?:(?<!\\)\$|[=:&\n]|\\[(\[])\s*$")
_ENDS_AFTER = re.compile(r"\s*(?:$|\$|[.,](?!\d)|[;:]|\\[)\]]|\\end(?![A-Za-z]))")
_BARS_BEFORE = re.compile(r"(?:(?:\\left)?\||\\lvert)\s*$")
_BARS_AFTER = re.compile(r"\s*(?:(?:\\right)?\||\\rvert)")
_BRACKET = re.compile(r"\s*[{\[]")
_POWERS = r"(?:\^(?:\{\w+\}|\w))?"
# Letters that a coefficient stands before; i and e are numbers.
_UNKNOWNS = re.compile(rf"(?:\s*(?:[A-DF-HJ-Za-df-hj-z]|\\(?:{_GREEK})(?![A-Za-z])){_POWERS})+\s*")
_NOTE = re.compile(r"_(?:\{?\w+\}?|\{\\text\{\w+\}\})|\\[pb]?mod(?:\{\w+\}|\w+)")
"""A base or a modulus."""
_MEASURE = re.compile(r"\\?%|°|\^\{?\\circ\}?|\\(?:text|mathrm|mbox|rm).*", re.DOTALL)
_SIMPLE = re.compile(r"[\w.,\\]+(?:\{[^{}]*\})*|\(.*\)|\[.*\]|\\text.*", re.DOTALL)
_STATEMENT = re.compile(r"[=<>]|\\(?:le|ge|leq|geq|ne|neq|in|approx|equiv|text)(?![A-Za-z])|,\s")


@dataclass(frozen=True, slots=True)
class _Around:
    """Where the formula begins and ends; whether it has more than the box in brackets."""

    start: int
    end: int
    more: bool
    endless: bool = False
    """It is larger than what is looked at."""


def in_formula(text: str, box: Box) -> Box:
    """The box with its formula in its place, if it has one."""
    if box.nested:
        return box
    if _ENDS_BEFORE.search(text, max(0, box.start - 8), box.start) and _ENDS_AFTER.match(text, box.end):
        return with_unit_after(text, box)  # most boxes, at once
    around = _around(text, box)
    if not around.more:
        return with_unit_after(text, box)
    before, after = text[around.start : box.start], text[box.end : around.end]
    if around.endless or _is_cut(before, box.content, after):
        return replace(box, start=around.start, end=around.end, cut=True)
    bare_before, bare_after = _bare(before), _bare(after)
    signed = bare_before in {"", "-", "−", r"\$", "-\\$", "€", "£"}
    measured = signed and (_MEASURE.fullmatch(bare_after) is not None or is_unit(bare_after))
    whole = before + _wrapped(box.content, bare_after) + after
    found = replace(box, start=around.start, end=around.end, content=_without_boxes(whole))
    if signed and not measured and bare_after and (_UNKNOWNS.fullmatch(bare_after) or _NOTE.fullmatch(bare_after)):
        return replace(found, alone=bare_before + box.content, boxed=bare_before + box.content)
    if (signed and (measured or not bare_after)) or (bare_before in _SIGNS and not bare_after):
        return found
    return replace(found, boxed=box.content)


def _around(text: str, box: Box) -> _Around:
    """From bracket to bracket outwards, until one end of a term is met."""
    start, end, more = box.start, box.end, False
    in_mathematics = _is_in_mathematics(text, box)
    for _ in range(MAX_BRACKETS):
        bars = _BARS_BEFORE.search(text, max(0, start - 8), start) if in_mathematics else None
        if bars and (after := _BARS_AFTER.match(text, end)):
            start, end, more = bars.start(), after.end(), True
        left = _Left(text, start, in_mathematics, alone=not more)
        right = _Right(text, end, in_mathematics or left.after_relation)
        start, end = left.start, right.end
        more = more or left.more or right.more
        if left.endless or right.endless:
            return _Around(start, end, more, endless=True)
        if left.opener is None or right.closer is None or _CLOSE.get(text[right.closer]) != text[left.opener]:
            return _Around(start, end, more)
        owner = _owner(text, left.opener)
        if owner is None:
            return _Around(start, end, more)
        start, end = owner.start, right.closer + 1
        if owner.valued:
            more, end = True, _arguments(text, end)
        in_mathematics = in_mathematics or owner.valued
    return _Around(start, end, more, endless=True)


def _is_in_mathematics(text: str, box: Box) -> bool:
    """Whether a box stands between delimiters of its paragraph. A dollar sign that nothing closes is money."""
    before = text[max(0, box.start - PARAGRAPH) : box.start]
    dollars = delimited = False
    for match in _DELIMITER.finditer(before[before.rfind("\n\n") + 1 :]):
        mark = match.group()
        if mark.startswith("$"):
            dollars = not dollars
        else:
            delimited, dollars = mark in {r"\[", r"\(", r"\begin"}, False
    return delimited or (dollars and "$" in text[box.end : box.end + PARAGRAPH].partition("\n\n")[0])


class _Left:
    """What of the text before a position belongs to its term."""

    def __init__(self, text: str, position: int, in_mathematics: bool, *, alone: bool) -> None:
        begin = max(0, position - REACH)
        self._tokens = [(m.group(), begin + m.start()) for m in _TOKEN.finditer(text[begin:position])]
        self._alone = alone
        self.opener: int | None = None
        self.after_relation = False
        spaced = self._walk(position, in_mathematics=True)
        # Outside of mathematics, of `x = - \boxed{5}` and not of `x = 72 \boxed{72}`.
        self.after_relation = self.after_relation and self._ends_in_operator()
        if in_mathematics or self.after_relation:
            self.start, self.more = spaced
        else:
            self.opener = None
            self.start, self.more = self._walk(position, in_mathematics=False)
        self.endless = begin > 0 and position - self.start > REACH - 20

    def _ends_in_operator(self) -> bool:
        last = next((token for token, _ in reversed(self._tokens) if not token.isspace() and token not in _SPACES), "")
        return last in _OPERATORS

    def _walk(self, position: int, *, in_mathematics: bool) -> tuple[int, bool]:
        start, more, apart = position, False, False
        index = len(self._tokens) - 1
        while index >= 0:
            token, where = self._tokens[index]
            if token.isspace() or token in _SPACES or token in _UNSEEN:
                if not in_mathematics and token.isspace():
                    break
                apart = apart or (token in _SPACES and not more)
                index -= 1
                continue
            if token in _OPEN:
                self.opener = where
                break
            taken = self._taken(index, in_mathematics, first=self._alone and not more)
            if taken is None or (apart and not more and token not in _OPERATORS and token not in _FUNCTIONS):
                self.after_relation = token in _RELATIONS
                break
            index, start, more = taken - 1, self._tokens[taken][1], True
        return start, more

    def _taken(self, index: int, in_mathematics: bool, *, first: bool) -> int | None:
        """The index of the first token of what ends at `index`, if that belongs to the term."""
        token = self._tokens[index][0]
        before = self._tokens[index - 1][0] if index else ""
        if token in _CLOSE:
            return self._group(index, in_mathematics, first=first)
        if token in _SIGNS:
            hyphen = not in_mathematics and before[-1:].isalpha()
            return None if hyphen else index
        if token == "*":
            return index if before[-1:].isalnum() or before in _CLOSE else None
        if token == "$" and before == "\\":
            return index - 1
        if token in _OPERATORS or token in _SYMBOLS or token in _FUNCTIONS or token == r"\$" or token in "€£":
            return index
        if token[0].isdigit() and before == "_":
            return index - 2 if index > 1 and self._tokens[index - 2][0] in _FUNCTIONS else None
        if token[0].isdigit() or (in_mathematics and len(token) == 1 and token.isascii() and token.isalpha()):
            return index
        return None

    def _group(self, index: int, in_mathematics: bool, *, first: bool) -> int | None:
        begin = _matching(self._tokens, index)
        if begin is None:
            return None
        before = self._tokens[begin - 1][0] if begin else ""
        if self._tokens[index][0] != "}":
            words = any(token == r"\text" for token, _ in self._tokens[begin:index])
            label = index - begin == 2 and self._tokens[begin + 1][0].isalpha()
            return begin if in_mathematics and not words and not label else None
        while before in {"}", "]"}:
            earlier = _matching(self._tokens, begin - 1)
            if earlier is None:
                return None
            begin = earlier
            before = self._tokens[begin - 1][0] if begin else ""
        if before in _BOXES:
            return None if first else begin - 1
        if before in _WITH_ARGUMENTS or before == "^":
            return begin - 1
        if before == "_" and begin > 1 and self._tokens[begin - 2][0] in _FUNCTIONS:
            return begin - 2
        return None


def _matching(tokens: list[tuple[str, int]], index: int) -> int | None:
    """The index of the bracket that the one at `index` closes."""
    depth = 0
    for position in range(index, -1, -1):
        token = tokens[position][0]
        depth += (token in _CLOSE) - (token in _OPEN)
        if depth == 0:
            return position
    return None


class _Right:
    """What of the text after a position belongs to its term."""

    def __init__(self, text: str, position: int, in_mathematics: bool) -> None:
        self._text, self._in_mathematics = text, in_mathematics
        self.end, self.more = position, False
        self.closer: int | None = None
        self._limit = position + REACH
        while (token := self._token(position)) is not None:
            if token.isspace() or token in _SPACES or token in _UNSEEN:
                if not in_mathematics and token.isspace():
                    break
                position += len(token)
                continue
            if token in _CLOSE:
                self.closer = position
                break
            end = self._taken(token, position)
            if end is None:
                break
            position = self.end = end
            self.more = True
        self.endless = position >= self._limit

    def _token(self, position: int) -> str | None:
        match = _TOKEN.match(self._text, position)
        return match.group() if match and position < self._limit else None

    def _taken(self, token: str, position: int) -> int | None:
        """Where what begins with `token` ends, if it belongs to the term."""
        end = position + len(token)
        following = self._token(end) or ""
        if token in {"^", "_"}:
            return self._argument(end)
        if token in _AFTER:
            return end if token != "!" or self._in_mathematics else None
        if token in _OPERATORS:
            return self._operand(end, sign=token in {"+", "-"})
        if token in _WITH_ARGUMENTS or token in _MODULUS:
            return _arguments(self._text, end)
        if token in _SYMBOLS or token in _FUNCTIONS or token[0].isdigit():
            return end
        if token in {".", ","}:  # 1 of \boxed{1},234 and of \boxed{1}.5
            digits = following if following.isdigit() else ""
            return end + len(digits) if digits and (token == "." or len(digits) == 3) else None
        if token in {r"\text", r"\mathrm", r"\mbox", r"\rm"}:
            return self._unit(end)
        if token == "(" and self._in_mathematics:
            close = _closing(self._text, position)
            return close if close and r"\text" not in self._text[position:close] else None
        if token.isascii() and token.isalpha():
            return end if len(token) <= (3 if self._in_mathematics else 1) or is_unit(token) else None
        return None

    def _argument(self, position: int) -> int | None:
        token = self._token(position)
        if token is None or token.isspace():
            return None
        return _closing(self._text, position) if token == "{" else position + len(token)

    def _operand(self, position: int, *, sign: bool) -> int | None:
        """Where the first token after an operator ends: a dash or a star before words is none."""
        while self._in_mathematics and (token := self._token(position)) and (token.isspace() or token in _SPACES):
            position += len(token)
        token = self._token(position) or ""
        if token in _BOXES:
            return _arguments(self._text, position + len(token))
        if token[:1].isdigit() or token in _SYMBOLS:
            return position + len(token)
        if not self._in_mathematics and sign:
            return None
        if token in _WITH_ARGUMENTS:
            return _arguments(self._text, position + len(token))
        if token in _FUNCTIONS or (len(token) == 1 and token.isascii() and token.isalpha()):
            return position + len(token)
        return _closing(self._text, position) if token in {"(", "["} else None

    def _unit(self, position: int) -> int | None:
        r"""The end of `{ cm}^2`, where that is a unit."""
        end = _arguments(self._text, position)
        power = re.compile(r"\s*\^\s*(?:\{\d\}|\d)").match(self._text, end) if end else None
        end = power.end() if power else end
        return end if end and is_unit(r"\text" + self._text[position:end]) else None


def _arguments(text: str, position: int) -> int:
    """The end of the arguments in brackets and braces that begin at `position`; of a digit without them."""
    if (bare := re.compile(r"\s*(?:\d{1,2}(?!\d)|[A-Za-z](?![A-Za-z]))").match(text, position)) is not None:
        return bare.end()
    while (bracket := _BRACKET.match(text, position)) and (end := _closing(text, bracket.end() - 1)):
        position = end
    return position


def _closing(text: str, position: int) -> int | None:
    """The end of the bracket that opens at `position`."""
    depth = 0
    for match in _TOKEN.finditer(text, position, position + REACH):
        depth += (match.group() in _OPEN) - (match.group() in _CLOSE)
        if depth == 0:
            return match.end()
    return None


@dataclass(frozen=True, slots=True)
class _Owner:
    """Where what a bracket belongs to begins, and whether it changes the value of what is in the bracket."""

    start: int
    valued: bool


def _owner(text: str, opener: int) -> _Owner | None:
    """None where the bracket is of a function, of a set or of an environment."""
    begin = max(0, opener - REACH)
    tokens = [(m.group(), begin + m.start()) for m in _TOKEN.finditer(text[begin:opener])]
    while tokens and tokens[-1][0] in {"}", "]"} and text[opener] == "{":
        earlier = _matching(tokens, len(tokens) - 1)
        if earlier is None:
            return None
        del tokens[earlier:]
    name, where = tokens[-1] if tokens else ("", opener)
    if text[opener] == "{":
        if name in _WITH_ARGUMENTS:
            return _Owner(where, valued=True)
        if name == "^":
            return _Owner(where, valued=True)
        if name == "_":
            return None
        return _Owner(where if name.startswith("\\") and name[1:2].isalpha() else opener, valued=False)
    if name == "\\" or name[-1:].isalnum():
        return None if name[:1] != "\\" and not name.isdigit() else _Owner(opener, valued=False)
    return _Owner(where if name in _SIZES else opener, valued=False)


def _bare(side: str) -> str:
    r"""What stands on one side of a box without brackets, spaces and fonts: "-" of `-\left(`."""
    kept = re.sub(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])|\\[,;:! ]|~|\s", "", side)
    return re.sub(r"^[)\]}]+|(?:\\[A-Za-z]+(?=\{$))?[(\[{]+$", "", kept)


def _is_cut(before: str, content: str, after: str) -> bool:
    """Whether the box holds some digits of a number, or a statement that no formula can hold."""
    content = content.strip()
    left, right = re.sub(r"_\{?\d+\}?\s*$|[\s{]|\\[,;:! ]", "", before)[-1:], re.sub(r"[\s}]|\\[,;:! ]", "", after)[:2]
    digits = (left.isdigit() and content[:1].isdigit()) or (content[-1:].isdigit() and right[:1].isdigit())
    fraction = content[-1:].isdigit() and right[:1] in {".", ","} and right[1:].isdigit()
    return bool(digits or fraction or (_STATEMENT.search(content) and not content.startswith(("(", "[", r"\text"))))


def _wrapped(content: str, after: str) -> str:
    simple = _SIMPLE.fullmatch(content.strip()) and not (after[:1] in {"^", "!"} and not content.isalnum())
    return content if simple else f"({content})"


def _without_boxes(formula: str) -> str:
    """The formula with what is in its boxes in the place of them."""
    for box in reversed(find_boxes(formula).complete):
        formula = formula[: box.start] + _wrapped(box.content, formula[box.end :]) + formula[box.end :]
    return formula
