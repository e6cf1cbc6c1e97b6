"""Model name → where its files are."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded"
EMBEDDED_DIR = Path(__file__).parent / "embedded"


def locate_model(name: str) -> str:
    """The directory of a local model, or the hub id as given.

    Raises `FileNotFoundError` when the name can only be a path and nothing is there.
    """
    if name == EMBEDDED:
        return str(EMBEDDED_DIR)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise FileNotFoundError(f"model.name: {name!r} is not a model directory (no config.json there)")
    return name


def needs_hub(name: str) -> bool:
    """Whether loading the model would ask the hub."""
    return not Path(locate_model(name)).is_absolute()


def refuse_code_of_models() -> None:
    """transformers would ask at the terminal whether to run Python files that lie beside a model: here it refuses."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
