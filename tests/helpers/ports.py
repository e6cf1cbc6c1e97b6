"""Ports for the ranks of a test."""

from __future__ import annotations

import secrets
import socket


def meeting_place(ranks: int) -> dict[str, str]:
    """A launcher's variables for `ranks` processes on this machine.

    The port is not one that the system hands out: an outgoing connection of any process could take it before rank 0
    listens there.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
