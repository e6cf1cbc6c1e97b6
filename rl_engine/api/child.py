"""`python -m rl_engine.api.child PARENT MODULE ARGUMENTS…`: a command that exits when the process PARENT has ended."""

from __future__ import annotations

import runpy
import sys

from rollout.stopping import end_with_parent


def main() -> None:
    """Run the command in this process."""
    _, parent, module, *arguments = sys.argv
    # Done here and not between fork and exec: a notebook has threads, so no Python code may run between the two.
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
