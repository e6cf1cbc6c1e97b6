"""`python -m rl_engine.api.child PARENT MODULE ARGUMENTS…`: a command that leaves when the process PARENT has gone."""

from __future__ import annotations

import runpy
import sys

from rollout.stopping import end_with_parent


def main() -> None:
    """Run the command in this process."""
    _, parent, module, *arguments = sys.argv
    # Here, and not between fork and exec: a notebook has threads, beside which nothing of Python may run there.
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
