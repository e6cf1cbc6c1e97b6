"""A stage's process → its measurements, one JSON line each as soon as known, so that a cut-off stage keeps them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "GPU_CONTACT_FIGURES"
"""The environment variable that names the file; without it nothing is written."""


def note(kind: str, **figures: Any) -> None:
    """Record and print one row of figures. `kind`: the table it belongs to."""
    line = json.dumps({"kind": kind, **figures})
    print(line, flush=True)
    if FILE in os.environ:
        with Path(os.environ[FILE]).open("a") as file:
            file.write(line + "\n")


def noted(path: Path) -> list[dict[str, Any]]:
    """The rows in a file, without a truncated last line."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
