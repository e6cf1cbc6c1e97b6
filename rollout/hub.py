"""Name of a model or dataset → does it exist? One quick request, before a library tries to reach the hub for 30 s."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LONGEST_WAIT_S = 5.0


class HubError(ValueError):
    """A command needs something from the hub and cannot get it; the message is one line with a cause and a way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubItem:
    """A hub repository that a command is going to read.

    Example: `HubItem(what="model.name", repo="org/name", kind="model", instead="give a directory")`
    """

    what: str
    """The key that names it, with which messages begin."""
    repo: str
    kind: Literal["model", "dataset"]
    revision: str | None = None
    instead: str
    """What the user can do without the hub."""

    @property
    def named(self) -> str:
        """How messages name it: a model's name may have been meant as a directory, unless its revision is named."""
        if self.kind == "dataset":
            return f"{self.repo} is on the hub, and"
        if self.revision is not None:
            return f"{self.repo} at revision {self.revision} is on the hub, and"
        return f"no directory {self.repo} here, and"


class _UnreachableError(Exception):
    """The hub gave no answer about any repository."""


def stay_offline() -> None:
    """Forbid the libraries in this process, including those already imported, to contact the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


def stay_offline_without(items: Sequence[HubItem]) -> None:
    """Forbid the libraries to contact the hub if no items are needed."""
    if not items:
        os.environ["HF_HUB_OFFLINE"] = "1"


def check_hub(items: Sequence[HubItem]) -> None:
    """Ask for each repository once. If the hub is unreachable and all of them were downloaded earlier, keep the
    libraries from asking again.

    Raises `HubError` for the first repository that is unavailable.
    """
    for item in dict.fromkeys(items):
        try:
            _ask(item)
        except _UnreachableError as cause:
            for one in items:
                if not _is_downloaded(one):
                    raise HubError(f"{one.what}: {one.named} the hub {cause}: {one.instead}") from cause
            stay_offline()
            return


def _ask(item: HubItem) -> None:
    import httpx2
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    page = f"https://huggingface.co/{'datasets/' if item.kind == 'dataset' else ''}{item.repo}"
    file = "config.json" if item.kind == "model" else "README.md"
    try:
        url = hf_hub_url(item.repo, file, repo_type=item.kind, revision=item.revision)
        get_hf_file_metadata(url, timeout=LONGEST_WAIT_S)
    except errors.HFValidationError as error:
        neither = "neither a directory here nor" if item.kind == "model" else "not"
        end = "" if item.kind == "model" else f": {item.instead}"
        raise HubError(f"{item.what}: {item.repo!r} is {neither} a name of the hub, which is ORG/NAME{end}") from error
    except errors.OfflineModeIsEnabled as error:
        raise _UnreachableError("may not be asked (HF_HUB_OFFLINE is set)") from error
    except httpx2.TransportError as error:
        raise _UnreachableError(f"cannot be reached ({str(error) or type(error).__name__})") from error
    except errors.GatedRepoError as error:
        raise HubError(
            f"{item.what}: {item.repo} is gated: ask for access at {page}, then log in with `hf auth login` or HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{item.what}: {item.named} the hub has no such {item.kind} (a private one needs `hf auth login` or "
            f"HF_TOKEN): {item.instead}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{item.what}: {item.repo} has no revision {item.revision!r} on the hub") from error
    except errors.EntryNotFoundError as error:
        if item.kind == "model":
            raise HubError(f"{item.what}: {item.repo} on the hub is not a model: it has no {file}") from error
    except errors.HfHubHTTPError as error:
        raise _UnreachableError(f"answers {error.response.status_code} {error.response.reason_phrase}") from error


def commit_of(repo: str, revision: str | None = None) -> str:
    """The commit of a model's revision, by default of its default branch: the hub's, or the one downloaded last where
    the hub may not be asked. Call `check_hub` first."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, "config.json", revision=revision)).parent.name


def _is_downloaded(item: HubItem) -> bool:
    """Whether an earlier command downloaded it. The datasets library has a cache directory of its own."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    if item.kind == "model":
        try:
            return isinstance(try_to_load_from_cache(item.repo, "config.json", revision=item.revision), str)
        except HFValidationError:
            return False
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    fetched = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=item.repo, repo_type="dataset")
    return fetched.is_dir() or (prepared / item.repo.replace("/", "___")).is_dir()
