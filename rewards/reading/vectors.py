r"""Vectors in other notations: 3\hat{i}+4\hat{j} → its components; (1,2)^T → the vector that is transposed."""

from __future__ import annotations

import itertools
import re

from rewards.spelling import split

_DECORATED = r"\\(?:hat|widehat|vec|overrightarrow)\s*(?:\{\s*[ijk]\s*\}|[ijk])"
_VECTOR = re.compile(rf"(?P<size>.*?)\s*(?P<vector>\{{\s*{_DECORATED}\s*\}}|{_DECORATED}|\{{[ijk]\}})", re.DOTALL)
_DOTLESS = re.compile(r"\\([ij])math(?![A-Za-z])")
_ARGUMENT = re.compile(r"[\^_]\s*$|\\(?!sqrt)[A-Za-z]+\s*\{[^{}]*\}\s*$|\\[A-Za-z]+\s*$")
r"""Precedes the braces of an {i} that is not a unit vector: e^{i}, \frac{1}{i}."""
_TRANSPOSED = re.compile(
    r"(?P<body>.*[)\]}])\s*\^\s*(?:T|\\top|\\intercal|\{\s*(?:T|\\top|\\intercal)\s*\})", re.DOTALL
)


def components(text: str) -> list[str] | None:
    r"""The coordinates of a sum of multiples of \hat{i}, \hat{j} and \hat{k}: two, or three if it has \hat{k}."""
    if not ("\\hat" in text or "\\vec" in text or "{j}" in text or "\\widehat" in text or "\\overrightarrow" in text):
        return None
    sizes: dict[str, str] = {}
    for term in _terms(_DOTLESS.sub(r"\1", text)):
        match = _VECTOR.fullmatch(term)
        if match is None or _ARGUMENT.search(match.group("size")):
            return None
        letter = match.group("vector").rstrip("} ")[-1]
        if letter in sizes:
            return None
        size = match.group("size").strip()
        sizes[letter] = size if size not in {"", "+", "-"} else size + "1"
    if "\\" not in "".join(match.group() for match in re.finditer(_DECORATED, text)) and len(sizes) < 2:
        return None
    return [sizes.get(letter, "0") for letter in ("ijk" if "k" in sizes else "ij")]


def _terms(text: str) -> list[str]:
    """The terms of a sum, each with its sign."""
    cuts = [start for token, start, _, depth in split.tokens(text) if depth == 0 and token in {"+", "-"} and start]
    ends = [0, *cuts, len(text)]
    return [text[start:end].strip() for start, end in itertools.pairwise(ends)]


def transposed(text: str) -> str | None:
    """The text before ^T, or None."""
    match = _TRANSPOSED.fullmatch(text) if "^" in text else None
    return match.group("body") if match else None
