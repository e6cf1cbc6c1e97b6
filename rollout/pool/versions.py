"""A published version → every worker: an adapter as one object in the store, a whole model as files, once per machine.

An adapter is small: its bytes stay in memory as long as it may be sampled from, for workers that come later, and are in
the store only while they are sent. A whole model is large (16 GB for 8B parameters) and replaces the previous one.
Workers on a machine that sees the directory where it was published read it there. To any other machine it is sent in
pieces, and each piece leaves the store once the following ones are in transit. Either way one worker per machine checks
every file against the digest in the manifest, and its neighbours load the verified files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from rollout.adapters import MANIFEST, AdapterError, is_whole_model, read_manifest, sha256_of, stated_manifest
from rollout.pool.cluster import check_here
from rollout.pool.space import PIECE_BYTES, PIECES_KEPT
from rollout.pool.worker_handle import Call, Complaint, WorkerHandle
from rollout.types import AdapterRef


class Version(Protocol):
    """A version that workers must have."""

    ref: AdapterRef

    def call(self, worker: WorkerHandle, deadline: float) -> Call | None:
        """The next request to a worker that lacks the version; None while a neighbour is getting the files."""
        ...

    def forget(self, worker: WorkerHandle) -> None:
        """Note that a worker is gone, and the files it held with it."""
        ...


@dataclass(eq=False)
class Adapter:
    """An adapter, sent in one piece.

    It leaves the store once every worker has it. If Ray ends on this machine (`ray stop`, or a cluster that takes the
    machine for lost) while the store holds an object of this process, Ray also ends this process, without a word.
    """

    ref: AdapterRef
    _files: dict[str, bytes] = field(init=False)
    """Content by file name."""
    _in_store: Any = field(init=False)
    """Reference to the files in the store; None if they are not there."""
    _takers: set[WorkerHandle] = field(default_factory=set, init=False)
    """Workers that are taking it from the store."""

    def __post_init__(self) -> None:
        names = [MANIFEST, *read_manifest(self.ref.path)["files"]]
        self._files = {name: (self.ref.path / name).read_bytes() for name in names}
        self._in_store = stored(self._files)

    def call(self, worker: WorkerHandle, deadline: float) -> Call | None:
        if self._in_store is None:
            self._in_store = stored(self._files)
        self._takers.add(worker)
        call = worker.load(self.ref, self._in_store, deadline)

        def taken(digest: str) -> Complaint:
            self.forget(worker)
            return call.accept(digest)

        return replace(call, accept=taken)

    def forget(self, worker: WorkerHandle) -> None:
        self._takers.discard(worker)
        if not self._takers:
            self._in_store = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A range of bytes of a file."""

    name: str
    start: int
    count: int


@dataclass(eq=False)
class _Copy:
    """A machine's copy of the files, and its progress."""

    holder: WorkerHandle
    """The worker that gets the files, and holds them if they had to be sent."""
    asked: bool = False
    """Whether the holder has looked for the files."""
    sent: int = 0
    """Number of pieces sent."""
    path: Path | None = None
    """Where the files are, once all are verified."""


@dataclass(eq=False)
class WholeModel:
    """A whole model, read where it was published or sent in pieces."""

    ref: AdapterRef
    _pieces: list[_Piece] = field(default_factory=list, init=False)
    """All pieces; the manifest is last, because without it there is no version."""
    _in_store: dict[int, Any] = field(default_factory=dict, init=False)
    """Number of a piece → its reference, for the last few pieces sent, which other machines may need soon."""
    _copies: dict[str, _Copy] = field(default_factory=dict, init=False)
    """Machine → its copy."""

    def __post_init__(self) -> None:
        for name in (*stated_manifest(self.ref.path)["files"], MANIFEST):
            size = (self.ref.path / name).stat().st_size
            self._pieces += [
                _Piece(name=name, start=start, count=min(PIECE_BYTES, size - start))
                for start in range(0, max(size, 1), PIECE_BYTES)
            ]

    def call(self, worker: WorkerHandle, deadline: float) -> Call | None:
        """Look for the files; if they are missing, receive them piece by piece and look again; then load."""
        node = worker.find()
        if node is None:
            return None
        copy = self._copies.setdefault(node, _Copy(worker))
        if copy.path is not None:
            return worker.load_from(copy.path, self.ref, deadline)
        if copy.holder is not worker:
            return None
        if copy.asked and copy.sent < len(self._pieces):
            return self._send(worker, copy, deadline)
        return worker.look(self.ref, deadline, lambda found: self._looked(copy, found))

    def forget(self, worker: WorkerHandle) -> None:
        self._copies = {node: copy for node, copy in self._copies.items() if copy.holder is not worker}

    def _looked(self, copy: _Copy, found: Path | None) -> Complaint:
        if found is None and copy.asked:
            return f"{self.ref.key} was sent to it and is not there"
        copy.asked, copy.path = True, found
        if all(one.path is not None for one in self._copies.values()):
            self._in_store.clear()
        return None

    def _send(self, worker: WorkerHandle, copy: _Copy, deadline: float) -> Call:
        def taken(_: None) -> Complaint:
            copy.sent += 1
            return None

        piece = self._pieces[copy.sent]
        left = sum(one.count for one in self._pieces[copy.sent :])
        handle = worker.actor.take_piece.remote(self.ref.key, piece.name, piece.start, self._stored(copy.sent), left)
        return Call(handle=handle, deadline=deadline, accept=taken)

    def _stored(self, number: int) -> Any:
        """A reference to a piece in the store. It leaves after `PIECES_KEPT` others, once no worker is taking it."""
        if number not in self._in_store:
            piece = self._pieces[number]
            content = np.fromfile(self.ref.path / piece.name, np.uint8, piece.count, offset=piece.start)
            self._in_store[number] = stored(content)
            while len(self._in_store) > PIECES_KEPT:
                self._in_store.pop(next(iter(self._in_store)))
        return self._in_store[number]


def stored(content: Any) -> Any:
    """Put the content into the object store → its reference. Raises `PoolError` if Ray no longer runs on this machine,
    where it would end the process."""
    check_here()
    return ray.put(content)


def version_of(ref: AdapterRef) -> Version:
    """The version published at `ref.path`, ready to send. Raises `AdapterError` if it is not what was announced."""
    if sha256_of(ref.path / MANIFEST) != ref.sha256:
        raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
    return WholeModel(ref) if is_whole_model(stated_manifest(ref.path)) else Adapter(ref)
