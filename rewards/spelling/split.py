r"""Text → its top-level pieces: outside every bracket, brace and \text{…}. One pass per function, no parser."""

from __future__ import annotations

import re

_DEPTH = {
    **dict.fromkeys(["(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil", r"\begin"], 1),
    **dict.fromkeys([")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\end"], -1),
}
"""How each token changes the depth."""
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_THOUSANDS_RUN = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)(?!,\d)")
_JOINING_TEXT = re.compile(
    r"\\text\s*\{\s*,?\s*(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])|\\(?:text|mathrm)\{\s*\}"
)
PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![a-z])")
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_QUOTED_LIST = re.compile(rf"\[\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*,?\s*\]", re.DOTALL)
RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\in": "in", r"\approx": "~",
    r"\equiv": "==", r"\simeq": "~", r"\sim": "~", r"\cong": "==", r"\subset": "sub", r"\subseteq": "sub",
    r"\implies": "=>", r"\to": "->", r"\notin": "notin", r"\iff": "iff",
}  # fmt: skip


def without_text(text: str) -> str:
    r"""The words of \text{…} among the rest, with single spaces between them."""
    return " ".join(_TEXT.sub(r" \1 ", text).split())


def quoted_items(text: str) -> list[str]:
    """The items of a list of strings in Python or JSON syntax, ['1/2', '0.5']; empty for any other text."""
    text = text.strip()
    if not text.startswith("[") or not _QUOTED_LIST.fullmatch(text):
        return []
    return [item[1:-1].strip() for item in re.findall(_QUOTED, text, re.DOTALL)]


def tokens(text: str) -> list[tuple[str, int, int, int]]:
    """(token, start, end, depth before it) for every command and character."""
    found = []
    depth = 0
    position = 0
    while position < len(text):
        match = _COMMAND.match(text, position) if text[position] == "\\" else None
        token = match.group() if match else text[position]
        end = position + len(token)
        change = _DEPTH.get(token, 0)
        found.append((token, position, end, max(0, depth + min(change, 0))))
        depth = max(0, depth + change)
        position = end
    return found


def split_items(text: str, *, thousands: bool) -> tuple[list[str], str] | None:
    """The pieces of a bare list and what joins them (the strongest of ; or and ,), or None if there is only one."""
    protected = {i for m in _THOUSANDS_RUN.finditer(text) for i in range(m.start(), m.end())} if thousands else set()
    cuts: dict[str, list[tuple[int, int]]] = {",": [], ";": [], "and": [], "or": []}
    depth_at = [0] * (len(text) + 1)
    for token, start, end, depth in tokens(text):
        for i in range(start, end):
            depth_at[i] = depth
        if depth == 0 and token in {",", ";"} and start not in protected:
            cuts[token].append((start, end))
        elif depth == 0 and token == "\\\\":
            cuts[";"].append((start, end))
    for match in _JOINING_TEXT.finditer(text):
        if depth_at[match.start()] == 0 and (match.group(1) or match.group(2)):
            cuts[match.group(1) or match.group(2)].append(match.span())
    joined_by = next((key for key in (";", "or", "and", ",") if cuts[key]), None)
    if joined_by is None:
        return None
    # Commas inside a group are kept if stronger separators delimit the groups: p=5, q=2; p=7, q=2.
    inner_commas = joined_by != "," and cuts[","] and _groups_are_assignments(text, cuts)
    if joined_by == "and" and cuts[","] and not inner_commas:
        joined_by = ","  # in "a, b and c" it ends a list
    used = [span for key in cuts if not (key == "," and inner_commas) for span in cuts[key]]
    pieces = []
    begin = 0
    for start, end in sorted(used):
        pieces.append(text[begin:start])
        begin = end
    pieces.append(text[begin:])
    pieces = [piece.strip(" ,") for piece in pieces]
    return [piece for piece in pieces if piece], joined_by


def _groups_are_assignments(text: str, cuts: dict[str, list[tuple[int, int]]]) -> bool:
    """Whether each comma is followed by a new `name =`: then commas join the assignments of one solution."""
    return all(re.match(r"\s*[A-Za-z](?:_\{?\w+\}?)?\s*=", text[end:]) for _, end in cuts[","])


def split_relation(text: str) -> tuple[list[str], list[str]] | None:
    """The sides and operators of a top-level chain of relations."""
    sides: list[str] = []
    operators: list[str] = []
    begin = 0
    for token, start, end, depth in tokens(text):
        if depth == 0 and token in RELATIONS:
            sides.append(text[begin:start].strip())
            operators.append(RELATIONS[token])
            begin = end
    if not operators:
        return None
    sides.append(text[begin:].strip())
    return sides, operators


def split_at(text: str, separators: set[str]) -> list[str]:
    """The pieces between the given top-level tokens."""
    pieces = []
    begin = 0
    for token, start, end, depth in tokens(text):
        if depth == 0 and token in separators:
            pieces.append(text[begin:start].strip())
            begin = end
    pieces.append(text[begin:].strip())
    return pieces


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) if one pair of brackets encloses the whole text."""
    found = tokens(text)
    if len(found) < 2:
        return None
    first, last = found[0][0], found[-1][0]
    pairs = {"(": ")]", "[": "])", r"\{": r"\}", r"\langle": r"\rangle", "{": "}"}
    if first not in pairs or not (last == pairs[first] or (len(last) == 1 and last in pairs[first])):
        return None
    if any(depth == 0 for _, _, _, depth in found[1:-1]):
        return None
    return first, text[found[0][2] : found[-1][1]].strip(), last


def with_either_sign(text: str) -> list[str]:
    r"""1 \pm 2 \mp x → 1 + 2 - x and 1 - 2 + x."""
    texts = []
    for plus, minus in (("+", "-"), ("-", "+")):
        signed = re.sub(r"\\pm(?![a-z])", plus, re.sub(r"\\mp(?![a-z])", minus, text))
        texts.append(re.sub(r"\(\s*\+", "(", signed.strip().removeprefix("+").strip()))
    return texts
