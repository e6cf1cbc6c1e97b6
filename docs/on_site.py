"""What the pages are on the site that they are not as files: functions that MkDocs calls while it builds.

A link to a file outside docs/, as `../configs/math.yaml`, opens that file on a code host; here it opens a page with the
file in it, at its top, wherever in the file the link leads. Nothing on a page is fetched from a network.
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
"""What a browser fetches when it opens a page; links that a reader may follow are not among it."""


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
    """Point the links at those pages, and write code in tables as Python-Markdown reads it: `a|b` there is `a\\|b` on a
    code host."""
    here = page.file.src_uri
    folder = posixpath.dirname(here)
    for link, path in _targets(here, markdown).items():
        markdown = markdown.replace(f"]({link})", f"]({posixpath.relpath(_page_of(path), folder)})")
    rows = CODE_IN_TABLE.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
    return rows


def on_post_build(*, config: Any) -> None:
    """Raises `PluginError` where a page would fetch something from a network to be read."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css") and (found := FETCHED.search(file.read_bytes())):
            raise PluginError(f"{file} cannot be read without a network: {found[0].decode()}")


def _linked(page: str, markdown: str) -> set[str]:
    return set(_targets(page, markdown).values())


def _targets(page: str, markdown: str) -> dict[str, str]:
    """Link → the path of the file in the repository, of those that lead to one outside docs/."""
    found = {}
    for file, anchor in LINK.findall(markdown):
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), file))
        if not path.startswith(("docs/", "../")) and (ROOT / path).is_file():
            found[file + anchor] = path
    return found


def _page_of(path: str) -> str:
    return f"source/{path}.md"
