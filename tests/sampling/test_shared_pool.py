"""One pool on the main rank serves as an engine on every rank: the same answers, and the same errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_engine.learner.ranks import Ranks
from rl_engine.sampling.shared_pool import RankSharedPool
from rollout.adapters import AdapterError
from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, PoolError
from rollout.stopping import Stopped
from rollout.types import AdapterRef, Problem, Prompt, RolloutGroup
from rollout.work_items import PromptBatch, Request, extended, split
from tests.helpers.scripted_engine import ScriptedEngine
from tests.helpers.thread_ranks import ThreadRank, on_each

PROMPTS = [Prompt(problem=Problem(id=str(i), text="none", answer=""), text="none", token_ids=(1,)) for i in range(5)]
SEEDS = [str(i) for i in range(5)]
SAMPLING = SamplingConfig(n=2)


class SlowPool(ScriptedEngine):
    """A pool that must be waited for twice, and that has lost every worker when asked for greedy completions."""

    lost, alive, looks = 1, 2, 0

    def figures(self) -> dict[str, float]:
        return {"busy_frac": 0.5}

    def submit(self, batch: PromptBatch) -> Request:
        request = split(batch, 2)
        for item in request.items:
            item.groups = self.generate(item.prompts, batch.sampling, batch.adapter, item.seeds)
        return request

    def extend(self, request: Request, sampling: SamplingConfig, adapter: Any) -> Request:  # type: ignore[override]
        more = extended(request, sampling, adapter)
        for item in more.items:
            assert item.before is not None
            assert item.before.groups is not None
            item.groups = super().extend(item.before.groups, sampling, adapter, item.seeds)
        return more

    def collect(self, request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        if request.sampling.temperature == 0:
            raise PoolError("no sampling worker is left")
        self.looks += 1
        return request.groups() if self.looks > 2 else None

    def load_adapter(self, ref: AdapterRef) -> None:
        raise AdapterError("damaged")


@pytest.fixture
def both(tmp_path: Path) -> tuple[RankSharedPool, RankSharedPool]:
    """The pool as each of two ranks sees it."""
    pool: Any = SlowPool(EngineSettings(model=str(tmp_path), dtype="float32", max_model_len=8, lora_rank=1))
    main, other = ThreadRank.both()
    return RankSharedPool(pool, main), RankSharedPool(None, other)


def on_both(both: tuple[RankSharedPool, RankSharedPool], act: Callable[[RankSharedPool], Any]) -> list[Any]:
    """What each rank returns or raises."""
    return on_each(both, act, (PoolError, AdapterError, Stopped))


def test_every_rank_gets_what_was_sampled_once(both: tuple[RankSharedPool, RankSharedPool], tmp_path: Path) -> None:
    main, other = on_both(both, lambda engine: engine.generate(PROMPTS, SAMPLING, None, SEEDS))
    assert main == other
    assert [group.prompt for group in main] == PROMPTS
    assert len((tmp_path / "log").read_text().splitlines()) == 3
    assert both[0].metrics() == {"workers/alive": 2, "workers/lost": 1, "workers/busy_frac": 0.5}
    assert both[1].metrics() == {}


def test_every_rank_gets_what_was_gone_on_with(both: tuple[RankSharedPool, RankSharedPool]) -> None:
    def in_two_segments(engine: RankSharedPool) -> Any:
        seeds = [f"long/{seed}" for seed in SEEDS]
        request = engine.submit(PromptBatch(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 2}), None, seeds))
        return engine.collect(engine.extend(request, SAMPLING, None))

    main, other = on_both(both, in_two_segments)
    assert main == other
    assert [group.prompt for group in main] == PROMPTS
    assert {len(completion.segments) for group in main for completion in group.completions} == {1, 2}


def test_a_rank_alone_hears_of_groups_as_they_come(tmp_path: Path) -> None:
    """Each once, early enough to be graded while the last groups are sampled; those arrive with the complete result."""
    pool: Any = SlowPool(EngineSettings(model=str(tmp_path), dtype="float32", max_model_len=8, lora_rank=1))
    alone = RankSharedPool(pool, Ranks(0, 1, torch.device("cpu")))
    request, told = alone.submit(PromptBatch(PROMPTS, SAMPLING, None, SEEDS)), list[RolloutGroup]()
    late = request.items[1].groups
    request.items[1].groups = None

    def collect(request: Request, timeout_s: float) -> list[RolloutGroup] | None:
        pool.looks += 1
        if pool.looks == 3:
            request.items[1].groups = late
        return request.groups() if request.done else None

    pool.collect = collect
    groups = alone.collect(request, told.extend)
    assert [group.prompt for group in groups] == PROMPTS
    assert told == [*groups[:2], *groups[4:]]
    assert all(any(group is one for one in groups) for group in told)


def test_what_the_main_rank_raises_all_raise(both: tuple[RankSharedPool, RankSharedPool]) -> None:
    greedy = SAMPLING.model_copy(update={"temperature": 0.0})
    assert (
        on_both(both, lambda engine: engine.generate(PROMPTS, greedy, None, SEEDS))
        == ["PoolError('no sampling worker is left')"] * 2
    )
    ref = AdapterRef(name="policy", version=0, path=Path(), sha256="", rank=1)
    assert on_both(both, lambda engine: engine.load_adapter(ref)) == ["AdapterError('damaged')"] * 2


def test_all_ranks_leave_when_one_is_asked_to_while_it_waits(both: tuple[RankSharedPool, RankSharedPool]) -> None:
    pool: Any = both[0].pool

    def never(request: Request, timeout_s: float) -> None:
        both[1].stop.record(15)

    pool.collect = never
    assert on_both(both, lambda engine: engine.generate(PROMPTS, SAMPLING, None, SEEDS)) == ["Stopped()"] * 2
    assert [engine.stop.exit_code for engine in both] == [143, 143]
