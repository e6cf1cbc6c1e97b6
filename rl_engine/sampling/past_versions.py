"""Published versions → the learner as it was: the sampler is checked against the version that sampled.

On-policy, the learner's first pass over a step's tokens is that check: its weights are still those that the sampler was
given. With `rollout.max_staleness` above 0 the learner has moved on, and sampler and learner differ by what was learned
since, which can be any amount. So the parameters of the last versions are kept, and put back for a forward pass over
what they sampled. The limits are those of the on-policy check, because the comparison is the same: one set of weights
in two implementations.

That pass covers one completion of each group, at about 1/n of the cost of a forward pass over the step. What it looks
for cannot hide in the other completions: a stale, wrong or damaged adapter, or a worker of different precision, shows
in every completion of the batch that it sampled, and batches consist of whole groups. In a group that several versions
sampled, it covers one of the completions that all of them sampled, and compares each token with the version that
produced it: a batch that continued any of the group's completions also continued that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import GapLimits, SamplerGap, SamplerGapError
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.learner import Learner
from rl_engine.learner.updates import origin_of
from rollout.types import AdapterRef


@dataclass
class PastVersions:
    """The parameters of the versions that may still be sampled from. Calls are collective."""

    learner: Learner
    depth: int
    """How many versions before the newest are kept; with 0 nothing is kept at all."""
    _kept: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def remember(self, ref: AdapterRef) -> None:
        """Keep the learner's current parameters as those of `ref`."""
        if self.depth:
            self._kept[ref.key] = self._copy()
        while len(self._kept) > self.depth + 1:
            self._kept.pop(next(iter(self._kept)))

    @contextlib.contextmanager
    def restored(self, key: str) -> Iterator[None]:
        """Inside the block the learner has version `key`'s parameters; afterwards it is bit for bit as before."""
        now = self._copy()
        try:
            self._put(self._kept[key])
            yield
        finally:
            self._put(now)

    def _copy(self) -> dict[str, Tensor]:
        copies = {}
        for name, parameter in self.learner.parameters.items():
            with self.learner.whole(parameter):
                copies[name] = parameter.detach().clone()
        return copies

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.learner.parameters.items():
            with self.learner.whole(parameter, modify=True):
                parameter.copy_(values[name])


def gap_of_versions(
    past: PastVersions, graded: Sequence[GradedGroup], current: AdapterRef, limits: GapLimits
) -> SamplerGap | None:
    """The gap between the sampler and the versions that sampled, merged over all of them. None when everything was
    sampled by the current version, which the step itself checks, on every token.

    Raises `SamplerGapError` with the name of the version that is off.
    """
    samples = _rows_by_version(graded)
    if samples.keys() == {current.key}:
        return None
    gaps = []
    for key, rows in samples.items():
        try:
            with past.restored(key):
                gaps.append(past.learner.measure(rows, limits).gap)
        except SamplerGapError as error:
            raise SamplerGapError(
                f"the sampler disagrees with {key}, the version that sampled these completions: {error}"
            ) from error
    return SamplerGap.merged(gaps)


def _rows_by_version(graded: Sequence[GradedGroup]) -> dict[str, list[TrainingSample]]:
    """One completion of each group, at a different index in neighbouring groups, split into rows by the version that
    sampled them."""
    rows: dict[str, list[TrainingSample]] = {}
    for number, each in enumerate(graded):
        most = max(len(completion.segments) for completion in each.rollout.completions)
        furthest = [completion for completion in each.rollout.completions if len(completion.segments) == most]
        chosen = furthest[number % len(furthest)]
        end = 0
        for segment in chosen.segments:
            start, end = end, end + segment.tokens
            rows.setdefault(segment.adapter, []).append(
                TrainingSample(
                    # Tokens sampled by earlier versions are context for this one, like the prompt.
                    prompt_ids=each.rollout.prompt.token_ids + chosen.token_ids[:start],
                    completion_ids=chosen.token_ids[start:end],
                    behaviour_logprobs=chosen.logprobs[start:end],
                    advantage=0.0,
                    origin=f"{origin_of(each.rollout, each.rollout.completions.index(chosen))} from {start + 1} on",
                )
            )
    return rows
