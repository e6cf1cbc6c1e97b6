"""`rollout.address` → does anybody listen there? One quick try, before anything is loaded."""

from __future__ import annotations

import socket

from rollout.pool.environment import prepare_ray

LONGEST_WAIT_S = 5.0
WAY_OUT = (
    "start one with `ray start --head`, or leave rollout.address unset, and the run starts workers of its own here"
)


def check_address(address: str) -> None:
    """Raises `ValueError`, in one line, where there is no cluster to join at `rollout.address`."""
    told = f"rollout.address is {address or 'empty'}"
    if address != "auto" and not _is_host_and_port(address):
        raise ValueError(f"{told}: give auto, or the HOST:PORT of a cluster as `ray start --head` says it")
    prepare_ray(address)
    # What `ray.init` itself asks: it finds the cluster of `auto`, and takes loopback for the machine's own address.
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError) as error:  # of the latter kind is what RAY_ADDRESS says without a port
        raise ValueError(f"{told}, and no Ray cluster is found on this machine: {WAY_OUT}") from error
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LONGEST_WAIT_S).close()
    except OSError as error:
        where = "" if found == address else f", which is {found}"
        why = error.strerror or error
        raise ValueError(f"{told}{where}, and no Ray cluster listens there ({why}): {WAY_OUT}") from error


def _is_host_and_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal() and 0 < int(port) < 2**16
