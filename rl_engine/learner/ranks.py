"""The processes of a run: a single one, or several under torchrun or the deepspeed launcher. All communication between
them goes through `Ranks`."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import rollout.vllm  # noqa: F401  sets the directory of compiled kernels, before torch picks one for the first kernel
from evals.launch.group import is_launched, joining

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank and the number of ranks. Communication is collective: all make the same calls in order."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """This rank's items, dealt round-robin."""
        return items[self.rank :: self.count]

    def gather(self, mine: list[T]) -> list[T]:
        """Every rank's items on every rank, in the order `share` dealt them."""
        if self.count == 1:
            return mine
        parts: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(parts, mine)
        total = sum(len(part) for part in parts)
        return [parts[index % self.count][index // self.count] for index in range(total)]

    def broadcast(self, value: T) -> T:
        """The main rank's value, on every rank."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """Each element summed over the ranks. `values` is on this rank's device and has the same shape on all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Each element's maximum over the ranks; see `sum`."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, op: Any) -> Tensor:
        reduced = values.clone()
        if self.count > 1:
            dist.all_reduce(reduced, op=op)
        return reduced

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.count > 1:
            dist.barrier()

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank: all ranks get the same answer."""
        return flag if self.count == 1 else bool(self.max(torch.tensor(float(flag), device=self.device)))


def _free_port() -> int:
    """Raises `ValueError` on a machine without a loopback address."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise ValueError(
                f"no process can listen on 127.0.0.1 here ({error.strerror}), which a run needs: give the loopback "
                "interface its address (`ip addr add 127.0.0.1/8 dev lo`)"
            ) from error
        return int(probe.getsockname()[1])


def join_ranks() -> Ranks:
    """Join the launcher's process group, or create one that holds only this process.

    Without a launcher's environment variables, DeepSpeed would look for MPI. Raises `ValueError`, see `is_launched`.
    """
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    if not is_launched():
        os.environ.update(alone)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # DeepSpeed would complain if it differs from LOCAL_RANK, but it may belong to the parent process: under mpirun that
    # is the torchrun on each machine.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not cuda:
        # DeepSpeed would first compile a shared-memory operator, which takes a minute and needs a compiler; its
        # fallback, gloo, is available already.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local_rank)
    with joining():
        if os.environ["WORLD_SIZE"] == "1" and not dist.is_initialized():
            # An in-memory store: torch's default listens on every interface and trusts anyone who connects.
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    device = torch.device(f"cuda:{local_rank}") if cuda else torch.device("cpu")
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
    if ranks.count > 1 and "LOCAL_WORLD_SIZE" not in os.environ:
        # MPI and Slurm have it by other names, and by hand nobody sets it. They share a machine's memory and cards.
        here = socket.gethostname()
        os.environ["LOCAL_WORLD_SIZE"] = str(ranks.gather([here]).count(here))
    return ranks


WORKERS_LET_GO_S = 0.5
"""How long gloo's threads get to release the tensors they sent last. They need microseconds once they are scheduled."""


def leave_ranks() -> None:
    """Leave the process group; the last thing a process does.

    Gloo's threads release tensors only after a collective has returned, and take the GIL to do so. A thread that asks
    for the GIL while the interpreter is shutting down aborts the process with SIGABRT, and torchrun reports a finished
    run as failed (pytorch issue 190489). The threads are not joined because DeepSpeed keeps references to their groups.
    """
    if not dist.is_initialized():
        return
    several_by_gloo = dist.get_backend() == "gloo" and dist.get_world_size() > 1
    dist.destroy_process_group()
    if several_by_gloo:
        time.sleep(WORKERS_LET_GO_S)
