"""Scores of given tokens, and the divergence of a policy from the base: against transformers, PEFT and enumeration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.forgetting.divergence import ScoringGapError, check_scoring, divergence, estimate, sample_base
from evals.forgetting.table import PolicyResult, grid, to_json
from rollout.config import SamplingConfig
from rollout.types import AdapterRef, Completion, Problem, Prompt, RolloutGroup, TokenScores
from tests.helpers.forgetting import Policies, prompts_of
from tests.helpers.precision import LOGPROB_NATS, LOGPROB_SQUARED

LN2 = math.log(2)


def test_the_estimators_by_hand() -> None:
    """Base (½, ¼, ¼), policy (¼, ¼, ½), with each outcome as often as the base draws it, so there is no sampling
    noise."""
    draws = np.log(np.array([0.25, 0.25, 0.25, 0.5]) / np.array([0.5, 0.5, 0.25, 0.25]))
    found = estimate([draws], completions=4)
    assert found.kl == pytest.approx(LN2 / 4)
    assert found.kl_k3 == pytest.approx(LN2 / 4)
    assert (found.prompts, found.completions, found.tokens) == (1, 4, 4)
    # Every token has the same weight, whichever prompt it follows.
    assert estimate([np.full(3, -0.2), np.full(1, -0.6)], completions=2).kl == pytest.approx(0.3)


def test_the_interval_is_that_of_the_ratio() -> None:
    draw = np.random.default_rng(0)
    log_r = [draw.normal(-0.1 * n / 10, 0.3, size=n) for n in draw.integers(1, 40, size=200)]
    found = estimate(log_r, completions=200)
    sums, counts = np.array([-x.sum() for x in log_r]), np.array([len(x) for x in log_r])
    picks = draw.integers(0, 200, size=(4000, 200))
    low, high = np.quantile(sums[picks].sum(1) / counts[picks].sum(1), (0.025, 0.975))
    assert found.interval == pytest.approx((low, high), abs=0.06 * (high - low))


def test_one_prompt_has_no_interval_and_none_is_shown() -> None:
    found = estimate([np.array([-0.2, -0.4])], completions=2)
    assert found.kl == pytest.approx(0.3)
    assert found.interval is None
    assert found.interval_k3 is None
    base = PolicyResult(label="base", sha256=None, scores=(), divergence=None, scoring_gap=None)
    moved = replace(base, label="p-v1", divergence=found)
    assert grid([base, moved])[2] == ("p-v1", "0.3", f"{found.kl_k3:.3g}")
    several = replace(moved, divergence=replace(found, kl_k3=0.2, interval=(-0.1, 0.7), interval_k3=(0.1, 0.4)))
    assert grid([base, several])[2] == ("p-v1", "0.3 (-0.1 to 0.7)", "0.2 (0.1 to 0.4)")
    (divergence,) = [one["divergence"] for one in to_json([base, moved]) if one["divergence"]]
    assert divergence["interval"] is divergence["interval_k3"] is None


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["base", "moved"])
def test_scores_are_those_of_transformers(vllm_engine: Any, policies: Policies, kind: str) -> None:
    ref = policies.moved_ref if kind == "moved" else None
    draw = torch.Generator().manual_seed(1)
    rows = [
        (
            torch.randint(2, 21, (context,), generator=draw).tolist(),
            torch.randint(2, 21, (length,), generator=draw).tolist(),
        )
        for context, length in ((1, 1), (1, 9), (40, 1), (31, 33), (90, 37), (5, 8))
    ]
    greedy = [5]
    for _ in range(12):
        greedy.append(int(policies.logprobs(ref, greedy)[-1].argmax()))
    rows += [(greedy[:3], greedy[3:]), (greedy[:3], [*greedy[3:8], 2])]
    found = vllm_engine.score(rows, ref)
    for (context, continuation), scores in zip(rows, found, strict=True):
        logprobs = policies.logprobs(ref, [*context, *continuation])[len(context) - 1 : -1]
        expected = logprobs[range(len(continuation)), continuation]
        assert scores.logprobs == pytest.approx(expected.tolist(), abs=LOGPROB_NATS)
        assert scores.greedy == tuple((logprobs.argmax(-1) == torch.tensor(continuation)).tolist())
    assert all(found[-2].greedy)
    assert not found[-1].greedy[-1]


@pytest.mark.engine
def test_rows_that_cannot_be_scored_are_refused(vllm_engine: Any) -> None:
    for row, message in (
        (([], [3]), "a token of context"),
        (([3], []), "one to score"),
        (([3] * 100, [4] * 28), "room"),
    ):
        with pytest.raises(ValueError, match=message):
            vllm_engine.score([([3], [4]), row], None)
    assert len(vllm_engine.score([([3] * 100, [4] * 27)], None)[0].logprobs) == 27


@pytest.mark.engine
def test_an_adapter_that_adds_nothing_has_not_moved(vllm_engine: Any, policies: Policies, tokenizer: Any) -> None:
    prompts = prompts_of(tokenizer, ["3+4=?\n", "12-5+8=?\n"])
    samples = sample_base(vllm_engine, prompts, SamplingConfig(n=4, max_tokens=24), seed=0)
    still = divergence(vllm_engine, samples, policies.still_ref)
    assert abs(still.kl) < LOGPROB_NATS
    assert 0 <= still.kl_k3 < LOGPROB_SQUARED
    moved = divergence(vllm_engine, samples, policies.moved_ref)
    assert moved.tokens == sum(len(one.token_ids) for group in samples.groups for one in group.completions)
    assert moved.kl_k3 > 0.01


@pytest.mark.engine
def test_the_divergence_of_one_token_is_the_exact_one(vllm_engine: Any, policies: Policies, tokenizer: Any) -> None:
    """Worked steps cut off anywhere, so that many next tokens are likely; with a vocabulary of 21 they can be
    enumerated."""
    texts = [f"{a}+{b}={c}" for a in (3, 14) for b in (5, 17) for c in ("?\n", "?", "", "?\n1", "?\n\\boxed{")]
    prompts, samples_each = prompts_of(tokenizer, texts), 12
    exact, variances = [], []
    for prompt in prompts:
        base = policies.logprobs(None, prompt.token_ids)[-1]
        gaps = base - policies.logprobs(policies.moved_ref, prompt.token_ids)[-1]
        kl = (base.exp() * gaps).sum()
        k3 = torch.expm1(-gaps) + gaps
        exact.append(float(kl))
        variances.append([float((base.exp() * (x - kl) ** 2).sum()) for x in (gaps, k3)])
    samples = sample_base(vllm_engine, prompts, SamplingConfig(n=samples_each, max_tokens=1), seed=0)
    found = divergence(vllm_engine, samples, policies.moved_ref)
    expected, errors = np.mean(exact), np.sqrt(np.mean(variances, axis=0) / (len(prompts) * samples_each))
    assert found.tokens == len(prompts) * samples_each
    assert errors[1] < errors[0] < expected / 3, "too noisy to show anything"
    assert abs(found.kl - expected) < 4 * errors[0]
    assert abs(found.kl_k3 - expected) < 4 * errors[1]
    for interval in (found.interval, found.interval_k3):
        assert interval is not None
        assert interval[0] < expected < interval[1]


@dataclass
class Deaf:
    """An engine whose scoring ignores the adapter."""

    inner: Any

    def generate(self, *arguments: Any) -> list[RolloutGroup]:
        found: list[RolloutGroup] = self.inner.generate(*arguments)
        return found

    def score(self, rows: Any, adapter: AdapterRef | None) -> list[TokenScores]:
        found: list[TokenScores] = self.inner.score(rows, None)
        return found


@pytest.mark.engine
def test_scores_that_are_not_the_samplers_are_not_trusted(vllm_engine: Any, policies: Policies, tokenizer: Any) -> None:
    prompts, sampling = prompts_of(tokenizer, ["3+4=?\n", "12-5+8=?\n"]), SamplingConfig(n=2, max_tokens=24)
    for ref in (None, policies.moved_ref):
        assert check_scoring(vllm_engine, prompts, sampling, ref, "float32", seed=0) < 1e-9
    deaf: Any = Deaf(vllm_engine)
    with pytest.raises(ScoringGapError, match=policies.moved_ref.key):
        check_scoring(deaf, prompts, sampling, policies.moved_ref, "float32", seed=0)


@dataclass
class Scripted:
    """An engine that samples and scores tokens with logprobs that differ by the given number of nats."""

    gaps: list[float]

    def generate(self, prompts: Any, *_: Any) -> list[RolloutGroup]:
        completion = Completion(
            text="",
            token_ids=(3,) * len(self.gaps),
            logprobs=(-1.0,) * len(self.gaps),
            finish_reason="stop",
            adapter="base",
        )
        return [RolloutGroup(prompt=prompts[0], completions=(completion,))]

    def score(self, *_: Any) -> list[TokenScores]:
        return [TokenScores(logprobs=tuple(-1.0 - gap for gap in self.gaps), greedy=(True,) * len(self.gaps))]


@pytest.mark.parametrize(
    ("gaps", "trusted"),
    [
        ([0.01] * 16, True),
        ([0.945, *[0.09] * 30], True),  # a mean of 0.018 in bfloat16, due to one unlikely token
        ([3.0, *[0.0] * 30], True),
        ([0.3] * 100, False),
        ([2.5] * 8, False),
        ([math.nan, *[0.0] * 99], False),
        ([math.inf, *[0.0] * 99], False),
    ],
)
def test_few_tokens_condemn_no_engine_and_another_adapter_does(gaps: list[float], trusted: bool) -> None:
    engine: Any = Scripted(gaps)
    asked = [Prompt(problem=Problem(id="", text="", answer=""), text="", token_ids=(1,))]
    sampling = SamplingConfig(n=1, max_tokens=100)
    if trusted:
        assert check_scoring(engine, asked, sampling, None, "bfloat16", seed=0) == pytest.approx(
            sum(gap**2 for gap in gaps) / 2 / len(gaps)
        )
        return
    with pytest.raises(ScoringGapError, match=f"over {len(gaps)} tokens by .* that chance may add"):
        check_scoring(engine, asked, sampling, None, "bfloat16", seed=0)


def test_the_base_is_scored_as_the_adapter_is() -> None:
    """Not as it was sampled: what sampling rounds differently would be taken for divergence."""
    engine: Any = Scripted([0.5, -0.25])
    asked = [Prompt(problem=Problem(id="", text="", answer=""), text="", token_ids=(1,))]
    samples = sample_base(engine, asked, SamplingConfig(n=1), seed=0)
    assert [row.tolist() for row in samples.logprobs_PT] == [[-1.5, -0.75]]
    adapter = AdapterRef(name="a", version=0, path=Path(), sha256="", rank=1)
    assert divergence(engine, samples, adapter).kl == 0
