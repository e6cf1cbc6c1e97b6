"""Release folder → hub repository: one commit and one tag per version; files that the hub has are not sent again."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    ModelCardData,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from datafiles.text import in_one_line
from rl_engine.push.model_card import Licence
from rl_engine.push.release import files_of
from rl_engine.run.records import PLOT
from rl_engine.run.trained_adapter import BaseModel
from rollout.adapters import CHAT_TEMPLATE, sha256_of

ATTEMPTS = 4
FIRST_WAIT_S = 1.0
TIMEOUT_S = 120.0
"""Timeout for a response of the hub, whose client has none by default."""
LOOKUP_S = 10.0
"""Timeout for looking up the base model's licence."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
# Paths in a repository that belong to a release and are deleted if the next release lacks them.
OURS = ("run/", "merged/", PLOT, CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a release goes.

    Example: `Destination(repo="user/name", branch="main", tag="v000025", private=False)`
    """

    repo: str
    branch: str
    tag: str
    private: bool


def require_token() -> None:
    """Raises `ValueError` if the user is not logged in."""
    if get_token() is None:
        raise ValueError("not logged in to the hub: log in with `hf auth login`, or set HF_TOKEN; --dry-run needs none")


@functools.cache  # once per process: creating a client reads the machine's certificates
def limit_waits() -> None:
    """Give every request of this process a timeout, keeping the client's own hooks."""
    hooks = get_session().event_hooks
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=TIMEOUT_S))


def licence_of(api: HfApi, base: BaseModel, given: str | None) -> Licence:
    """The licence given by the user, else the base model's from its card, if that can be read."""
    if given is not None:
        return Licence(id=given, origin="given")
    card = None
    if base.directory is not None and (base.directory / "README.md").is_file():
        card = _card_of(base.directory / "README.md")
    elif base.hub_id is not None:
        # The licence is optional: if the hub is unreachable, it stays unstated.
        with suppress(HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError):
            card = api.model_info(base.hub_id, revision=base.revision, timeout=LOOKUP_S).card_data
    elif base.is_embedded:
        return Licence(id="apache-2.0", origin="base")
    if card is None or card.license is None:
        return Licence(id=None)
    return Licence(id=card.license, name=card.license_name, link=card.license_link, origin="base")


def _card_of(page: Path) -> ModelCardData:
    """The metadata of a model card. Raises a one-line `ValueError` if there is none that can be read."""
    try:
        card: ModelCardData = ModelCard.load(page).data
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"the metadata of {page} cannot be read ({in_one_line(error)}): give --license") from error
    return card


def upload(api: HfApi, folder: Path, destination: Destination, message: str) -> bool:
    """Commit the folder's files and tag the commit. Returns False if the tag already holds exactly these files.

    Every attempt starts over and checks what the hub has by then, so it may fail at any point. Raises `ValueError` if
    the tag holds other files or a private release would be public, and huggingface_hub's errors if the hub refuses or
    does not respond.
    """
    attempt = 0
    while True:
        try:
            return _upload_once(api, folder, destination, message)
        except (HfHubHTTPError, httpx2.TransportError) as error:
            attempt += 1
            passes = not isinstance(error, HfHubHTTPError) or error.response.status_code in TRANSIENT
            if attempt == ATTEMPTS or not passes:
                raise
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))


def _upload_once(api: HfApi, folder: Path, destination: Destination, message: str) -> bool:
    repo, tag, files = destination.repo, destination.tag, files_of(folder)
    api.create_repo(repo, private=True if destination.private else None, exist_ok=True)
    if destination.private and not api.model_info(repo).private:
        raise ValueError(f"--private: {repo} exists and is public; change that on the hub, or leave --private out")
    refs = api.list_repo_refs(repo)
    if tag in [ref.name for ref in refs.tags]:
        if _same(folder, files, _remote(api, repo, tag)):
            return False
        raise ValueError(f"{repo} has a tag {tag} with other files, and a tag never moves: give another --tag")
    if destination.branch not in [ref.name for ref in refs.branches]:
        api.create_branch(repo, branch=destination.branch)
    there = _remote(api, repo, destination.branch)
    stale = [path for path in there if path.startswith(OURS) and Path(path) not in files]
    commit = api.create_commit(
        repo,
        operations=[
            *(CommitOperationAdd(path_in_repo=str(path), path_or_fileobj=folder / path) for path in files),
            *(CommitOperationDelete(path_in_repo=path) for path in stale),
        ],
        commit_message=message,
        revision=destination.branch,
    )
    api.create_tag(repo, tag=tag, tag_message=message, revision=commit.oid)
    return True


def _remote(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _same(folder: Path, files: Sequence[Path], there: dict[str, RepoFile]) -> bool:
    """Whether the hub holds exactly these files, apart from those that do not belong to a release."""
    others = {path for path in there if path.startswith(OURS)} - {str(path) for path in files}
    return not others and all(_is(folder / path, there.get(str(path))) for path in files)


def _is(path: Path, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == sha256_of(path)
    content = path.read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
