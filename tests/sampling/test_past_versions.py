"""The sampler is compared with the version that it sampled from, even after the learner has moved on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewards import GradeResult, Verdict
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import GapLimits, SamplerGapError
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.learner import Learner
from rl_engine.sampling.past_versions import PastVersions, _rows_by_version, gap_of_versions
from rollout.types import AdapterRef, Completion, Problem, Prompt, RolloutGroup, Segment
from tests.helpers.batches import LOOSE
from tests.helpers.fake_sampler import ref
from tests.helpers.precision import LOGPROB_SQUARED

pytestmark = pytest.mark.engine
LIMITS = GapLimits(kl=1e-6, logprob=1e-2)


def graded_by(learner: Learner, samples: list[TrainingSample], version: AdapterRef, noise: float = 0) -> list[Any]:
    """Groups of one completion, sampled by the learner as it is now, with `noise` nats added to each token's
    logprob."""
    groups = []
    for sample, row in zip(samples, learner.score(samples), strict=True):
        completion = Completion(
            text="",
            token_ids=sample.completion_ids,
            logprobs=tuple(value + noise for value in row),
            finish_reason="stop",
            adapter=version.key,
        )
        prompt = Prompt(problem=Problem(id="", text="", answer=""), text="", token_ids=sample.prompt_ids)
        result = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="", terms={})
        groups.append(GradedGroup(RolloutGroup(prompt=prompt, completions=(completion,)), (result,)))
    return groups


def of_version(group: GradedGroup, version: AdapterRef) -> GradedGroup:
    """The group under another version's name."""
    completions = tuple(replace(completion, adapter=version.key) for completion in group.rollout.completions)
    return replace(group, rollout=replace(group.rollout, completions=completions))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_version_and_the_learner_come_back_bit_for_bit(
    stage: int, make_learner: Callable[..., Learner], samples: list[TrainingSample]
) -> None:
    overrides = ("optim.lr=1e-2", f"learner.zero_stage={stage}")
    learner, undisturbed = make_learner(*overrides), make_learner(*overrides)
    past = PastVersions(learner, depth=1)
    samples, scores = samples[:3], []
    for version in range(3):
        past.remember(ref(version))
        scores.append(learner.score(samples))
        for version_seen in range(max(0, version - 1), version + 1):
            with past.restored(ref(version_seen).key):
                assert learner.score(samples) == scores[version_seen]
        assert learner.score(samples) == scores[version]
        learner.step([samples], LOOSE)
        undisturbed.step([samples], LOOSE)
    assert scores[0] != scores[1] != scores[2]
    assert all(torch.equal(tensor, undisturbed.weights()[name]) for name, tensor in learner.weights().items())
    with pytest.raises(KeyError):  # older than any version that may be sampled from
        past.restored(ref(0).key).__enter__()


def test_a_version_that_comes_back_by_half_leaves_the_learner(
    make_learner: Callable[..., Learner], samples: list[TrainingSample]
) -> None:
    """An error between two tensors, such as running out of memory, leaves nothing of the earlier version behind."""
    learner = make_learner("optim.lr=1e-2")
    past = PastVersions(learner, depth=1)
    past.remember(ref(0))
    learner.step([samples], LOOSE)
    before = {name: tensor.clone() for name, tensor in learner.weights().items()}
    kept = past._kept[ref(0).key]
    del kept[list(kept)[-1]]
    with pytest.raises(KeyError), past.restored(ref(0).key):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.weights().items())


def test_with_depth_nothing_is_kept(make_learner: Callable[..., Learner]) -> None:
    past = PastVersions(make_learner(), depth=0)
    past.remember(ref(0))
    assert past._kept == {}


def test_what_was_learned_since_is_no_gap(make_learner: Callable[..., Learner], samples: list[TrainingSample]) -> None:
    """A sampler whose logprobs are off is a gap."""
    learner = make_learner("optim.lr=1e-2")
    past = PastVersions(learner, depth=1)
    past.remember(ref(0))
    old = graded_by(learner, samples, ref(0))
    off = graded_by(learner, samples, ref(0), noise=0.05)
    learner.step([samples], LOOSE)
    past.remember(ref(1))
    new = graded_by(learner, samples, ref(1))
    # Compared with the current learner, an honest sampler of an earlier version would be stopped for what was learned
    # since.
    moved = max(abs(p - q) for row, g in zip(learner.score(samples), old, strict=True)
                for p, q in zip(row, g.rollout.completions[0].logprobs, strict=True))  # fmt: skip
    assert moved > LIMITS.logprob
    found = gap_of_versions(past, [*old, *new], ref(1), LIMITS)
    assert found is not None
    assert found.logprob_max < 1e-4
    assert found.kl < LOGPROB_SQUARED
    assert gap_of_versions(past, new, ref(1), LIMITS) is None  # the step itself checks these, on every token
    with pytest.raises(SamplerGapError, match=r"the sampler disagrees with policy-v000000, the version that"):
        gap_of_versions(past, [*off, *new], ref(1), LIMITS)
    # A worker that serves the old adapter under the new name, and one that serves the new one under the old name.
    for groups, name in ((old, ref(1)), (new, ref(0))):
        liars = [of_version(group, name) for group in groups]
        honest = old if name.version else new
        with pytest.raises(SamplerGapError, match=f"the sampler disagrees with {name.key}, "):
            gap_of_versions(past, [*liars, *(honest if name.version else [])], ref(1), LIMITS)


def test_a_gap_that_is_no_number_is_refused(
    make_learner: Callable[..., Learner], samples: list[TrainingSample]
) -> None:
    learner = make_learner()
    past = PastVersions(learner, depth=1)
    past.remember(ref(0))
    nothing = graded_by(learner, samples, ref(0), noise=math.nan)
    past.remember(ref(1))
    with pytest.raises(SamplerGapError):
        gap_of_versions(past, nothing, ref(1), LIMITS)


def in_two_segments(groups: list[Any], later: list[Any], border: int, noise: float = 0.0) -> list[Any]:
    """Groups whose tokens from `border` on come from `later`, and whose earlier tokens are off by `noise` nats."""
    made = []
    for one, other in zip(groups, later, strict=True):
        (before,), (after,) = one.rollout.completions, other.rollout.completions
        completion = replace(
            after,
            logprobs=(*(value + noise for value in before.logprobs[:border]), *after.logprobs[border:]),
            earlier=(Segment(adapter=before.adapter, tokens=border),),
        )
        made.append(replace(one, rollout=replace(one.rollout, completions=(completion,))))
    return made


def test_each_token_is_compared_with_its_own_version(
    make_learner: Callable[..., Learner], samples: list[TrainingSample]
) -> None:
    learner = make_learner("optim.lr=1e-2")
    past = PastVersions(learner, depth=2)
    views = []
    for version in range(3):
        past.remember(ref(version))
        views.append(graded_by(learner, samples, ref(version)))
        learner.step([samples], LOOSE)
    # Of 3, 5, … 17 tokens, two each are from version 0 and the others from version 1: 16 and 64 in all.
    honest = in_two_segments(views[0], views[1], border=2)
    found = gap_of_versions(past, honest, ref(2), LIMITS)
    assert found is not None
    assert found.logprob_max < 1e-4
    assert found.kl < LOGPROB_SQUARED
    off = gap_of_versions(past, in_two_segments(views[0], views[1], border=2, noise=1e-3), ref(2), LIMITS)
    assert off is not None
    assert off.logprob_max == pytest.approx(1e-3, rel=0.05)
    assert off.kl_v1 == pytest.approx(1e-3 * 16 / 80, rel=0.05)
    assert off.kl == pytest.approx(0.5e-6 * 16 / 80, rel=0.05)
    # A single token attributed to the wrong version is noticed.
    for groups, border in ((honest, 1), (honest, 3)):
        moved = [
            replace(
                g,
                rollout=replace(
                    g.rollout,
                    completions=tuple(
                        replace(c, earlier=(Segment(adapter=ref(0).key, tokens=border),)) for c in g.rollout.completions
                    ),
                ),
            )
            for g in groups[1:]
        ]
        with pytest.raises(SamplerGapError, match=r"disagrees with policy-v00000[01], the version"):
            gap_of_versions(past, moved, ref(2), LIMITS)


def test_of_a_group_in_segments_a_completion_of_all_is_checked() -> None:
    """For a group in segments, the completion that is checked is one that all its versions contributed to."""
    prompt = Prompt(problem=Problem(id="", text="", answer=""), text="", token_ids=(5, 6))

    def completion(*segments: tuple[int, int], first: int) -> Completion:
        *earlier, last = [Segment(adapter=ref(version).key, tokens=tokens) for version, tokens in segments]
        tokens = tuple(range(first, first + sum(segment.tokens for segment in (*earlier, last))))
        return Completion(
            text="",
            token_ids=tokens,
            logprobs=tuple(-float(token) for token in tokens),
            finish_reason="stop",
            adapter=last.adapter,
            earlier=tuple(earlier),
        )

    short, long = completion((1, 2), first=10), completion((1, 3), (2, 1), (2, 2), first=20)
    group = RolloutGroup(prompt=prompt, completions=(short, long, short))
    result = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="", terms={})
    rows = _rows_by_version([GradedGroup(group, (result,) * 3)] * 2)
    of_one, of_two = rows[ref(1).key], rows[ref(2).key]
    assert [(row.prompt_ids, row.completion_ids) for row in of_one] == [((5, 6), (20, 21, 22))] * 2
    assert [(row.prompt_ids, row.completion_ids, row.behaviour_logprobs) for row in of_two[:2]] == [
        ((5, 6, 20, 21, 22), (23,), (-23.0,)),
        ((5, 6, 20, 21, 22, 23), (24, 25), (-24.0, -25.0)),
    ]
