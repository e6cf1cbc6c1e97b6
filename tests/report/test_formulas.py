"""LaTeX in completions → MathML: what is rendered, and what stays as written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_engine.report import formulas
from rl_engine.report.formulas import ATTRIBUTES, DEEPEST, ELEMENTS, FORMULA, Drawn, drawn_formula, formulas_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so $x$ and $$y$$ and \(z\), \[w\].", ["$x$", "$$y$$", r"\(z\)", r"\[w\]"]),
        (r"$x$-axis, $\$5$, \$3 and $y$", ["$x$", r"$\$5$", "$y$"]),
        (r"\[a \\[2pt] b\]", [r"\[a \\[2pt] b\]"]),
        ("$a\n+b$ and $a\n\nb$", ["$a\n+b$"]),
        # Money is not a formula.
        ("She pays $5 and then $10.", []),
        ("3*$5=$<<3*5=15>>15, so $15 - $5 = $10", []),
        ("$20/2=$10 and $7 each so 5*7=$<<5*7=35>>35", []),
        (r"unclosed: $x, \[x, \(x, $$x", []),
    ],
)
def test_formulas_differ_from_money_and_unclosed_marks(text: str, found: list[str]) -> None:
    assert FORMULA.findall(text) == found


def test_unclosed_formulas_are_read_once() -> None:
    """A model that repeats itself to the limit must not stop the page."""
    start = time.perf_counter()
    for text in (r"\[" * 10_000, r"\(a" * 7_000, "$$ " * 7_000, "$a " * 7_000, "$\n" * 10_000, "$" + "\\" * 20_000):
        FORMULA.findall(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("source", "inside"),
    [
        (r"$\frac{1}{2}$", ("mfrac", "mn 1", "mn 2")),
        (r"\(\frac12\)", ("mfrac", "mn 1", "mn 2")),
        (r"$\boxed{12}$", ("menclose", {"notation": "box"}, "mn 12")),
        (r"$\mathbb R$", "mi ℝ"),
        (r"$\textcolor{red}{x}$", ("mstyle", "mi x")),
        (r"$x<1$", ("mrow", "mi x", "mo <", "mn 1")),
        (r"$\text{a <b>}$", "mtext a\u00a0<b>"),
        (r"$\binom nk$", None),
    ],
)
def test_a_formula_is_drawn(source: str, inside: Drawn | None) -> None:
    drawn = drawn_formula(source)
    assert drawn is not None
    if inside is not None:
        assert drawn == ("math", {"display": "inline"}, inside)


def test_lines_of_aligned_equations_are_rows() -> None:
    for name in ("aligned", "align", "align*", "split"):
        drawn = drawn_formula(rf"\[\begin{{{name}}} a &= b \\ &= c \end{{{name}}}\]")
        assert drawn is not None
        assert drawn[1] == {"display": "block"}
        assert json.dumps(drawn).count('"mtr"') == 2


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac{1}{",
        r"{",
        r"\left( x",
        "a^b^c",
        r"x \\ y",
        "a & b",
        r"\begin{tikz} x \end{tikzpicture}",
        r"\unknown{x}",
        r"\mathbb{R} \in \nothing",
        "28 %, and what TeX would leave out",
        r"\href{javascript:alert(1)}{x}",
        r"\style{position:fixed}{x}",
        r"\class{warning}{x}",
        r"\newcommand{\a}{\a\a}\a",
        r"\def\a{\a\a}\a",
        "{" * 500 + "x" + "}" * 500,
        r"\sqrt{" * (DEEPEST + 1) + "x" + "}" * (DEEPEST + 1),
        "x" * 2_001,
    ],
)
def test_what_is_not_understood_stays_as_it_was_written(latex: str) -> None:
    assert drawn_formula(f"$${latex}$$") is None


def elements(drawn: Drawn) -> Iterator[tuple[str, dict[str, str]]]:
    head, *rest = (drawn,) if isinstance(drawn, str) else drawn
    yield head.partition(" ")[0], next((part for part in rest if isinstance(part, dict)), {})
    for part in rest:
        if not isinstance(part, dict):
            yield from elements(part)


PIECES = st.sampled_from(
    [
        *(r"\frac", r"\sqrt", r"\left", r"\right", "(", ")", "[", "]", "{", "}", "{", "}", "^", "_", "&", r"\\", "x"),
        *(r"\begin{matrix}", r"\end{matrix}", r"\begin{cases}", r"\end{cases}", r"\href", r"\style", r"\class", "1"),
        *(r"\unicode", r"\hspace{1em}", r"\rule", r"\over", r"\choose", r"\sum", r"\lim", r"\limits", r"\genfrac"),
        *(r"\substack", r"\skew", r"\mathchoice", r"\sideset", r"\xrightarrow", r"\newcommand", r"\operatorname"),
        *(r"\boxed", r"\mathbf", r"\text", r"\color", r"\verb", "<", ">", '"', "'", "%", "#", "~", "é"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=25).map(" ".join) | st.text(max_size=30))
def test_whatever_a_model_writes_makes_known_elements_or_none(latex: str) -> None:
    drawn = drawn_formula(f"$${latex}$$")
    if drawn is not None:
        _, *inside = elements(drawn)
        assert {tag for tag, _ in inside} <= ELEMENTS
        assert {name for _, attributes in inside for name in attributes} <= ATTRIBUTES


def test_the_rarest_formulas_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["$a$ $b$ $c$ $b$", "$c$ $c$ $\\wrong$"]
    assert list(formulas_of(texts)) == ["$c$", "$b$", "$a$"]
    monkeypatch.setattr(formulas, "FORMULAS_BYTES", 2 * len('{"$c$": ["math", {"display": "inline"}, "mi c"]}'))
    assert list(formulas_of(texts)) == ["$c$", "$b$"]
