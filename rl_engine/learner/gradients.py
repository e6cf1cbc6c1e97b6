"""Gradients of an update → whether the optimizer may step on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rl_engine.learner.ranks import Ranks

# Updates in a row without a gradient after which a run has nothing to wait for.
SKIPS_IN_A_ROW = 3


class NonFiniteGradientError(RuntimeError):
    """The policy can no longer be learned from: its gradient has been no number for several updates in a row."""


class GradientGuard:
    """Sees whether any gradient of an update is infinite or no number, and leaves the parameters, their moments and
    Adam's count as they are then. What is not to be stepped on is taken from the optimizer's own hands."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        advice: str,
        sharded: bool = False,
    ) -> None:
        """`advice`: what a person may do about it. `sharded`: gradients are taken away and spread over the ranks as
        autograd computes them, so that each has to be looked at before."""
        self._parameters = list(parameters)
        self._ranks = ranks
        self._advice = advice
        self._sum = torch.zeros((), device=ranks.device)
        self._skips = 0
        self._drops = False
        if sharded:
            for parameter in self._parameters:
                parameter.register_hook(self._look)
        optimizer.register_step_pre_hook(self._drop)

    def _look(self, gradient: Tensor) -> None:
        # One number that is none makes the sum none, and nothing that follows mends it. A card is asked for two kernels
        # so; asking of each number whether it is finite takes seven, for every parameter of every micro-batch.
        self._sum += gradient.sum(dtype=torch.float32)

    def _all_finite(self) -> Tensor:
        """Whether every gradient of the update is: of those that a hook saw, and of those that are still there."""
        kept = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        # The largest of all, in a few kernels: one that is no number is the largest.
        largest = nn.utils.get_total_norm(kept, math.inf)
        return largest.isfinite() & self._sum.isfinite()

    def _drop(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._drops:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    # A parameter without a gradient is left alone: not moved, not decayed, not counted.
                    parameter.grad = None

    def allows(self) -> bool:
        """Whether the update whose backward passes are done may be made; where not, the optimizer's next step changes
        nothing. Collective: every rank gets the same answer.

        Raises `NonFiniteGradientError` when it is one too many in a row.
        """
        self._drops = self._ranks.agree(not self._all_finite())
        self._sum.zero_()
        self._skips = self._skips + 1 if self._drops else 0
        if self._skips == SKIPS_IN_A_ROW:
            raise NonFiniteGradientError(
                f"the gradient of {SKIPS_IN_A_ROW} updates in a row is infinite or NaN. Nothing was learned in "
                f"them, and the weights are those of before. {self._advice}"
            )
        return not self._drops
