"""The public configuration of a model → one with random weights: a checkpoint on disk, or in memory on the card.

No tokenizer can be fetched, so the embedded model's is padded to the vocabulary with made-up words: every token that
random weights sample has a text. The end token is beyond the vocabulary, so that every completion has its full length.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu_contact.figures import note
from benchmarks.gpu_contact.sizes import SIZES
from rollout.models import EMBEDDED_DIR

NEVER = "<never>"


def write_shape(directory: Path, shape: dict[str, Any], dtype: str) -> None:
    """Everything of a checkpoint but its weights."""
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
    """A model of the configuration in `directory`, drawn on the card where there is one."""
    import torch

    from rl_engine.policy.base_model import auto_class, load_model_config, without_noise
    from rollout.config import ModelConfig

    model_config = without_noise(load_model_config(ModelConfig(name=str(directory))))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return auto_class(model_config).from_config(model_config, dtype=dtype, attn_implementation=attention)


def main(
    directory: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    sizes: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")],
    shape: Annotated[str, typer.Option(help="Which of its models.")],
) -> None:
    """Write a checkpoint with random weights."""
    import torch

    given = SIZES[sizes]
    write_shape(directory, given.shapes[shape], given.dtype)
    model = random_model(directory, "sdpa", getattr(torch, given.dtype))
    # Not the model's own files: they would name the tokenizer's end token as transformers sees it.
    config = (directory / "config.json").read_text()
    generation = (directory / "generation_config.json").read_text()
    model.save_pretrained(directory)
    (directory / "config.json").write_text(config)
    (directory / "generation_config.json").write_text(generation)
    bytes_written = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    note("weights", model=shape, parameters=sum(p.numel() for p in model.parameters()), gib=bytes_written / 2**30)


if __name__ == "__main__":
    typer.run(main)
