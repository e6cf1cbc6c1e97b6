"""Gradients of an update → whether the optimizer may step on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rl_engine.learner.ranks import Ranks

# Consecutive updates without a finite gradient after which a run stops.
SKIPS_IN_A_ROW = 3


class NonFiniteGradientError(RuntimeError):
    """Training cannot go on: the gradient has been infinite or NaN for several updates in a row."""


class GradientGuard:
    """Detects updates whose gradient is infinite or NaN and skips them, so that parameters, moments and Adam's step
    count stay as they are. It skips an update by clearing the gradients in a pre-step hook of the optimizer."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
        advice: str,
        sharded: bool = False,
    ) -> None:
        """`advice`: what the error tells the user to do. `sharded`: DeepSpeed takes the gradients away and partitions
        them over the ranks as autograd computes them, so each must be inspected in a hook before that."""
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
        # A single inf or NaN makes the running sum non-finite, and it stays so. This takes two kernels on a GPU;
        # isfinite on every element would take seven, for every parameter of every micro-batch.
        self._sum += gradient.sum(dtype=torch.float32)

    def _all_finite(self) -> Tensor:
        """Whether all gradients of the update are finite: those the hook saw and those still on the parameters."""
        kept = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        # The largest absolute value of all, in a few kernels; NaN propagates into it.
        largest = nn.utils.get_total_norm(kept, math.inf)
        return largest.isfinite() & self._sum.isfinite()

    def _drop(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._drops:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    # The optimizer skips a parameter without a gradient: no step, no decay, no step count.
                    parameter.grad = None

    def allows(self) -> bool:
        """Whether the update may be made, called after its backward passes. If not, the optimizer's next step changes
        nothing. Collective: every rank gets the same answer.

        Raises `NonFiniteGradientError` at the `SKIPS_IN_A_ROW`-th skip in a row.
        """
        self._drops = self._ranks.agree(not self._all_finite())
        self._sum.zero_()
        self._skips = self._skips + 1 if self._drops else 0
        if self._skips == SKIPS_IN_A_ROW:
            raise NonFiniteGradientError(
                f"the gradient was infinite or NaN in {SKIPS_IN_A_ROW} updates in a row. They were skipped, and the "
                f"weights are unchanged. {self._advice}"
            )
        return not self._drops
