"""Hooks that MkDocs calls while it builds, for what differs between the pages on the site and the files in docs/.

On a code host, a link to a file outside docs/ such as `../configs/math.yaml` opens that file. On the site it opens a
page that contains the file, at the top even if the link has an anchor. Pages load nothing from the network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)(#[^)\s]*)?(?=\))")
CODE_IN_TABLE = re.compile(r"^\|.*\|$", re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
FETCHED = re.compile(
    rb"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//"
    rb"|<link\b(?=[^>]*\brel=\"?(?:stylesheet|icon|preload|preconnect))[^>]*\bhref=\"?(?:https?:)?//"
    rb"|@import|url\([\"']?(?:https?:)?//"
)
"""Matches what a browser fetches when it opens a page, but not links for the reader to follow."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    pages = list(files.documentation_pages())
    for path in sorted({path for page in pages for path in _linked(page.src_uri, page.content_string)}):
        fence = "~" * 8
        code = f"{fence}{Path(path).suffix[1:] or 'text'}\n{(ROOT / path).read_text(encoding='utf-8')}{fence}\n"
        text = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n{code}"
        files.append(File.generated(config, _page_of(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links at those pages, and unescape code in tables for Python-Markdown: code hosts need `a\\|b` for
    `a|b`."""
    here = page.file.src_uri
    folder = posixpath.dirname(here)
    for link, path in _targets(here, markdown).items():
        markdown = markdown.replace(f"]({link})", f"]({posixpath.relpath(_page_of(path), folder)})")
    rows = CODE_IN_TABLE.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
    return rows


def on_post_build(*, config: Any) -> None:
    """Raises `PluginError` if a page would load something from the network."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css") and (found := FETCHED.search(file.read_bytes())):
            raise PluginError(f"{file} cannot be read without a network: {found[0].decode()}")


def _linked(page: str, markdown: str) -> set[str]:
    return set(_targets(page, markdown).values())


def _targets(page: str, markdown: str) -> dict[str, str]:
    """Link → path in the repository, for links to files outside docs/."""
    found = {}
    for file, anchor in LINK.findall(markdown):
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), file))
        if not path.startswith(("docs/", "../")) and (ROOT / path).is_file():
            found[file + anchor] = path
    return found


def _page_of(path: str) -> str:
    return f"source/{path}.md"
