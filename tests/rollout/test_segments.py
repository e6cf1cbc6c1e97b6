"""Completions in segments: joined, they are what would be sampled in one go, and each token belongs to its version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards import GradeResult, Verdict
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.groups import GradedGroup
from rl_engine.learner.learner import Learner
from rl_engine.sampling.past_versions import PastVersions, gap_of_versions
from rollout.adapters import AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import sample_seed
from rollout.segments import goes_on, is_unfinished, joined
from rollout.types import AdapterRef, Completion, FinishReason, Problem, Prompt, Segment
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.builders import completion
from tests.helpers.precision import LOGPROB_NATS

END = 0


def utf8(token_ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes, so that a character may take several. The end token has a text."""
    return b"".join(b"<end>" if token == END else bytes([token]) for token in token_ids).decode(errors="replace")


def sampled(tokens: bytes, start: int, max_tokens: int, stop: Sequence[str], key: str) -> Completion:
    """What a sampler that would say `tokens` returns from position `start` on. Like vLLM, it does not see the earlier
    ones."""
    said: tuple[int, ...] = ()
    text, reason = "", "length"
    for token in tokens[start:max_tokens]:
        said = (*said, token)
        text = utf8(said if token != END else said[:-1])
        found = [text.find(string) for string in stop if string in text]
        if found or token == END:
            text, reason = (text[: found[0]] if found else text), "stop"
            break
    logprobs = tuple(-(start + place) / 8 for place in range(len(said)))
    return Completion(text=text, token_ids=said, logprobs=logprobs, finish_reason=reason, adapter=key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        "7 × 6 = 42 in café №5 🙂 and so on".encode(),
        b"so 42\nUser: and",
        b"a\nUse b\nUser: c\nUser: d",
        "the end comes here: é\x00 and never more".encode(),
        b"User:\x00",
    ],
)
@pytest.mark.parametrize("stop", [(), ("\nUser:",), ("Zz", "é №", "\nUser:", "User:"), ("User:", "\nUser:")])
def test_segments_make_what_is_sampled_at_once(said: bytes, stop: tuple[str, ...]) -> None:
    """Segments may also end within characters and within stop strings: a stop string that neither segment sees whole
    ends the joined completion where it would have ended it in one go."""
    at_once = sampled(said, 0, 40, stop, "v1")
    for first in range(1, 40):
        for second in range(first + 1, 41, 3):
            whole = sampled(said, 0, first, stop, "v1")
            for limit, key in ((second, "v2"), (40, "v3")):
                if is_unfinished(whole, limit) and len(whole.token_ids) < len(said):
                    more = sampled(said, len(whole.token_ids), limit, stop, key)
                    whole = joined(whole, more, stop, utf8)
            count = len(at_once.token_ids)
            assert (whole.text, whole.token_ids, whole.finish_reason) == (
                at_once.text,
                at_once.token_ids,
                at_once.finish_reason,
            )
            assert whole.logprobs == at_once.logprobs
            borders = [0, *(border for border in (first, second) if border < count), count]
            assert whole.segments == tuple(
                Segment(adapter=f"v{number + 1}", tokens=borders[number + 1] - borders[number])
                for number in range(len(borders) - 1)
            )


def test_a_completion_is_unfinished_below_the_limit_alone() -> None:
    cut, ended = completion(tokens=5, finish_reason="length"), completion(tokens=5)
    assert [is_unfinished(cut, most) for most in (5, 6)] == [False, True]
    assert not is_unfinished(ended, 6)


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_only_what_was_cut_off_is_gone_on_with(reason: FinishReason) -> None:
    """By the same tokens, drawn with the same probabilities, in the same versions. What was finished stays as it is."""
    before = Completion(text="ab", token_ids=(1, 2), logprobs=(-1.0, -2.0), finish_reason=reason, adapter="v1")
    after = Completion(
        text="abc",
        token_ids=(1, 2, 3),
        logprobs=(-1.0, -2.0, -3.0),
        finish_reason="stop",
        adapter="v2",
        earlier=(Segment(adapter="v1", tokens=2),),
    )
    assert goes_on(before, after, 9) == (reason == "length")
    assert goes_on(before, before, 9) == (reason == "stop")
    for other in (
        replace(after, token_ids=(1, 4, 3)),
        replace(after, logprobs=(-1.0, -2.5, -3.0)),
        replace(after, earlier=(Segment(adapter="v0", tokens=2),)),
    ):
        assert not goes_on(before, other, 9)


def test_what_goes_on_draws_numbers_of_its_own() -> None:
    seeds = [sample_seed("7/2/1", sample, start) for sample in range(8) for start in (0, 1, 24, 48)]
    assert len(set(seeds)) == len(seeds)
    assert sample_seed("7/2/1", 3, 0) == sample_seed("7/2/1", 3)


# The tests below use vLLM.

SAMPLING = SamplingConfig(n=4, max_tokens=40)
SHORT = SAMPLING.model_copy(update={"max_tokens": 12})


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[Prompt]:
    """Sums with the first line of the working: the model then continues the working, even with greedy sampling."""
    texts = ("13+10+20-1=?\n13+10=23\n", "7+11-17+3=?\n7+11=18\n", "12+16+16+16=?\n12+16=28\n", "5-2-1+9=?\n5-2=3\n")
    problems = [Problem(id=text, text=text, answer="") for text in texts]
    return [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]


@pytest.fixture(scope="module")
def places(prompts: list[Prompt]) -> list[str]:
    return [f"legs/{number}" for number in range(len(prompts))]


@pytest.mark.engine
def test_greedy_segments_of_one_version_make_one_completion(
    vllm_engine: Any, prompts: list[Prompt], places: list[str]
) -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0, "n": 1})
    text = vllm_engine.generate(prompts, greedy, None, places)[0].completions[0].text
    # Tokens of this model are single characters, so the second stop string spans the first border.
    for stop, segments in (((), 3), ((text[4:7],), 2)):
        sampling = greedy.model_copy(update={"stop": stop})
        at_once = vllm_engine.generate(prompts, sampling, None, places)
        groups = vllm_engine.generate(prompts, sampling.model_copy(update={"max_tokens": 5}), None, places)
        for limit in (11, 40):
            groups = vllm_engine.extend(groups, sampling.model_copy(update={"max_tokens": limit}), None, places)
        for group, expected in zip(groups, at_once, strict=True):
            (one,), (other,) = group.completions, expected.completions
            assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=LOGPROB_NATS)
        first = groups[0].completions[0]
        assert (len(first.segments), first.finish_reason) == (segments, "stop")
        assert first.text == (text[:4] if stop else text)
        assert vllm_engine.extend(groups, sampling, None, places) == groups  # nothing is unfinished


@pytest.mark.engine
def test_legs_are_a_function_of_the_seed(vllm_engine: Any, prompts: list[Prompt], places: list[str]) -> None:
    at_once = vllm_engine.generate(prompts, SAMPLING, None, places)
    begun = vllm_engine.generate(prompts, SHORT, None, places)
    whole = vllm_engine.extend(begun, SAMPLING, None, places)
    assert vllm_engine.extend(begun, SAMPLING, None, places) == whole
    assert vllm_engine.extend(begun, SAMPLING, None, [f"{place}/other" for place in places]) != whole
    for group, short, expected in zip(whole, begun, at_once, strict=True):
        for one, first, other in zip(group.completions, short.completions, expected.completions, strict=True):
            assert one.token_ids[:12] == first.token_ids == other.token_ids[:12]
            assert (one == first) == (first.finish_reason == "stop")
            assert len(one.token_ids) <= SAMPLING.max_tokens


@pytest.mark.engine
def test_each_leg_is_its_versions_own(
    make_learner: Callable[..., Learner], vllm_engine: Any, prompts: list[Prompt], places: list[str], tmp_path: Path
) -> None:
    """The two versions are far apart: against its own version a token's gap is rounding, against the other it is
    not."""
    learner = make_learner("optim.lr=1e-2")
    past = PastVersions(learner, depth=1)
    store = AdapterStore(tmp_path / "adapters", name="in_segments")

    def publish(version: int) -> AdapterRef:
        weights = learner.weights()
        ref = store.publish(
            version, lambda place: learner.trainable.write(place, weights), {**learner.trainable.manifest_entries()}
        )
        vllm_engine.load_adapter(ref)
        past.remember(ref)
        return ref

    old = publish(0)
    begun = vllm_engine.generate(prompts, SHORT, old, places)
    learner.step([alternating(begun)], LOOSE)
    vllm_engine.unload_adapter(old)
    new = publish(1)
    whole = vllm_engine.extend(begun, SAMPLING, new, places)
    vllm_engine.unload_adapter(new)
    result = GradeResult(verdict=Verdict.CORRECT, reward=1.0, extracted="", terms={})
    graded = [GradedGroup(group, (result,) * SAMPLING.n) for group in whole]
    assert {segment.adapter for group in whole for c in group.completions for segment in c.segments} == {
        old.key,
        new.key,
    }
    found = gap_of_versions(past, graded, new, GapLimits(kl=1e-6, logprob=1e-3))
    assert found is not None
    assert found.logprob_max < 1e-4
    for key in (old.key, new.key):
        with past.restored(key):
            moved = learner.measure(alternating(whole), LOOSE)
        assert moved.gap.logprob_max > 1e-2
