"""How samplers are placed, and adapters of weights other than ordinary linear layers: the output embedding, and the
experts of a mixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.state import learner_state, restore_learner
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import LoraPolicy
from rl_engine.policy.lora.targets import Coverage, coverage_of, match_targets
from rl_engine.sampling.placement import _pool_settings, start_queue
from rl_engine.sampling.queue import LocalQueue, StreamingQueue
from rl_engine.train.assemble import check_context
from rollout.models import EMBEDDED_DIR
from rollout.stopping import StopRequest
from tests.helpers.answering_engine import AnsweringEngine
from tests.helpers.batches import LOOSE
from tests.helpers.precision import LOGPROB_NATS, assert_same_adam_steps

pytestmark = [
    pytest.mark.engine,
    # Warnings of PEFT's own loading. The tests cover the cases that they warn about.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match"),
]

LearnerMaker = Callable[..., Learner]
EXPERTS, ACTIVE, HIDDEN, WIDTH = 8, 2, 32, 48


def coverage(learner: Learner) -> Coverage:
    assert isinstance(learner.trainable, LoraPolicy)
    return learner.trainable.coverage


def scores(causal_lm: Any, samples: list[TrainingSample]) -> list[list[float]]:
    policy = LogprobModel(causal_lm, temperature=1.0)
    with torch.no_grad():
        return [policy(collate([sample], pad_id=0, layout="padded"))[0].tolist() for sample in samples]


def test_the_output_embedding_can_be_adapted(
    make_learner: LearnerMaker, samples: list[TrainingSample], tmp_path: Path
) -> None:
    plain, learner = make_learner(), make_learner("lora.targets=all+lm_head", "optim.lr=1e-2")
    vocabulary, hidden = plain.policy.head.weight.shape
    assert coverage(learner).trainable - coverage(plain).trainable == vocabulary + hidden
    assert plain.policy.head_is_frozen
    assert not learner.policy.head_is_frozen
    before = learner.weights()
    stats = learner.step([samples], LOOSE)
    assert stats.kl_base == 0.0
    moved = {name for name, tensor in learner.weights().items() if not torch.equal(tensor, before[name])}
    assert "base_model.model.lm_head.lora_B.weight" in moved
    # Input and output embeddings are tied: the adapter of the output side must not move the input side.
    learner.trainable.write(tmp_path, learner.weights())
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path))
    for found, row in zip(scores(adapted.get_base_model(), samples), learner.score(samples), strict=True):
        assert found == pytest.approx(row, abs=LOGPROB_NATS)


def test_a_trained_head_changes_nothing_for_the_other_layers(
    make_learner: LearnerMaker, samples: list[TrainingSample]
) -> None:
    """At the first step B is zero everywhere, so every layer's gradient is the same as without the head's adapter."""
    plain, with_head = make_learner(), make_learner("lora.targets=all+lm_head")
    for learner in (plain, with_head):
        learner.step([samples], LOOSE)
    expected = {name: tensor for name, tensor in plain.weights().items() if "lora_B" in name}
    found = with_head.weights()
    assert_same_adam_steps({name: found[name] for name in expected}, expected, plain.config.optim.rate)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Qwen3 mixture of experts with the embedded tokenizer."""
    directory = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        moe_intermediate_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        decoder_sparse_step=1,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_experts_share_the_rank_among_those_a_token_meets(make_learner: LearnerMaker, mixture: Path) -> None:
    learner = make_learner(f"model.name={mixture}", "lora.rank=4")
    # Rank 4 / 2 active experts = rank 2 per expert: gate and up as one matrix, and down.
    expert = 2 * EXPERTS * ((HIDDEN + 2 * WIDTH) + (WIDTH + HIDDEN))
    attention = 4 * 4 * (HIDDEN + HIDDEN)
    assert coverage(learner).by_group == {"attention": 2 * attention, "mlp": 2 * expert}
    shape = learner.trainable.causal_lm.config
    assert (shape.num_experts, shape.num_experts_per_tok) == (EXPERTS, ACTIVE)
    base = AutoModelForCausalLM.from_pretrained(mixture)
    only = match_targets(base, "mlp")
    assert sorted(only) == [
        f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("down_proj", "gate_up_proj")
    ]
    wide = learner.config.lora.model_copy(update={"expert_rank": 8, "targets": "mlp"})
    assert coverage_of(base, wide).trainable == 8 * expert


def test_a_mixture_learns_and_its_adapter_loads_with_plain_peft(
    make_learner: LearnerMaker, mixture: Path, samples: list[TrainingSample], tmp_path: Path
) -> None:
    learner = make_learner(f"model.name={mixture}", "lora.rank=4", "optim.lr=1e-2")
    rows = learner.score(samples)
    gains = []
    for _ in range(3):
        learner.step([samples], LOOSE)
    after = learner.score(samples)
    for sample, before, now in zip(samples, rows, after, strict=True):
        gains.append(sample.advantage * (sum(now) - sum(before)))
    assert sum(gains) > 0
    moved = {name for name, tensor in learner.weights().items() if "lora_B" in name and tensor.any()}
    assert any("experts" in name for name in moved)
    assert any("self_attn" in name for name in moved)
    learner.trainable.write(tmp_path, learner.weights())
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixture), str(tmp_path))
    for found, row in zip(scores(adapted.get_base_model(), samples), after, strict=True):
        assert found == pytest.approx(row, abs=LOGPROB_NATS)
    resumed = make_learner(f"model.name={mixture}", "lora.rank=4", "optim.lr=1e-2", "seed=3")
    restore_learner(resumed, learner_state(learner))
    assert resumed.score(samples) == after


def test_an_adapter_that_cannot_be_served_is_refused(make_config: Any, mixture: Path) -> None:
    """vLLM's CPU build cannot serve an adapter of a mixture of experts."""
    with pytest.raises(ValueError, match="is a mixture of experts, and vLLM's CPU build cannot serve one"):
        check_context(make_config(f"model.name={mixture}"), needed=10)
    check_context(make_config(f"model.name={mixture}", "method=full"), needed=10)


def test_tensor_parallel_samplers_of_several_ranks_are_refused(make_config: Any) -> None:
    two = Ranks(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2 with 2 ranks"):
        start_queue(make_config("rollout.tensor_parallel_size=2"), two, 64, StopRequest())


@pytest.mark.parametrize(
    ("device", "queue", "at_once"), [("cpu", LocalQueue, 1), ("cuda", StreamingQueue, 96)], ids=["cpu", "cuda"]
)
def test_nothing_is_tied_to_batches_but_on_a_cpu(
    device: str, queue: type, at_once: int, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.vllm.engine.VllmEngine", AnsweringEngine)
    here = Ranks(0, 1, torch.device(device))
    assert isinstance(start_queue(make_config(), here, 64, StopRequest()), queue)
    # The address of a cluster, so that this machine is not searched for cards.
    config = make_config("rollout.placement=ray", "rollout.max_num_seqs=96", "rollout.address=head:6379")
    assert _pool_settings(config, here).completions_at_once == at_once
