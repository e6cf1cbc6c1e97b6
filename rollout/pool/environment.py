"""What Ray reads from the environment while it is imported: to be set before `rollout.pool.ray_pool` is."""

from __future__ import annotations

import os
import secrets

# Of each of a session's log files, in bytes; one older file is kept beside it.
LOG_BYTES = 8 * 2**20


def prepare_ray(address: str | None) -> None:
    """Settings of this process, which a cluster that it starts inherits."""
    # Nothing may be reported to anyone from a run.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if address is not None:
        return
    # Ray binds to the address by which other machines would reach this one. Told that there is no cluster on this kind
    # of system, it stays on the loopback device (`get_node_ip_address`); and whoever is on the machine needs a token.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray would have its workers give way to everything else (nice 15), the grader and other people's work included.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(LOG_BYTES))
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", "1")
