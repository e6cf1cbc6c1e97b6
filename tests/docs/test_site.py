"""The documentation as files: every page is in the site's navigation, and quoted messages match those in the code.

`make docs` checks the rest of the site: links that its generators make, the API reference, and that nothing is fetched
from a network. It does not read pages outside docs/, and checks only that a link to one of them leads to a file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
QUOTE = re.compile(r"^```text\n(.*?)^```$|^\| `([^`]{40,})` \|", re.DOTALL | re.MULTILINE)
VALUE = re.compile(r"%[sd]|\$?\{[^}]*\}|\$\(\w+\)|\$\w+")
"""Placeholders in a message: those of logging, of `str.format`, of make and of the shell."""
LINK = re.compile(r"(?<=\]\()([^)#\s:]*)(?:#([^)\s]*))?(?=\))")
FENCED = re.compile(r"^( *)(`{3,}|~{3,})(?s:.*?)^ *\2 *$", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
LINES = re.compile(r"L\d+(-L\d+)?")
"""A line anchor, as code hosts write it."""
SHORTEST = 9
"""The fewest characters of a message between two placeholders that are looked for."""
LONGEST_VALUE = 50
"""A longer run of characters is not an example value, but text that the product does not print."""


class _Reader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name functions that the plain loader does not know."""


_Reader.add_multi_constructor("", lambda *_: None)


def pages_of(entry: Any) -> Iterator[str]:
    """The pages in one part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_of(part)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), _Reader)
    shown = sorted(pages_of(site["nav"]))
    assert shown == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def anchors_of(text: str) -> set[str]:
    """The anchors of the headings, as code hosts and the site make them; repeated headings are numbered."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(FENCED.sub("", text)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[name] = found.get(name, 0) + 1
    return {f"{name}-{number}" if number else name for name, times in found.items() for number in range(times)}


def lost_links(text: str, folder: Path) -> list[str]:
    """Links on a page in this folder that lead to no file, or to no anchor in it."""
    lost = []
    for file, anchor in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))):
        target = folder / file
        if not target.exists():
            lost.append(file)
        elif anchor and not (LINES.fullmatch(anchor) and target.suffix != ".md"):
            held = text if not file else target.read_text() if target.suffix == ".md" else ""
            # `::: name` inserts the API reference of that name, whose anchors exist only on the site.
            if anchor not in anchors_of(held) and "\n::: " not in held:
                lost.append(f"{file}#{anchor}")
    return lost


PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    text = page.read_text()
    assert lost_links(text, page.parent) == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    page = "# One\n## Twice\n## Twice\n```sh\n# no heading\n[x](no-link.md)\n```\n"
    right = "[a](#one) [b](#twice-1) [c](metrics.md) [d](../README.md#install) [e](../Makefile#L3) [f](https://a.b/c#d)"
    wrong = ["no.md", "#no-heading", "../README.md#no", "metrics.md#no", "../Makefile#docs"]
    assert lost_links(page + right, DOCS) == []
    assert lost_links(page + " ".join(f"[x]({link})" for link in wrong), DOCS) == wrong


@cache
def words_of_the_product() -> tuple[str, ...]:
    """The text between the values in every message in the sources, the Makefile and its script, longest first."""
    texts = re.findall(r'echo "([^"]+)"', (ROOT / "Makefile").read_text())
    texts += re.findall(r'"([^"\n]+)"', (ROOT / "requirements" / "environment.sh").read_text())
    for package in ("datafiles", "rewards", "rollout", "evals", "rl_engine"):
        for path in (ROOT / package).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            texts += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    pieces = {" ".join(piece.split()) for text in texts for piece in VALUE.split(text)}
    return tuple(sorted((piece for piece in pieces if len(piece) >= SHORTEST), key=len, reverse=True))


def unsaid(quote: str) -> list[str]:
    """The parts of a quote that are in no message and are too long to be example values."""
    rest = " ".join(quote.split()).removeprefix("error: ")
    for piece in words_of_the_product():
        rest = rest.replace(piece, "\n")
    return [part for part in rest.split("\n") if len(part) > LONGEST_VALUE]


def quotes() -> list[str]:
    return [block or cell for block, cell in QUOTE.findall((DOCS / "troubleshooting.md").read_text())]


@pytest.mark.parametrize("quote", quotes(), ids=lambda quote: " ".join(quote.split())[:40])
def test_a_quoted_message_is_what_the_product_says(quote: str) -> None:
    assert unsaid(quote) == []


def test_a_quote_that_nobody_says_is_seen() -> None:
    assert len(quotes()) > 20
    assert unsaid("error: the sampler and the learner have drifted apart somewhat, and training was halted")
