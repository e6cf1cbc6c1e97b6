"""A sampler with scripted completions that records what was requested."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from rewards import GradeResult, Verdict
from rl_engine.learner.groups import GradedGroup
from rl_engine.sampling.sampler import GradedBatch
from rollout.config import SamplingConfig
from rollout.segments import is_unfinished, joined
from rollout.types import AdapterRef, Completion, RolloutGroup
from rollout.work_items import PromptBatch

MAX_TOKENS = 72  # the quickstart's

RIGHT, WRONG = (
    GradeResult(verdict=verdict, reward=reward, extracted="", terms={})
    for verdict, reward in ((Verdict.CORRECT, 1.0), (Verdict.INCORRECT, 0.0))
)


def ref(version: int) -> AdapterRef:
    return AdapterRef(name="policy", version=version, path=Path(), sha256="", rank=1)


@dataclass
class FakeSampler:
    """A sampler and its queue in one. It answers immediately; groups of problems whose number is in `dull` give no
    signal."""

    dull: set[int] = field(default_factory=set)
    lengths: tuple[int, int] = (1, 1)
    """Token counts of a group's two completions."""
    asked: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    """(adapter, problems, seeds) of every request."""
    begun: list[tuple[str, str, int]] = field(default_factory=list)
    """(adapter, first problem, token limit) of every request, including those to continue."""

    @property
    def queue(self) -> FakeSampler:
        return self

    def mark(self) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    def submit(self, batch: PromptBatch) -> list[RolloutGroup]:
        assert batch.adapter is not None
        adapter, sampling = batch.adapter, batch.sampling
        self.asked.append((adapter.key, [prompt.problem.id for prompt in batch.prompts], list(batch.seeds)))
        groups = [
            RolloutGroup(prompt=p, completions=tuple(segment(0, n, sampling, adapter) for n in self.lengths))
            for p in batch.prompts
        ]
        return self._began(groups, sampling, adapter)

    def extend(self, request: list[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef) -> list[RolloutGroup]:
        def longer(begun: Completion, length: int) -> Completion:
            if not is_unfinished(begun, sampling.max_tokens):
                return begun
            return joined(begun, segment(len(begun.token_ids), length, sampling, adapter), (), str)

        groups = [replace(g, completions=tuple(map(longer, g.completions, self.lengths))) for g in request]
        return self._began(groups, sampling, adapter)

    def _began(self, groups: list[RolloutGroup], sampling: SamplingConfig, adapter: AdapterRef) -> list[RolloutGroup]:
        self.begun.append((adapter.key, groups[0].prompt.problem.id, sampling.max_tokens))
        return groups

    def collect(self, request: list[RolloutGroup]) -> GradedBatch:
        return GradedBatch(groups=list(map(self._graded, request)), rollout_s=2.0, grade_s=0.5)

    def _graded(self, group: RolloutGroup) -> GradedGroup:
        assert not any(is_unfinished(completion, MAX_TOKENS) for completion in group.completions)
        return GradedGroup(group, (RIGHT, RIGHT if int(group.prompt.problem.id) in self.dull else WRONG))


def segment(start: int, length: int, sampling: SamplingConfig, adapter: AdapterRef) -> Completion:
    count = min(length, sampling.max_tokens) - start
    return Completion(
        text="",
        token_ids=(1,) * count,
        logprobs=(-1.0,) * count,
        finish_reason="stop" if length <= sampling.max_tokens else "length",
        adapter=adapter.key,
    )
