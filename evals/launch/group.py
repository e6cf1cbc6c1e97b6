"""The processes of an evaluation: one, or as many as a launcher started, each with an engine of its own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

# The last rank may still be at a batch of long chains of thought while the others wait.
PATIENCE = timedelta(hours=12)
# What torchrun and DeepSpeed's launcher tell each process. Its number on its machine, LOCAL_RANK, has a default.
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How gloo says it, which a single process uses too.
NO_INTERFACE = re.compile(r"Unable to find (interface|address) for: (?P<name>\S+)")


@dataclass(frozen=True, slots=True)
class Launch:
    """Which process this is, of how many."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process. Some of its variables are no launcher where they name no other process:
    RANK may be left of another program, or be a cluster's own.

    Raises `ValueError` where they do, and not how to find it.
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return False
    missing = [name for name in TOLD if name not in environment]
    if missing and environment["WORLD_SIZE"] != "1":
        raise ValueError(
            f"WORLD_SIZE ({environment['WORLD_SIZE']!r}) and RANK ({environment['RANK']!r}) are set, as under a "
            f"launcher, but not {', '.join(missing)}: start the processes with torchrun, or unset WORLD_SIZE if there "
            "is only one"
        )
    return not missing


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """Raises `ValueError` where gloo does not find the network interface that it is told, as one that is another
    machine's."""
    try:
        yield
    except RuntimeError as error:
        if (found := NO_INTERFACE.search(str(error))) is None:
            raise
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise ValueError(
            f"GLOO_SOCKET_IFNAME is {found['name']!r}, and no network interface of that name is up: there are {there}"
        ) from error


def join_launch() -> Launch:
    """Enter the launcher's process group, when there is one. Raises `ValueError`, see `is_launched`."""
    if not is_launched() or (count := int(os.environ["WORLD_SIZE"])) == 1:
        return Launch(0, 1)
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with joining():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Launch(dist.get_rank(), count)


def leave_launch(launch: Launch) -> None:
    if launch.count > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
