"""A published version → every worker: an adapter as one object of the store, a whole model as files, once a machine.

An adapter is small, and several are loaded at a time: its bytes stay in the store as long as it may be sampled from. A
whole model is neither: 16 GB at 8B, and each takes the place of the one before. Where a machine sees the directory that
it was published in, its workers read it there. To another one it goes in pieces, each of which leaves the store when
the next ones are under way. Either way one worker of a machine looks at the files, each against the manifest's digest,
and its neighbours load what it found good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from rollout.adapters import MANIFEST, AdapterError, is_whole_model, read_manifest, sha256_of, stated_manifest
from rollout.pool.member import Call, Complaint, Member
from rollout.pool.room import PIECE_BYTES, PIECES_KEPT
from rollout.types import AdapterRef


class Version(Protocol):
    """What workers are to have."""

    ref: AdapterRef

    def call(self, worker: Member, deadline: float) -> Call | None:
        """The next thing to ask of a worker that does not have it; None while a neighbour sees to the files."""
        ...

    def forget(self, worker: Member) -> None:
        """It is gone, and what lay with it."""
        ...


@dataclass(eq=False)
class Adapter:
    """Sent whole."""

    ref: AdapterRef
    _files: Any = field(init=False)
    """References into the store, by name of the file."""

    def __post_init__(self) -> None:
        names = [MANIFEST, *read_manifest(self.ref.path)["files"]]
        self._files = ray.put({name: (self.ref.path / name).read_bytes() for name in names})

    def call(self, worker: Member, deadline: float) -> Call | None:
        return worker.load(self.ref, self._files, deadline)

    def forget(self, worker: Member) -> None:
        """Nothing: each worker has its own copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Bytes of a file."""

    name: str
    start: int
    count: int


@dataclass(eq=False)
class _Copy:
    """A machine's files, or the way there."""

    holder: Member
    """Who sees to them, and has them if they had to be sent."""
    asked: bool = False
    """Whether it has looked for them."""
    sent: int = 0
    """Pieces."""
    path: Path | None = None
    """Where they lie, once all of them are good."""


@dataclass(eq=False)
class WholeModel:
    """Read where it was published, or sent in pieces."""

    ref: AdapterRef
    _pieces: list[_Piece] = field(default_factory=list, init=False)
    """The manifest is the last: without it there is no version."""
    _in_store: dict[int, Any] = field(default_factory=dict, init=False)
    """The last few pieces that were sent, for machines that are about as far."""
    _copies: dict[str, _Copy] = field(default_factory=dict, init=False)
    """The copy of each machine."""

    def __post_init__(self) -> None:
        for name in (*stated_manifest(self.ref.path)["files"], MANIFEST):
            size = (self.ref.path / name).stat().st_size
            self._pieces += [
                _Piece(name=name, start=start, count=min(PIECE_BYTES, size - start))
                for start in range(0, max(size, 1), PIECE_BYTES)
            ]

    def call(self, worker: Member, deadline: float) -> Call | None:
        """Look for the files; where they are not, take them piece by piece and look again; then load."""
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

    def forget(self, worker: Member) -> None:
        self._copies = {node: copy for node, copy in self._copies.items() if copy.holder is not worker}

    def _looked(self, copy: _Copy, found: Path | None) -> Complaint:
        if found is None and copy.asked:
            return f"{self.ref.key} was sent to it and is not there"
        copy.asked, copy.path = True, found
        if all(one.path is not None for one in self._copies.values()):
            self._in_store.clear()
        return None

    def _send(self, worker: Member, copy: _Copy, deadline: float) -> Call:
        def taken(_: None) -> Complaint:
            copy.sent += 1
            return None

        piece = self._pieces[copy.sent]
        left = sum(one.count for one in self._pieces[copy.sent :])
        handle = worker.actor.take_piece.remote(self.ref.key, piece.name, piece.start, self._stored(copy.sent), left)
        return Call(handle=handle, deadline=deadline, accept=taken)

    def _stored(self, number: int) -> Any:
        """A piece in the store; it leaves when `PIECES_KEPT` others were put after it and no worker is taking it."""
        if number not in self._in_store:
            piece = self._pieces[number]
            content = np.fromfile(self.ref.path / piece.name, np.uint8, piece.count, offset=piece.start)
            self._in_store[number] = ray.put(content)
            while len(self._in_store) > PIECES_KEPT:
                self._in_store.pop(next(iter(self._in_store)))
        return self._in_store[number]


def version_of(ref: AdapterRef) -> Version:
    """What is published there, to hand out. Raises `AdapterError` where it is not what was announced."""
    if sha256_of(ref.path / MANIFEST) != ref.sha256:
        raise AdapterError(f"{ref.path} was published anew since {ref.key} was announced")
    return WholeModel(ref) if is_whole_model(stated_manifest(ref.path)) else Adapter(ref)
