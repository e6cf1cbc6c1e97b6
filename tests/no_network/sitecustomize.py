"""Put on PYTHONPATH by tests: any connection that leaves this machine is refused and written down."""

import os
import socket
from pathlib import Path
from typing import Any

_connect = socket.socket.connect
_resolve = socket.getaddrinfo
LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def _check(host: Any) -> None:
    if isinstance(host, str) and host and not host.startswith(LOCAL) and host != socket.gethostname():
        with Path(os.environ["NETWORK_ATTEMPTS"]).open("a") as log:
            log.write(f"{host}\n")
        raise OSError(f"no network in tests: {host}")


def connect(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple):
        _check(address[0])
    _connect(self, address)


def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
    _check(host)
    return _resolve(host, *rest, **named)


socket.socket.connect = connect  # type: ignore[method-assign,assignment]
socket.getaddrinfo = getaddrinfo
