"""Rewards → advantages: how much better each completion did than the rest of its group.

Shape suffixes used throughout this package: P problems in a step, G completions per problem, B sequences in a
micro-batch, T token positions, C completion positions, N completion tokens of a micro-batch (flat), V vocabulary,
H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl_engine.learner.groups import GradedGroup


def group_mean(rewards_PG: Tensor) -> Tensor:
    """A_i = R_i − mean_j R_j. The default.

    There is no division by the standard deviation: that would upweight the easiest and hardest problems (Liu et al.
    2025, "Understanding R1-Zero-Like Training", section 3).

    Args:
        rewards_PG: [P, G] rewards.

    Returns:
        [P, G] advantages, each row summing to zero.
    """
    return rewards_PG - rewards_PG.mean(dim=1, keepdim=True)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """A_i = R_i − mean_{j≠i} R_j = G/(G−1) · (R_i − mean_j R_j): the baseline excludes the completion's own reward, so
    the gradient is unbiased (RLOO: Kool et al. 2019; Ahmadian et al. 2024, equation 8).

    Args and returns: as `group_mean`.
    """
    size = rewards_PG.shape[1]
    return group_mean(rewards_PG) * size / (size - 1)


def group_mean_std(rewards_PG: Tensor) -> Tensor:
    """A_i = (R_i − mean_j R_j) / (std_j R_j + 1e-4), std with G − 1: GRPO (Shao et al. 2024, section 4.1.2), with the
    constant of TRL's implementation.

    Args and returns: as `group_mean`.
    """
    return group_mean(rewards_PG) / (rewards_PG.std(dim=1, keepdim=True) + 1e-4)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "group_mean_std": group_mean_std,
}


def advantages_of(groups: Sequence[GradedGroup], baseline: str) -> list[list[float]]:
    """The advantages of each group's completions.

    The baseline covers only the scored completions of a group: G in the formulas above is their number. Unscored
    completions get advantage zero, and `updates_of` leaves them out. In a group without signal every advantage is
    exactly zero, whatever rounding error the baseline would leave.
    """
    rows = [[0.0] * len(group.results) for group in groups]
    # Groups with the same number of scored completions share one tensor.
    for size in {len(group.scored_rewards) for group in groups if group.has_signal}:
        table = [(row, group) for row, group in zip(rows, groups, strict=True) if len(group.scored_rewards) == size]
        rewards_PG = torch.tensor([group.scored_rewards for _, group in table], dtype=torch.float64)
        for (row, group), advantages in zip(table, BASELINES[baseline](rewards_PG).tolist(), strict=True):
            if group.has_signal:
                places = [place for place, scored in enumerate(group.scored) if scored]
                for place, advantage in zip(places, advantages, strict=True):
                    row[place] = advantage
    return rows
