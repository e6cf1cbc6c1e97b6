"""How a program handles a request to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from rollout import stopping
from rollout.stopping import Stopped, StopRequest


def ended(act: Callable[[StopRequest], object]) -> int:
    """How a process that runs `act` ends: the signal that killed it, or 40 plus the signal that it heard, plus 1 if
    that was raised."""
    child = os.fork()
    if child == 0:
        code = 39
        try:
            stop = StopRequest()
            try:
                with stop.listening():
                    act(stop)
                code = 40 + (stop.signum or 0)
            except Stopped:
                code = 41 + (stop.signum or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_who_is_started_by_one_that_is_gone_ends() -> None:
    """A parent that is killed between its fork and the child's request would otherwise leave the child behind
    forever."""
    assert ended(lambda _: stopping.end_with_parent(os.getppid())) == 40
    assert ended(lambda _: stopping.end_with_parent(os.getpid())) == 41 + signal.SIGTERM


def twice(pause_s: float) -> Callable[[StopRequest], object]:
    def act(stop: StopRequest) -> None:
        with stop.deferred():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                signal.sigtimedwait([], pause_s)

    return act


def test_a_request_to_stop_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ECHO_S", 0.05)
    assert ended(twice(0.001)) == 40 + signal.SIGINT
    assert ended(twice(0.2)) == -signal.SIGTERM


def test_a_terminal_that_is_closed_asks_too() -> None:
    def hang_up(stop: StopRequest) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert ended(hang_up) == 41 + signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        assert ended(hang_up) == 40
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_import_that_a_request_broke_is_that_request() -> None:
    """transformers, for example, reports a missing module if Ctrl-C arrives while it imports one."""

    def broken(ask: bool) -> Callable[[StopRequest], object]:
        def act(stop: StopRequest) -> None:
            try:
                if ask:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(60)
            except Stopped:
                pass
            raise ModuleNotFoundError("could not import it")

        return act

    assert ended(broken(ask=True)) == 41 + signal.SIGINT
    assert ended(broken(ask=False)) == 39


def test_a_request_is_raised_but_where_it_is_noted() -> None:
    """Inside `deferred` it is only recorded; `raised` within it raises again."""

    def ask() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def while_it_samples(stop: StopRequest) -> None:
        with stop.deferred(), stop.raised():
            ask()
            time.sleep(60)

    def before_it_samples(stop: StopRequest) -> None:
        with stop.deferred():
            ask()
            with stop.raised():
                time.sleep(60)

    def while_it_saves(stop: StopRequest) -> None:
        with stop.deferred(), stop.raised(), stop.deferred():
            ask()

    raised = 41 + signal.SIGTERM
    assert [ended(act) for act in (lambda _: ask(), while_it_samples, before_it_samples)] == [raised] * 3
    assert ended(while_it_saves) == 40 + signal.SIGTERM
    assert ended(lambda _: None) == 40


def test_another_process_asked_first_makes_no_second_signal() -> None:
    """A request that another process received does not make the first signal here count as the second."""

    def act(stop: StopRequest) -> None:
        with stop.deferred():
            stop.record(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    assert ended(act) == 40 + signal.SIGINT
    assert StopRequest(signum=signal.SIGTERM).exit_code == 143
