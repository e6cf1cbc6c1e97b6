"""A run on a fake engine that hangs for a minute at one chosen point, where something happens to the run.

`HELD_AT` selects the point: a prefix of the seeds (`0/3/` for step 3, `eval/` for an evaluation), `learning` for an
update, or `starting` for the engine's start. `HELD_BUT` is how often that point passes normally first. `HELD_DO` is
what happens: `fail` raises an error; without it every process that wrote its pid into `HELD_PLACE` is asked to stop.
`HELD_IN=workers` puts the engine into the workers. With `HELD_QUEUE` the engine is driven like one on a GPU, and the
minute is many turns that sample nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from rollout.config import SamplingConfig
from rollout.engine import EngineSettings, InFlight, PoolError
from rollout.types import AdapterRef, Prompt, RolloutGroup
from tests.helpers.answering_engine import AnsweringEngine

MINUTE = 60.0


class HeldEngine(AnsweringEngine):
    held_until, acted = 0.0, False

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        if held_at() == "starting":
            act()
            time.sleep(MINUTE)

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> list[RolloutGroup]:
        if any(seed.startswith(held_at()) for seed in seeds) and is_time():
            act()
            time.sleep(MINUTE)
        return super().generate(prompts, sampling, adapter, seeds)

    def begin(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef | None, seeds: Sequence[str]
    ) -> InFlight:
        if any(seed.startswith(held_at()) for seed in seeds) and is_time():
            self.held_until = time.monotonic() + MINUTE
        return super().begin(prompts, sampling, adapter, seeds)

    def advance(self) -> list[InFlight]:
        if time.monotonic() > self.held_until:
            return super().advance()
        if not self.acted:
            self.acted = True
            act()
        time.sleep(0.05)
        return []


def held_at() -> str:
    return os.environ.get("HELD_AT", "nowhere")


def is_time() -> bool:
    left = int(os.environ.get("HELD_BUT", "0"))
    os.environ["HELD_BUT"] = str(left - 1)
    return left == 0


def act() -> None:
    if os.environ.get("HELD_DO") == "fail":
        raise PoolError("no sampling worker is left")
    place = Path(os.environ["HELD_PLACE"])
    (place / "asked").write_text(str(time.time()))
    for path in place.glob("*.pid"):
        os.kill(int(path.read_text()), signal.SIGTERM)


def prepare() -> None:
    """Call this in the fork that becomes the command."""
    import rl_engine.sampling.placement
    import rollout.vllm.engine
    from rl_engine.learner.learner import Learner
    from rl_engine.sampling.queue import StreamingQueue
    from tests.helpers.undrawn import draw_nothing

    draw_nothing()
    place = Path(os.environ["HELD_PLACE"])
    (place / f"{os.environ.get('RANK', 0)}.pid").write_text(str(os.getpid()))
    if os.environ.get("HELD_IN") == "workers":
        from tests.drills.bad_engines import workers_with  # loads Ray

        workers_with(HeldEngine)
    rollout.vllm.engine.VllmEngine = HeldEngine  # type: ignore[assignment, misc]
    if "HELD_QUEUE" in os.environ:
        setattr(rl_engine.sampling.placement, "LocalQueue", StreamingQueue)  # noqa: B010 - mypy knows its type
    step = Learner.step

    @wraps(step)
    def held_step(*arguments: Any) -> Any:
        if held_at() == "learning" and is_time():
            act()
        return step(*arguments)

    setattr(Learner, "step", held_step)  # noqa: B010 - mypy knows the method's type
