"""The public configuration of a model → a model with random weights: a checkpoint on disk, or in memory on the card.

No tokenizer can be downloaded, so the embedded model's is padded to the vocabulary size with made-up words, which gives
every token that random weights may sample a text. The end token is outside the vocabulary, so that every completion has
its full length.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.gpu_contact.sizes import Sizes
from rollout.models import EMBEDDED_DIR

NEVER = "<never>"


def write_shape(directory: Path, shape: dict[str, Any], dtype: str) -> None:
    """Write a checkpoint without its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = shape["vocab_size"]
    ends = {"eos_token_id": vocabulary, "pad_token_id": 0, "bos_token_id": None}
    (directory / "config.json").write_text(json.dumps({**shape, **ends, "dtype": dtype}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": vocabulary, "pad_token_id": 0}))
    tokenizer = json.loads((EMBEDDED_DIR / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), vocabulary)}
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][1], "id": vocabulary, "content": NEVER})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((EMBEDDED_DIR / "tokenizer_config.json").read_text())
    settings |= {"eos_token": NEVER, "model_max_length": shape["max_position_embeddings"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(EMBEDDED_DIR / "chat_template.jinja", directory)


def random_model(directory: Path, attention: str, dtype: Any) -> Any:
    """A model with the configuration in `directory` and random weights, on the card if there is one."""
    import torch

    from rl_engine.policy.base_model import load_model_config, without_noise
    from rollout.config import ModelConfig
    from rollout.models import auto_class

    model_config = without_noise(load_model_config(ModelConfig(name=str(directory))))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return auto_class(model_config).from_config(model_config, dtype=dtype, attn_implementation=attention)


def write_checkpoint(directory: Path, sizes: Sizes, shape: str) -> dict[str, Any]:
    """Write a complete checkpoint of this shape, and return its figures for a table. Nothing stays on the card."""
    import torch

    write_shape(directory, sizes.shapes[shape], sizes.dtype)
    model = random_model(directory, "sdpa", getattr(torch, sizes.dtype))
    # Restore our config files: those that transformers saves would name another end token.
    config = (directory / "config.json").read_text()
    generation = (directory / "generation_config.json").read_text()
    model.save_pretrained(directory)
    (directory / "config.json").write_text(config)
    (directory / "generation_config.json").write_text(generation)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return {"model": shape, "parameters": parameters, "gib": size / 2**30}
