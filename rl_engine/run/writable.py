"""Output directory → whether files can be made in it, known before anything is loaded or replaced."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rl_engine.config.file import ConfigError


def check_writable(directory: Path, key: str) -> None:
    """Raises `ConfigError` where files cannot be made in a directory, nor it in the nearest one above it."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if os.path.lexists(path))
    if place == directory.absolute() and not place.is_dir():
        raise ConfigError(f"{key}: {directory} is not a directory")
    if not place.is_dir():
        raise ConfigError(f"{key}: {directory} cannot be made: {place} is not a directory")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: nothing can be written in {place} ({error.strerror}); give another {key}") from error
