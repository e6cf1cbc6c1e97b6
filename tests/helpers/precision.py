"""How far apart two float32 computations of one number may be, whatever processor they ran on.

Kernels differ in the order in which they add and in whether a product is rounded before it is added. Each addition
rounds its partial sum by a factor of at most 1 + 2⁻²⁴ (u, half a unit in the last place); the errors have either sign,
so those of n additions grow as √n (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.8).
Tolerances are stated as that: a number of additions, relative to the size of what was added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

FLOAT32_UNIT = 2.0**-24


def float32_error(additions: float) -> float:
    """Relative difference that so many float32 additions can make."""
    return FLOAT32_UNIT * math.sqrt(additions)


# A logit of the embedded model ends a chain of 4 layers of 7 matrices, each sum of up to 512 terms, and a softmax over
# the vocabulary: some 30 sums of 512 terms. What is added has the size of the logits, about 10.
LOGPROB_NATS = 10 * float32_error(30 * 512)
"""7e-5: nats that a token's log-probability under the embedded model may differ by. A token that sees what it must not,
or a weight of 16 bits where 32 belong, makes a hundred times that."""

LOGPROB_SQUARED = LOGPROB_NATS**2
"""5e-9: what the same differences leave of a KL in its k3 form, which is their square to first order."""


def assert_same_sums(found: Tensor, expected: Tensor, additions: int) -> None:
    """Float32 sums of few terms: each addition rounds by one unit of the largest value at worst."""
    torch.testing.assert_close(
        found, expected, rtol=0, atol=additions * FLOAT32_UNIT * expected.detach().abs().max().item()
    )


def assert_same_adam_steps(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rate: float) -> None:
    """Weights after the same few Adam steps at that rate.

    Adam moves an entry by about the rate whatever its gradient's size, so an entry whose gradient is nothing but
    rounding may go either way: entries are compared in the mean. One sample too few turns every tenth entry or so.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().mean()) < 0.01 * rate, name
