"""For any value: an answer equals itself in every spelling, and a perturbed value in none."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rewards import Grader
from rewards.judge import judge_completion, same_answer
from rewards.types import Verdict

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
integers = st.integers(min_value=-(10**9), max_value=10**9)
nonzero = integers.filter(bool)
fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=500)


def correct(answer: str, reference: str) -> bool:
    return same_answer(answer, reference)[0] is Verdict.CORRECT


def integer_spellings(n: int) -> list[str]:
    """An integer as people write it."""
    sign = "-" if n < 0 else ""
    return [
        str(n), f"{n}.0", f" {n} ", f"${n}$", f"{{{n}}}", rf"\text{{{n}}}", rf"\mathbf{{{n}}}", rf"\left({n}\right)",
        f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", r"\,"), f"{n:,}".replace(",", r",\!"),
        f"{n}.", rf"{n} \text{{ cm}}", rf"{n}\text{{ apples}}", f"x = {n}",
        rf"{sign}\${abs(n)}", str(n).replace("-", "−"),
        rf"\frac{{{2 * n}}}{{2}}", f"{2 * n}/2",
    ]  # fmt: skip


def fraction_spellings(f: Fraction) -> list[str]:
    p, q = f.numerator, f.denominator
    sign = "-" if p < 0 else ""
    spellings = [
        f"{p}/{q}", rf"\frac{{{p}}}{{{q}}}", rf"\dfrac{{{p}}}{{{q}}}", rf"{sign}\tfrac{{{abs(p)}}}{{{q}}}",
        rf"\frac{{{3 * p}}}{{{3 * q}}}", rf"{sign}\frac {{{abs(p)}}} {{{q}}}", rf"\left(\frac{{{p}}}{{{q}}}\right)",
        f" {p} / {q} ", rf"\frac{{{p}}}{{{q}}} \text{{ meters}}", rf"k = \frac{{{p}}}{{{q}}}",
    ]  # fmt: skip
    if abs(p) > q > 1:
        whole, rest = divmod(abs(p), q)
        spellings.append(rf"{sign}{whole}\frac{{{rest}}}{{{q}}}")
    decimal = f"{p / q:.10f}".rstrip("0")
    if Fraction(decimal) == f:
        spellings.append(decimal)
    return spellings


@QUICK
@given(integers)
def test_an_integer_equals_itself_in_every_spelling(n: int) -> None:
    for reference in (str(n), f"{n:,}"):
        for answer in integer_spellings(n):
            assert correct(answer, reference), (answer, reference)


@QUICK
@given(integers, nonzero)
def test_another_integer_equals_it_in_none(n: int, shift: int) -> None:
    for answer in integer_spellings(n + shift):
        assert not correct(answer, str(n)), (answer, n)


@QUICK
@given(fractions)
def test_a_fraction_equals_itself_in_every_spelling(f: Fraction) -> None:
    for answer in fraction_spellings(f):
        assert correct(answer, rf"\frac{{{f.numerator}}}{{{f.denominator}}}"), answer


@QUICK
@given(fractions, fractions.filter(bool))
def test_another_fraction_equals_it_in_none(f: Fraction, shift: Fraction) -> None:
    for answer in fraction_spellings(f + shift):
        assert not correct(answer, f"{f.numerator}/{f.denominator}"), answer


@settings(QUICK, max_examples=25)
@given(st.integers(1, 99), st.integers(2, 99), st.sampled_from(["x", r"\pi", r"\sqrt{2}", "(x+1)", "i", r"\sin x"]))
def test_a_fraction_in_one_line_multiplies_what_follows(over: int, under: int, what: str) -> None:
    value = Fraction(over, under)
    product = rf"\frac{{{value.numerator}}}{{{value.denominator}}} \cdot {what}"
    quotient = rf"\frac{{{over}}}{{{under} \cdot {what}}}"
    assert correct(f"{over}/{under}{what}", product)
    assert not correct(f"{over}/{under}{what}", quotient)
    assert correct(f"{over}/({under}{what})", quotient)


@QUICK
@given(st.integers(min_value=1, max_value=400), st.integers(min_value=2, max_value=400))
def test_tiny_and_huge_values_are_told_apart(a: int, b: int) -> None:
    for pattern in (r"10^{{-{}}}", r"2^{{{}}}", r"\frac{{1}}{{{}!}}", r"e^{{-{}}}"):
        one, other = pattern.format(a), pattern.format(a + b)
        assert correct(one, one)
        assert not correct(one, other), (one, other)


@settings(QUICK, max_examples=25)
@given(st.lists(integers, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
def test_lists_have_no_order_and_points_have(values: list[int], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    listed, other = (", ".join(map(str, v)) for v in (values, shuffled))
    assert correct(listed, other)
    assert correct(rf"\{{{listed}\}}", rf"\{{{other}\}}")
    assert correct(f"({listed})", f"({other})") == (values == shuffled)
    assert not correct(listed, ", ".join(map(str, [*values[:-1], values[-1] + 1])))
    assert not correct(str(values[0]), listed)
    assert not correct(listed, str(values[0]))


@settings(QUICK, max_examples=20)
@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(-20, 20))
def test_polynomials(a: int, b: int, c: int) -> None:
    expanded = f"x^2 + ({a + b})x + ({a * b})"
    assert correct(f"(x+({a}))(x+({b}))", expanded)
    assert correct(f"x^2 + {a + b} x + {a * b}".replace("+ -", "- "), expanded)
    if c:
        assert not correct(f"(x+({a}))(x+({b}))+({c})", expanded)


@settings(QUICK, max_examples=150)
@given(st.text(max_size=60), st.text(max_size=30))
def test_any_text_gets_a_verdict(answer: str, reference: str) -> None:
    judgement = judge_completion("\\boxed{" + answer + "}", reference, forms=("boxed", "answer_is", "gsm8k_hashes"))
    assert isinstance(judgement.verdict, Verdict)


LATEX = st.lists(
    st.sampled_from([
        r"\frac", "{", "}", "1", "2", "x", "+", "-", "^", "_", r"\sqrt", "(", ")", "[", "]", ",", "=", "<", r"\le",
        r"\infty", r"\pm", r"\text{ or }", r"\text{cm}", r"\%", "|", r"\{", r"\}", r"\pi", "!", ":",
        "i", r"\cup", r"\in", r"\mathbb{R}",
        r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", r"\boxed{", r"\sin", r"\log", ".", " ", "0",
    ]),
    max_size=12,
)  # fmt: skip


@settings(QUICK, max_examples=150)
@given(LATEX, LATEX)
@example([r"\frac"], ["1", r"\le", "i"])
def test_any_latex_gets_a_verdict(answer: list[str], reference: list[str]) -> None:
    """The judge never raises: it calls whatever it cannot read unparseable."""
    verdict, _ = same_answer("".join(answer), "".join(reference))
    assert isinstance(verdict, Verdict)


@settings(QUICK, max_examples=5)
@given(st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_order_batch_or_worker(grader: Grader, random: object) -> None:
    items = [
        (f"\\boxed{{{answer}}}", reference)
        for answer in ("5", r"\frac{1}{2}", "x+1", "1, 2", r"\{2,1\}", "no", r"2\sqrt{3}", "(0,1)", "50\\%", "")
        for reference in ("5", "0.5", "1+x", "2,1", r"\sqrt{12}", "0<x<1", "")
    ]
    together = grader.grade(items)
    order = list(range(len(items)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert grader.grade([items[i] for i in order]) == [together[i] for i in order]
    assert [grader.grade([item])[0] for item in items[::9]] == together[::9]
