"""Rows → the batches of a supervised run: which rows each step learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from rl_engine.config.sft import SftConfig
from rl_engine.sft.examples import IGNORED
from rollout.prompts.cursor import Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Which rows each step learns from. Depends on the seed, but not on the method, the LoRA rank or the micro-batches.

    Example: `Batches(rows=[5, 0, 3, 1], steps=2, tokens=[0, 31, 60], learned=[0, 12, 25])` at a batch size of two.
    """

    rows: list[int]
    """[steps × batch size] row indices, one batch after the other."""
    steps: int
    tokens: list[int]
    """[steps + 1] total tokens seen after 0, 1, … steps, without padding."""
    learned: list[int]
    """[steps + 1] total tokens learned from after 0, 1, … steps."""


def batches_of(config: SftConfig, rows: Dataset) -> Batches:
    """Cut the rows into batches, with one shuffled pass over all rows per epoch. A batch may span two epochs, so that
    all batches are full."""
    train = config.train
    steps = train.steps or math.ceil(len(rows) * (train.epochs or 1) / train.batch_size)
    labels = [row["labels"] for row in rows.with_format("numpy")]
    lengths = np.array([len(row) for row in labels])
    learned = np.array([(row != IGNORED).sum() for row in labels])
    taken = np.array(Cursor(range(len(rows)), config.seed, config.data.shuffle).take(steps * train.batch_size))
    # Sort each batch by length, so that its micro-batches contain little padding.
    batches = [batch[np.argsort(lengths[batch], kind="stable")] for batch in np.split(taken, steps)]

    def so_far(counts: Any) -> list[int]:
        return [0, *np.cumsum([counts[batch].sum() for batch in batches]).tolist()]

    return Batches(rows=np.concatenate(batches).tolist(), steps=steps, tokens=so_far(lengths), learned=so_far(learned))
