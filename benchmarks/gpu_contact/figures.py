"""A stage's process → what it measured, a JSON line as soon as it is known: a stage that is cut off keeps the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "GPU_CONTACT_FIGURES"
"""The environment variable that names the file; nothing is written where it is absent."""


def note(kind: str, **figures: Any) -> None:
    """Write down, and print, one row of figures. `kind`: the table it belongs to."""
    line = json.dumps({"kind": kind, **figures})
    print(line, flush=True)
    if FILE in os.environ:
        with Path(os.environ[FILE]).open("a") as file:
            file.write(line + "\n")


def noted(path: Path) -> list[dict[str, Any]]:
    """The rows in a file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
