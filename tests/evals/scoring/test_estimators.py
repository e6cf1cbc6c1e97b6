"""Scores and intervals against closed forms, published tables and brute force over subsets."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from evals.scoring.estimators import Votes, average, bootstrap, maj_at_k, mean_interval, paired, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_the_published_table(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_within_bounds() -> None:
    """As many failures have the mirrored interval, and rounding leads neither end out of [0, 1]."""
    for trials in range(1, 60):
        for successes in range(trials + 1):
            low, high = wilson(successes, trials)
            assert 0 <= low < high <= 1
            assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


def test_a_bootstrap_of_one_is_refused() -> None:
    """All of its resamples are the same: an interval of width zero would claim certainty."""
    with pytest.raises(ValueError, match="at least two problems"):
        bootstrap(np.array([0.5]))


def test_the_bootstrap_is_as_wide_as_the_normal_approximation() -> None:
    """It is deterministic, because its seed is fixed."""
    scores = np.random.default_rng(0).random(400)
    low, high = bootstrap(scores)
    assert high - low == pytest.approx(2 * 1.96 * scores.std() / 20, rel=0.1)
    assert bootstrap(scores) == (low, high)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    """Each end of the interval, and each problem as often as any other: all 6⁶ resamples of six problems."""
    scores = np.array([0.9, 0.11, 0.2, 0.32, 0.05, 0.26])
    means = [sum(picked) / 6 for picked in itertools.product(scores.tolist(), repeat=6)]
    assert bootstrap(scores) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.012)
    low, high = bootstrap(np.array([0.25, 0.75]))
    assert (low, high) == (0.25, 0.75)


def test_right_or_wrong_is_a_proportion_and_the_rest_a_mean() -> None:
    assert mean_interval(np.array([1.0, 0.0, 1.0, 1.0])) == wilson(3, 4)
    partial = np.array([1.0, 0.0, 0.5, 1.0])
    assert mean_interval(partial) == bootstrap(partial)


def test_average_counts_problems_and_samples() -> None:
    score, (low, high) = average(np.array([[True, False], [True, True], [False, False]]))
    assert score == 0.5
    assert low < score < high


def test_problems_that_all_score_alike_are_no_certainty() -> None:
    """A bootstrap of thirty zeros would claim that the score is exactly 0."""
    assert mean_interval(np.zeros(30)) == wilson(0, 30)
    assert mean_interval(np.full(10, 0.5)) == wilson(5, 10)
    assert average(np.zeros((30, 16), dtype=bool)) == (0.0, wilson(0, 30))


def test_the_interval_of_an_average_covers_as_often_as_it_says() -> None:
    """60 problems whose success rates are uniform (mean 0.5), 8 samples each, drawn 200 times."""
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        correct = draw.random((60, 8)) < draw.random((60, 1))
        low, high = average(correct)[1]
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_pass_at_k_is_the_mean_over_all_subsets() -> None:
    correct = np.random.default_rng(0).random((12, 7)) < np.linspace(0, 1, 12)[:, None]
    for k in range(1, 8):
        subsets = list(itertools.combinations(range(7), k))
        expected = np.array([[row[list(subset)].any() for subset in subsets] for row in correct]).mean(axis=1)
        np.testing.assert_allclose(pass_at_k(correct)[:, k - 1], expected, atol=1e-12)


def test_pass_at_k_is_the_formula_of_the_paper() -> None:
    """Chen et al. 2021, equation 1, in exact integers: n = 200 samples as in the paper, k = 1, 10, 100."""
    correct = np.arange(200)[None, :] < np.array([0, 1, 7, 60, 200])[:, None]
    found = pass_at_k(correct)
    for row, c in zip(found, (0, 1, 7, 60, 200), strict=True):
        for k in (1, 10, 100, 200):
            assert row[k - 1] == pytest.approx(1 - math.comb(200 - c, k) / math.comb(200, k), rel=1e-12, abs=1e-15)


def brute_majority(votes: Votes, k: int) -> float:
    """Majority votes of every subset of k samples; ties share."""
    samples = ["right"] * votes.right + [None] * votes.silent
    samples += [f"wrong{i}" for i, size in enumerate(votes.wrong) for _ in range(size)]
    won, subsets = 0.0, list(itertools.combinations(samples, k))
    for subset in subsets:
        counts = Counter(vote for vote in subset if vote is not None)
        winners = [name for name, count in counts.items() if count == max(counts.values())]
        won += winners.count("right") / len(winners) if winners else 0
    return won / len(subsets)


@pytest.mark.parametrize(
    "votes",
    [
        Votes(3, (2, 2, 1), 1),
        Votes(1, (1, 1, 1, 1), 0),
        Votes(4, (4,), 2),
        Votes(2, (5, 2), 0),
        Votes(3, (3, 3, 1), 0),
        Votes(0, (3,), 3),
        Votes(5, (), 3),
        Votes(0, (), 4),
    ],
)
def test_maj_at_k_is_the_mean_over_all_subsets(votes: Votes) -> None:
    samples = votes.right + sum(votes.wrong) + votes.silent
    for k in range(1, samples + 1):
        assert maj_at_k(votes, k) == pytest.approx(brute_majority(votes, k), abs=1e-12)


def test_maj_at_k_by_hand_and_at_size() -> None:
    assert maj_at_k(Votes(2, (2, 2), 3), 9) == pytest.approx(1 / 3)  # all vote, three classes tie
    assert maj_at_k(Votes(3, (2,), 0), 2) == pytest.approx(3 / 10 + 6 / 10 / 2)  # both right, or one of each
    large = Votes(30, (20, 10, 3, 1), 0)
    assert maj_at_k(large, 64) == 1.0
    # One or two samples give the same value as the average.
    assert maj_at_k(large, 1) == pytest.approx(30 / 64)
    assert maj_at_k(large, 2) == pytest.approx(30 / 64)
    draw, won = np.random.default_rng(0), 0.0
    samples = np.repeat(np.arange(5), [30, 20, 10, 3, 1])
    for _ in range(20_000):
        counts = np.bincount(draw.permutation(samples)[:9], minlength=5)
        won += (counts[0] == counts.max()) / (counts == counts.max()).sum()
    assert maj_at_k(large, 9) == pytest.approx(won / 20_000, abs=0.01)
    with pytest.raises(ValueError, match="maj@65"):
        maj_at_k(large, 65)


def test_one_sample_each_is_mcnemar_by_hand() -> None:
    """10 problems that only the first solves, 2 that only the second solves: 2 · (1 + 12 + 66) / 2¹²."""
    first = np.array([1.0] * 10 + [0.0] * 2 + [1.0] * 20 + [0.0] * 8)
    second = np.array([0.0] * 10 + [1.0] * 2 + [1.0] * 20 + [0.0] * 8)
    found = paired(first, second)
    assert (found.better, found.worse, found.test) == (10, 2, "exact McNemar test")
    assert found.mean == pytest.approx(0.2)
    assert found.p_value == pytest.approx(2 * 79 / 2**12)
    low, high = found.interval
    assert 0 < low < 0.2 < high
    assert paired(second, first).p_value == pytest.approx(found.p_value)
    assert paired(first, first).p_value == 1.0
    assert paired(np.ones(6), np.zeros(6)).p_value == pytest.approx(2 / 2**6)  # no problem speaks for the second


def test_differences_all_alike_do_not_claim_certainty() -> None:
    """One problem, or the same answers twice. With d = (b − c)/(n + 2): d ± z √((b + c + 1)/(n + 2) − d²)/√(n + 2)."""
    nothing, all_30 = np.zeros(30), np.ones(30)
    same = paired(all_30, all_30)
    assert same.mean == 0
    assert same.interval == pytest.approx((-1.959964 / 32, 1.959964 / 32))
    low, high = paired(all_30, nothing).interval
    assert (low, high) == pytest.approx((30 / 32 - 1.959964 * (31 / 32 - (30 / 32) ** 2) ** 0.5 / 32**0.5, 1.0))
    assert paired(nothing, all_30).interval == pytest.approx((-high, -low))
    low, high = paired(np.array([0.75]), np.array([0.5])).interval
    assert low < 0 < 0.25 < high


def test_scores_that_differ_by_rounding_alone_are_alike() -> None:
    """Fifths: 2/5 − 1/5 and 3/5 − 2/5 differ in the last bit, and an interval without a width claimed certainty."""
    first, second = np.array([2, 3, 4]) / 5, np.array([1, 2, 3]) / 5
    assert np.ptp(first - second) > 0
    low, high = paired(first, second).interval
    assert low < 0 < 0.2 < high
    # A vote of which one sample is silent, and the rest right: a sum of probabilities.
    certain = np.array([maj_at_k(Votes(right, (), 1), 2) for right in (2, 3, 4)])
    assert certain.tolist() == [1, 1, 1]
    assert mean_interval(np.array([1 / 3, 1 - 2 / 3])) == pytest.approx(wilson(2 / 3, 2))


def test_several_samples_each_are_all_sign_flips() -> None:
    gaps = np.array([0.5, 0.25, -0.25, 0.75, 0.5, 0.25, 0.0, 0.5, -0.125])
    flipped = [abs(float(np.mean(gaps * signs))) for signs in itertools.product((1, -1), repeat=len(gaps))]
    expected = np.mean(np.array(flipped) >= abs(gaps.mean()) - 1e-12)
    found = paired(gaps, np.zeros_like(gaps))
    assert found.test == "sign-flip test"
    assert found.p_value == pytest.approx(expected)
    # Problems without a difference change nothing, however many there are.
    assert paired(np.append(gaps, np.zeros(20)), np.zeros(29)).p_value == found.p_value
    # Sums that are equal but for rounding are as far from zero: fifths, against the same patterns in whole numbers.
    fifths = np.array([-4, -2, 4, -2, -2, -3])
    whole = [abs(int(np.sum(fifths * signs))) for signs in itertools.product((1, -1), repeat=6)]
    assert paired(fifths / 5, np.zeros(6)).p_value == np.mean(np.array(whole) >= 9)
    halves = np.full(4, 0.5)  # none scores 0 or 1, and no difference is partial
    assert (paired(halves, halves).p_value, paired(halves, halves).test) == (1.0, "sign-flip test")


def test_many_problems_are_a_sample_of_the_sign_flips() -> None:
    """18 problems, of which 16 differ: p is close to that of all 65,536 patterns, by the sample's own error."""
    gaps = np.tile([0.5, 0.25, -0.25, 0.5, -0.5, 0.25, 0.0, 0.5, -0.125], 2)
    signs_FP = 1.0 - 2.0 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)
    expected = np.mean(np.abs(signs_FP @ gaps[gaps != 0]) >= abs(gaps.sum()) - 1e-9)
    found = paired(gaps, np.zeros_like(gaps)).p_value
    assert 0.01 < expected < 0.5
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 9999))
    # No sampled pattern is as extreme; the observed one is, and counts.
    assert paired(np.full(60, 0.5), np.zeros(60)).p_value == 1 / 10_000


def test_equal_policies_are_told_apart_as_rarely_as_by_chance() -> None:
    draw = np.random.default_rng(3)
    rejected = 0
    for _ in range(200):
        scores = draw.random((2, 50)) < 0.4
        rejected += paired(scores[0].astype(float), scores[1].astype(float)).p_value < 0.05
    assert rejected / 200 <= 0.08
