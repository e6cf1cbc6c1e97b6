"""`python -m rl_engine.api.child PARENT MODULE ARGUMENTS…`: a command that exits when the process PARENT has ended."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

LOOK_S = 0.5


def main() -> None:
    """Run the command in this process."""
    _, parent, module, *arguments = sys.argv
    threading.Thread(target=leave_without, args=(int(parent),), daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def leave_without(parent: int) -> None:
    """Ask this process to stop when its parent process has ended, for whatever reason. The kernel's own signal would
    already come when the thread that started it ends, and a server or a notebook has many threads."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
