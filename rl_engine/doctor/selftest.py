"""Configuration → checks: a training run of two small steps on the real engines, observed as it runs.

No code of the run is duplicated here. A listener takes the place of its console and turns what it is told into checks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.scoring.report import EvalReport
from rewards import Grader
from rl_engine.config import Config
from rl_engine.learner.gap import GapLimits, SamplerGapError, gap_limits
from rl_engine.learner.ranks import Ranks
from rl_engine.learner.state import restore_learner
from rl_engine.plan.memory import PHASES, check_fits, memory_of_run
from rl_engine.run.console import RunConsole
from rl_engine.run.memory import available
from rl_engine.train.assemble import assemble
from rl_engine.train.loop import LiveRun, train
from rollout.prompts.problems import tasks_of

PROBLEMS, SAMPLES, TOKENS, STEPS = 8, 4, 48, 2
READ_PROBLEMS = 64
SPREAD = "rl_engine.doctor.reward:spread"
SPREAD_WEIGHT = 0.5

FITS, DATA, MODEL, ENGINE = "memory", "problems", "learner", "sampler"
FIRST, SAMPLING, GAP_BEFORE, UPDATE = "version 0", "sampling", "gap before", "update"
SECOND, GAP_AFTER, RESUMED = "version 1", "gap after", "resume"
# The run's name for a phase → the check that it belongs to.
CHECK_OF = {
    "reading and checking problems": DATA,
    "loading the model": MODEL,
    "starting vLLM": ENGINE,
    "compiling the learner's layers": FIRST,
    "step 1: sampling": SAMPLING,
    "step 1: learning": UPDATE,
    "step 2: sampling": GAP_AFTER,
    "step 2: learning": GAP_AFTER,
}
REPORTED_AT_ONCE = (DATA, MODEL, ENGINE, SAMPLING)
# A check without a phase of its own begins when another ends: publishing happens between two phases.
FOLLOWED_BY = {ENGINE: FIRST, UPDATE: SECOND}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor's report.

    Example: `Check(name="sampler", ok=True, figure="float32, 112 tokens of context", seconds=4.2)`
    """

    name: str
    ok: bool
    figure: str
    seconds: float


Report = Callable[[Check], None]


def small(config: Config, directory: Path) -> Config:
    """The same run with eight problems per step, four samples of each and two steps, written to `directory`.

    A hash of the completion's text is added to the reward, unless the configuration has its own reward function: a
    model that solves nothing yet would have nothing to learn from, and no update could be checked. Keys that were not
    set stay unset, and bounds on a reduced value are reduced with it.
    """
    settings = config.model_dump(exclude_unset=True)
    tokens = min(config.sampling.max_tokens, TOKENS)
    smaller: dict[str, dict[str, Any]] = {
        "data": {"limit": min(config.data.limit or READ_PROBLEMS, READ_PROBLEMS)},
        "sampling": {"n": SAMPLES, "max_tokens": tokens},
        "train": {"steps": STEPS, "problems_per_step": PROBLEMS},
        "learner": {"updates_per_step": 1},
    }
    if config.rewards.function is None:
        smaller["rewards"] = {"function": SPREAD, "function_weight": SPREAD_WEIGHT}
    if config.rollout.leg_tokens is not None:
        smaller["rollout"] = {"leg_tokens": min(config.rollout.leg_tokens, tokens - 1)}
    if config.train.max_problems_per_step is not None:
        smaller["train"]["max_problems_per_step"] = 2 * PROBLEMS
    if config.optim.warmup_steps:
        smaller["optim"] = {"warmup_steps": min(config.optim.warmup_steps, STEPS - 1)}
    for section, values in smaller.items():
        settings[section] = {**settings.get(section, {}), **values}
    # Without suites nothing is evaluated.
    settings.pop("eval", None)
    return Config.model_validate({**settings, "output_dir": str(directory), "log": {"tensorboard": False}})


@dataclass
class Listener(RunConsole):
    """A console that prints nothing and reports each check as soon as it is done."""

    report: Report = field(kw_only=True)
    limits: GapLimits = field(kw_only=True)
    current: str = field(default=DATA, init=False)
    told: dict[str, str] = field(default_factory=dict, init=False)
    metrics: dict[str, float] = field(default_factory=dict, init=False)
    """Metrics of the last step."""
    _since: float = field(default_factory=time.monotonic, init=False)

    def begin(self, check: str) -> None:
        self.current, self._since = check, time.monotonic()

    def passed(self, figure: str, check: str | None = None, seconds: float | None = None) -> None:
        taken = time.monotonic() - self._since if seconds is None else seconds
        self.report(Check(name=check or self.current, ok=True, figure=figure, seconds=taken))

    def failed(self, cause: str) -> None:
        self.report(Check(name=self.current, ok=False, figure=cause, seconds=time.monotonic() - self._since))

    def print_rows(self, rows: Mapping[str, str]) -> None:
        self.told |= dict(rows)

    @contextlib.contextmanager
    def phase(self, what: str) -> Iterator[None]:
        check = CHECK_OF[what]
        if check != self.current:
            self.begin(check)
        yield
        if check in REPORTED_AT_ONCE:
            self.passed(self._figure(check))
        if check in FOLLOWED_BY:
            self.begin(FOLLOWED_BY[check])

    def _figure(self, check: str) -> str:
        return {
            DATA: "read, and each reference graded against itself",
            MODEL: "weights loaded, DeepSpeed started",
            ENGINE: "vLLM started",
            SAMPLING: f"{PROBLEMS * SAMPLES} completions sampled and graded",
        }[check]

    def row(self, metrics: Mapping[str, float], reports: Sequence[EvalReport]) -> None:
        """Called after each step, and after the publication before the first one."""
        kl_limit, gap_limit = self.limits.kl, self.limits.logprob
        if not metrics["step"]:
            self.passed(f"published, loaded; canary within {gap_limit:.2g} nats of the learner")
            return
        self.metrics = dict(metrics)
        largest, kl = metrics["sampler/logprob_gap_max"], metrics["sampler/kl"]
        by_chance = ", above it by chance" if kl > kl_limit else ""
        gap = f"{largest:.2g} nats (limit {gap_limit:.2g}), KL {kl:.2g} (limit {kl_limit:.2g}{by_chance})"
        if metrics["step"] == STEPS:
            self.passed(gap, GAP_AFTER)
            return
        self.passed(gap, GAP_BEFORE, 0.0)
        norm = metrics["grad_norm"]
        if not (0 < norm < math.inf):
            self.current = UPDATE
            raise ValueError(f"the gradient's norm is {norm:g}: nothing can be learned from it")
        if metrics["adapter/version"] != 1:
            raise ValueError("no update was made: no group had completions of different reward")
        self.passed(f"gradient norm {norm:.3g}", UPDATE, metrics["time/learn_s"])
        self.passed("published, loaded; the sampler moved with it", SECOND, metrics["time/sync_s"])


def go_on_from_the_checkpoint(run: LiveRun) -> str:
    """Read and restore the run's checkpoint as --resume does, and take one optimizer step on the restored state."""
    found = run.checkpoints.newest()
    if found is None:
        raise ValueError("there is no checkpoint that is complete")
    state, tensors = found
    restore_learner(run.learner, tensors)
    run.learner.prime()
    return f"checkpoint of step {state.step} read and restored; the optimizer steps on it"


def self_test(config: Config, directory: Path, ranks: Ranks, report: Report) -> dict[str, float] | None:
    """Run the checks in order, reporting each when it is done, up to the first that fails.

    Returns the last step's metrics, or None if a check failed.
    """
    chosen = small(config, directory)
    listener = Listener(quiet=True, steps=STEPS, report=report, limits=gap_limits(chosen))
    listener.begin(FITS)
    try:
        memory, room = memory_of_run(config, ranks), available(ranks)
        check_fits(memory, room)
        worst = max(PHASES, key=memory.needed)
        listener.passed(f"{memory.needed(worst):.1f} GiB in {worst}, {room.device_gib:.1f} GiB available")
        listener.begin(DATA)
        with Grader.from_config(chosen.rewards, tasks_of(chosen.data)) as grader:
            # The full run's own context, except that suites are not read here: such a sequence must fit, and vLLM keeps
            # what it compiles for a length, so that the run itself finds it.
            context = config.longest_sequence
            run = assemble(chosen, ranks, grader, resume=False, console=listener, least_context=context)
            try:
                train(run)
                listener.begin(RESUMED)
                listener.passed(go_on_from_the_checkpoint(run))
            finally:
                run.records.close()
                run.sampler.engine.close()
    except SamplerGapError as error:
        if listener.current == UPDATE:
            listener.current = GAP_BEFORE
        listener.failed(str(error))
        return None
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        listener.failed(f"{type(error).__name__}: {error}")
        return None
    return listener.metrics
