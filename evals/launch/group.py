"""The processes of an evaluation: one, or as many as a launcher started, each with an engine of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

# The last rank may still be at a batch of long chains of thought while the others wait.
PATIENCE = timedelta(hours=12)


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


def join_launch() -> Launch:
    """Enter the launcher's process group, when there is one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Launch(0, 1)
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Launch(dist.get_rank(), count)


def leave_launch(launch: Launch) -> None:
    if launch.count > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
