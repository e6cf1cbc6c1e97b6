"""Verdicts → a score, its uncertainty, and whether two scores differ.

Shapes: P problems, K samples of each. Intervals are 95 % intervals.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

Z95 = 1.959964
RESAMPLES = 2000
SIGN_FLIPS = 9999
DIGITS = 12
"""Decimals to which scores are compared: 3/5 − 2/5 and 2/5 − 1/5 are equal, and differ in the sixteenth."""
Floats = NDArray[np.float64]


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927).

    Raises `ValueError` if there are no trials.
    """
    if trials <= 0:
        raise ValueError("an interval needs at least one trial")
    rate = successes / trials
    denominator = 1 + Z95 * Z95 / trials
    centre = (rate + Z95 * Z95 / (2 * trials)) / denominator
    half = Z95 * math.sqrt(rate * (1 - rate) / trials + Z95 * Z95 / (4 * trials * trials)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(scores_P: Floats) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling problems, because samples of one problem are not independent.

    Raises `ValueError` for a single problem, whose resamples are all alike and so say nothing about chance.
    """
    if len(scores_P) < 2:
        raise ValueError("a bootstrap needs at least two problems")
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(scores_P), size=(RESAMPLES, len(scores_P)))
    low, high = np.quantile(scores_P[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def mean_interval(scores_P: Floats) -> tuple[float, float]:
    """Interval of the mean of scores in [0, 1], one per problem: Wilson's if each is 0 or 1, a bootstrap otherwise.

    If all problems have the same score, so has every resample, and a bootstrap would claim certainty: then Wilson's.
    """
    scores_P = scores_P.round(DIGITS)
    if np.isin(scores_P, (0.0, 1.0)).all() or np.ptp(scores_P) == 0:
        return wilson(float(scores_P.sum()), len(scores_P))
    return bootstrap(scores_P)


def average(correct_PK: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """avg@k, the mean over problems and samples, with its interval."""
    return float(correct_PK.mean()), mean_interval(correct_PK.mean(axis=1))


def pass_at_k(correct_PK: NDArray[np.bool_]) -> Floats:
    """[P, K]: pass@1 … pass@K of each problem, unbiased.

    1 − C(n − c, k) / C(n, k) for c correct samples of n (Chen et al. 2021, equation 1), as the product
    1 − Π (1 − k/i) over i = n − c + 1 … n, which has no factorials to overflow.
    """
    samples = correct_PK.shape[1]
    k_K1 = np.arange(1, samples + 1)[:, None]
    table = np.empty((samples + 1, samples))
    for right in range(samples + 1):
        table[right] = 1 - np.prod(1 - k_K1 / np.arange(samples - right + 1, samples + 1), axis=1)
    return np.asarray(table[correct_PK.sum(axis=1)])


@dataclass(frozen=True, slots=True)
class Votes:
    """The answers to one problem, counted by what they state.

    Example: `Votes(right=3, wrong=(2, 2, 1), silent=1)` for nine samples, one of them without an answer
    """

    right: int
    wrong: tuple[int, ...]
    """The size of each class of equivalent incorrect answers."""
    silent: int
    """The number of samples without an answer, which cast no vote."""


@lru_cache(maxsize=4096)
def maj_at_k(votes: Votes, k: int) -> float:
    """maj@k: the probability that the most frequent answer of k samples is right, with ties broken at random.

    The exact expectation over all subsets of k of the n samples (k = n is the usual maj@k): the counts in a subset are
    independent binomials conditioned on their sum being k. So for each number of right samples drawn, the wrong classes
    that may tie are added one at a time, and all others together.
    """
    n = votes.right + sum(votes.wrong) + votes.silent
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs at least {k} samples; there are {n}")

    def drawn(size: int) -> Floats:
        # Any rate gives the same conditional distribution; this one keeps the numbers away from 0.
        return np.asarray(stats.binom.pmf(np.arange(size + 1), size, k / n))

    expected = 0.0
    for right in range(1, min(votes.right, k) + 1):
        rivals = [size for size in votes.wrong if size >= right]
        chances_TM = drawn(n - votes.right - sum(rivals))[None, : k - right + 1]
        for size in rivals:
            chances_TM = _with_rival(chances_TM, drawn(size)[: right + 1], k - right + 1)
        if chances_TM.shape[1] == k - right + 1:
            lots = 1 / np.arange(1, len(chances_TM) + 1)
            expected += float(drawn(votes.right)[right] * (lots @ chances_TM[:, -1]))
    return round(expected / float(stats.binom.pmf(k, n, k / n)), DIGITS)  # what is certain is exactly 1


def _with_rival(chances_TM: Floats, drawn: Floats, width: int) -> Floats:
    """Probabilities by ties and samples drawn, with one more class added that must not exceed the right one.

    The last entry of `drawn` is the probability of a tie.
    """
    ties, before = chances_TM.shape
    longest = min(width, before + len(drawn) - 1)
    result = np.zeros((ties + 1, longest))
    for row in range(ties):
        result[row] += _padded(np.convolve(chances_TM[row], drawn[:-1]), longest)
        tied = np.convolve(chances_TM[row], np.append(np.zeros(len(drawn) - 1), drawn[-1]))
        result[row + 1] += _padded(tied, longest)
    return result


def _padded(values: Floats, length: int) -> Floats:
    return np.pad(values[:length], (0, max(0, length - len(values))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One score minus another on the same problems."""

    mean: float
    interval: tuple[float, float]
    """See `difference_interval`."""
    p_value: float
    test: str
    better: int
    """The number of problems on which the first scores higher."""
    worse: int


def difference_interval(gaps_P: Floats) -> tuple[float, float]:
    """Interval of the mean of differences in [−1, 1], one per problem, by a bootstrap.

    If all differences are equal (one problem, or the same correct answers twice), so are all resamples, and a bootstrap
    would claim certainty. The interval is then that of Agresti and Min (2005, "Simple improved confidence intervals for
    comparing matched proportions"), which adds half a problem to each cell of the table of who solves what.
    """
    gaps_P = gaps_P.round(DIGITS)
    if np.ptp(gaps_P):
        return bootstrap(gaps_P)
    problems = len(gaps_P) + 2
    better, worse = (float(gaps_P.clip(*side).sum()) for side in ((0, 1), (-1, 0)))
    mean = (better + worse) / problems
    half = Z95 * math.sqrt((better - worse + 1) / problems - mean * mean) / math.sqrt(problems)
    return max(-1.0, mean - half), min(1.0, mean + half)


def paired(first_P: Floats, second_P: Floats) -> Difference:
    """The difference of two scores on the same problems, in the same order, and a two-sided test that it is zero.

    If every problem scores 0 or 1, the exact form of McNemar's test (McNemar 1947): under the null hypothesis, the
    problems that only one of them solves are fair coin flips. Otherwise a sign-flip test on the problems' differences
    (Fisher 1935).
    """
    gaps_P = first_P - second_P
    better, worse = int((gaps_P > 0).sum()), int((gaps_P < 0).sum())
    if np.isin((first_P, second_P), (0.0, 1.0)).all():
        test = "exact McNemar test"
        p_value = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    else:
        test, p_value = "sign-flip test", _sign_flips(gaps_P[gaps_P != 0])
    return Difference(
        mean=float(gaps_P.mean()),
        interval=difference_interval(gaps_P),
        p_value=float(p_value),
        test=test,
        better=better,
        worse=worse,
    )


def _sign_flips(gaps_P: Floats) -> float:
    """The fraction of sign patterns whose mean is at least as far from zero, over all patterns, or over a random sample
    of them if there are many."""
    count = len(gaps_P)
    if 2**count <= SIGN_FLIPS:
        signs = np.array(list(itertools.product((-1, 1), repeat=count)))
        drawn = 0
    else:
        signs = np.random.default_rng(0).integers(0, 2, size=(SIGN_FLIPS, count), dtype=np.int8) * 2 - 1
        drawn = 1  # the observed pattern counts among those drawn, so a p-value is never 0
    sums = signs @ gaps_P
    # The same sum in another order can differ by rounding.
    extreme = np.abs(sums) >= abs(gaps_P.sum()) - 1e-9
    return float((extreme.sum() + drawn) / (len(sums) + drawn))
