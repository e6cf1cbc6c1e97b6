"""Full fine-tuning in the same engine: float32 masters with a cast forward pass, the same update at every ZeRO stage,
and a sampler that follows the whole model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.state import learner_state, restore_learner
from rl_engine.policy.base_model import load_causal_lm
from rl_engine.policy.full import WEIGHTS, FullPolicy
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.methods import load_policy
from rl_engine.run.metrics import learn_metrics
from rl_engine.sampling.publish import Publisher
from rollout import adapters
from rollout.adapters import AdapterError, AdapterStore, sha256_of
from rollout.config import SamplingConfig
from rollout.models import EMBEDDED_DIR
from rollout.types import Problem, Prompt
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.precision import assert_same_adam_steps

pytestmark = pytest.mark.engine

LearnerMaker = Callable[..., Learner]
CPU = torch.device("cpu")
SAMPLING = SamplingConfig(n=4, max_tokens=40)
TIGHT = GapLimits(kl=1e-6, logprob=1e-3)


@pytest.fixture
def make_full(make_learner: LearnerMaker) -> LearnerMaker:
    return lambda *overrides: make_learner("method=full", "optim.lr=1e-4", *overrides)


def test_the_forward_pass_matches_the_cast_model(make_config: Any, samples: list[TrainingSample]) -> None:
    """Tied weights also stay tied."""
    config = make_config("method=full", "model.dtype=bfloat16")
    trainable = load_policy(config, CPU)
    assert {p.dtype for p in trainable.parameters.values()} == {torch.float32}
    plain = load_causal_lm(config, CPU)
    batch = collate(samples, pad_id=0, layout="shared_prompt")
    with torch.no_grad():
        expected, _ = LogprobModel(plain, 1.0)(batch)
        found, _ = LogprobModel(trainable.causal_lm, 1.0)(batch)
    assert torch.equal(found, expected)
    # The tied embedding is listed, trained and published once.
    assert trainable.parameters.keys() == dict(plain.named_parameters()).keys()
    assert "lm_head.weight" not in trainable.parameters


def test_the_base_is_kept_only_for_a_penalty(make_config: Any) -> None:
    for overrides, kept in (((), False), (("loss.kl_coef=0.1",), True)):
        policy = load_policy(make_config("method=full", *overrides), CPU)
        assert isinstance(policy, FullPolicy)
        assert policy.has_base == kept == (policy._base is not None)


def test_an_update_below_the_resolution_of_bfloat16_is_kept(
    make_full: LearnerMaker, samples: list[TrainingSample]
) -> None:
    learner = make_full("model.dtype=bfloat16", "optim.lr=1e-6")
    before = learner.weights()
    for _ in range(2):
        learner.step([samples], LOOSE)
    after = learner.weights()
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (after[name] - before[name]).abs()
    assert 1e-6 < moved.max() < 3e-6
    # Rounding to bfloat16 at every step would lose most of it.
    assert (after[name].bfloat16() == before[name].bfloat16()).float().mean() > 0.9


def test_full_gradients_match_autograd_on_the_plain_loss(
    make_full: LearnerMaker, samples: list[TrainingSample]
) -> None:
    """Adam's first step is −rate · sign(gradient), compared with the signs of the plain model's own gradient."""
    learner = make_full()
    before = learner.weights()
    learner.step([samples], LOOSE)
    moved = {name: tensor - before[name] for name, tensor in learner.weights().items()}
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    loss = torch.zeros(())
    for s in samples:
        logits = model(torch.tensor([s.prompt_ids + s.completion_ids])).logits[0].log_softmax(-1)
        rows = torch.arange(len(s.prompt_ids) - 1, s.num_tokens - 1)
        logprob = logits[rows, torch.tensor(s.completion_ids)]
        ratio = (logprob - torch.tensor(s.behaviour_logprobs)).exp()
        loss = loss - s.weight * s.advantage * ratio.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # Only where the gradient exceeds rounding.
        clear = parameter.grad.abs() > 1e-3 * parameter.grad.abs().max()
        assert (moved[name].sign() == -parameter.grad.sign())[clear].float().mean() > 0.999, name


@pytest.mark.parametrize(
    "overrides",
    [
        # The other stages are compared in tests/learner/test_ranks.py.
        ("learner.zero_stage=1",),
        ("learner.zero_stage=3", "learner.offload_optimizer=true"),
        ("model.dtype=bfloat16", "learner.zero_stage=3", "learner.gradient_checkpointing=true"),
    ],
    ids=" ".join,
)
def test_zero_stages_make_the_same_update_and_resume_exactly(
    overrides: tuple[str, ...],
    make_full: LearnerMaker,
    samples: list[TrainingSample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Shard everything, even the smallest weight.
    monkeypatch.setattr("rl_engine.learner.learner.PERSISTENT_PARAMETERS", 0)
    plain = make_full("loss.kl_coef=0.1", *[o for o in overrides if o.startswith("model.")])
    sharded = make_full("loss.kl_coef=0.1", *overrides)
    if "learner.zero_stage=3" in overrides:
        # The reference is sharded too: outside a forward pass none of its parameters is whole.
        assert isinstance(sharded.trainable, FullPolicy)
        assert all(parameter.numel() == 0 for parameter in sharded.trainable._base.parameters())
    stats = [learner.step([samples], LOOSE) for learner in (plain, sharded)]
    assert stats[1].kl_base == stats[0].kl_base == 0.0
    assert stats[1].grad_norm == pytest.approx(stats[0].grad_norm, rel=1e-2)
    assert_same_adam_steps(sharded.weights(), plain.weights(), plain.config.optim.rate)

    state = learner_state(sharded)
    resumed = make_full("loss.kl_coef=0.1", *overrides)
    restore_learner(resumed, state)
    for learner in (sharded, resumed):
        learner.step([samples], LOOSE)
    expected = sharded.weights()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.weights().items())


def test_the_sampler_follows_the_whole_model(
    whole_model_engine: Any,
    make_full: LearnerMaker,
    ranks: Ranks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its weights are also hashed only once when published and once when loaded."""
    hashed: Counter[Path] = Counter()
    monkeypatch.setattr(adapters, "sha256_of", lambda path: (hashed.update([path]), sha256_of(path))[1])
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    texts = [f"{a}+{b}-3=?" for a, b in ((1, 2), (14, 5), (7, 7), (20, 9))]
    prompts = [
        Prompt(problem=Problem(id=text, text=text, answer="0"), text=text, token_ids=tuple(tokenizer.encode(text)))
        for text in texts
    ]
    learner = make_full("optim.lr=1e-3")
    publisher = Publisher(
        store=AdapterStore(tmp_path / "adapters", name="whole"),
        engine=whole_model_engine,
        learner=learner,
        ranks=ranks,
        canary=prompts[:2],
        sampling=SAMPLING,
        limits=TIGHT,
        facts={"base_model": "embedded"},
        keep=2,
    )

    def sampled(version: int) -> list[TrainingSample]:
        ref = publisher.publish(version)
        groups = whole_model_engine.generate(prompts, SAMPLING, ref, [f"{version}/{i}" for i in range(len(prompts))])
        assert {c.adapter for group in groups for c in group.completions} == {ref.key}
        return alternating(groups)

    for version in range(3):
        stats = learner.step([sampled(version)], TIGHT)
        assert stats.gap.logprob_max < 1e-4
        publisher.store.point("best", 0)
    rows = sampled(3)
    weights = [path for path in hashed.elements() if path.name == WEIGHTS]
    assert len(weights) == 2 * 4
    stats = learner.measure(rows, TIGHT)
    # Nothing here needs the base model, and it is not loaded just for a metric.
    assert math.isnan(stats.kl_base)
    assert "policy/kl_base" not in learn_metrics(stats, 1e-3)
    # Old versions are deleted, except the best, and the sampler no longer holds the base model.
    assert publisher.store.versions() == [0, 2, 3]
    with pytest.raises(AdapterError, match="no longer holds the base model"):
        whole_model_engine.generate(prompts, SAMPLING, None, ["x"] * len(prompts))

    # The published version is an ordinary checkpoint of the same policy.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapters" / "latest", dtype=torch.float32)
    with torch.no_grad():
        logprob_N, _ = LogprobModel(model, 1.0)(collate(rows[:1], pad_id=0, layout="padded"))
    assert logprob_N.tolist() == pytest.approx(list(rows[0].behaviour_logprobs), abs=1e-4)
    moved = replace(rows[0], behaviour_logprobs=tuple(q + 1 for q in rows[0].behaviour_logprobs))
    assert learner.measure([moved], LOOSE).gap.logprob_max == pytest.approx(1.0, abs=1e-4)
