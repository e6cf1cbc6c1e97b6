"""What a step takes from the stream of prompts: sampled ahead, replaced where there is no signal, never lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rewards import GradeResult, Verdict
from rl_engine.config import Config
from rl_engine.config_file import ConfigError
from rl_engine.sampler import GradedGroup
from rl_engine.supply import Supply
from rollout.config import SamplingConfig
from rollout.cursor import Cursor
from rollout.types import AdapterRef, Completion, Problem, Prompt, RolloutGroup

ConfigMaker = Callable[..., Config]
RIGHT, WRONG = (
    GradeResult(verdict=verdict, reward=reward, extracted="", terms={})
    for verdict, reward in ((Verdict.CORRECT, 1.0), (Verdict.INCORRECT, 0.0))
)


def ref(version: int) -> AdapterRef:
    return AdapterRef(name="policy", version=version, path=Path(), sha256="", rank=1)


@dataclass
class FakeSampler:
    """Grades at once: problems whose number is in `dull` have no signal."""

    dull: set[int] = field(default_factory=set)
    asked: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    """(adapter, problems, seeds) of every call."""

    def reset_times(self) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    def ask(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, adapter: AdapterRef, seeds: Sequence[str]
    ) -> Callable[[], list[GradedGroup]]:
        self.asked.append((adapter.key, [prompt.problem.id for prompt in prompts], list(seeds)))
        return lambda: [self._graded(prompt, adapter.key) for prompt in prompts]

    def _graded(self, prompt: Prompt, key: str) -> GradedGroup:
        one = Completion(text="", token_ids=(1,), logprobs=(-1.0,), finish_reason="stop", adapter=key)
        group = RolloutGroup(prompt=prompt, completions=(one, one))
        return GradedGroup(group, (RIGHT, RIGHT if int(prompt.problem.id) in self.dull else WRONG))


@pytest.fixture
def make_supply(make_config: ConfigMaker) -> Callable[..., tuple[Supply, FakeSampler]]:
    def make(*overrides: str, dull: set[int] | None = None, position: int = 0) -> tuple[Supply, FakeSampler]:
        config = make_config("train.problems_per_step=3", "train.steps=5", "seed=7", *overrides)
        prompts = [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(i,)) for i in range(1000)]
        sampler: Any = FakeSampler(dull or set())
        cursor = Cursor(prompts, seed=0, shuffle=False, position=position)
        return Supply(config, cursor, sampler, config.sampling), sampler

    return make


def ids(graded: Sequence[GradedGroup]) -> list[int]:
    return [int(each.group.prompt.problem.id) for each in graded]


def versions(graded: Sequence[GradedGroup]) -> list[int]:
    return [int(each.group.completions[0].adapter[-6:]) for each in graded]


def test_on_policy_every_step_asks_for_its_own_groups_with_the_seeds_of_step_and_index(make_supply: Any) -> None:
    supply, sampler = make_supply()
    for step in range(1, 6):
        graded = supply.take(step, ref(step - 1))
        assert versions(graded) == [step - 1] * 3
        assert supply.position == 3 * step
    assert sampler.asked[1] == ("policy-v000001", ["3", "4", "5"], ["7/2/0", "7/2/1", "7/2/2"])
    assert len(sampler.asked) == 5
    assert supply.metrics() == {"rollout/staleness_mean": 0.0, "rollout/staleness_max": 0.0}


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_ahead_by_k_steps_every_problem_comes_once_in_order_from_k_updates_before(
    make_supply: Any, staleness: int
) -> None:
    supply, sampler = make_supply("rollout.placement=ray", f"rollout.max_staleness={staleness}")
    taken = []
    for step in range(1, 6):
        graded = supply.take(step, ref(step - 1))
        taken += ids(graded)
        assert versions(graded) == [max(0, step - 1 - staleness)] * 3
        assert set(supply.staleness) == {min(step - 1, staleness)}
        # What is under way when a step begins to learn: so many steps' worth, and nothing beyond the last.
        assert supply.ahead == 3 * min(staleness, 5 - step)
        assert supply.position == 3 * step
    assert taken == list(range(15))
    assert sorted(int(i) for _, prompts, _ in sampler.asked for i in prompts) == taken
    in_order, _ = make_supply()
    for step in range(1, 6):
        in_order.take(step, ref(0))
    assert [s for _, _, some in sampler.asked for s in some] == [
        s for _, _, some in in_order.sampler.asked for s in some
    ]


def test_an_adapter_that_stands_still_makes_nothing_stale(make_supply: Any) -> None:
    supply, _ = make_supply("rollout.placement=ray", "rollout.max_staleness=2")
    for step in range(1, 6):
        supply.take(step, ref(0))
        assert supply.staleness == [0, 0, 0]


def test_groups_without_signal_are_replaced_up_to_the_limit(make_supply: Any) -> None:
    supply, sampler = make_supply("train.max_problems_per_step=6", dull={1, 2, 4, 10, 11, 12, 13, 14})
    first = supply.take(1, ref(0))
    # 0 1̶ 2̶ | 3 4̶ | 5: two rounds of as many as are missing.
    assert ids(first) == [0, 3, 5, 1, 2, 4]
    assert [len(prompts) for _, prompts, _ in sampler.asked] == [3, 2, 1]
    assert supply.metrics()["groups/replaced"] == 3
    assert ids(supply.take(2, ref(1))) == [6, 7, 8]
    assert supply.metrics()["groups/replaced"] == 0
    # Six were sampled and one has signal: two without keep the step's size.
    assert ids(supply.take(3, ref(2))) == [9, 10, 11, 12, 13, 14]
    assert supply.position == 15


def test_a_step_that_replaces_takes_from_what_is_under_way_and_stays_within_the_bound(make_supply: Any) -> None:
    overrides = ("rollout.placement=ray", "rollout.max_staleness=2", "train.max_problems_per_step=12")
    supply, _ = make_supply(*overrides, dull={number for number in range(1000) if number % 4})
    taken: list[int] = []
    for step in range(1, 6):
        graded = supply.take(step, ref(step - 1))
        assert sum(number % 4 == 0 for number in ids(graded[:3])) == 3
        assert max(supply.staleness) <= 2
        taken += ids(graded)
        assert supply.position == len(taken)
    assert sorted(taken) == list(range(len(taken)))


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_resumed_run_loses_and_repeats_nothing(make_supply: Any, staleness: int) -> None:
    overrides = ["train.max_problems_per_step=5"]
    overrides += ["rollout.placement=ray", f"rollout.max_staleness={staleness}"] if staleness else []
    dull = {2, 3, 9, 10, 11, 17}
    whole, _ = make_supply(*overrides, dull=dull)
    expected = [ids(whole.take(step, ref(step - 1))) for step in range(1, 6)]
    first, _ = make_supply(*overrides, dull=dull)
    found = [ids(first.take(step, ref(step - 1))) for step in (1, 2)]
    second, _ = make_supply(*overrides, dull=dull, position=first.position)
    found += [ids(second.take(step, ref(step - 1))) for step in (3, 4, 5)]
    assert found == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.max_staleness=1"], ["rollout.max_staleness is 1", "rollout.placement=ray"]),
        (["rollout.address=auto"], ["rollout.address is 'auto'", "rollout.placement=ray"]),
        (["rollout.placement=ray", "method=full"], ["method=full needs rollout.placement=inprocess"]),
        (
            ["rollout.placement=ray", "rollout.max_staleness=2", "loss.name=reinforce"],
            ["loss.name reinforce", "loss.sampler_correction"],
        ),
        (["train.max_problems_per_step=63"], ["max_problems_per_step is 63", "problems_per_step (64)"]),
        (["rollout.placement=slurm"], ["'inprocess'", "'ray'"]),
    ],
)
def test_what_cannot_be_sampled_so_is_refused_with_the_way_out(
    make_config: ConfigMaker, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(*overrides)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_correction_makes_reinforce_fit_for_stale_completions(make_config: ConfigMaker) -> None:
    make_config(
        "rollout.placement=ray",
        "rollout.max_staleness=2",
        "loss.name=reinforce",
        "loss.sampler_correction=token_truncate",
    )
