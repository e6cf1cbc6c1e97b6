"""The processes of an evaluation: one, or several started by a launcher, each with its own engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from datafiles.text import first_line
from rollout.stopping import stops_handled

# The last rank may still be sampling a batch of long chains of thought while the others wait.
PATIENCE = timedelta(hours=12)
SEEN_WITHIN_S = 60.0
"""For this long a network file system may not show what another machine has just made."""
# Variables that torchrun and DeepSpeed's launcher set for each process. LOCAL_RANK, which has a default, is not listed.
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The number of processes that MPI or Slurm started together, in a process that one of them started.
TOGETHER = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# How gloo says it, which a single process uses too.
NO_INTERFACE = re.compile(r"Unable to find (interface|address) for: (?P<name>\S+)")
# How torch says that a process that is told another's address has not met it.
NOT_MET = re.compile(r"The client socket has (timed out|failed)|waiting for clients")
# How NCCL says that processes were not told which of them takes which card.
SAME_CARD = re.compile(r"Duplicate GPU detected\s*:\s*rank (?P<one>\d+) and rank (?P<other>\d+)")


@dataclass(frozen=True, slots=True)
class Launch:
    """This process's rank, and the number of processes."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has reached this point."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process. Some of a launcher's variables, without other processes, do not count:
    RANK may be left over from another program, or set by the cluster.

    Raises `ValueError` if WORLD_SIZE says that there are other processes, but variables to find them are missing.
    """
    if not {"RANK", "WORLD_SIZE"} <= environment.keys():
        return False
    missing = [name for name in LAUNCH_VARIABLES if name not in environment]
    if missing and environment["WORLD_SIZE"] != "1":
        raise ValueError(
            f"WORLD_SIZE ({environment['WORLD_SIZE']!r}) and RANK ({environment['RANK']!r}) are set, as under a "
            f"launcher, but not {', '.join(missing)}: start the processes with torchrun, or unset WORLD_SIZE if there "
            "is only one"
        )
    return not missing


def unjoined() -> str:
    """Says that MPI or Slurm started processes that do not know each other, and what makes them ranks of one run; empty
    for a process that was started alone or as a rank."""
    found = next((name for name in TOGETHER if os.environ.get(name, "1") != "1"), None)
    if found is None or "WORLD_SIZE" in os.environ:
        return ""
    return (
        f"; {found} is {os.environ[found]}, and these processes are ranks of one run only if each is told RANK, "
        "WORLD_SIZE, MASTER_ADDR and MASTER_PORT: start torchrun once on each machine, and it tells them"
    )


def same_card(error: Exception) -> str | None:
    """The message for nccl's error where two ranks have one card; None for any other error. It may come as late as with
    the first collective call."""
    if (found := SAME_CARD.search(str(error))) is None:
        return None
    return (
        f"ranks {found['one']} and {found['other']} have the same card, as LOCAL_RANK is "
        f"{os.environ.get('LOCAL_RANK', '0')} here: start the processes with torchrun, or set LOCAL_RANK to each one's "
        "number on its machine"
    )


def _explain_meeting(said: str, error: Exception) -> None:
    told = {name: os.environ.get(name, "") for name in LAUNCH_VARIABLES}
    if "EADDRINUSE" in said:
        raise ValueError(
            f"MASTER_PORT is {told['MASTER_PORT']}, and another process listens there, as another run's first one "
            "does: give each run a port of its own (torchrun --standalone finds one)"
        ) from error
    if NOT_MET.search(said):
        raise ConnectionError(
            f"rank {told['RANK']} of {told['WORLD_SIZE']} has not met the others at MASTER_ADDR:MASTER_PORT, "
            f"{told['MASTER_ADDR']}:{told['MASTER_PORT']} ({said.rstrip('.')}): start as many processes as WORLD_SIZE "
            "says, and give them an address of rank 0's machine that the others reach"
        ) from error


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """Raises `ValueError` where gloo does not find the network interface that it is told, as one that is another
    machine's, where nccl finds two ranks on one card, and where MASTER_PORT is in use; `ConnectionError` where the
    processes have not met.

    A signal to stop ends the process, as the wait for the other ranks would not let a handler run for minutes.
    """
    try:
        with stops_handled(signal.SIG_DFL):
            yield
    except RuntimeError as error:
        if (shared := same_card(error)) is not None:
            raise ValueError(shared) from error
        _explain_meeting(first_line(error), error)
        if (found := NO_INTERFACE.search(str(error))) is None:
            raise
        there = [name for _, name in socket.if_nameindex()]
        if found["name"] in there:
            raise ValueError(
                f"the network interface {found['name']} is down or has no address, and processes of a run find each "
                f"other over it: bring it up (`ip link set {found['name']} up`), or name another in GLOO_SOCKET_IFNAME"
            ) from error
        raise ValueError(
            f"GLOO_SOCKET_IFNAME is {found['name']!r}, and no network interface of that name is up: there are "
            f"{', '.join(there)}"
        ) from error


def is_seen(path: Path) -> bool:
    """Whether this process sees what another, perhaps on another machine, has just made."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (seen := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return seen


def join_launch() -> Launch:
    """Join the launcher's process group, if there is one. Raises `ValueError` as `is_launched` does."""
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
