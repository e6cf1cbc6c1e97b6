"""A name from a file → Markdown that shows it as it is."""

from __future__ import annotations

import re


def as_markdown(name: str) -> str:
    """The name of a file, a level or an adapter, so that Markdown shows it as it is, in a table too."""
    return re.sub(r"[\\|`*<\[]", r"\\\g<0>", " ".join(name.split()))
