"""How far apart two float32 computations of one number may be, whatever processor they ran on.

Kernels differ in the order in which they add and in whether a product is rounded before it is added. Each addition
rounds its partial sum by a factor of at most 1 + 2⁻²⁴ (u, half a unit in the last place); the errors have either sign,
so those of n additions grow as √n (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 2.8).
Tolerances are stated as that: a number of additions, relative to the size of what was added.
"""

from __future__ import annotations

import math

FLOAT32_UNIT = 2.0**-24


def float32_error(additions: float) -> float:
    """Relative difference that so many float32 additions can make."""
    return FLOAT32_UNIT * math.sqrt(additions)


# A logit of the embedded model ends a chain of 4 layers of 7 matrices, each sum of up to 512 terms, and a softmax over
# the vocabulary: some 30 sums of 512 terms. What is added has the size of the logits, about 10.
LOGPROB_NATS = 10 * float32_error(30 * 512)
"""7e-5: nats that a token's log-probability under the embedded model may differ by. A token that sees what it must not,
or a weight of 16 bits where 32 belong, makes a hundred times that."""
