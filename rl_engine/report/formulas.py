"""Texts → the formulas in them: LaTeX converted to MathML, which browsers lay out without scripts or fonts.

A formula is drawn whole or not at all: what is not understood stays on the page as written. The LaTeX library passes on
whatever a model wrote (links, styles, unknown commands, `&` outside tables), so its output is checked here, and only
elements and attributes known to do nothing but lay out a formula are kept.
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

# The page's script finds the same formulas with the same pattern, which means the same in both languages. A body stops
# at any other delimiter, so that a text full of unclosed formulas is scanned once, not once per opening. Dollars are
# also money. As in Pandoc, a $ does not open a formula before a space, nor close one after a space or before a digit;
# here it also closes none after an operator or before <, as in GSM8K's `3*$5=$<<3*5=15>>15`.
FORMULA = re.compile(
    r"\$\$(?:\\[\s\S]|[^$\\])+\$\$"
    r"|\\\[(?:[^\\]|\\[^\[\]])+\\\]"
    r"|\\\((?:[^\\]|\\[^()])+\\\)"
    r"|(?<![\\$])\$(?![\s$])(?:\\[\s\S]|[^$\\\n]|\n(?![ \t]*\n))+(?<![\s=+*/(<-])\$(?![0-9$<])"
)
LONGEST = 2_000
"""Most characters of a formula that is drawn."""
DEEPEST = 40
"""Deepest nesting of elements."""
FORMULAS_BYTES = 3_000_000
"""Most bytes of formulas in a page; the rarest stay as written."""

# Macros can expand without bound, and text after a bare % would be dropped as a comment.
REFUSED = re.compile(r"\\(?:def|\w*newcommand|\w*newenvironment|DeclareMathOperator)\b|(?<!\\)%")
# Environments that the library does not know → ones that it lays out the same way, without numbering lines.
ENVIRONMENTS = {"aligned": "align*", "align": "align*", "dcases": "cases"} | dict.fromkeys(
    ("gathered", "gather", "gather*"), "matrix"
)
ENVIRONMENT = re.compile(r"(\\(?:begin|end)\s*\{)([a-z]+\*?)(?=\})")
# `\mathbb R` must become `\mathbb{R}`: without braces the library returns just the letter.
UNBRACED = re.compile(r"(\\math(?:bb|bf|cal|frak|rm|scr|sf|tt)) *([A-Za-z0-9])")
WRONG_LATEX: tuple[type[Exception], ...] = (
    *(error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(AttributeError, LookupError, RecursionError, StopIteration, TypeError, ValueError),
)
"""Exceptions that the library raises on LaTeX it cannot read."""

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
# The variants a style sheet can produce; browsers ignore the others as attributes.
VARIANTS = frozenset(("normal", "bold", "italic", "bold-italic", "sans-serif", "monospace"))
IGNORED = frozenset(("columnspacing", "mathcolor", "rowspacing", "separator"))
"""Attributes that can be dropped without changing what a formula says."""

Drawn = str | tuple[Any, ...]
"""An element in compact form: (tag and text, attributes if any, child elements…), or only the string of tag and text if
it has neither.

Example: `("mfrac", {"linethickness": "0"}, "mi n", "mi k")`
"""


def formulas_of(texts: Iterable[str]) -> dict[str, Drawn]:
    """Formula in the texts, with its delimiters → its drawn form, the most frequent first."""
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


# Cached between refreshes with --watch.
@lru_cache(maxsize=1 << 15)
def drawn_formula(source: str) -> Drawn | None:
    """The `math` element of a formula given with its delimiters; None if it cannot be drawn faithfully."""
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
    """The element with its children; None if any part of it is unknown."""
    attributes = {name: value for name, value in element.items() if name not in IGNORED}
    # The library writes characters as character references.
    text = html.unescape(element.text or "").strip(" \n")
    known = element.tag in ELEMENTS and attributes.keys() <= ATTRIBUTES and deepest > 0
    known = known and attributes.get("mathvariant", "normal") in VARIANTS
    # The library emits unknown commands, and `&` outside a table, as text.
    if not known or text.startswith("\\") or text == "&":
        return None
    children = [_drawn(child, deepest - 1) for child in element]
    if None in children:
        return None
    if element.tag == "mrow" and len(children) == 1 and not attributes:
        return children[0]
    head = f"{element.tag} {text}" if text else element.tag
    return (head, *([attributes] if attributes else []), *children) if attributes or children else head
