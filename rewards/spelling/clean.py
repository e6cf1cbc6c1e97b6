"""Answer text → the same answer in a normalized spelling. Both sides of a comparison are cleaned.

Only the spelling changes: typography, spacing, LaTeX that is not rendered; nothing that could turn one value
into another. Characters that make the displayed text differ from the actual one are refused.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rewards.spelling import split
from rewards.spelling.notation import usual
from rewards.spelling.restored import restored

MAX_ANSWER_CHARS = 2_000
MAX_DEPTH = 40
MAX_DIGITS = 1_000
DOLLAR = "＄"
"""Replaces a currency dollar, so that it cannot be mistaken for a math delimiter."""


class Unreadable(ValueError):
    """The text cannot be an answer: the message names the rule."""


_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-",
        "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "∗": "*",
        "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ",
        "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
        "∅": r"\emptyset ", "ø": r"\emptyset ", "Ø": r"\emptyset ", "∖": r"\setminus ", "⊂": r"\subset ",
        "⊆": r"\subseteq ", "→": r"\to ", "⇒": r"\implies ", "⟹": r"\implies ", "∴": r"\therefore ",
        "✓": r"\checkmark ", "✔": r"\checkmark ", "✅": r"\checkmark ", "☑": r"\checkmark ", "∎": r"\qed ",
        "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ",
        "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ",
        "δ": r"\delta ", "ζ": r"\zeta ", "η": r"\eta ", "κ": r"\kappa ", "ν": r"\nu ", "ξ": r"\xi ", "ρ": r"\rho ",
        "τ": r"\tau ", "χ": r"\chi ", "ψ": r"\psi ", "ϕ": r"\phi ", "Γ": r"\Gamma ", "Θ": r"\Theta ",
        "Λ": r"\Lambda ", "Φ": r"\Phi ", "Ψ": r"\Psi ", "Ω": r"\Omega ", "∶": ":",
        "ω": r"\omega ", "Δ": r"\Delta ", "ε": r"\epsilon ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
        "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ",
        "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "…": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle ",
        "，": ",", "。": ".", "：": ":", "；": ";", "（": "(", "）": ")", "％": r"\%", "＋": "+", "＝": "=",
        "¬": r"\neg ", "∧": r"\land ", "∨": r"\lor ", "∠": r"\angle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
        "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
        "⁄": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2003": " ", "\u2002": " ", "\u3000": " ",
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_RADICAL = re.compile(r"(?P<sign>[√∛∜])\s*(?:\((?P<group>[^()]*)\)|(?P<number>\d+(?:\.\d+)?)|(?P<letter>[A-Za-z]))")

_COMMANDS = {
    name: usual
    for usual, names in {
        " ": "displaystyle textstyle scriptstyle limits nolimits boldmath bf it large Large huge strut mathstrut "
        "enspace thinspace medspace thickspace nobreakspace hfill",
        r"\frac": "dfrac tfrac cfrac sfrac xfrac nicefrac flatfrac", r"\binom": "dbinom tbinom",
        r"\le": "leqslant leq leqq", r"\ge": "geqslant geq geqq", "<": "lt", ">": "gt", r"\ne ": "neq",
        r"\{": "lbrace", r"\}": "rbrace", "[": "lbrack", "]": "rbrack", "|": "lvert rvert vert",
        r"\emptyset ": "varnothing O o", r"^\circ ": "degree degrees textdegree", "*": "bullet ast",
        r"\ldots ": "dots cdots dotsc dotsb", ":": "colon", r"\setminus ": "backslash", r"\mathbb{R}": "Reals R",
        DOLLAR: "textdollar", "€": "euro texteuro EUR", "£": "pounds", r"\\": "cr",
    }.items()
    for name in names.split()
}  # fmt: skip
"""Commands with the same meaning as another spelling."""
_COMMAND = re.compile(rf"\\({'|'.join(_COMMANDS)})(?![A-Za-z])")
_TEXT_UNIT = r"\\(?:text|mathrm(?!\s*\{\s*[abeiknpqrxyz]\s*\}))\s*(\{[^{}]*\}\s*(?:\^\s*\{?\d\}?)?)"
_STATES = r"(?:[=<>]|\\(?:le|ge|ne|in)(?![A-Za-z]))[^;=<>]*?"
_LOGICAL = re.compile(r"\\(?:lor|vee|land|wedge)(?![A-Za-z])")
_BETWEEN_STATEMENTS = tuple(
    (re.compile(rf"({_STATES})\s*\\(?:{signs})(?![A-Za-z])(?=[^,;=<>]*?{_STATES})"), rf"\1\\text{{ {word} }}")
    for signs, word in (("lor|vee", "or"), ("land|wedge", "and"))
)
"""Between two equations or inequalities ∨ is "or"; in p ∨ q it is an operation."""
_GIVEN_AGAIN = r"((?:[^(){}]|\{[^{}]*\})*)"
"""0.5 of \\frac12 (or 0.5)."""
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", r"\\\\"),
        (
            r"\\left\s*\\\{\s*\\begin\{(array|aligned|gathered|matrix)\}(?:\s*\{[lcr| ]*\})?"
            r"((?:(?!\\begin).)*?)\\end\{\1\}(?:\s*\\right\s*\.)?",
            r"\\begin{cases}\2\\end{cases}",
        ),
        (r"\\(?:[hv]?phantom|hspace\*?|vspace\*?|label|tag\*?|kern)\s*\{[^{}]*\}", ""),
        (r"\\phantom\s*.", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\.?", ""),
        (r"(?<=\d)(?:,\s*\\!|(?:\{,\}|\\text\s*\{,\})(?:\\[,;:! ])?)\s*(?=\d)", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z]))|~", " "),
        (r"\\(?:text(?:rm|bf|it|sf|tt|normal|up|sc)|[mh]box|emph|mathtt)(?=\s*\{)", r"\\text"),
        (r"\\(?:boldsymbol|bm|pmb|math(?:bf|it|sf|normal|bin|ord|rel)|underline|boxed|fbox|ensuremath)\s*(?=\{)", ""),
        (r"(?<![A-Za-z^_}])\{\s*\\rm(?![A-Za-z])([^{}]*)\}", r"\\mathrm{\1}"),
        (r"\{\s*\\rm(?![A-Za-z])([^{}]*)\}", r"{\\mathrm{\1}}"),
        (r"\\rm\s*(?=\{)", r"\\mathrm"),
        (r"\\rm(?![A-Za-z])", " "),
        (rf"(?<=[\d}}])\s*\\frac\s*\{{\s*{_TEXT_UNIT}\s*\}}\s*\{{\s*{_TEXT_UNIT}\s*\}}", r"\\text\1/\\text\2"),
        (r"\\mathrm\s*\{\s*([A-Za-z])\s*\}|\\text\s*\{\s*(i)\s*\}", r" \1\2 "),
        (r"\\mathrm(?=\s*\{)", r"\\text"),
        (r"\\not\s*=|(?<![\w)\]}])!=", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?:\\text\s*)?\{\s*\^\s*\\circ\s*\}|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])", r"^\\circ "),
        (r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\mathcal\s*(?:\{\s*O\s*\}|O)(?=\s*\()", "O"),
        (r"\\\$", DOLLAR),
        (rf"\\text\s*\{{\s*([{DOLLAR}€£¥₹])\s*\}}", r"\1"),
        (r"\\text\s*\{\s*Rs\.?\s*\}", "₹"),
        (r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|split|equation\*?|displaymath)\}", ""),
        (r"\s*&\s*(?==|<|>|\\[lg]e(?![A-Za-z]))", ""),
        (r"\\\\\s*(?==)", " "),  # a row that begins with = continues the row above
        (r"(?<=[\d)}])\s*\\text\s*\{\s*([^{}\s][^{}]*?)\s+(and|or)\s*\}\s*(?=[\d\\(-])", r"\\text{ \1}\\text{ \2 }"),
        (r"(?:\{\s*\})?\^\s*\{?(\d+)\}?\s*/\s*_\s*\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"\^\s*\{\s*(?:\\text\s*\{)?\s*(?:st|nd|rd|th)\s*\}?\s*\}", ""),
        (r"\\p?mod\s*(\w+)(?!\w)", r"\\pmod{\1}"),
        (r"\\text\s*\{\s*\(?\s*mod(?:ulo)?\s+(\w+)\s*\)?\s*\}", r"\\pmod{\1}"),
        (r"\\text\s*\{\s*([-+,]?|\d+)\s*\}", r"\1 "),
        (r"\\text\s*\{\s*(\d+) ([a-z]+)\s*\}(?=\s*\^)", r"\1\\text{ \2}"),
        (r"\(\s*(?:\\text\s*\{\s*mod\s*\}|\\bmod|\\mod|mod)\s*\{?\s*(\w+)\s*\}?\s*\)", r"\\pmod{\1}"),
        (r"\{\s*([,.:])\s*\}", r"\1"),
        (r"(?:^|(?<=[-+=(,]))\s*\{\s*(\d+(?:\.\d+)?)\s*\}(?=\s*[\^_])", r"\1"),
        (
            rf"\\text\s*\{{\s*\(\s*or(?:\s*\}}{_GIVEN_AGAIN}(?:\)|\\text\s*\{{\s*\)\s*\}})|\s{_GIVEN_AGAIN}\)\s*\}})"
            rf"|\(\s*or\s{_GIVEN_AGAIN}\)",
            r"\\text{ or }\1\2\3",
        ),
        (r"(\\text\s*\{[^{}]*\^)\{(-?\d)\}", r"\1\2"),
        (r"\\big(cup|cap)(?![A-Za-z]|\s*_)", r"\\\1"),
        (r"(?<!\\)%", r"\\%"),
    )
)  # fmt: skip
_REWRITTEN = ("%", "{", "~", "<=", ">=", "!=", "(mod", "(or ", "/_")
"""A text with none of these and no command needs no rewriting."""
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS}}}")
_COLOUR = re.compile(r"\\(?:textcolor|color)\s*\{\s*(?P<colour>[^{}]*)\s*\}")
_DELIMITERS = (
    (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**"), ("`", "`"), ("__", "__"), ('"', '"'),
)  # fmt: skip
_DELIMITER = re.compile(r"(?<!\\)\\[()]")
_CONNECTIVE = re.compile(
    r"(?:=(?!=)|\\(?:therefore|implies|to|checkmark|(?:long|Long)?[rR]ightarrow)(?![A-Za-z]))\s*(?=\S)"
)
"""Joins an answer to the words before it."""
_END_OF_PROOF = re.compile(r"(?<=\S)\s*\\(?:checkmark|blacksquare|square|Box|qed)$")
_SPACES = re.compile(r"\s+")
_SINGLE_BRACED = re.compile(r"([_^])\{(\w)\}")
_IDLE_SPACE = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])|(?<=[A-Za-z]) (?=\d)|(?<=\d) (?=[A-Za-z])")


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """Normalize the spelling of an answer. Raises `Unreadable` if it exceeds a limit or has a forbidden character."""
    if len(text) > MAX_ANSWER_CHARS:
        raise Unreadable("answer_too_long")
    text = restored(text)
    _refuse_deceptive(text)
    if not text.isascii():
        text = _typography(text)
    if _LONG_NUMBER.search(text):
        raise Unreadable("number_too_long")
    for match in _COLOUR.finditer(text):
        if match.group("colour").strip().lower() in {"white", "transparent"}:
            raise Unreadable("invisible_answer")
    if "\\" in text or any(sign in text for sign in _REWRITTEN):
        text = _COMMAND.sub(lambda match: _COMMANDS[match.group(1)], _COLOUR.sub("", text))
        for pattern, replacement in (*_REWRITES, *(_BETWEEN_STATEMENTS if _LOGICAL.search(text) else ())):
            text = pattern.sub(replacement, text)
    text = unwrapped(usual(_SPACES.sub(" ", text).strip()))
    if sum(map(text.count, "([{")) > MAX_DEPTH and max(depth for *_, depth in split.tokens(text)) > MAX_DEPTH:
        raise Unreadable("nested_too_deeply")
    return text


def fingerprint(text: str) -> str:
    """A cleaned answer without meaningless spaces: answers with equal fingerprints are equal."""
    return _SINGLE_BRACED.sub(r"\1\2", _IDLE_SPACE.sub("", text))


def _refuse_deceptive(text: str) -> None:
    """Raise `Unreadable` for control characters, lone surrogates and writing-direction marks, which make the displayed
    text differ from the actual one."""
    if text.isascii() and text.isprintable():
        return
    for character in text:
        category = unicodedata.category(character)
        if category in {"Cs", "Co", "Cn"} or (category == "Cc" and character not in "\t\n\r\x08"):
            raise Unreadable("forbidden_character")
        if unicodedata.bidirectional(character) in {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI", "PDF", "PDI"}:
            raise Unreadable("forbidden_character")


def _typography(text: str) -> str:
    """Unicode mathematics → LaTeX; decimal digits of any script and full-width letters → ASCII."""
    text = _SUPERSCRIPT_RUN.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    text = _RADICAL.sub(lambda m: f"{_ROOTS[m['sign']]}{{{m['group'] or m['number'] or m['letter'] or ''}}}", text)
    for sign, root in _ROOTS.items():
        text = text.replace(sign, root)
    text = text.translate(_SYMBOLS)
    return "".join(_plain_character(c) for c in text)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Cf":
        return ""  # zero-width characters are not displayed
    if ("\uff01" <= character <= "\uff5e" and character != DOLLAR) or "\U0001d400" <= character <= "\U0001d7ff":
        return unicodedata.normalize("NFKC", character)
    return character


def unwrapped(text: str) -> str:
    """Remove math delimiters, emphasis and closing punctuation around the whole answer."""
    while True:
        before = text
        text = text.strip()
        while text.endswith((".", ",", ";", ":", "\\\\")) and not text.endswith("..") and len(text) > 1:
            text = text[: -2 if text.endswith("\\\\") else -1].rstrip()
        for opening, closing in _DELIMITERS:
            inner = text[len(opening) : len(text) - len(closing)]
            wrapped = len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing)
            if wrapped and opening not in inner and closing not in inner:
                text = inner
        if _is_braced(text):
            text = text[1:-1]
        if text[:1] in {"=", "\\"}:
            text = _CONNECTIVE.sub("", text, count=1) if _CONNECTIVE.match(text) else text
        if text[-1:].isalpha() and "\\" in text:
            text = _END_OF_PROOF.sub("", text)
        if text.startswith(r"\text{") and _is_braced(text[5:]):
            text = text[6:-1]
        if text == before:
            return _loose_dollars(text)


def _loose_dollars(text: str) -> str:
    """Replace an unpaired dollar sign before a number, which is money; the others are math delimiters in the text."""
    if text.count("$") % 2 == 1:
        text = re.sub(r"^([-+]?)\$(?=[\d.])", r"\1" + DOLLAR, text)
    return _DELIMITER.sub("", text.replace("$", "")).strip()


def _is_braced(text: str) -> bool:
    """Whether one pair of braces encloses the whole text."""
    return text[:1] == "{" and text[-1:] == "}" and split.enclosed(text) is not None
