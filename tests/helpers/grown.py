"""A model with a token in its tokenizer that its embedding lacks."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from rollout.models import EMBEDDED_DIR

SAID = "grown: its tokenizer writes '<|im_start|>' as token 21, and the model has 21 tokens"


def write_grown(directory: Path) -> Path:
    """The embedded model with a chat template that uses a token added to the tokenizer only."""
    shutil.copytree(EMBEDDED_DIR, directory / "grown")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIR)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = f"<|im_start|>{tokenizer.chat_template}"
    tokenizer.save_pretrained(directory / "grown")
    return directory / "grown"
