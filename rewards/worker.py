"""The grading worker: takes items from a socket one by one, answers each, within limits.

This is the one place of the package that catches everything: whatever a judgement raises becomes the
verdict `error` with its text, so that it is counted and seen, and never reads as a wrong answer.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import warnings

from rewards import limits, wire
from rewards.types import Verdict

RECYCLE_AFTER_ITEMS = 20_000
RECURSION_LIMIT = 4_000


def preload() -> None:
    """Import the mathematics. Called in the nursery, so that every worker is born with it."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off; ours are on
    import rewards.judge

    rewards.judge.warm_up()
    gc.collect()
    gc.freeze()


def serve(connection: socket.socket, settings: wire.Message) -> None:
    """Answer items until the other side closes, or until this process should be replaced."""
    limits.die_with_parent()
    if os.getppid() == 1:
        return  # the nursery died between the fork and the line above
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(RECURSION_LIMIT)
    limits.confine(memory_mib=settings["memory_mib"], allow_files=False)
    buffer = bytearray()
    served = 0
    while (request := wire.receive(connection, buffer)) is not None:
        limits.start_timer(settings["timeout_s"])
        reply = _judge(request, settings)
        limits.stop_timer()
        served += 1
        reply["id"] = request["id"]
        # Memory that was once short stays fragmented: answer, then make way for a fresh process.
        leaving = reply["detail"] == "out of memory" or served >= RECYCLE_AFTER_ITEMS
        reply["leaving"] = leaving
        connection.sendall(wire.encode(reply))
        if leaving:
            return


def _judge(request: wire.Message, settings: wire.Message) -> wire.Message:
    from rewards.judge import judge_completion

    try:
        judgement = judge_completion(request["completion"], request["reference"], forms=tuple(settings["answer_forms"]))
    except MemoryError:
        return {"verdict": Verdict.ERROR, "extracted": None, "detail": "out of memory"}
    except RecursionError:
        return {"verdict": Verdict.UNPARSEABLE, "extracted": None, "detail": "nested too deeply"}
    except BaseException as error:  # noqa: BLE001 - the boundary: reported as its own verdict, never swallowed
        return {
            "verdict": Verdict.ERROR,
            "extracted": None,
            "detail": f"{type(error).__name__}: {error}"[:300],
        }
    return {"verdict": judgement.verdict, "extracted": judgement.extracted, "detail": judgement.rule}
