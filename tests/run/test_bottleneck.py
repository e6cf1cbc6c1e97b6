"""What the steps of a run wait for: made-up metrics of known cases, and the arms of the pool's benchmark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pool_measured import ARMS, MEASURED, PHASES, Measured
from rl_engine.config import load_config
from rl_engine.run.bottleneck import EVERY, LAST, RULES, Watch, bottleneck, bottleneck_line, settings_of

POOL = ("rollout.placement=ray", "rollout.workers=16", "train.problems_per_step=32", "sampling.max_tokens=8192")
AHEAD = (*POOL, "rollout.max_staleness=1")


def line(step: int = 2, rollout: float = 0, grade: float = 0, learn: float = 0, sync: float = 0, **more: float) -> Any:
    """A step of 100 s; `more` are metrics of workers, and `signal`."""
    signal = more.pop("signal", 0.5)
    phases = {"rollout": rollout, "grade": grade, "learn": learn, "sync": sync, "step": 100.0}
    workers = {f"workers/{name}": value for name, value in more.items()}
    if "busy_frac" in more:
        workers = {"workers/tail_s": 0.0, "workers/alive": 16, **workers}
    times = {f"time/{phase}_s": seconds for phase, seconds in phases.items()}
    return {"step": step, "groups/no_signal_frac": 1 - signal, **times, **workers}


def told(overrides: Sequence[str], *lines: Any) -> tuple[str, str] | None:
    return bottleneck(lines, settings_of(load_config("quickstart.yaml", overrides)))


CASES: dict[str, tuple[str, tuple[str, ...], Any, str]] = {
    "a worker that did not come back": (
        "workers missing",
        POOL,
        line(rollout=60, learn=35, busy_frac=0.55, alive=14),
        "14 of rollout.workers (16) are there",
    ),
    "a slow judge": ("grading", (), line(rollout=40, grade=35, learn=20), "grading takes 35% of a step"),
    "a reward function that is slow": (
        "grading",
        ("rewards.function=mine:score",),
        line(rollout=40, grade=35, learn=20),
        "make rewards.function faster",
    ),
    "a canary behind long completions": (
        "publishing",
        POOL,
        line(rollout=40, learn=30, sync=25, busy_frac=0.6),
        "smaller pieces",
    ),
    "whole models on their way": (
        "publishing",
        ("method=full",),
        line(rollout=40, learn=30, sync=25),
        "method=lora sends an adapter",
    ),
    "the documented recipe before pieces were auto": (
        "too few pieces",
        (*POOL, "rollout.prompts_per_piece=16"),
        line(rollout=70, learn=25, busy_frac=0.09),
        "samplers idle 91% of a step, and 14 of 16 get no prompts: lower rollout.prompts_per_piece (16) to 2",
    ),
    "more workers than problems": (
        "too few pieces",
        (*POOL, "rollout.workers=64"),
        line(rollout=70, learn=25, busy_frac=0.35, alive=64),
        "32 of 64 get no prompts: raise train.problems_per_step (32), or lower rollout.workers (64)",
    ),
    "a long tail": (
        "tail",
        POOL,
        line(rollout=65, learn=30, busy_frac=0.4, tail_s=45),
        "the longest completions 45% of a step",
    ),
    "problems that are too hard": (
        "no signal",
        POOL,
        line(rollout=80, learn=15, busy_frac=0.75, signal=0.05),
        "95% of its groups teach nothing",
    ),
    "on policy, in turns": (
        "in turns",
        POOL,
        line(rollout=38, learn=60, busy_frac=0.38),
        "samplers idle 62% of a step, because 60% of it is learning: rollout.max_staleness=1",
    ),
    "whole models in workers, in turns": (
        "in turns",
        (*POOL, "method=full"),
        line(rollout=38, learn=60, busy_frac=0.38),
        "with method=full nothing is sampled ahead: more learner ranks",
    ),
    "whole models in workers, a long tail": (
        "tail",
        (*POOL, "method=full"),
        line(rollout=65, learn=30, busy_frac=0.4, tail_s=45),
        "45% of a step: sample shorter, sampling.max_tokens",
    ),
    "whole models on their way to workers": (
        "publishing",
        (*POOL, "method=full"),
        line(rollout=40, learn=30, sync=25, busy_frac=0.6),
        "the whole model goes to the sampler; method=lora sends an adapter",
    ),
    "ahead of a learner that is too slow": (
        "learner behind",
        AHEAD,
        line(rollout=1, learn=95, busy_frac=0.4),
        "samplers idle 60% of a step, because the learner takes all of it",
    ),
    "ahead with too few workers": (
        "samplers behind",
        AHEAD,
        line(rollout=55, learn=40, busy_frac=0.98),
        "the learner waits 55% of a step for samplers that are busy 98% of it: raise rollout.workers (16)",
    ),
    "a cluster's whole room is too little": (
        "samplers behind",
        (*AHEAD, "rollout.workers=max", "rollout.address=auto", "rollout.prompts_per_piece=2"),
        line(rollout=55, learn=40, busy_frac=0.98),
        "busy 98% of it: add machines, or lower sampling.max_tokens",
    ),
    "large pieces for a cluster's whole room": (
        "too few pieces",
        (*POOL, "rollout.workers=max", "rollout.address=auto", "rollout.prompts_per_piece=16"),
        line(rollout=70, learn=25, busy_frac=0.09),
        "14 of 16 get no prompts: lower rollout.prompts_per_piece (16) to 1, which auto is",
    ),
    "one card, long completions": (
        "sampling",
        (),
        line(rollout=75, learn=20),
        "the learner waits 75% of a step for sampling",
    ),
    "one card, a slow learner": (
        "learning",
        ("learner.gradient_checkpointing=true",),
        line(rollout=30, learn=65),
        "sampling waits for learning, 65% of a step: more learner ranks, a larger learner.tokens_per_microbatch",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_known_case_is_one_line_with_the_key(case: str) -> None:
    rule, overrides, one, words = CASES[case]
    found = told(overrides, one, one)
    assert found is not None
    assert found[0] == rule
    assert words in found[1]
    assert "\n" not in found[1]


def test_every_rule_has_a_case_and_a_row_in_the_docs() -> None:
    """The rows are in the same order."""
    names = [rule.name for rule in RULES]
    assert {case[0] for case in CASES.values()} == set(names)
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().partition("## What a step waits for")[2]
    assert re.findall(r"^\| (?!rule)([a-z ]+) \|", page, re.MULTILINE) == names


@pytest.mark.parametrize(
    ("overrides", "one"),
    [
        ((), line(rollout=49, learn=47)),
        (POOL, line(rollout=85, learn=12, busy_frac=0.84, tail_s=20)),
        (AHEAD, line(rollout=5, learn=90, busy_frac=0.9)),
    ],
)
def test_where_nothing_is_lost_the_line_says_no_more_than_that(overrides: tuple[str, ...], one: Any) -> None:
    settings = settings_of(load_config("quickstart.yaml", overrides))
    found = bottleneck([one], settings)
    if overrides == ():
        assert bottleneck_line([one], settings).startswith(
            "no phase dominates: a step waits 49% for completions and learns"
        )
    # A pool that is always busy needs more workers, and a learner that is always busy needs more learners.
    assert (found and found[0]) == {(): None, POOL: "samplers behind", AHEAD: "learning"}[overrides]


def test_medians_of_the_last_steps_without_the_one_that_warms_up() -> None:
    slow, even = line(1, rollout=90), line(2, rollout=50, learn=45)
    assert told((), slow, even, even) is None
    assert told((), slow) is not None  # the only step counts
    assert told((), *[slow] * 20, *[even] * LAST) is None
    assert told((), {"step": 0, "eval/held_out/avg": 0.5}) is None
    assert bottleneck_line([{"step": 0}], {}) == ""


def test_a_changed_bottleneck_is_reported_but_not_too_often() -> None:
    watch = Watch(settings_of(load_config("quickstart.yaml")))
    sampling, learning = {"rollout": 75.0, "learn": 20.0}, {"rollout": 30.0, "learn": 65.0}
    said = [step for step in range(1, 16) if watch.see(line(step, **sampling))]
    assert said == [LAST + 1]
    assert watch.see({"step": 15, "adapter/version": 15}) is None
    said = [step for step in range(16, 80) if watch.see(line(step, **learning))]
    assert said == [LAST + 1 + EVERY]


def test_the_arms_of_the_pools_benchmark() -> None:
    """Measured before workers had metrics, so this is what the phases alone tell. On two cores, sampling ahead slows
    the learner."""
    measured = Measured.read(MEASURED)
    found = {}
    for name, arm in ARMS.items():
        overrides = [*arm.overrides(), "train.problems_per_step=64", "rollout.kv_cache_gib=0.5"]
        one = line()
        for phase in (*PHASES, "step_s"):
            one[f"time/{phase}"] = measured.median(name, lambda step: getattr(step, phase))  # noqa: B023
        rule = told(overrides, one)
        found[name] = rule and rule[0]
    assert found == {
        "in process": None,
        "1 worker, k = 0": "samplers behind",
        "2 workers, k = 0": None,
        "1 worker, k = 1": "learning",
        "2 workers, k = 1": "learning",
    }
