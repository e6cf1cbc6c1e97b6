"""Messages between the grader and its processes: a length, then JSON in ASCII.

ASCII, because a completion may contain lone surrogates, which UTF-8 rejects and `\\uXXXX` escapes can carry.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct("!I")
MAX_MESSAGE_BYTES = 256 * 2**20

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    body = json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return HEADER.pack(len(body)) + body


def take(buffer: bytearray) -> Message | None:
    """Remove and return the first complete message in `buffer`, or return None if there is none yet."""
    if len(buffer) < HEADER.size:
        return None
    (length,) = HEADER.unpack_from(buffer)
    if len(buffer) < HEADER.size + length:
        return None
    body = bytes(buffer[HEADER.size : HEADER.size + length])
    del buffer[: HEADER.size + length]
    message: Message = json.loads(body)
    return message


def receive(connection: socket.socket, buffer: bytearray) -> Message | None:
    """Wait for one message. None if the other side has closed the connection."""
    while True:
        message = take(buffer)
        if message is not None:
            return message
        chunk = connection.recv(1 << 16)
        if not chunk:
            return None
        buffer += chunk
