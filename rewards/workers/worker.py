"""The grading worker: takes items from a socket one by one and answers each, under limits.

This is the only place in the package that catches everything: whatever a judgement raises becomes the
verdict `error` with its text, so that it is counted and visible, and never looks like a wrong answer.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import socket
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import function
from rewards.types import Verdict
from rewards.workers import limits, wire

if TYPE_CHECKING:
    from rewards.judge import Judgement

RECYCLE_AFTER_ITEMS = 20_000
RECURSION_LIMIT = 4_000
OUT_OF_MEMORY = "out of memory"
NO_MEMORY = re.compile("allocate memory|failed to map segment")
"""How torch, the system and the dynamic linker report it, each with its own type of error."""
NO_WRITING = "a reward function cannot write, not even to temporary files or semaphores: "
MAX_DETAIL_CHARS = 2_000
TRACEBACK_FRAMES = 3
OUR_CODE = str(Path(__file__).parents[1])
_scorers_failure = ""


def preload(settings: wire.Message) -> None:
    """Import math-verify and the scorers of generated tasks. Called in the fork server, so that every worker starts
    with them."""
    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limits are off; ours are on
    gc.disable()  # nearly every object created here stays alive
    import rewards.judge

    rewards.judge.warm_up()
    if settings["tasks"]:
        _load_scorers(settings["tasks"])
    gc.collect()
    gc.freeze()
    gc.enable()


def _load_scorers(tasks: list[wire.Message]) -> None:
    global _scorers_failure
    from rewards.workers import scorers  # its library is loaded only if a task is used

    try:
        scorers.load(tasks)
    except BaseException as error:  # noqa: BLE001 - the boundary: every item reports it
        _scorers_failure = f"cannot load the tasks' scorers: {_text(error)}"


def serve(connection: socket.socket, settings: wire.Message) -> None:
    """Answer items until the other side closes, or until this process should be replaced."""
    limits.die_with_parent()
    if os.getppid() == 1:
        return  # the fork server died between the fork and the line above
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(RECURSION_LIMIT)
    own_code = settings["function"] is not None
    judge = _Judge(settings)  # before any completion arrives: user code and its libraries load unconfined
    limits.confine(memory_mib=settings["memory_mib"], own_code=own_code)
    connection.sendall(wire.encode({"hello": True}))
    buffer = bytearray()
    served = 0
    while (request := wire.receive(connection, buffer)) is not None:
        limits.start_timer(settings["timeout_s"])
        reply = judge(request)
        limits.stop_timer()
        served += 1
        reply["id"] = request["id"]
        # Memory stays fragmented after it has run short: answer, then let a new process take over.
        leaving = reply["detail"].startswith(OUT_OF_MEMORY) or served >= RECYCLE_AFTER_ITEMS
        reply["leaving"] = leaving
        connection.sendall(wire.encode(reply))
        if leaving:
            return


class _Judge:
    """Judges a request, and runs the user's function on it if there is one."""

    def __init__(self, settings: wire.Message) -> None:
        from rewards.judge import Judgement, judge_completion, judge_reference

        self._too_deep = Judgement(Verdict.UNPARSEABLE, None, "nested too deeply")
        self._judge_completion = judge_completion
        self._judge_reference = judge_reference
        self._forms = tuple(settings["answer_forms"])
        self._function: function.Call | None = None
        self._of_trl = (settings["function"] or "").startswith("trl:")
        self._out_of_memory = f"{OUT_OF_MEMORY} (rewards.memory_mib is {settings['memory_mib']:,})"
        self._failure = ""
        if settings["function"] is not None:
            try:
                self._function = function.load(settings["function"], settings["function_arguments"])
            except BaseException as error:  # noqa: BLE001 - the boundary: every item reports it
                self._failure = f"cannot load {settings['function']}: {_text(error)}"

    def __call__(self, request: wire.Message) -> wire.Message:
        extra: wire.Message = {}
        try:
            was_short = limits.has_run_short()  # user code may have run short earlier and survived
            if failure := self._why_not(request):
                return _error(failure)
            try:
                judgement = self._judged(request, extra)
            except RecursionError:  # from the text; in the user's function it is an error like any other
                judgement = self._too_deep
            if limits.has_run_short() and not was_short:
                raise MemoryError
            if self._function is not None and not request.get("as_answer"):
                extra["function"] = self._function(self._as_seen(request))
        except MemoryError:
            return _error(self._out_of_memory)
        except BaseException as error:  # noqa: BLE001 - the boundary: reported as its own verdict, never swallowed
            return _error(self._limit_behind(error) + _text(error))
        return {
            "verdict": judgement.verdict,
            "extracted": judgement.extracted,
            "detail": judgement.rule,
            **extra,
        }

    def _limit_behind(self, error: BaseException) -> str:
        """Which of our limits the user's code ran into, for errors that do not say so."""
        if NO_MEMORY.search(str(error)):
            return f"{self._out_of_memory}: "
        return NO_WRITING if isinstance(error, OSError) and error.errno == errno.EFBIG else ""

    def _why_not(self, request: wire.Message) -> str:
        if request.get("entry") and _scorers_failure:
            return _scorers_failure
        return "" if request.get("as_answer") else self._failure

    def _judged(self, request: wire.Message, extra: wire.Message) -> Judgement:
        """The judgement by the task's own scorer, which adds its score to `extra`, or by our mathematical rules."""
        if entry := request.get("entry"):
            from rewards.workers.scorers import judge_own_answer, judge_task

            if request.get("as_answer"):
                judgement, extra["score"] = judge_own_answer(entry)
            else:
                judgement, extra["score"] = judge_task(
                    request["completion"], entry, forms=self._forms, opened=request.get("opened", "")
                )
            return judgement
        if request.get("as_answer"):
            return self._judge_reference(request["reference"])
        return self._judge_completion(
            request["completion"], request["reference"], forms=self._forms, opened=request.get("opened", "")
        )

    def _as_seen(self, request: wire.Message) -> wire.Message:
        """The request for a user's function. TRL's functions see only the completion, so they get it preceded by the
        opening mark of a thought that the prompt began."""
        if not self._of_trl:
            return request
        return {**request, "completion": request.get("opened", "") + request["completion"]}


def _error(detail: str) -> dict[str, Any]:
    return {"verdict": Verdict.ERROR, "extracted": None, "detail": detail[-MAX_DETAIL_CHARS:]}


def _text(error: BaseException) -> str:
    """The error and the relevant part of its traceback, in Python's format: the first frame and the last ones, ignoring
    frames of our own code and of the import machinery."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((OUR_CODE, "<frozen "))
    ]
    shown = [*frames[:1], *frames[1:][1 - TRACEBACK_FRAMES :]]
    lines = traceback.StackSummary.from_list(shown).format()
    head = "\n" if lines else ""
    return head + "".join([*lines, *traceback.format_exception_only(error)]).rstrip()
