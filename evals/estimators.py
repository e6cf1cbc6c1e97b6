"""Verdicts → a score and how far it can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927): 95 % by default.

    Raises `ValueError` when there were no trials.
    """
    if trials <= 0:
        raise ValueError("an interval needs at least one trial")
    rate = successes / trials
    denominator = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(scores_P: NDArray[np.float64], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over problems: samples of one problem are not independent."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(scores_P), size=(resamples, len(scores_P)))
    low, high = np.quantile(scores_P[picks].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def average(correct_PK: NDArray[np.bool_]) -> tuple[float, tuple[float, float]]:
    """avg@k, the mean over problems and samples, with its 95 % interval: Wilson's for one sample a problem,
    a bootstrap over problems otherwise."""
    problems, samples = correct_PK.shape
    score = float(correct_PK.mean())
    if samples == 1:
        return score, wilson(int(correct_PK.sum()), problems)
    return score, bootstrap(correct_PK.mean(axis=1))
