"""The pages under docs/ and the key descriptions: one spelling, British with -ize, and one word for each thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl_engine.config import Config
from rl_engine.config.fields import fields
from rl_engine.config.file import CommandConfig
from rl_engine.config.sft import SftConfig
from rl_engine.sweep.config import SweepConfig

PAGES = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
# Code keeps its own spelling.
CODE = re.compile(r"^```.*?^```|`[^`]*`|^    .*$|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
# Another spelling → ours.
OURS = {
    r"\w*(?:normal|penal|optim|quant|token|initial|recogn|summar|minim|maxim|organ)is(?:e[drs]?|ing|ation)": "-ize",
    r"behaviors?": "behaviour",
    r"colors?": "colour",
    r"licenses?": "licence",
    r"artifacts?": "artefact",
    r"data sets?": "dataset",
}


def misspelt(text: str) -> list[str]:
    """The words of the text, apart from code, that are spelled differently here, each with our spelling."""
    prose = CODE.sub(" ", text)
    return [
        f"{match[0]}: {ours}"
        for theirs, ours in OURS.items()
        for match in re.finditer(rf"\b(?:{theirs})\b", prose, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_one_spelling(page: Path) -> None:
    assert misspelt(page.read_text()) == []


@pytest.mark.parametrize("schema", [Config, SftConfig, SweepConfig])
def test_a_key_says_what_it_sets(schema: type[CommandConfig]) -> None:
    """The description is a sentence of its own, unlike `Of the adapter and the order of problems.`, which needs the
    key's name."""
    for key, info in fields(schema):
        said = info.description or ""
        assert misspelt(said) == [], key
        assert re.match(r"(?!Of |For |In |As |And )\S.*\.$", said, re.DOTALL), f"{key}: {said!r}"


def test_another_spelling_is_seen() -> None:
    """The tests above can fail."""
    assert misspelt("The normaliser of a data set; `color` is code.") == ["normaliser: -ize", "data set: dataset"]
