"""Texts → the formulas in them: LaTeX as the elements of MathML, which browsers lay out without a script or a font.

A formula is drawn whole or not at all: what is not understood stays on the page as it was written. The library that
reads LaTeX passes on whatever a model wrote (links, styles, unknown commands, `&` outside tables), so its answer is
taken apart here, and only elements and attributes that are known to do no more than to lay out a formula are kept.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from jinja2.utils import htmlsafe_json_dumps
from latex2mathml import exceptions
from latex2mathml.converter import convert_to_element

# The page's script finds the same formulas by the same pattern: both languages read it alike. A body stops at whatever
# else begins or ends a formula, so that a text of unclosed ones is read once and not once for each. Dollars are money
# too: as in Pandoc, none opens before a space, or closes after a space or before a digit; nor after an operator or
# before <, as in GSM8K's `3*$5=$<<3*5=15>>15`.
FORMULA = re.compile(
    r"\$\$(?:\\[\s\S]|[^$\\])+\$\$"
    r"|\\\[(?:[^\\]|\\[^\[\]])+\\\]"
    r"|\\\((?:[^\\]|\\[^()])+\\\)"
    r"|(?<![\\$])\$(?![\s$])(?:\\[\s\S]|[^$\\\n]|\n(?![ \t]*\n))+(?<![\s=+*/(<-])\$(?![0-9$<])"
)
LONGEST = 2_000
"""Characters of a formula that is drawn."""
DEEPEST = 40
"""Elements within each other."""
FORMULAS_BYTES = 3_000_000
"""Most bytes of formulas in a page; the rarest stay as they were written."""

# Macros can grow without bound, and what follows a bare % is a comment: it would be left out.
REFUSED = re.compile(r"\\(?:def|\w*newcommand|\w*newenvironment|DeclareMathOperator)\b|(?<!\\)%")
# Environments that the library does not know, as those it lays out alike without numbering the lines.
ENVIRONMENTS = {"aligned": "align*", "align": "align*", "dcases": "cases"} | dict.fromkeys(
    ("gathered", "gather", "gather*"), "matrix"
)
ENVIRONMENT = re.compile(r"(\\(?:begin|end)\s*\{)([a-z]+\*?)(?=\})")
# `\mathbb R` as `\mathbb{R}`, which the library answers with the letter itself.
UNBRACED = re.compile(r"(\\math(?:bb|bf|cal|frak|rm|scr|sf|tt)) *([A-Za-z0-9])")
WRONG_LATEX: tuple[type[Exception], ...] = (
    *(error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError),
)
"""What the library raises over LaTeX that it cannot read."""

ELEMENTS = frozenset(
    {
        *("mi", "mn", "mo", "mtext", "mspace", "mrow", "mstyle", "mpadded", "mphantom", "menclose"),
        *("mfrac", "msqrt", "mroot", "msub", "msup", "msubsup", "munder", "mover", "munderover"),
        *("mtable", "mtr", "mtd"),
    }
)
ATTRIBUTES = frozenset(
    {
        *("accent", "accentunder", "displaystyle", "scriptlevel", "mathvariant", "notation", "linethickness"),
        *("fence", "form", "largeop", "movablelimits", "stretchy", "minsize", "maxsize", "lspace", "rspace"),
        *("width", "height", "depth", "voffset", "columnalign", "columnlines", "rowlines"),
    }
)
# What a style sheet can do; browsers have no other alphabets by attribute.
VARIANTS = frozenset(("normal", "bold", "italic", "bold-italic", "sans-serif", "monospace"))
IGNORED = frozenset(("columnspacing", "mathcolor", "rowspacing", "separator"))
"""Without these a formula says the same."""

Drawn = str | tuple[Any, ...]
"""An element, as briefly as a page can hold it: its tag and its text, its attributes where there are some, and the
elements in it; tag and text alone where there is nothing else.

Example: `("mfrac", {"linethickness": "0"}, "mi n", "mi k")`
"""


def formulas_of(texts: Iterable[str]) -> dict[str, Drawn]:
    """Each formula of the texts with its delimiters → what is drawn of it, the most frequent first."""
    counts = Counter(found[0] for text in texts for found in FORMULA.finditer(text))
    drawn = {}
    left_bytes = FORMULAS_BYTES
    for source, _ in counts.most_common():
        element = drawn_formula(source)
        if element is None:
            continue
        left_bytes -= len(htmlsafe_json_dumps({source: element}))
        if left_bytes < 0:
            break
        drawn[source] = element
    return drawn


# Kept between refreshes of a page that is watched.
@lru_cache(maxsize=1 << 15)
def drawn_formula(source: str) -> Drawn | None:
    """The `math` element of a formula with its delimiters; None where it cannot be drawn as it is meant."""
    dollar = source.startswith("$") and not source.startswith("$$")
    latex = source[1:-1] if dollar else source[2:-2]
    if len(latex) > LONGEST or REFUSED.search(latex):
        return None
    latex = ENVIRONMENT.sub(lambda found: found[1] + ENVIRONMENTS.get(found[2], found[2]), latex)
    latex = UNBRACED.sub(r"\1{\2}", latex)
    display = "inline" if dollar or source.startswith(r"\(") else "block"
    try:
        (row,) = convert_to_element(latex, display=display)
    except WRONG_LATEX:
        return None
    inside = _drawn(row, DEEPEST)
    return inside and ("math", {"display": display}, inside)


def _drawn(element: Element, deepest: int) -> Drawn | None:
    """The element with all that is in it; None where anything of it is not known."""
    attributes = {name: value for name, value in element.items() if name not in IGNORED}
    # The library writes characters as references.
    text = html.unescape(element.text or "").strip(" \n")
    known = element.tag in ELEMENTS and attributes.keys() <= ATTRIBUTES and deepest > 0
    known = known and attributes.get("mathvariant", "normal") in VARIANTS
    # A command that it does not know, and a mark of a table outside one, come as letters.
    if not known or text.startswith("\\") or text == "&":
        return None
    children = [_drawn(child, deepest - 1) for child in element]
    if None in children:
        return None
    if element.tag == "mrow" and len(children) == 1 and not attributes:
        return children[0]
    head = f"{element.tag} {text}" if text else element.tag
    return (head, *([attributes] if attributes else []), *children) if attributes or children else head
