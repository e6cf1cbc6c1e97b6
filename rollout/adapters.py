"""Adapter ↔ published version: a directory in PEFT's own format, with a manifest written last.

A version is complete or absent: it is written aside, synced, and renamed into place; readers trust only what
the manifest vouches for. A version's number is never used again for other weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datafiles.text import read_json
from rollout.files.durable import discard, numbered, remove_leftovers, written_aside
from rollout.types import AdapterRef

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 20
# PEFT's names for the two files of an adapter.
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
CHAT_TEMPLATE = "chat_template.jinja"
"""Of an adapter, the one it was trained with in the place of the model's own; transformers' name for it."""
Pointer = Literal["latest", "best"]


class AdapterError(ValueError):
    """A published adapter that cannot be trusted or does not belong here."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, facts: dict[str, Any]) -> None:
    """The manifest of everything that lies in `directory`; to be called when all else is written."""
    files = {file.name: sha256_of(file) for file in sorted(directory.iterdir()) if file.name != MANIFEST}
    manifest = {"format": FORMAT, **facts, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, once every file it names has the digest it states: what is to be loaded is read so, once.

    Raises `AdapterError` where there is none, or one of another format.
    """
    manifest = stated_manifest(directory)
    for name, digest in manifest["files"].items():
        file = directory / name
        if Path(name).name != name or not file.is_file():
            raise AdapterError(f"{directory}: its manifest lists {name!r}, which is missing")
        if sha256_of(file) != digest:
            raise AdapterError(f"{file} is not what was published: its sha256 differs from the manifest's")
    return manifest


def stated_manifest(directory: Path) -> dict[str, Any]:
    """What a version says of itself. The files that it names are not looked at: a whole model's take seconds to hash.

    Raises `AdapterError` where there is no manifest of this format.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MAX_MANIFEST_BYTES:,} bytes")
        manifest: Any = read_json(path.read_text(encoding="utf-8"))
        manifest = {**manifest, "files": dict(manifest["files"])}
    except FileNotFoundError as error:
        raise AdapterError(f"{directory} has no {MANIFEST}: it was never published") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from error
    if manifest.get("format") != FORMAT:
        raise AdapterError(f"{path} has format {manifest.get('format')!r}: this version reads format {FORMAT}")
    return dict(manifest)


def is_whole_model(manifest: dict[str, Any]) -> bool:
    """Whether a version is every weight of a model, and no adapter."""
    return manifest.get("kind") == "full"


def identity_of(directory: Path) -> str:
    """The digest that `AdapterRef.sha256` holds: of the manifest, or of the weights where PEFT alone wrote them."""
    manifest = directory / MANIFEST
    return sha256_of(manifest if manifest.is_file() else directory / PEFT_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Meant:
    """The version that a person means by a directory, in every command that takes an adapter."""

    directory: Path
    why: str = ""
    """Which version of a run was taken and why, for people; empty where the directory is the version itself."""


def meant_version(path: Path) -> Meant:
    """A version's own directory as it is; of a run the best version, else, where no evaluation says which, the newest.

    A directory that is neither is returned as it is: whoever reads it says what is missing.
    Raises `AdapterError` where a link names a version that is gone, and no other is meant.
    """
    store = AdapterStore(path / "adapters")
    if (path / MANIFEST).is_file() or (path / PEFT_CONFIG).is_file():
        return Meant(path)
    if gone := gone_version(path):
        raise AdapterError(f"--adapter: {gone}")
    best, latest = (store.root / pointer for pointer in ("best", "latest"))
    newest = store.root / latest.resolve().name
    if best.is_dir():
        found = store.root / best.resolve().name
        told = "it is the newest too" if found == newest else f"the newest is {latest}"
        return Meant(found, f"{path} is a run: using its best version, {found.name} ({told})")
    if latest.is_dir():
        told = _gone(best) if best.is_symlink() else "no evaluation says which is best"
        return Meant(newest, f"{path} is a run: using its newest version, {newest.name} ({told})")
    if latest.is_symlink():
        raise AdapterError(f"--adapter: {path} is a run, and {_gone(latest)}; {store.what_is_left()}")
    if left := store.versions():
        newest = store.path_of(left[-1])
        told = "its links latest and best are missing, as in a copy, so its best version is not known"
        return Meant(newest, f"{path} is a run: using its newest version, {newest.name} ({told})")
    return Meant(path)


def gone_version(path: Path) -> str:
    """What a person is told where the path is a link to a version that is gone; empty where it is not."""
    if path.is_symlink() and not path.exists():
        return f"{_gone(path)}; {AdapterStore(path.parent).what_is_left()}"
    return ""


def adapters_inside(path: Path) -> str:
    """What a person is told besides where a directory is no adapter and holds some, as a trainer's with its checkpoints
    does, or one that PEFT wrote an adapter of another name into; empty where it holds none."""
    inside = sorted((file.parent.name for file in path.glob(f"*/{PEFT_CONFIG}")), key=lambda name: (len(name), name))
    return f"; give {path / inside[-1]}, or another of the {len(inside)} adapters in it" if inside else ""


def _gone(link: Path) -> str:
    return f"{link} points to {link.readlink().name}, which is missing"


@dataclass(frozen=True, slots=True)
class AdapterStore:
    """The published versions of one adapter under one directory: `v000000`, `v000001`, …, `latest`, `best`."""

    root: Path
    name: str = "policy"

    def path_of(self, version: int) -> Path:
        return self.root / f"v{version:06d}"

    def publish(self, version: int, write: Callable[[Path], None], facts: dict[str, Any]) -> AdapterRef:
        """Write a version with `write(directory)` and vouch for it.

        A resumed run comes back to versions it has published before: it makes them again, bit for bit on CPU.
        """
        target = self.path_of(version)
        self.root.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as scratch:
            write(scratch)
            write_manifest(scratch, {"name": self.name, "version": version, **facts})
        self.point("latest", version)
        remove_leftovers(self.root, "v")
        return self.announced(version)

    def rewind(self, version: int) -> None:
        """Forget versions after this one: a run that goes on from a checkpoint makes them again."""
        for newer in [number for number in numbered(self.root, "v") if number > version]:
            self.delete(newer)

    def point(self, pointer: Pointer, version: int) -> None:
        """Make a symbolic link name a version; it never names nothing in between."""
        link = self.root / pointer
        if not link.is_symlink() and (link / MANIFEST).is_file():
            discard(link)  # the version itself, in a copy of a run that was made through the links
        scratch = self.root / f".{pointer}.partial"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(self.path_of(version).name)
        scratch.replace(link)

    def pointed(self, pointer: Pointer) -> int | None:
        """The version that a link names, or that a copy of the run has in its place."""
        link = self.root / pointer
        if link.is_symlink():
            return int(link.readlink().name[1:])
        return int(stated_manifest(link)["version"]) if (link / MANIFEST).is_file() else None

    def open(self, version: int) -> AdapterRef:
        """The reference of a published version, verified."""
        read_manifest(self.path_of(version))
        return self.announced(version)

    def announced(self, version: int) -> AdapterRef:
        """The reference of a version just published, for an engine to load: it verifies what it loads."""
        path = self.path_of(version)
        manifest = stated_manifest(path)
        return AdapterRef(
            name=self.name,
            version=version,
            path=path.resolve(),
            sha256=sha256_of(path / MANIFEST),
            rank=int(manifest["rank"]),
        )

    def versions(self) -> list[int]:
        return [number for number, path in numbered(self.root, "v").items() if (path / MANIFEST).is_file()]

    def what_is_left(self) -> str:
        """For people whose version is gone."""
        left = self.versions()
        return f"give another version, such as {self.path_of(left[-1])}" if left else "no other version is there"

    def delete(self, version: int) -> None:
        discard(self.path_of(version))
