"""One pool on the main rank, an engine on every rank: the same answers, and the same errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import torch

from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.shared_pool import DrivenPool
from rollout.adapters import AdapterError
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, PoolError
from rollout.pieces import Request, cut, extended
from rollout.types import AdapterRef, Problem, Prompt
from tests.helpers.scripted_engine import ScriptedEngine

T = TypeVar("T")
PROMPTS = [Prompt(problem=Problem(id=str(i), text="none", answer=""), text="none", token_ids=(1,)) for i in range(5)]
SEEDS = [str(i) for i in range(5)]
SAMPLING = SamplingConfig(n=2)


class SlowPool(ScriptedEngine):
    """Needs to be waited for twice; has lost every worker when asked for greedy completions."""

    lost, alive, looks = 1, 2, 0

    def submit(
        self, prompts: Any, sampling: SamplingConfig, adapter: Any, seeds: Any, *, urgent: bool = False
    ) -> Request:
        request = cut(prompts, sampling, adapter, seeds, 2)
        for piece in request.pieces:
            piece.groups = self.generate(piece.prompts, sampling, adapter, piece.seeds)
        return request

    def extend(self, request: Request, sampling: SamplingConfig, adapter: Any) -> Request:  # type: ignore[override]
        more = extended(request, sampling, adapter)
        for piece in more.pieces:
            assert piece.before is not None
            assert piece.before.groups is not None
            piece.groups = super().extend(piece.before.groups, sampling, adapter, piece.seeds)
        return more

    def finished(self, request: Request, timeout_s: float) -> bool:
        if request.sampling.temperature == 0:
            raise PoolError("no sampling worker is left")
        self.looks += 1
        return self.looks > 2

    def load_adapter(self, ref: AdapterRef) -> None:
        raise AdapterError("damaged")


class ThreadRank(Ranks):
    """A rank that is a thread: what processes would broadcast is put into a list between two barriers."""

    both_are_here = threading.Barrier(2, timeout=20)
    box: ClassVar[list[Any]] = [None]

    def broadcast(self, value: T) -> T:
        if self.is_main:
            self.box[0] = value
        self.both_are_here.wait()
        heard: T = self.box[0]
        self.both_are_here.wait()
        return heard


@pytest.fixture
def both(tmp_path: Path) -> tuple[DrivenPool, DrivenPool]:
    """The pool as two ranks have it."""
    pool: Any = SlowPool(EngineSettings(model=str(tmp_path), dtype="float32", max_model_len=8, lora_rank=1))
    main, other = (ThreadRank(rank, 2, torch.device("cpu")) for rank in (0, 1))
    return DrivenPool(pool, main), DrivenPool(None, other)


def on_both(both: tuple[DrivenPool, DrivenPool], act: Callable[[DrivenPool], Any]) -> list[Any]:
    """What each rank gets, or what it raises."""

    def outcome(engine: DrivenPool) -> Any:
        try:
            return act(engine)
        except (PoolError, AdapterError) as error:
            return repr(error)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(outcome, both))


def test_every_rank_gets_what_was_sampled_once(both: tuple[DrivenPool, DrivenPool], tmp_path: Path) -> None:
    main, other = on_both(both, lambda engine: engine.generate(PROMPTS, SAMPLING, None, SEEDS))
    assert main == other
    assert [group.prompt for group in main] == PROMPTS
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    assert both[0].metrics() == {"workers/alive": 2, "workers/lost": 1}
    assert both[1].metrics() == {}


def test_every_rank_gets_what_was_gone_on_with(both: tuple[DrivenPool, DrivenPool]) -> None:
    def in_two_legs(engine: DrivenPool) -> Any:
        seeds = [f"long/{seed}" for seed in SEEDS]
        request = engine.submit(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 2}), None, seeds)
        return engine.collect(engine.extend(request, SAMPLING, None))

    main, other = on_both(both, in_two_legs)
    assert main == other
    assert [group.prompt for group in main] == PROMPTS
    assert {len(completion.legs) for group in main for completion in group.completions} == {1, 2}


def test_what_the_main_rank_raises_all_raise(both: tuple[DrivenPool, DrivenPool]) -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    assert (
        on_both(both, lambda engine: engine.generate(PROMPTS, greedy, None, SEEDS))
        == ["PoolError('no sampling worker is left')"] * 2
    )
    ref = AdapterRef(name="policy", version=0, path=Path(), sha256="", rank=1)
    assert on_both(both, lambda engine: engine.load_adapter(ref)) == ["AdapterError('damaged')"] * 2
