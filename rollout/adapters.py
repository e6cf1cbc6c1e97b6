"""Adapter ↔ published version: a directory in PEFT's own format, with a manifest written last.

A version is complete or absent: it is written to a scratch directory, synced, and renamed into place; readers trust
only what the manifest lists. A version number is never reused for other weights.
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
"""transformers' file name. Present in an adapter that was trained with another template than the model's own."""
Pointer = Literal["latest", "best"]


class AdapterError(ValueError):
    """A published adapter that cannot be trusted or does not belong here."""


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of all files in `directory`. Call it last, after everything else is written."""
    files = {file.name: sha256_of(file) for file in sorted(directory.iterdir()) if file.name != MANIFEST}
    manifest = {"format": FORMAT, **facts, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest after comparing every file with its digest; call it once on whatever is about to be loaded.

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
    """Return a version's manifest without verifying the files it lists: hashing a whole model takes seconds.

    Raises `AdapterError` where there is no manifest of this format.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MAX_MANIFEST_BYTES:,} bytes")
        manifest: Any = read_json(path.read_text(encoding="utf-8"))
        manifest = {**manifest, "files": dict(manifest["files"])}
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AdapterError(f"{directory} has no {MANIFEST}: it was never published") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from error
    if manifest.get("format") != FORMAT:
        raise AdapterError(f"{path} has format {manifest.get('format')!r}: this version reads format {FORMAT}")
    return dict(manifest)


def is_whole_model(manifest: dict[str, Any]) -> bool:
    """Whether a version holds all weights of a model rather than an adapter."""
    return manifest.get("kind") == "full"


def identity_of(directory: Path) -> str:
    """The digest for `AdapterRef.sha256`: of the manifest, or of the weights if PEFT wrote the adapter without one."""
    manifest = directory / MANIFEST
    return sha256_of(manifest if manifest.is_file() else directory / PEFT_WEIGHTS)


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """The version that a user means by a path, in every command that takes an adapter."""

    directory: Path
    why: str = ""
    """Which version of a run was chosen and why, as text for the user; empty if the path is a version itself."""


def resolve_version(path: Path) -> ResolvedVersion:
    """Resolve a path: a version to itself, a run to its best version, or to its newest if no evaluation names a best.

    A directory that is neither is returned unchanged: the code that reads it reports what is missing.
    Raises `AdapterError` where a link names a version that is gone, and no other is meant.
    """
    store = AdapterStore(path / "adapters")
    if (path / MANIFEST).is_file() or (path / PEFT_CONFIG).is_file():
        return ResolvedVersion(path)
    if gone := missing_version(path):
        raise AdapterError(f"--adapter: {gone}")
    best, latest = (store.root / pointer for pointer in ("best", "latest"))
    newest = store.root / latest.resolve().name
    if best.is_dir():
        found = store.root / best.resolve().name
        reason = "it is the newest too" if found == newest else f"the newest is {latest}"
        if found != newest and found == store.path_of(0):
            reason = f"no score was higher than the one before training; {reason}"
        return ResolvedVersion(found, f"{path} is a run: using its best version, {found.name} ({reason})")
    if latest.is_dir():
        reason = _gone(best) if best.is_symlink() else "no evaluation says which is best"
    elif latest.is_symlink():
        raise AdapterError(f"--adapter: {path} is a run, and {_gone(latest)}; {store.hint_of_others()}")
    elif left := store.versions():
        newest = store.path_of(left[-1])
        reason = "its links latest and best are missing, as in a copy, so its best version is not known"
    else:
        return ResolvedVersion(path)
    return ResolvedVersion(newest, f"{path} is a run: using its newest version, {newest.name} ({reason})")


def missing_version(path: Path) -> str:
    """The message for a path that is a link to a deleted version; empty for any other path."""
    if path.is_symlink() and not path.exists():
        return f"{_gone(path)}; {AdapterStore(path.parent).hint_of_others()}"
    return ""


def adapters_inside(path: Path) -> str:
    """A hint for a directory that is not an adapter but contains some: a trainer's output with its checkpoints, or one
    into which PEFT saved an adapter under another name. Empty if it contains none."""
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
        """Write a version with `write(directory)`, then its manifest.

        A resumed run publishes some versions a second time; on CPU they are bit-identical.
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
        """Delete all later versions: a run that resumes from a checkpoint publishes them again."""
        for newer in [number for number in numbered(self.root, "v") if number > version]:
            self.delete(newer)

    def point(self, pointer: Pointer, version: int) -> None:
        """Point a symbolic link at a version, atomically."""
        link = self.root / pointer
        if not link.is_symlink() and link.is_dir():
            if not (link / MANIFEST).is_file():
                raise AdapterError(f"{link} is a directory, where the run keeps a link to a version: move it away")
            discard(link)  # a copy of a run that followed links has the version itself here
        scratch = self.root / f".{pointer}.partial"
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(self.path_of(version).name)
        scratch.replace(link)

    def pointed(self, pointer: Pointer) -> int | None:
        """The version that a link points at, or whose copy replaces the link in a copied run."""
        link = self.root / pointer
        if link.is_symlink():
            return int(link.readlink().name[1:])
        return int(stated_manifest(link)["version"]) if (link / MANIFEST).is_file() else None

    def open(self, version: int) -> AdapterRef:
        """The reference to a published version, after verifying its files."""
        read_manifest(self.path_of(version))
        return self.announced(version)

    def announced(self, version: int) -> AdapterRef:
        """The reference to a version just published. Nothing is verified here: the engine verifies what it loads."""
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

    def hint_of_others(self) -> str:
        """The hint for users whose version is gone."""
        left = self.versions()
        return f"give another version, such as {self.path_of(left[-1])}" if left else "no other version is there"

    def delete(self, version: int) -> None:
        discard(self.path_of(version))
