"""Cleaned answer text → a node of its kind. The first rule that recognizes the text decides.

Reading never evaluates. It looks at brackets, separators, relation signs, units and words, and calls the parser only
where {x | x > 3} may be a region. Everything else is an `Expression`, which is parsed when it is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from rewards.reading import phrases
from rewards.reading.bases import based
from rewards.reading.numbers import Number, read_number
from rewards.reading.quantities import counted, money, number_and_unit, with_unit
from rewards.reading.shapes import (
    Approximation,
    Bracketed,
    Choice,
    Combination,
    Conditioned,
    Domain,
    Exact,
    Expression,
    Items,
    Matrix,
    Node,
    Pieces,
    Quantity,
    Ratio,
    Relation,
    Unusable,
)
from rewards.reading.units import in_two_units
from rewards.reading.variables import variable
from rewards.reading.vectors import components, transposed
from rewards.spelling import split
from rewards.spelling.conditions import for_all, value_and_condition

MAX_ELEMENTS = 200
MAX_NESTING = 8

_MATRIX = re.compile(
    r"\\begin\{(?P<name>[pbvBV]?matrix|smallmatrix|array)\}\s*(?:\{[lcr| ]*\})?(?P<body>.*?)\\end\{(?P=name)\}",
    re.DOTALL,
)
_NAMED = re.compile(r"^\s*[a-z]\s*(?:=|\\ne)\s*")
_SYSTEM = re.compile(r"\\begin\{cases\}\s*([^&]*?)\s*\\end\{cases\}", re.DOTALL)
_DOMAIN = re.compile(r"\\mathbb\s*\{\s*([RZNQC])\s*\}")
_RAYS = {
    rf"\mathbb{{R}}{mark}": interval
    for interval, marks in {
        r"(0,\infty)": ("^+", "^{+}", "_{>0}", "_{> 0}", "^{>0}"),
        r"(-\infty,0)": ("^-", "^{-}", "_{<0}", "_{< 0}"),
        r"[0,\infty)": (r"_{\ge 0}", r"_{\ge0}", r"^{\ge 0}"),
    }.items()
    for mark in marks
}
_CASES = re.compile(r"\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
_IF = re.compile(
    r"\\text\s*\{\s*,?\s*(?:if|for|when|where|otherwise|else|elsewhere)\s*,?\s*\}|^\s*(?:if|for|when|where|otherwise|else)\b"
    r"|(?<=\\text\{)\s*(?:if|for|when|where)\b"
)
_SET_BUILDER = re.compile(
    r"(?P<name>[a-z])\s*(?:\\in\s*\\mathbb\s*\{R\}\s*)?(?:\\mid|[|:])\s*(?P<condition>.+)", re.DOTALL
)
_RESIDUES = re.compile(
    r"(?P<name>[a-z])\s*\\equiv(?![a-z])(?P<numbers>[^=<>\\]*(?:\\text\s*\{[^{}]*\}[^=<>\\]*)*)(?P<modulus>\\pmod\{\d+\})"
)
_TO = re.compile(r"(?<=\d)\s*\\text\s*\{\s*to\s*\}\s*(?=\d)|(?<=\d) to (?=\d)")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_ELLIPSIS = re.compile(r"\\ldots|\.\.\.|…")


@lru_cache(maxsize=1024)
def read(text: str, *, thousands: bool = True) -> Node:
    """Read a cleaned text. `thousands` says whether 1,234 is one number or two."""
    return Reader(thousands=thousands).read(text)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads texts that are nested inside `nesting` others."""

    thousands: bool
    nesting: int = 0

    def read(self, text: str) -> Node:
        if self.nesting > MAX_NESTING:
            return Unusable("nested_too_deeply", text)
        text = text.strip()
        number = read_number(text)
        if number is not None and (self.thousands or "," not in text):
            return Exact(number)
        for rule in _RULES:
            node = rule(self, text)
            if node is not None:
                return node
        return Expression(text)

    def part(self, text: str) -> Node:
        """Read a part of the text that is being read."""
        return Reader(thousands=self.thousands, nesting=self.nesting + 1).read(text)

    def element(self, text: str) -> Node:
        """Read one of several values in brackets, where every comma is a separator."""
        return Reader(thousands=False, nesting=self.nesting + 1).read(text)

    # Each rule below recognizes one kind of text and returns None for all others. _RULES gives their order.

    def placeholder(self, text: str) -> Node | None:
        return phrases.placeholder(text)

    def phrase(self, text: str) -> Node | None:
        """A fixed phrase or a number in words: all real numbers, no solution, yes; twelve."""
        found = phrases.phrase(text)
        return self.part(found) if isinstance(found, str) else found

    def counted(self, text: str) -> Node | None:
        """A number in words, and what is counted: seven days."""
        found = counted(text)
        return with_unit(self.part(found[0]), found[1]) if found else None

    def all_but(self, text: str) -> Node | None:
        r"""All real numbers except 0 and 1: \mathbb{R} \setminus \{0, 1\}."""
        found = phrases.all_but(text)
        if found is None:
            return None
        left_out = [self.element(_NAMED.sub("", piece)) for piece in _between_commas(found[1])]
        if not all(isinstance(node, Exact | Expression) for node in left_out):
            return None
        return Combination("setminus", (Domain(found[0]), Items(tuple(left_out), "set")))

    def lead(self, text: str) -> Node | None:
        r"""An answer that announces itself: \text{Answer: } 5, and \text{all real } x > 5."""
        rest = phrases.after_lead(text)
        return self.part(rest) if rest else None

    def system(self, text: str) -> Node | None:
        r"""A system of equations, \begin{cases} x = 1 \\ y = 2 \end{cases}; with & it would be a piecewise function."""
        match = _SYSTEM.fullmatch(text)
        return self.part(match.group(1)) if match else None

    def pieces(self, text: str) -> Node | None:
        r"""A piecewise function: \begin{cases} x & x > 0 \\ -x, & \text{otherwise} \end{cases}."""
        match = _CASES.fullmatch(text)
        if match is None:
            return None
        rows = [split.split_at(row, {"&"}) for row in split.split_at(match.group(1), {"\\\\"}) if row]
        if not rows or any(len(row) != 2 or not row[0].strip(" ,") for row in rows):
            return None
        return Pieces(
            tuple((self.part(value.strip(" ,")), _IF.sub("", condition).strip(" ,.")) for value, condition in rows)
        )

    def in_two_units(self, text: str) -> Node | None:
        found = in_two_units(text)
        return Quantity(Exact(Number(found[0])), found[1]) if found else None

    def ellipsis(self, text: str) -> Node | None:
        """1, 2, …: an unfinished list equals only the same text."""
        return Unusable("ellipsis", text) if _ELLIPSIS.search(text) and "," in text else None

    def moment(self, text: str) -> Node | None:
        return phrases.moment(text)

    def choice(self, text: str) -> Node | None:
        found = phrases.choice(text)
        if found is None:
            return None
        letter, rest = found
        return Choice(letter, self.part(rest) if rest else None)

    def conditioned(self, text: str) -> Node | None:
        r"""A value with a side condition: k\pi, k \in \mathbb{Z}; f(x) = x + C, C \in \mathbb{R}."""
        return self._conditioned(value_and_condition(text))

    def _conditioned(self, found: tuple[str, str] | None) -> Conditioned | None:
        return Conditioned(self.part(found[0]), found[1], found[0]) if found else None

    def residues(self, text: str) -> Node | None:
        r"""x \equiv 2, 5 \pmod{7} as two congruences."""
        match = _RESIDUES.fullmatch(text)
        found = split.split_items(match.group("numbers"), thousands=False) if match else None
        if match is None or found is None or not 1 < len(found[0]) <= MAX_ELEMENTS:
            return None
        sides = [(match.group("name"), f"{number} {match.group('modulus')}") for number in found[0]]
        return Items(tuple(Relation(side, ("==",)) for side in sides), "list", "or")

    def items(self, text: str) -> Node | None:
        """Several values without brackets: 1, 2 and 3; x = 1 or x = 2; p=5, q=2; p=7, q=2."""
        found = split.split_items(text, thousands=self.thousands)
        if found is None or len(found[0]) < 2:
            return None
        pieces, joined_by = found
        if len(pieces) > MAX_ELEMENTS:
            return Unusable("too_many_values", text)
        elements: list[Node] = []
        label, operator = "", "="
        for piece in pieces:
            if operator == "!=" and split.PLUS_MINUS.search(piece) and not split.split_relation(piece):
                elements.extend(Relation((label, side), ("!=",)) for side in split.with_either_sign(piece))
                continue
            node = self.part(piece)
            named = node.elements[0] if isinstance(node, Items) and node.joined_by == "and" else node
            if isinstance(named, Relation) and named.operators in {("=",), ("!=",)}:
                label, operator = named.sides[0], named.operators[0]
            elif label and isinstance(node, Exact | Expression | Bracketed):
                node = Relation((label, piece), (operator,))  # n = 2, 3, 4
            elements.extend(_spread(piece, node))
        return Items(tuple(elements), "list", joined_by)  # type: ignore[arg-type]

    def relation(self, text: str) -> Node | None:
        found = split.split_relation(text)
        if found is None:
            return None
        sides, operators = found
        if operators == ["~"] and not sides[0] and sides[1]:
            return Approximation(Unusable("approximate", text), self.part(sides[1]))
        if any(not side for side in sides):
            return Unusable("incomplete_relation", text)
        if operators[-1] == "~":
            return self._approximation(sides, operators)
        if operators == ["!="] and split.PLUS_MINUS.search(text):
            name, value = sides if split.PLUS_MINUS.search(sides[1]) else reversed(sides)
            neither = tuple(Relation((name, side), ("!=",)) for side in split.with_either_sign(value))
            return Items(neither, "list", "and")
        return Relation(tuple(sides), tuple(operators))

    def _approximation(self, sides: list[str], operators: list[str]) -> Node:
        r"""\sqrt{2} \approx 1.414 states both values; x \approx 1.4 means x = 1.4."""
        before = sides[:-1]
        rounded = self.part(sides[-1])
        if len(before) == 1 and re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", before[0]):
            return Relation((before[0], sides[-1]), ("=",))
        kinds = {"=": " = ", "~": r" \approx ", "<": "<", ">": ">"}
        joined = before[0] + "".join(kinds.get(o, " = ") + s for o, s in zip(operators[:-1], before[1:], strict=True))
        return Approximation(self.part(joined), rounded)

    def plus_minus(self, text: str) -> Node | None:
        r"""1 \pm \sqrt{19} is a list of two values; \mp takes the opposite sign."""
        if not split.PLUS_MINUS.search(text):
            return None
        upper, lower = split.with_either_sign(text)
        return Items((self.part(upper), self.part(lower)), "list", "or")

    def combination(self, text: str) -> Node | None:
        r"""A combination of sets: (0,1) \cup (2,3); \mathbb{R} \setminus \{0\}."""
        for operator in ("cup", "setminus", "cap"):
            parts = split.split_at(text, {"\\" + operator})
            if len(parts) > 1 and all(parts) and len(parts) <= MAX_ELEMENTS:
                return Combination(operator, tuple(self.part(part) for part in parts))
        match = re.match(r"(\\mathbb\s*\{[RZNQC]\})\s*-\s*(\\\{.*)", text, re.DOTALL)
        if match:
            return Combination("setminus", tuple(self.part(part) for part in match.groups()))
        return None

    def domain(self, text: str) -> Node | None:
        if text in _RAYS:
            return self.part(_RAYS[text])
        match = _DOMAIN.fullmatch(text)
        if match:
            return Domain(match.group(1))
        return Items((), "set") if text in {r"\emptyset", r"\{\}", r"\{ \}"} else None

    def vector(self, text: str) -> Node | None:
        r"""3\hat{i}+4\hat{j} is (3, 4), and (1, 2)^T is a column."""
        found = components(text)
        if found is not None:
            return Bracketed("(", ")", tuple(self.element(component.removeprefix("+")) for component in found))
        body = transposed(text)
        node = self.part(body) if body is not None else None
        if isinstance(node, Bracketed):
            return Matrix(tuple((element,) for element in node.elements))
        if isinstance(node, Matrix) and len({len(row) for row in node.rows}) == 1:
            return Matrix(tuple(zip(*node.rows, strict=True)))
        return None

    def matrix(self, text: str) -> Node | None:
        r"""A matrix with any brackets: \begin{pmatrix}…\end{pmatrix}, or an array in \left[…\right]."""
        inner = re.sub(r"^[(\[|]\s*(\\begin.*\\end\{[a-zA-Z]+\})\s*[)\]|]$", r"\1", text, flags=re.DOTALL)
        match = _MATRIX.fullmatch(inner)
        if match is None or inner.count(r"\begin") > 1:
            return None  # a sum or product of matrices: left to math-verify
        if match.group("name") in {"vmatrix", "Vmatrix"} or (match.group("name") == "array" and text[0] == "|"):
            return None  # a determinant: left to math-verify
        body = re.sub(r"\\hline", "", match.group("body")).strip()
        rows = [row.strip() for row in split.split_at(body, {"\\\\"})]
        cells = [split.split_at(row, {"&"}) for row in rows if row]
        return Matrix(tuple(tuple(self.part(cell) for cell in row) for row in cells))

    def brackets(self, text: str) -> Node | None:
        found = split.enclosed(text)
        if found is None:
            return None
        opening, inside, closing = found
        if opening == "{":
            return self.part(inside)
        if opening == r"\{" and re.search(r"\\mid(?![a-z])|(?<!\|)\|(?!\|)|:", inside):
            return self._set_builder(inside) or Expression(text)
        pieces = _between_commas(inside)
        if len(pieces) > MAX_ELEMENTS:
            return Unusable("too_many_values", text)
        if opening == r"\{":
            elements = [self.element(piece) for piece in pieces]
            flat = [leaf for piece, node in zip(pieces, elements, strict=True) for leaf in _spread(piece, node)]
            return Items(tuple(flat), "set")
        if opening in {"(", r"\langle"} and len(pieces) > 1 and _has_one_choice_of_sign(inside):
            return self.plus_minus(text)
        if len(pieces) == 1:
            return self.part(inside) if (opening, closing) in {("(", ")"), ("[", "]")} else None
        rows = [split.enclosed(piece) for piece in pieces]
        if all(pair and pair[::2] == ("[", "]") for pair in [found, *rows]):  # [[1, 2], [3, 4]], as in a program
            return Matrix(tuple(tuple(map(self.element, _between_commas(row[1]))) for row in rows if row))
        return Bracketed(opening, closing, tuple(self.element(piece) for piece in pieces))

    def _set_builder(self, inside: str) -> Node | None:
        r"""{x | x > 3} is the region x > 3, {2k | k \in \mathbb{Z}} a family; any other equals only its own text."""
        family = self._conditioned(for_all(inside))
        if family is not None:
            return family
        match = _SET_BUILDER.fullmatch(inside)
        if match is None:
            return None
        node = self.part(match.group("condition"))
        if isinstance(node, Conditioned) and isinstance(node.body, Relation):
            return node if node.body.sides[0] == match.group("name") else None
        return node if variable(node) == match.group("name") else None

    def ratio(self, text: str) -> Node | None:
        parts = split.split_at(_TO.sub(":", text), {":"})
        if len(parts) < 2 or not all(parts) or len(parts) > 6 or re.search(r"[|{]", parts[0].replace(r"\frac{", "")):
            return None
        nodes = tuple(self.part(part) for part in parts)
        return Ratio(nodes, clock=bool(_CLOCK.fullmatch(text.replace(" ", ""))))

    def based(self, text: str) -> Node | None:
        return based(text)

    def quantity(self, text: str) -> Node | None:
        r"""A value with a unit: 5 \text{ cm}, \$18.90, 28\%, 45^\circ, 3 million."""
        found = money(text) or number_and_unit(text)
        if found is None:
            return None
        value, unit = found
        return Unusable("words_after_value", text) if unit is None else with_unit(self.part(value), unit)

    def words(self, text: str) -> Node | None:
        return phrases.words(text)


def _has_one_choice_of_sign(inside: str) -> bool:
    r"""(\pm 2, 0) and (\pm 2, \mp 3) are two points; (\pm 1, \pm 1) may be two or four."""
    signs = split.PLUS_MINUS.findall(inside)
    return len(signs) == 1 or (len(signs) == 2 and len(set(signs)) == 2)


def _between_commas(inside: str) -> list[str]:
    """The texts between the commas in brackets: none, one or several."""
    found = split.split_items(inside, thousands=False)
    return found[0] if found else [inside] if inside else []


def _spread(piece: str, node: Node) -> tuple[Node, ...]:
    r"""The elements that a piece of a list or set contributes: two for 1 \pm 2, otherwise one."""
    if isinstance(node, Items) and split.PLUS_MINUS.search(piece):
        return node.elements
    return (node,)


_RULES: tuple[Callable[[Reader, str], Node | None], ...] = (
    Reader.placeholder,
    Reader.phrase,
    Reader.counted,
    Reader.all_but,
    Reader.lead,
    Reader.system,
    Reader.pieces,
    Reader.in_two_units,
    Reader.ellipsis,
    Reader.moment,
    Reader.matrix,
    Reader.vector,
    Reader.choice,
    Reader.conditioned,
    Reader.residues,
    Reader.items,
    Reader.relation,
    Reader.domain,
    Reader.combination,
    Reader.brackets,
    Reader.plus_minus,
    Reader.ratio,
    Reader.based,
    Reader.quantity,
    Reader.words,
)
