"""What already exists at an output's path → our own result, which may be replaced, or anything else, which never is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

FIGURE_MARK = "made by rl_engine"
MARKER = ".rl_engine"
"""A file that marks a directory as written by one of our runs, so that another run may replace it."""
PLACE = "output_dir: "
"""Begins the marker's line with the directory as the run's config.yaml states it, which shows whether it was edited."""


def marking(output_dir: str) -> str:
    """The marker's text in a run's directory."""
    return f"Written by a run of rl_engine: --overwrite may replace it.\n{PLACE}{json.dumps(output_dir)}\n"


def marked_place(directory: Path) -> str | None:
    """The directory that a run noted in its marker; None for a damaged marker or a run of an earlier version."""
    text = (directory / MARKER).read_text(encoding="utf-8", errors="replace")
    try:
        return str(json.loads(text.partition(PLACE)[2]))
    except ValueError:
        return None


def replaced(outputs: Mapping[Path, Callable[[Path], bool]], option: str) -> list[str]:
    """Messages about outputs that already exist; `outputs` maps each path to the test that recognizes it as ours.

    Call it before anything is written. Raises a `ValueError` that names the first output that is not ours.
    """
    there = [path for path in outputs if path.exists()]
    for path in there:
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a directory: give the name of a file")
        if not outputs[path](path):
            raise ValueError(
                f"{option}: {path} already exists and is not a result of this command: nothing was written. Move it "
                "away, or give another name"
            )
    return [f"replaces {path}, an earlier result" for path in there]


def is_figure(path: Path) -> bool:
    """Whether a figure's metadata, in any format, says that this project drew it."""
    return FIGURE_MARK.encode() in path.read_bytes()


def figure_metadata(path: Path) -> dict[str, str | None] | None:
    """The metadata that matplotlib writes into a figure of this name; no date in SVG, so that equal figures are equal
    bytes.

    Other formats hold no metadata, so they are never recognized as ours.
    """
    signs: dict[str, dict[str, str | None]] = {
        ".png": {"Software": FIGURE_MARK},
        ".svg": {"Date": None, "Creator": FIGURE_MARK},
        ".pdf": {"Creator": FIGURE_MARK},
        ".eps": {"Creator": FIGURE_MARK},
        ".ps": {"Creator": FIGURE_MARK},
    }
    return signs.get(path.suffix.lower())


def is_json(keys: Iterable[str]) -> Callable[[Path], bool]:
    """The test for a JSON report: an object, or a list of objects, with these keys."""
    wanted = {*keys}

    def check(path: Path) -> bool:
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            return False
        first = found[0] if isinstance(found, list) and found else found
        return isinstance(first, dict) and wanted <= first.keys()

    return check


def place_aside(path: Path) -> Path:
    """Where to move what is at `path` before something else takes its place: `<name>.old-N` beside it."""
    path = path.resolve() if path.is_symlink() or path.name in ("", "..") else path
    numbers = itertools.count(1)
    return next(place for number in numbers if not (place := path.with_name(f"{path.name}.old-{number}")).exists())
