"""Which layers of each family are adapted, and whether PEFT and a merge load the files as the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from rl_engine.config import LoraConfig
from rl_engine.learner.batching import TrainingSample, collate
from rl_engine.merge.weights import merge
from rl_engine.plan.sizes import Widths
from rl_engine.policy.agreement import own_logprobs
from rl_engine.policy.logprobs import LogprobModel
from rl_engine.policy.lora.adapter import adapter_parameters, add_adapter, check_adapter, write_adapter
from rl_engine.policy.lora.targets import adaptable, group_of
from rl_engine.run.trained_adapter import BaseModel, TrainedAdapter
from rollout.config import ModelConfig
from tests.helpers.families import families, tiny_config, tiny_model, write_tiny

SAMPLE = TrainingSample(
    prompt_ids=(5,), completion_ids=tuple(range(6, 40)), behaviour_logprobs=(0.0,) * 34, advantage=1.0
)
# Their linear layers have their own classes.
WITHOUT_LAYERS = {"gpt2", "gpt-sw3", "falcon"}


def test_every_familys_adapted_layers_match_the_count() -> None:
    """PEFT wraps exactly the layers that are counted, or there are none and an error says so."""
    refused: dict[str, str] = {}
    for kind in families():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(tiny_config(kind))
        try:
            adapted, coverage = add_adapter(model, LoraConfig(rank=2), seed=0)
        except ValueError as error:
            refused[kind] = str(error)
            continue
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == coverage.trainable > 0
    assert refused.keys() == WITHOUT_LAYERS, refused


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("model.decoder.layers.0.fc1", "mlp"),  # OPT
        ("model.layers.3.mixer.up_proj.weight", "mlp"),  # Nemotron-H
        ("model.layers.7.mixer.o_proj", "attention"),
        ("model.layers.2.temporal_block.q_proj", "attention"),  # RecurrentGemma
        ("gpt_neox.layers.0.attention.dense", "attention"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h", "mlp"),
        ("model.layers.0.mixer.in_proj", "other"),
    ],
)
def test_a_layers_kind_is_told_by_its_block_or_its_name(path: str, group: str) -> None:
    """`lora.targets=mlp` matched no layer of OPT, and `attention` none of Nemotron-H."""
    assert group_of(path) == group


def test_a_feed_forward_width_is_found_without_a_block() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "opt", hidden_size=64, ffn_dim=96, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=64
            )
        )
    assert Widths.of(model).intermediate == 96


# PEFT searches only modules for the keys of these patterns.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        # A dense layer and shared experts next to stacked experts whose parts once had the same names.
        ("deepseek_v3", {}),
        ("glm4_moe_lite", {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"gate_proj": 5.0}}),
        ("qwen3_next", {"targets": "mlp"}),
        ("afmoe", {"targets": "attention"}),
        # Transposed stacks, and layers named by numbers.
        ("gpt_oss", {}),
        ("llama4_text", {"rank": 8}),
        ("gemma3n_text", {}),
    ],
)
def test_peft_and_a_merge_reproduce_the_trained_model(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    write_tiny(kind, tmp_path / "base")
    # Transformers would refuse to save a temperature without `do_sample`.
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6}')
    config = LoraConfig(**{"rank": 2, **settings})
    adapted, _ = add_adapter(tiny_model(kind), config, seed=0)
    parameters = adapter_parameters(adapted)
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = collate([SAMPLE], pad_id=0, layout="padded")
    policy = LogprobModel(adapted.get_base_model(), 1.0)
    expected = policy(batch)[0]
    expected.sum().backward()
    idle = {name for name, parameter in parameters.items() if parameter.grad is None}
    assert idle == set()
    expected = expected.detach()
    base = tiny_model(kind)
    assert (own_logprobs(LogprobModel(base, 1.0), batch) - expected).abs().max() > 0.01

    directory = tmp_path / "adapter"
    directory.mkdir()
    write_adapter(directory, adapted, config, str(tmp_path / "base"), {**parameters})
    loaded = PeftModel.from_pretrained(base, directory).eval()
    found = own_logprobs(LogprobModel(loaded.get_base_model(), 1.0), batch)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    trained = TrainedAdapter(
        directory=directory,
        manifest={},
        sha256="",
        peft=json.loads((directory / "adapter_config.json").read_text()),
        shapes={},
        base=BaseModel(name=kind, hub_id=None, directory=tmp_path / "base", revision=None),
        run=None,
    )
    merge(trained, "float32", tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(own_logprobs(LogprobModel(merged, 1.0), batch), expected, atol=1e-3, rtol=0)
    assert merged.generation_config.eos_token_id == [2, 7]


def test_layers_that_peft_refuses_are_left_out_or_reported(tmp_path: Path) -> None:
    """Mamba's kernels read the weights of its last layer directly, bypassing the layer."""
    write_tiny("falcon_h1", tmp_path)
    model = ModelConfig(name=str(tmp_path), dtype="float32")
    assert any(path.endswith("out_proj") for path in adaptable(tiny_model("falcon_h1")))
    check_adapter(model, LoraConfig(), 0)
    with pytest.raises(ValueError, match=r"PEFT cannot adapt .*out_proj in model type falcon_h1"):
        check_adapter(model, LoraConfig(targets=("out_proj",)), 0)
