"""Every way to start and scale an adapter: steps with the real sampler, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rl_engine.config import Config, LoraConfig
from rl_engine.config.file import ConfigError
from rl_engine.config.starts import REFUSED, STARTS
from rl_engine.learner.batching import TrainingSample
from rl_engine.learner.gap import GapLimits
from rl_engine.learner.learner import Learner
from rl_engine.learner.ranks import Ranks
from rl_engine.policy.attention import PACKED_SHARED
from rl_engine.policy.lora.adapter import LoraPolicy, lora_layers
from rl_engine.policy.lora.targets import coverage_of
from rollout.adapters import AdapterError, AdapterStore
from rollout.config import SamplingConfig
from rollout.models import EMBEDDED_DIR
from rollout.types import AdapterRef, Problem, Prompt
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.precision import LOGPROB_NATS, LOGPROB_SQUARED

ConfigMaker = Callable[..., Config]
PROMPT = Prompt(problem=Problem(id="sum", text="7+8=?", answer="15"), text="7+8=?\n", token_ids=(18, 5, 19, 7, 8, 3))
SAMPLING = SamplingConfig(n=8, max_tokens=24)
VARIANTS = {
    **{name: [f"lora.init={name}"] for name in STARTS},
    "rslora": ["lora.rslora=true"],
    "pissa with rslora": ["lora.init=pissa", "lora.rslora=true"],
    "LoRA+": ["lora.plus_ratio=16"],
    "patterns": ["lora.rank_pattern={down_proj: 4, q_proj: 1}", "lora.alpha_pattern={up_proj: 8}"],
    "tiny with patterns": ["lora.init=tiny", "lora.rank_pattern={down_proj: 4}", "lora.alpha_pattern={up_proj: 8}"],
    "pissa with patterns": ["lora.init=pissa", "lora.rank_pattern={down_proj: 4}", "lora.alpha_pattern={up_proj: 8}"],
}


def learner_of(config: Config, ranks: Ranks) -> Learner:
    return Learner(config, ranks, 0, [PROMPT.token_ids] * 200)


def publish(store: AdapterStore, version: int, learner: Learner) -> AdapterRef:
    weights = learner.weights()
    return store.publish(
        version, lambda path: learner.trainable.write(path, weights), learner.trainable.manifest_entries()
    )


@pytest.mark.engine
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_is_served(
    name: str, make_config: ConfigMaker, ranks: Ranks, vllm_engine: Any, tmp_path: Path
) -> None:
    learner = learner_of(make_config("lora.rank=2", "optim.lr=3e-3", *VARIANTS[name]), ranks)
    store = AdapterStore(tmp_path / "adapters", name=name.replace(" ", "-"))
    before = learner.weights()
    for version in range(3):
        ref = publish(store, version, learner)
        vllm_engine.load_adapter(ref)
        samples = alternating(vllm_engine.generate([PROMPT], SAMPLING, ref, ["seed"]))
        vllm_engine.unload_adapter(ref)
        # These limits are the actual test: float32 engines agree to about 1e-5.
        stats = learner.step([samples], GapLimits(kl=LOGPROB_SQUARED, logprob=2e-4))
        # Only rounding at version 0: whatever the adapter starts from, the policy starts as the base model.
        assert (abs(stats.kl_base) < LOGPROB_SQUARED) == (version == 0)
    assert all(not torch.equal(tensor, before[key]) for key, tensor in learner.weights().items())


def test_svd_starts_match_pefts_and_keep_the_base(make_config: ConfigMaker, ranks: Ranks) -> None:
    """For PiSSA, s·B₀A₀ is the best rank-2 approximation of the weight (Eckart and Young)."""
    learner = learner_of(make_config("lora.rank=2", "lora.init=pissa"), ranks)
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32).state_dict()
    assert isinstance(learner.trainable, LoraPolicy)
    for path, layer in lora_layers(learner.trainable.model).items():
        weight = base[path.removeprefix("base_model.model.") + ".weight"]
        kept: Any = layer.get_base_layer()
        assert torch.equal(kept.weight, weight)
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        start = layer.scaling["default"] * layer.get_buffer("start_b") @ layer.get_buffer("start_a")
        torch.testing.assert_close(start, (u[:, :2] * s[:2]) @ vh[:2], atol=2e-4, rtol=0)
        # What is served takes the start away again.
        served_a, served_b = layer.served(*layer.learned())
        assert served_a.shape[0] == served_b.shape[1] == 4
        torch.testing.assert_close(served_b @ served_a, torch.zeros_like(weight), atol=1e-6, rtol=0)


def test_eva_starts_from_what_the_layers_see(make_config: ConfigMaker, ranks: Ranks) -> None:
    """With one prompt of six tokens, rank 6 spans all inputs of a layer: projecting onto A loses nothing."""
    learner = learner_of(make_config("lora.rank=6", "lora.init=eva"), ranks)
    assert isinstance(learner.trainable, LoraPolicy)
    seen: dict[str, torch.Tensor] = {}
    layers: dict[str, Any] = {**lora_layers(learner.trainable.model)}
    for path, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, path=path: seen.update({path: inputs[0].flatten(0, -2)}))
    with torch.no_grad():
        learner.policy(learner._alone(PROMPT.token_ids))
    for path, layer in layers.items():
        a = layer.lora_A["default"].weight
        torch.testing.assert_close(a @ a.T, torch.eye(6), atol=1e-5, rtol=0)
        assert (seen[path] - seen[path] @ a.T @ a).norm() < 1e-4 * seen[path].norm(), path
    with pytest.raises(ConfigError, match=r"lora\.rank is 7, and lora\.init eva finds only 6 directions at "):
        Learner(make_config("lora.rank=7", "lora.init=eva"), ranks, 0, [PROMPT.token_ids])


def test_eva_is_the_same_in_every_layout(
    make_config: ConfigMaker, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EVA sees the prompt up to its last token and no padding: six tokens span the same space in every layout."""
    spans = []
    config = make_config("lora.rank=6", "lora.init=eva")
    for layout, pad_id in (
        ("padded", 0),
        ("packed", 0),
        ("shared_prompt", 0),
        ("shared_prompt", 10),
        (PACKED_SHARED, 0),
    ):
        monkeypatch.setattr("rl_engine.policy.base_model.choose_layout", lambda *_, layout=layout: layout)
        trainable = Learner(config, ranks, pad_id, [PROMPT.token_ids]).trainable
        assert isinstance(trainable, LoraPolicy)
        layers: list[Any] = [*lora_layers(trainable.model).values()]
        factors = [layer.lora_A["default"].weight.detach() for layer in layers]
        spans.append([a.T @ a for a in factors])
    for span in spans[1:]:
        for found, expected in zip(span, spans[0], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("start", ["olora", "tiny"])
def test_our_starts_are_published_as_plain_adapters(
    start: str, make_config: ConfigMaker, ranks: Ranks, samples: list[TrainingSample], tmp_path: Path
) -> None:
    """PEFT loads it as an ordinary LoRA adapter."""
    learner = learner_of(make_config("lora.rank=3", f"lora.init={start}", "lora.rslora=true", "optim.lr=1e-2"), ranks)
    learner.step([samples], LOOSE)
    learner.trainable.write(tmp_path, learner.weights())
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path))
    sample = samples[-1]
    ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
    logprobs = adapted(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(sample.completion_ids)[:, None]).squeeze(1)
    (found,) = learner.score([sample])
    # The converted adapter is a difference of large numbers here, with rounding of a few 1e-5.
    assert found == pytest.approx(expected.tolist(), abs=2e-4)


def test_lora_plus_moves_b_further_by_the_ratio(
    make_config: ConfigMaker, ranks: Ranks, samples: list[TrainingSample]
) -> None:
    """Adam's first step moves every weight by its learning rate."""
    moved = {}
    for ratio in (1, 16):
        learner = learner_of(make_config("optim.lr=1e-4", "optim.eps=1e-20", f"lora.plus_ratio={ratio}"), ranks)
        learner.step([samples], LOOSE)
        weights = learner.weights()
        moved[ratio] = max(float(tensor.abs().max()) for key, tensor in weights.items() if "lora_B" in key)
    assert moved[1] == pytest.approx(1e-4, rel=1e-4)
    assert moved[16] == pytest.approx(16e-4, rel=1e-4)


def test_a_run_starts_from_an_adapter(
    make_config: ConfigMaker, ranks: Ranks, samples: list[TrainingSample], tmp_path: Path
) -> None:
    first = learner_of(make_config("lora.rank=2", "optim.lr=1e-2"), ranks)
    first.step([samples], LOOSE)
    ref = publish(AdapterStore(tmp_path / "a"), 0, first)
    second = learner_of(make_config("lora.rank=2", f"lora.start_from={ref.path}"), ranks)
    assert second.score(samples) == first.score(samples)
    for overrides, message in (
        (["lora.rank=1", "lora.alpha=16"], r"is \(2, 192\) in .* and \(1, 192\) here"),
        (["lora.rank=2", "lora.alpha=8"], r"scaled by 16 \(rank 2\), and here by 4: set lora.rank, lora.alpha"),
        (["lora.rank=2", "lora.alpha_pattern={up_proj: 8}"], r"0\.mlp\.up_proj in .* by 16 \(rank 2\), and here by 4"),
        (["lora.rank=2", "lora.targets=mlp"], r"does not adapt the layers of lora.targets: .* has 32 more"),
    ):
        with pytest.raises(AdapterError, match=message):
            learner_of(make_config(f"lora.start_from={ref.path}", *overrides), ranks)
    (ref.path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterError, match="is not what was published"):
        learner_of(make_config("lora.rank=2", f"lora.start_from={ref.path}"), ranks)


@pytest.mark.parametrize(
    ("trained", "goes_on"),
    [
        (["lora.rank=4", "lora.rslora=true"], None),
        (
            ["lora.rank=4", "lora.rslora=true", "lora.rank_pattern={up_proj: 2}", "lora.alpha_pattern={down_proj: 8}"],
            None,
        ),
        # 32/√4 = 64/4: the same scale under the other rule.
        (["lora.rank=4", "lora.rslora=true"], ["lora.rank=4", "lora.alpha=64"]),
        # The adapter is served at twice the rank, with √2 times the alpha.
        (
            ["lora.rank=2", "lora.rslora=true", "lora.init=pissa"],
            ["lora.rank=4", "lora.rslora=true", "lora.alpha=45.254834"],
        ),
    ],
)
def test_a_run_starts_from_an_rslora_adapter(
    trained: list[str],
    goes_on: list[str] | None,
    make_config: ConfigMaker,
    ranks: Ranks,
    samples: list[TrainingSample],
    tmp_path: Path,
) -> None:
    first = learner_of(make_config(*trained, "optim.lr=1e-2"), ranks)
    first.step([samples], LOOSE)
    ref = publish(AdapterStore(tmp_path / "a"), 0, first)
    second = learner_of(make_config(*(goes_on or trained), f"lora.start_from={ref.path}"), ranks)
    for found, row in zip(second.score(samples), first.score(samples), strict=True):
        assert found == pytest.approx(row, abs=LOGPROB_NATS)
    with pytest.raises(AdapterError, match=r"scaled by .*\(rank 4\), and here by 8: .*lora\.rslora"):
        learner_of(make_config("lora.rank=4", f"lora.start_from={ref.path}"), ranks)


@pytest.mark.parametrize("name", REFUSED)
def test_adapters_that_cannot_be_served_are_refused(name: str, make_config: ConfigMaker) -> None:
    with pytest.raises(ConfigError, match=rf"lora\.init is '{name}': not offered: .*use "):
        make_config(f"lora.init={name}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.dora=true"], r"vLLM cannot serve DoRA .* method=full"),
        (["lora.init=nonsense"], r"lora\.init is 'nonsense': known are default, gaussian"),
        (["lora.init=orthogonal", "lora.rank=3"], r"needs even ranks, not 3"),
        (["lora.init=pissa", "lora.rank=300"], r"served at rank 600, and vLLM serves up to 512"),
        (["lora.init=pissa", "lora.start_from=x"], r"leave lora\.init \(pissa\) out"),
    ],
)
def test_incompatible_settings_are_refused(overrides: list[str], message: str, make_config: ConfigMaker) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(*overrides)


def test_patterns_give_each_layer_its_rank() -> None:
    config = LoraConfig(rank=2, rank_pattern={"down_proj": 4, "layers.0.self_attn.q_proj": 1})
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_DIR, dtype=torch.float32)
    hidden, wide, layers = 192, 512, 4
    mlp = 2 * 2 * (hidden + wide) + 4 * (hidden + wide)
    attention = 4 * 2 * (hidden + hidden)
    assert coverage_of(model, config).trainable == layers * (mlp + attention) - (hidden + hidden)
    assert config.served_rank == 4
    with pytest.raises(
        ValueError, match=r"lora\.rank_pattern: 'down' names no adapted linear layer; there are .*down_proj"
    ):
        coverage_of(model, LoraConfig(rank_pattern={"down": 4}))
