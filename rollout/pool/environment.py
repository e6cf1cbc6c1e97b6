"""Preparations for Ray before anything is loaded: the environment variables that it reads on import, and a check
whether there is a cluster to join."""

from __future__ import annotations

import os
import secrets
import socket

# Size of each log file of a session, in bytes; one older file is kept as well.
LOG_BYTES = 8 * 2**20
# How long a machine may take to answer.
LONGEST_WAIT_S = 5.0
REMEDY = "start one with `ray start --head`, or leave rollout.address unset, and the run starts workers of its own here"


def prepare_ray(address: str | None) -> None:
    """Set environment variables for this process, which a cluster that it starts inherits."""
    # A run must not report usage to anyone.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray ends a process that has not reached the cluster's head for this long: by default a minute, in which the pool
    # itself gives up (`SILENT_S`), but a run has then to save and end.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    if address is not None:
        return
    # Ray binds to the address at which other machines reach this one. Told that clusters are disabled on this kind of
    # system, it stays on the loopback device (`get_node_ip_address`). Other users of the machine need a token.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # By default Ray's workers yield to everything else (nice 15), including the grader and other users' jobs.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(LOG_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", "1")


def check_address(address: str) -> None:
    """Raises a one-line `ValueError` if there is no cluster to join at `rollout.address`."""
    message = f"rollout.address is {address or 'empty'}"
    if address != "auto" and not _is_host_and_port(address):
        raise ValueError(f"{message}: give auto, or the HOST:PORT of a cluster as `ray start --head` says it")
    prepare_ray(address)
    # As `ray.init` does: it finds the cluster of `auto`, and replaces loopback by the machine's own address.
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:  # ValueError: RAY_ADDRESS has no port
        raise ValueError(f"{message}, and no Ray cluster is found on this machine: {REMEDY}") from error
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LONGEST_WAIT_S).close()
    except OSError as error:
        where = "" if found == address else f", which is {found}"
        why = error.strerror or error
        raise ValueError(f"{message}{where}, and no Ray cluster listens there ({why}): {REMEDY}") from error


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16
