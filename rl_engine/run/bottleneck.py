"""The metrics of the last steps → one line that names the bottleneck and the key to change.

docs/metrics.md lists the rules and their thresholds. Shares are fractions of a step's time, medians over the last
steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rl_engine.config import Config
from rl_engine.config.fields import leaves
from rollout.config import SHARERS_OF_MAX
from rollout.work_items import piece_size, pieces_of

LAST = 10
"""Number of steps considered; the first step of a run, which includes warm-up, counts only if there is no other."""
EVERY = 25
"""Minimum number of steps between two such lines during a run."""
LITTLE, NOTABLE, MUCH, MOST = 0.1, 0.2, 0.3, 0.6
"""Thresholds on the share of a step: nothing to gain, worth mentioning, a real loss, the larger part."""
DULL = 0.8
"""Share of groups without signal above which sampling more groups does not help."""
PHASES = ("rollout", "grade", "learn", "sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Measurements of a run's last steps."""

    settings: Mapping[str, Any]
    """The configuration, by dotted key."""
    rollout: float
    """Share of time in which the learner waits for completions."""
    grade: float
    learn: float
    sync: float
    no_signal: float
    """Share of groups without signal."""
    busy: float | None
    """Share of time in which workers sample; None for in-process sampling and in metrics of earlier versions."""
    tail: float
    """Share of time in which some workers are idle because others are sampling the last completions."""
    alive: float | None
    """Number of live workers."""

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> Observed | None:
        """Summarize the last steps; None if no step of reinforcement learning is on record. One without a duration, as
        in an edited file, does not count."""
        timed = [line for line in lines if all(f"time/{phase}_s" in line for phase in PHASES)]
        steps = [line for line in timed if line.get("time/step_s", 0.0) > 0]
        if not steps:
            return None
        last = steps[-LAST:] if len(steps) > LAST else steps[1:] or steps

        def middle(of: Callable[[Mapping[str, float]], float]) -> float:
            return median(of(line) for line in last)

        pooled = all(name in line for line in last for name in ("workers/busy_frac", "workers/tail_s"))
        return cls(
            settings=settings,
            **{phase: middle(lambda line: line[f"time/{phase}_s"] / line["time/step_s"]) for phase in PHASES},  # noqa: B023
            no_signal=middle(lambda line: line.get("groups/no_signal_frac", 0.0)),
            busy=middle(lambda line: line["workers/busy_frac"]) if pooled else None,
            tail=middle(lambda line: line["workers/tail_s"] / line["time/step_s"]) if pooled else 0.0,
            alive=last[-1].get("workers/alive"),
        )

    @property
    def in_workers(self) -> bool:
        return bool(self.settings.get("rollout.placement") == "ray")

    @property
    def one_version(self) -> bool:
        """Whether each version overwrites the previous one, so that nothing can be sampled ahead."""
        return self.settings.get("method") == "full"

    @property
    def elastic(self) -> bool:
        """Whether the pool has as many workers as the cluster has room for."""
        return self.settings.get("rollout.workers") == "max"

    @property
    def ahead(self) -> int:
        return int(self.settings.get("rollout.max_staleness", 0))

    @property
    def workers(self) -> int:
        """The configured number of workers; for an elastic pool, the number that are alive."""
        return int(self.alive or 1) if self.elastic else int(self.settings.get("rollout.workers", 1))

    @property
    def idle(self) -> float:
        """Share of time in which workers do not sample; 0 if not measured."""
        return 0.0 if self.busy is None else 1 - self.busy

    @property
    def piece(self) -> int:
        given = self.settings["rollout.prompts_per_piece"]
        return self.even_piece if given == "auto" else int(given)

    @property
    def even_piece(self) -> int:
        sharers = SHARERS_OF_MAX if self.elastic else self.workers
        return piece_size(int(self.settings["train.problems_per_step"]), sharers)

    @property
    def pieces(self) -> int:
        """Number of work items available while the learner waits for a step."""
        return pieces_of(int(self.settings["train.problems_per_step"]), self.piece) * (1 + self.ahead)

    def has(self, key: str) -> str:
        """`key (its value)`."""
        return f"{key} ({self.settings.get(key, 'unknown')})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckRule:
    """One possible bottleneck of a step."""

    name: str
    applies: Callable[[Observed], bool]
    says: Callable[[Observed], str]


def _too_few_pieces(seen: Observed) -> str:
    idle = seen.workers - seen.pieces
    text = f"samplers idle {seen.idle:.0%} of a step, and {idle} of {seen.workers} get no prompts: "
    if seen.piece > seen.even_piece:
        return text + f"lower {seen.has('rollout.prompts_per_piece')} to {seen.even_piece}, which auto is"
    return text + f"raise {seen.has('train.problems_per_step')}, or lower {seen.has('rollout.workers')}"


def _publishing(seen: Observed) -> str:
    text = f"publishing takes {seen.sync:.0%} of a step: "
    if seen.in_workers and not seen.one_version:
        return text + (
            "a new version is tried by the first worker that is free, so smaller pieces, "
            f"{seen.has('rollout.prompts_per_piece')}, or shorter completions, {seen.has('sampling.max_tokens')}"
        )
    if seen.one_version:
        return text + "the whole model goes to the sampler; method=lora sends an adapter"
    return text + f"lower {seen.has('lora.rank')}, or learn from more at a time, {seen.has('train.problems_per_step')}"


def _learning(seen: Observed) -> str:
    where = "samplers wait" if seen.in_workers else "sampling waits"
    again = ", learner.gradient_checkpointing=false" if seen.settings.get("learner.gradient_checkpointing") else ""
    return (
        f"{where} for learning, {seen.learn:.0%} of a step: more learner ranks, a larger "
        f"{seen.has('learner.tokens_per_microbatch')}{again}, as far as memory allows"
    )


RULES = (
    BottleneckRule(
        name="workers missing",
        applies=lambda seen: seen.alive is not None and seen.alive < seen.workers and seen.rollout >= MUCH,
        says=lambda seen: (
            f"the learner waits {seen.rollout:.0%} of a step for completions, and only {seen.alive:.0f} of "
            f"{seen.has('rollout.workers')} are there: see the warnings about lost workers"
        ),
    ),
    BottleneckRule(
        name="grading",
        applies=lambda seen: seen.grade >= NOTABLE,
        says=lambda seen: (
            f"grading takes {seen.grade:.0%} of a step while the rest waits: raise {seen.has('rewards.workers')}"
            + (", or make rewards.function faster" if seen.settings.get("rewards.function") else "")
        ),
    ),
    BottleneckRule(name="publishing", applies=lambda seen: seen.sync >= NOTABLE, says=_publishing),
    BottleneckRule(
        name="too few pieces",
        applies=lambda seen: seen.in_workers and seen.pieces < seen.workers and seen.rollout >= MUCH,
        says=_too_few_pieces,
    ),
    BottleneckRule(
        name="tail",
        applies=lambda seen: seen.tail >= MUCH and seen.rollout >= MUCH,
        says=lambda seen: (
            f"samplers wait for the longest completions {seen.tail:.0%} of a step: sample "
            + ("" if seen.one_version else f"further ahead, {seen.has('rollout.max_staleness')}, or ")
            + f"shorter, {seen.has('sampling.max_tokens')}"
        ),
    ),
    BottleneckRule(
        name="no signal",
        applies=lambda seen: seen.no_signal >= DULL and seen.rollout >= MUCH,
        says=lambda seen: (
            f"sampling takes {seen.rollout:.0%} of a step, and {seen.no_signal:.0%} of its groups teach nothing: "
            f"problems that are solved sometimes (data), or larger groups, {seen.has('sampling.n')}"
        ),
    ),
    BottleneckRule(
        name="in turns",
        applies=lambda seen: (
            seen.in_workers and seen.ahead == 0 and seen.idle >= MUCH and seen.learn + seen.grade + seen.sync >= MUCH
        ),
        says=lambda seen: (
            f"samplers idle {seen.idle:.0%} of a step, because {seen.learn:.0%} of it is learning: "
            + (
                f"with method=full nothing is sampled ahead: more learner ranks, or fewer {seen.has('rollout.workers')}"
                if seen.one_version
                else "rollout.max_staleness=1 samples the next step meanwhile"
            )
        ),
    ),
    BottleneckRule(
        name="learner behind",
        applies=lambda seen: seen.in_workers and seen.ahead > 0 and seen.idle >= MUCH and seen.rollout < LITTLE,
        says=lambda seen: (
            f"samplers idle {seen.idle:.0%} of a step, because the learner takes all of it: more learner ranks, or "
            f"fewer {seen.has('rollout.workers')}"
        ),
    ),
    BottleneckRule(
        name="samplers behind",
        applies=lambda seen: (
            seen.in_workers and seen.rollout >= (MOST if seen.busy is None else MUCH) and seen.idle < MUCH
        ),
        says=lambda seen: (
            f"the learner waits {seen.rollout:.0%} of a step for samplers that are busy"
            + (f" {seen.busy:.0%} of it" if seen.busy is not None else "")
            + (": add machines" if seen.elastic else f": raise {seen.has('rollout.workers')}")
            + f", or lower {seen.has('sampling.max_tokens')}"
        ),
    ),
    BottleneckRule(
        name="sampling",
        applies=lambda seen: not seen.in_workers and seen.rollout >= MOST,
        says=lambda seen: (
            f"the learner waits {seen.rollout:.0%} of a step for sampling: workers on further cards or machines share "
            f"it (rollout.placement=ray), or fewer tokens, {seen.has('sampling.max_tokens')}, {seen.has('sampling.n')}"
        ),
    ),
    BottleneckRule(name="learning", applies=lambda seen: seen.learn >= MOST, says=_learning),
)
"""The first rule that applies is reported, so causes come before their consequences."""


def settings_of(config: Config) -> dict[str, Any]:
    """A configuration by dotted key, as the rules read it."""
    return dict(leaves(config.model_dump(mode="json")))


def bottleneck(lines: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """(rule name, message) for a run's metrics; None if no step is on record or none of the rules applies."""
    seen = Observed.of(lines, settings)
    rule = None if seen is None else next((rule for rule in RULES if rule.applies(seen)), None)
    return None if seen is None or rule is None else (rule.name, rule.says(seen))


def bottleneck_line(lines: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> str:
    """What the last steps waited for, or how their time was divided; empty if there are no steps."""
    seen, found = Observed.of(lines, settings), bottleneck(lines, settings)
    if found is not None:
        return found[1]
    if seen is None:
        return ""
    return f"no phase dominates: a step waits {seen.rollout:.0%} for completions and learns {seen.learn:.0%}"


@dataclass
class Watch:
    """Watches the steps of a run as they arrive."""

    settings: Mapping[str, Any]
    _last: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=LAST + 1), init=False)
    _told: str | None = field(default=None, init=False)
    _next: int = field(default=0, init=False)

    def see(self, line: Mapping[str, float]) -> str | None:
        """The line to print, if the rule that applies differs from the last one printed, at least `EVERY` steps ago."""
        if "time/step_s" in line:
            self._last.append(line)
        if len(self._last) <= LAST or line["step"] < self._next:
            return None
        name, text = bottleneck(list(self._last), self.settings) or (None, None)
        if name == self._told:
            return None
        self._told = name
        if text is not None:
            self._next = int(line["step"]) + EVERY
        return text
