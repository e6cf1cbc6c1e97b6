"""One thread drives the engine; every caller gets its own result or error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, InFlight
from rollout.pool.engine_thread import EngineThread
from rollout.types import Problem, Prompt
from tests.helpers.streaming_engine import Later, StreamingScripted, _Going

SAMPLING = SamplingConfig(n=2)


class Watched(StreamingScripted):
    """Records the threads that drive it, and the largest number of batches that it has had at once."""

    def advance(self) -> Any:
        self.__dict__.setdefault("threads", set()).add(threading.get_ident())
        self.most = max(self.__dict__.get("most", 0), len(self.going))
        return super().advance()


@pytest.fixture
def engine(tmp_path: Path) -> Watched:
    return Watched(EngineSettings(model=str(tmp_path), dtype="float32", max_model_len=8, lora_rank=1))


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as callers:
        yield callers


def ask(engine: Watched, thread: EngineThread, number: int, text: str = "none") -> Any:
    prompts = [Prompt(problem=Problem(id=str(number), text=text, answer=""), text=text, token_ids=(1,))]
    groups = thread.sample(partial(engine.begin, prompts, SAMPLING, None, [str(number)]))
    return groups == engine._sampled(prompts, SAMPLING, "base", [str(number)])


def test_callers_are_served_side_by_side_by_one_thread(engine: Watched, callers: ThreadPoolExecutor) -> None:
    thread = EngineThread(engine.advance)
    slow = callers.submit(ask, engine, thread, 0, "slow")
    while not engine.going:
        pass
    others = [callers.submit(ask, engine, thread, number) for number in range(1, 7)]
    assert all(other.result(10) for other in others)
    assert thread.call(threading.get_ident) in engine.__dict__["threads"]
    assert not slow.done(), "what is short does not wait for what is long"
    assert slow.result(10)
    assert len(engine.__dict__["threads"]) == 1
    assert engine.most > 1


def test_an_end_is_everybodys_error_and_a_bad_call_its_own(
    engine: Watched, callers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """An error that ends the sampling goes to every caller; that of a bad call goes only to its caller."""
    thread = EngineThread(engine.advance)
    slow = callers.submit(ask, engine, thread, 0, "slow")
    while not engine.going:
        pass
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        thread.sample(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert not slow.done()
    (tmp_path / "raise").touch()
    for asked in (slow, callers.submit(ask, engine, thread, 1, "raise")):
        with pytest.raises(ValueError, match="the sampler stumbled"):
            asked.result(10)


def test_nothing_to_sample_is_answered_at_once(engine: Watched) -> None:
    thread = EngineThread(engine.advance)
    assert thread.sample(partial(engine.begin, [], SAMPLING, None, [])) == []


def test_completions_that_make_no_groups_are_an_error_not_a_wait(engine: Watched, callers: ThreadPoolExecutor) -> None:
    def broken() -> InFlight:
        batch = InFlight(1, lambda _: 1 // 0)  # type: ignore[arg-type, return-value]
        later = Later(1, list)
        later.batch, going = batch, _Going([], "base", 1)
        later.answer = lambda: engine._sampled(*one)
        going.later = later
        engine.going.append(going)
        return batch

    prompt = Prompt(problem=Problem(id="x", text="", answer=""), text="none", token_ids=(1,))
    one = ([prompt], SamplingConfig(n=1), "base", ["x"])
    with pytest.raises(ZeroDivisionError):
        callers.submit(EngineThread(engine.advance).sample, broken).result(10)
