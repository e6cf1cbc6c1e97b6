"""How far a mean over few tokens may exceed its limit by chance, against distributions and drawn tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rollout.closeness import KlEstimate, chance


def poisson_beyond(count: int, expected: float) -> float:
    """P(X > count) of a Poisson variable."""
    return 1 - sum(math.exp(-expected) * expected**k / math.factorial(k) for k in range(count + 1))


@pytest.mark.parametrize("tokens", [1, 2, 16, 50, 100, 115, 448, 1000, 5000, 20_000, 100_000])
def test_a_share_at_its_limit_is_over_once_in_hundreds_of_steps(tokens: int) -> None:
    """Each token is over with probability 0.001: the largest count that passes, and how often honest steps exceed it. A
    normal variable is more than 3 standard errors above its mean in 0.00135 of all cases."""
    limit = 1e-3
    passes = math.floor(tokens * (limit + chance(limit, tokens, largest=1.0)))
    assert passes >= 1
    assert poisson_beyond(passes, tokens * limit) < 4e-3
    assert passes < tokens * limit + 3 * math.sqrt(tokens * limit) + 2


def estimate(gaps: np.ndarray) -> KlEstimate:
    costs = gaps**2 / 2
    error = math.sqrt(float((costs**2).sum())) / len(costs)
    return KlEstimate(kl=float(costs.mean()), error=error, tokens=len(costs))


def test_a_margin_by_hand() -> None:
    """A token costs at most ½ · 2² = 2: over 8 tokens, 3 √(0.01 · 2 / 8) + 2 / 8. Or three of its own errors."""
    assert KlEstimate(kl=0.0, error=1e9, tokens=8).margin(0.01, 2.0) == pytest.approx(0.4)
    assert KlEstimate(kl=0.0, error=0.1, tokens=8).margin(0.01, 2.0) == pytest.approx(0.3)


SIZES = [1, 2, 5, 20, 115, 448, 4000]


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("scale", [1.0, 1e-2], ids=["0.01 and 2 nats", "1e-6 and 0.02 nats"])
def test_an_expectation_at_the_limit_passes_however_spread(tokens: int, scale: float) -> None:
    """Gaps whose mean cost is exactly the limit: normal, heavy-tailed, a few of equal size, a few at the limit for a
    single token. Without an allowance nearly half of the steps would exceed the limit."""
    draw = np.random.default_rng(0)
    size = (400, tokens)
    drawn = {
        "normal": draw.normal(0, math.sqrt(2 * 0.01), size),
        "heavy": draw.standard_t(5, size) * math.sqrt(2 * 0.01 * 3 / 5),
        "some": math.sqrt(0.2) * (draw.random(size) < 0.1),
        "spikes": 2.0 * (draw.random(size) < 0.005),
    }
    for name, rows in drawn.items():
        over = [not estimate(scale * row).within(scale**2 * 0.01, scale * 2.0) for row in rows]
        assert sum(over) <= 4, name


@pytest.mark.parametrize(
    ("tokens", "spread"),
    [(20, 1.5), (50, 0.5), (115, 0.3), (115, 1.0), (448, 0.25), (4000, 0.2)],
)
def test_tokens_that_are_all_apart_are_found_in_one_step(tokens: int, spread: float) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(0, spread, (400, tokens))
    assert sum(not estimate(row).within(0.01, 2.0) for row in rows) >= 380


@pytest.mark.parametrize(("tokens", "spread"), [(50, 3.0), (115, 1.5), (448, 0.75), (4000, 0.4)])
def test_another_adapter_is_found_by_one_token_of_five(tokens: int, spread: float) -> None:
    """In the smaller cases the standard error of such a mean is as large as the mean itself; there the bound finds
    it."""
    draw = np.random.default_rng(0)
    rows = draw.normal(0, spread, (400, tokens)) * (draw.random((400, tokens)) < 0.2)
    assert sum(not estimate(row).within(0.01, 2.0) for row in rows) >= 340


def test_the_larger_a_gap_the_rather_it_is_found() -> None:
    """If all tokens have the same gap, every gap above a certain size is found, and none below it."""
    for tokens in (2, 7, 20, 115, 4000):
        found = [not estimate(np.full(tokens, gap)).within(0.01, 2.0) for gap in np.geomspace(1e-3, 10, 200)]
        assert found == sorted(found)
        assert found[-1]
        assert not found[0]


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_what_is_no_finite_number_is_never_within(kl: float) -> None:
    assert not KlEstimate(kl=kl, error=kl, tokens=1).within(1e9, 1e9)


@pytest.mark.parametrize("tokens", [2, 16, 115, 8192])
def test_a_few_unreasonable_tokens_are_found_among_many(tokens: int) -> None:
    """One token may have the largest gap that a single token is allowed. Four tokens at 50 nats are not rounding,
    although their standard error is large."""
    one = np.zeros(tokens)
    one[0] = 2.0
    assert estimate(one).within(0.01, 2.0)
    four = np.zeros(max(4, tokens))
    four[:4] = 50.0
    assert not estimate(four).within(0.01, 2.0)
