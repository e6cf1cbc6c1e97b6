"""Attention over shared prompts against torch's own, and the models that may use it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from rl_engine.config import load_config
from rl_engine.config.file import ConfigError
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.policy.attention import PACKABLE, attend, has_plain_attention
from rl_engine.policy.base_model import choose_layout, layout_of
from rl_engine.policy.logprobs import LogprobModel
from rollout.models import EMBEDDED_DIR
from tests.conftest import ConfigMaker
from tests.helpers.families import tiny_config, tiny_model
from tests.helpers.precision import assert_same_sums, float32_error


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shared_mask", [True, False])
def test_attention_and_its_gradients_match_torch(kv_heads: int, shared_mask: bool) -> None:
    generator = torch.Generator().manual_seed(kv_heads)
    q = torch.randn(3, 4, 5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(3, kv_heads, 7, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    drop = torch.rand(1 if shared_mask else 3, 5, 7, generator=generator) < 0.4
    drop[:, :, 0] = False
    upstream = torch.randn(3, 4, 5, 8, generator=generator, dtype=torch.float64)
    found = attend(q, k, v, drop, 0.3)
    expected = scaled_dot_product_attention(q, k, v, ~drop[:, None], scale=0.3, enable_gqa=True)
    # Scores are always computed in float32: 8 products, a softmax over 7.
    assert_same_sums(found, expected, 8 + 7)
    gradients = torch.autograd.grad((found * upstream).sum(), (q, k, v))
    wanted = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
    for gradient, other in zip(gradients, wanted, strict=True):
        assert_same_sums(gradient, other, 2 * (8 + 7))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_grouped_queries_score_as_in_padded_rows(kind: str) -> None:
    sizes = {
        "vocab_size": 30,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model_config = AutoConfig.for_model(kind, **sizes)
    model_config._attn_implementation = "sdpa"
    model = AutoModelForCausalLM.from_config(model_config)
    samples = [
        TrainingSample(
            prompt_ids=prompt,
            completion_ids=completion,
            behaviour_logprobs=(0.0,) * len(completion),
            advantage=1.0,
        )
        for prompt, completion in (
            ((3, 4, 5), (6, 7, 8, 9)),
            ((10, 11, 12, 13, 14), (15,)),
            ((3, 4, 5), (20,)),
            ((3, 4, 5), (16, 17)),
        )
    ]
    logprobs = []
    for layout, implementation in (("padded", "sdpa"), ("shared_prompt", "shared_prompt")):
        model.config._attn_implementation = implementation
        batch = collate(samples, pad_id=0, layout=layout)
        logprobs.append(LogprobModel(model, 1.0)(batch)[0])
    torch.testing.assert_close(logprobs[1], logprobs[0], atol=10 * float32_error(2 * 7 * 48), rtol=0)
    row = collate(samples, pad_id=0, layout="shared_prompt").input_ids_BT
    # Two prompts of five positions, four completions of three: nothing is predicted from a last token.
    assert row.tolist() == [[3, 4, 5, 0, 0, 10, 11, 12, 13, 14, 6, 7, 8, 0, 0, 0, 0, 0, 0, 16, 0, 0]]


def test_which_models_may_share_prompts() -> None:
    assert has_plain_attention(LlamaConfig())
    assert has_plain_attention(Qwen3Config())
    assert not has_plain_attention(Qwen3Config(use_sliding_window=True, sliding_window=16, max_window_layers=0))
    assert not has_plain_attention(MistralConfig(sliding_window=4096))
    assert has_plain_attention(MistralConfig(sliding_window=None))
    assert has_plain_attention(AutoConfig.from_pretrained(EMBEDDED_DIR))


def test_auto_shares_prompts_on_a_cpu_if_samples_are_short() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    short = load_config("quickstart.yaml")
    assert layout_of(short, cpu) == "shared_prompt"
    in_16_bits = load_config("quickstart.yaml", ["model.dtype=bfloat16"])
    assert (layout_of(short, cuda), layout_of(in_16_bits, cuda)) == ("padded", "packed")
    assert layout_of(load_config("quickstart.yaml", ["sampling.max_tokens=4000"]), cpu) == "padded"
    assert layout_of(load_config("quickstart.yaml", ["learner.layout=packed"]), cpu) == "packed"


def test_a_model_with_other_attention_is_refused(tmp_path: object) -> None:
    MistralConfig(sliding_window=64).save_pretrained(str(tmp_path))
    config = load_config("quickstart.yaml", [f"model.name={tmp_path}", "learner.layout=shared_prompt"])
    with pytest.raises(ConfigError, match="does not support the attention layers of this mistral model"):
        layout_of(config, torch.device("cpu"))


def test_packable_families_score_as_in_separate_rows() -> None:
    samples = [
        TrainingSample(
            prompt_ids=(5, 6, 7),
            completion_ids=tuple(range(first, last)),
            behaviour_logprobs=(0.0,) * (last - first),
            advantage=1.0,
        )
        for first, last in ((8, 30), (20, 32), (40, 57))
    ]
    padded, packed = (collate(samples, pad_id=0, layout=layout) for layout in ("padded", "packed"))
    apart = {}
    for kind in PACKABLE:
        model = tiny_model(kind)
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            policy = LogprobModel(model, 1.0).eval()
            with torch.no_grad():
                apart[kind, implementation] = float((policy(packed)[0] - policy(padded)[0]).abs().max())
    assert {name: gap for name, gap in apart.items() if not gap < 1e-4} == {}


def test_chunked_attention_cannot_be_packed(make_config: ConfigMaker) -> None:
    """Llama 4 attends within chunks of 8,192 positions, counted from the start of the row."""
    config, model_config = make_config("learner.layout=packed"), tiny_config("llama4_text")
    with pytest.raises(ConfigError, match=r"learner.layout packed .* attends within chunks of 8,192 positions"):
        choose_layout(config, model_config, "cpu")
    model_config.layer_types = ["full_attention", "full_attention"]
    assert choose_layout(config, model_config, "cpu") == "packed"


@pytest.mark.parametrize("kind", ["falcon", "opt", "falcon_h1", "gpt_oss", "jamba", "qwen3_next"])
def test_other_families_are_refused_packing_in_one_line(kind: str, make_config: ConfigMaker) -> None:
    config = make_config("learner.layout=packed")
    with pytest.raises(ConfigError, match=rf"attention of model type {kind} .*: give learner.layout=padded"):
        choose_layout(config, tiny_config(kind), "cpu")
    assert choose_layout(config, tiny_config("qwen2"), "cpu") == "packed"
