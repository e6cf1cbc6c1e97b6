"""The processes of an evaluation: one, or as many as torchrun started, each with an engine of its own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta

from datafiles.text import first_line

# The last rank may still be at a batch of long chains of thought while the others wait.
PATIENCE = timedelta(hours=12)
# gloo's errors are plain RuntimeErrors: the place in its source, what happened, and what it supposes.
OF_GLOO = re.compile(r"\[\S*gloo/transport/\S+\] (?P<said>.*?)( This is typically caused by .*)?")


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


def lost_rank(error: Exception) -> str | None:
    """What a person is told of an error that says that another of a launcher's processes is gone, or does not answer;
    None of another error."""
    import torch.distributed as dist

    line = first_line(error)
    of_gloo = OF_GLOO.fullmatch(line)
    if of_gloo is None and not isinstance(error, dist.DistError):
        return None
    said = of_gloo["said"] if of_gloo else line
    rank = os.environ.get("RANK", "0")
    return f"rank {rank} lost another rank ({said.rstrip('.')}): if that was not killed, its output says why"
