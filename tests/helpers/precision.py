"""How far two float32 computations of the same number may differ, on any processor.

Kernels differ in the order of additions and in whether a product is rounded before it is added. Each addition rounds
its partial sum by a factor of at most 1 + 2⁻²⁴ (u, half a unit in the last place). The errors have random signs, so
those of n additions grow as √n (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.8). Tolerances
are therefore stated as a number of additions, relative to the size of the terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

FLOAT32_UNIT = 2.0**-24


def float32_error(additions: float) -> float:
    """The relative difference that this many float32 additions can cause."""
    return FLOAT32_UNIT * math.sqrt(additions)


# A log-probability of the embedded model comes from 4 layers of 7 matrix products, each a sum of up to 512 terms, and a
# softmax over the vocabulary: some 30 sums of 512 terms. The terms have the size of the logits, about 10.
LOGPROB_NATS = 10 * float32_error(30 * 512)
"""7e-5 nats: tolerance for a token's log-probability under the embedded model. A token that attends to what it must
not, or a 16-bit weight instead of a 32-bit one, causes a hundred times as much."""

LOGPROB_SQUARED = LOGPROB_NATS**2
"""5e-9: tolerance for a KL in its k3 form, which is the square of such differences to leading order."""


def assert_same_sums(found: Tensor, expected: Tensor, additions: int) -> None:
    """Compare float32 sums of few terms: each addition rounds by at most one unit of the largest value."""
    torch.testing.assert_close(
        found, expected, rtol=0, atol=additions * FLOAT32_UNIT * expected.detach().abs().max().item()
    )


def assert_same_adam_steps(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: float) -> None:
    """Compare weights after the same few Adam steps at this rate.

    Adam moves an entry by about the rate whatever the size of its gradient, so an entry whose gradient is pure rounding
    error may move either way. Entries are therefore compared in the mean; a missing sample flips about every tenth one.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().mean()) < 0.01 * rate, name
