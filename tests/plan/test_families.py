"""Published architectures whose cache, heads and feed-forward layers differ from Llama's, counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typer.testing import CliRunner
from vllm import ModelRegistry

from rl_engine.config import LoraConfig
from rl_engine.plan.__main__ import app
from rl_engine.plan.flops import MultiplyAdds
from rl_engine.plan.sizes import Widths
from rl_engine.policy.base_model import load_meta_model
from rollout.config import ModelConfig
from rollout.servable import layer_kinds

DEEPSEEK_V3: dict[str, Any] = {"model_type": "deepseek_v3"}  # transformers' defaults are the published sizes
LLAMA_4_MAVERICK: dict[str, Any] = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "interleave_moe_layer_step": 2,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_local_experts": 128,
}
QWEN3_NEXT: dict[str, Any] = {"model_type": "qwen3_next"}
LFM2: dict[str, Any] = {"model_type": "lfm2"}
# (bytes of KV cache per token in bfloat16, multiply-adds per attended position, feed-forward width)
BY_HAND = {
    # A latent of 512 and 64 rotated values in each of 61 layers; 128 heads with keys of 128 + 64 and values of 128;
    # eight experts of 2048 and a shared one.
    "deepseek": (DEEPSEEK_V3, 671_026_404_352, (61 * 576 * 2, 61 * 128 * (192 + 128), 9 * 2048)),
    # Every other layer is dense, and twice as wide as an expert.
    "llama4": (LLAMA_4_MAVERICK, None, (48 * 2 * 8 * 128 * 2, 48 * 2 * 40 * 128, 16384)),
    # Two thirds of its stated 12288; all 32 layers attend.
    "lfm2": (LFM2, None, (32 * 2 * 8 * 80 * 2, 32 * 2 * 32 * 80, 8192)),
    # Every fourth layer attends. Ten experts of 512, and a shared one.
    "qwen3_next": (QWEN3_NEXT, 79_674_391_296, (12 * 2 * 2 * 256 * 2, 12 * 2 * 16 * 256, 11 * 512)),
}


def written(directory: Path, values: dict[str, Any]) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(values))
    return ModelConfig(name=str(directory))


@pytest.mark.parametrize("family", BY_HAND)
def test_a_family_s_sizes_are_those_worked_out_by_hand(family: str, tmp_path: Path) -> None:
    values, parameters, by_hand = BY_HAND[family]
    model = load_meta_model(written(tmp_path, values))
    widths = Widths.of(model)
    assert (widths.kv_bytes(2), MultiplyAdds.of(model, LoraConfig(rank=1)).attended, widths.intermediate) == by_hand
    assert parameters in (None, sum(one.numel() for one in model.parameters()))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("bert", (), "a model of type bert is an encoder, a masked language model: give a decoder-only model"),
        ("bart", (), "a model of type bart is an encoder-decoder: give a decoder-only model"),
        ("gpt2", ("method=full", "optim.lr=1e-5"), "nothing in it can be adapted or counted: use another model"),
        ("gpt2", (), "lora.targets: model type gpt2 has no layers of class nn.Linear"),
        ("gemma3n_text", (), "does not serve with adapters: use method=full, or a model of another type"),
        ("mamba", ("lora.targets=mlp",), "'mlp' matches no layer of this model; name some of its linear layers: "),
    ],
)
def test_what_cannot_be_trained_is_reported_with_a_way_out(
    kind: str, settings: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    model = written(tmp_path, {"model_type": kind})
    given = ["--config", "quickstart.yaml", f"model.name={model.name}", "--devices", "1x80", *settings]
    done = CliRunner().invoke(app, given)
    assert (done.exit_code, words in done.stderr) == (2, True), done.output


@pytest.mark.parametrize(
    "kind",
    ["mamba", "mamba2", "jamba", "falcon_h1", "zamba2", "nemotron_h", "granitemoehybrid", "qwen3_next", "lfm2_moe"],
)
def test_states_are_as_large_as_vllm_makes_them(kind: str) -> None:
    """The states of all layers that have one, at the published sizes, in float32 where vLLM stores them so."""
    model_config = AutoConfig.for_model(
        kind, **({"layer_types": ["conv", "full_attention"] * 16} if "lfm2" in kind else {})
    )
    served = ModelRegistry.models[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]].load_model_cls()
    asked = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        model_config=SimpleNamespace(hf_config=model_config, hf_text_config=model_config),
        cache_config=SimpleNamespace(use_replayssm=False),
        speculative_config=None,
        num_speculative_tokens=0,
    )
    if kind == "lfm2_moe":
        model_config.conv_dim = model_config.hidden_size  # as its checkpoints state
    conv, *recurrent = (math.prod(shape) for shape in served.get_mamba_state_shape_from_config(asked))
    stateful = sum(one in ("linear_attention", "conv", "hybrid") for one in layer_kinds(model_config))
    assert stateful > 0
    with torch.device("meta"):
        widths = Widths.of(AutoModelForCausalLM.from_config(model_config))
    assert (widths.conv_state, widths.recurrent_state) == (stateful * conv, stateful * sum(recurrent))
    exact = 4 if kind == "nemotron_h" else 2
    assert widths.state_bytes(2) == stateful * (2 * conv + exact * sum(recurrent))
    attending = sum(one in ("full_attention", "hybrid") for one in layer_kinds(model_config))
    assert (widths.attending, widths.kv_bytes(2) > 0) == (attending, attending > 0)


def test_layers_that_share_keys_and_values_keep_none(tmp_path: Path) -> None:
    """The last 15 of Gemma 3n's 35 layers use the keys and values of earlier layers."""
    values = {"model_type": "gemma3n_text", "num_hidden_layers": 35, "num_kv_shared_layers": 15}
    widths = Widths.of(load_meta_model(written(tmp_path, values)))
    assert (widths.attending, widths.kv_bytes(2)) == (35, 20 * 2 * 2 * 256 * 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (QWEN3_NEXT, "(linear_attention) attend to nothing; the states that a sequence has there, 37.69 MiB,"),
        # Nothing grows with the length of a sequence.
        ({"model_type": "mamba"}, "(linear_attention) attend to nothing; the states that a sequence has there"),
        ({"model_type": "gemma2"}, "some do not (sliding_attention): those compute and keep less"),
        ({"model_type": "qwen3"}, None),
    ],
)
def test_layers_that_see_less_than_all_positions_are_named(
    values: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    model = written(tmp_path, values)
    given = ["--config", "gsm8k.yaml", f"model.name={model.name}", "method=full", "--devices", "8x80"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    found = " ".join(done.stdout.split())
    assert said in found if said else "some do not" not in found and "attend to nothing" not in found
