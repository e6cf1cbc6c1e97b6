"""vLLM's start-up arguments make it read the files that the learner reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from vllm.config import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.transformers_utils.config import get_config

from rollout.engine import EngineSettings
from rollout.models import EMBEDDED_DIR
from rollout.vllm.arguments import engine_arguments, overrides_of


@pytest.mark.parametrize("stated", [None, ["Qwen3Model"], ["Qwen3ForSequenceClassification"], ["MineForCausalLM"]])
def test_vllm_takes_the_class_that_learns(stated: list[str] | None) -> None:
    """This does not depend on `architectures` in config.json. If that is absent, or names a part of a model, vLLM would
    build a model that generates no text."""
    config = AutoConfig.for_model("qwen3", architectures=stated)
    assert overrides_of(config) == {"architectures": ["Qwen3ForCausalLM"]}
    for phimoe in ("PhiMoEForCausalLM", "PhimoeForCausalLM"):  # of the checkpoints, and as transformers writes it
        config = AutoConfig.for_model("phimoe", architectures=[phimoe])
        assert overrides_of(config).get("architectures", [phimoe]) == ["PhiMoEForCausalLM"]


def test_queries_of_ministral_3_are_scaled_by_the_sampler_too() -> None:
    """This matters beyond 16,384 positions; vLLM reads the factor only from Mistral's own format."""
    text = {"model_type": "ministral3"}
    scaling = {"llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16384}}
    alone = AutoConfig.for_model("ministral3", architectures=["Ministral3ForCausalLM"])
    assert overrides_of(alone) == scaling
    inside = AutoConfig.for_model("mistral3", architectures=["Mistral3ForConditionalGeneration"], text_config=text)
    assert overrides_of(inside) == {"text_config": scaling}


@pytest.mark.parametrize("of_hub", [False, True])
def test_weights_in_mistrals_own_format_are_not_sampled_from(
    of_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's directories and hub repositories hold them beside those of transformers, and training does not change
    them: an evaluation used to score the old model."""
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_DIR, model)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: 0 * tensor for name, tensor in weights.items()}, model / "consolidated.safetensors")
    params = {"dim": 8, "n_layers": 1, "head_dim": 4, "hidden_dim": 8, "n_heads": 2, "n_kv_heads": 1}
    (model / "params.json").write_text(json.dumps({**params, "norm_eps": 1e-5, "vocab_size": 9, "rope_theta": 1e4}))
    monkeypatch.setattr("rollout.vllm.arguments.read_model_config", lambda *_: AutoConfig.from_pretrained(model))
    name = "org/name" if of_hub else str(model)
    arguments = engine_arguments(EngineSettings(model=name, dtype="float32", max_model_len=64, lora_rank=1))
    loader = DefaultModelLoader(LoadConfig(load_format=arguments.get("load_format", "auto")))
    _, files, *_ = loader._prepare_weights(str(model), None, None, False, None)
    assert [Path(file).name for file in files] == ["model-00001-of-00001.safetensors"]
    found = get_config(str(model), trust_remote_code=False, config_format=arguments.get("config_format", "auto"))
    assert (found.model_type, found.hidden_size) == ("qwen3", 192)
    # Beside a single file, which has no index, both used to be downloaded and read.
    held = ["model.safetensors", "consolidated.safetensors", "original/consolidated/00.safetensors"]
    left_out = arguments.get("ignore_patterns", LoadConfig().ignore_patterns)
    assert [*filter_repo_objects(held, allow_patterns="*.safetensors", ignore_patterns=left_out)] == held[:1]
