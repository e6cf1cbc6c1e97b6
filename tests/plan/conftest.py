"""Qwen3-8B, its configuration and its sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from transformers import Qwen3Config

from rl_engine.policy.base_model import load_meta_model
from rollout.config import ModelConfig
from tests.helpers.planned import HIDDEN, LAYERS, MLP, VOCABULARY


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory that holds only a config.json."""
    directory = tmp_path_factory.mktemp("models") / "Qwen3-8B-Base"
    model_config = Qwen3Config(
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=VOCABULARY,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
    )
    model_config.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def meta_model(qwen: Path) -> nn.Module:
    model: nn.Module = load_meta_model(ModelConfig(name=str(qwen)))
    return model
