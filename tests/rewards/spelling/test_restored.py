"""Damage to a text by escapes, JSON and web pages is undone; nothing else is changed."""

from __future__ import annotations

import pytest

from rewards.spelling.restored import restored


@pytest.mark.parametrize(
    ("changed", "written"),
    [
        ("\frac{1}{2}", r"\frac{1}{2}"),
        ("3 \times 10^5\text{ m}", r"3 \times 10^5\text{ m}"),
        ("\\left(1, \binom52\right)", r"\left(1, \binom52\right)"),
        ("x \neq \alpha + \vec v", r"x \neq \alpha + \vec v"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\\\frac{1}{2}", r"\frac{1}{2}"),
        (r"\\{1, \\sqrt{2}\\}", r"\{1, \sqrt{2}\}"),
        (r"5\\%", r"5\%"),
        (r"\\begin{matrix} a \\\\ \\pi \\end{matrix}", r"\begin{matrix} a \\ \pi \end{matrix}"),
        (r"\\begin{matrix}a\\b\\end{matrix}", r"\begin{matrix}a\\b\end{matrix}"),
        ("x &lt; 5", "x < 5"),
        ("x &amp;le; 5 &#8722; y", "x ≤ 5 − y"),
        ("10<sup>3</sup> + a<sub>1</sub>", "10^{3} + a_{1}"),
    ],
)
def test_what_was_done_to_a_text_is_undone(changed: str, written: str) -> None:
    assert restored(changed) == written


@pytest.mark.parametrize(
    "text",
    [
        r"\frac{1}{2}",
        r"\begin{matrix} 1 & \pi \\ \text{a} & b; \end{matrix}",
        r"x = 1 \\ y = 2",
        r"a\\b",
        "two\tids\nor eq\r\n",
        "a & b; c &nothing; d",
        "x < sup and y > 3",
    ],
)
def test_every_other_text_stays(text: str) -> None:
    assert restored(text) == text
