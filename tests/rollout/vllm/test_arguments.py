"""What vLLM is started with makes it read the files that the learner reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from vllm.config import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.transformers_utils.config import get_config

from rollout.engine import EngineSettings
from rollout.models import EMBEDDED_DIR
from rollout.vllm.arguments import engine_arguments


def test_weights_in_mistrals_own_format_are_not_sampled_from(tmp_path: Path) -> None:
    """They lie beside transformers' in Mistral's directories, and stay what they were when the model is trained on: an
    evaluation scored the model of before."""
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_DIR, model)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: 0 * tensor for name, tensor in weights.items()}, model / "consolidated.safetensors")
    params = {"dim": 8, "n_layers": 1, "head_dim": 4, "hidden_dim": 8, "n_heads": 2, "n_kv_heads": 1}
    (model / "params.json").write_text(json.dumps({**params, "norm_eps": 1e-5, "vocab_size": 9, "rope_theta": 1e4}))
    settings = EngineSettings(model=str(model), dtype="float32", max_model_len=64, lora_rank=1)
    arguments = engine_arguments(settings)
    loader = DefaultModelLoader(LoadConfig(load_format=arguments.get("load_format", "auto")))
    _, files, *_ = loader._prepare_weights(str(model), None, None, False, None)
    assert [Path(file).name for file in files] == ["model-00001-of-00001.safetensors"]
    found = get_config(str(model), trust_remote_code=False, config_format=arguments.get("config_format", "auto"))
    assert (found.model_type, found.hidden_size) == ("qwen3", 192)
