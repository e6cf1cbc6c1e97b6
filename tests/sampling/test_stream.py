"""How a step takes groups from the stream of prompts: sampled ahead, replaced if they have no signal, never lost."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rl_engine.config import Config
from rl_engine.config.file import ConfigError
from rl_engine.learner.groups import GradedGroup
from rl_engine.sampling.data import cursor_of
from rl_engine.sampling.stream import RolloutStream
from rollout.config import DataConfig
from rollout.prompts.cursor import Cursor
from rollout.types import Problem, Prompt
from tests.helpers.fake_sampler import MAX_TOKENS, FakeSampler, ref

ConfigMaker = Callable[..., Config]

STALENESS = ("rollout/staleness_mean", "rollout/staleness_max")

SEGMENTS = ("rollout.placement=ray", "rollout.max_staleness=3", "rollout.leg_tokens=10")


@pytest.fixture
def make_stream(make_config: ConfigMaker) -> Callable[..., tuple[RolloutStream, FakeSampler]]:
    def make(
        *overrides: str, dull: set[int] | None = None, lengths: tuple[int, int] = (1, 1), position: int = 0
    ) -> tuple[RolloutStream, FakeSampler]:
        config = make_config("train.problems_per_step=3", "train.steps=5", "seed=7", *overrides)
        prompts = [Prompt(problem=Problem(id=str(i), text="", answer=""), text="", token_ids=(i,)) for i in range(1000)]
        assert config.sampling.max_tokens == MAX_TOKENS
        sampler: Any = FakeSampler(dull or set(), lengths)
        cursor = Cursor(prompts, seed=0, shuffle=False, position=position)
        return RolloutStream(config, cursor, sampler, config.sampling), sampler

    return make


def ids(graded: Sequence[GradedGroup]) -> list[int]:
    return [int(each.rollout.prompt.problem.id) for each in graded]


def versions(graded: Sequence[GradedGroup]) -> list[int]:
    return [int(each.rollout.completions[0].adapter[-6:]) for each in graded]


def test_on_policy_seeds_are_of_step_and_index(make_stream: Any) -> None:
    """Every step requests only its own groups."""
    stream, sampler = make_stream()
    for step in range(1, 6):
        graded = stream.take(step, ref(step - 1)).all
        assert versions(graded) == [step - 1] * 3
        assert stream.position == 3 * step
    assert sampler.asked[1] == ("policy-v000001", ["3", "4", "5"], ["7/2/0", "7/2/1", "7/2/2"])
    assert len(sampler.asked) == 5
    assert stream.metrics() == dict.fromkeys(STALENESS, 0.0)


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_ahead_by_k_every_problem_comes_once_from_k_updates_ago(make_stream: Any, staleness: int) -> None:
    stream, sampler = make_stream("rollout.placement=ray", f"rollout.max_staleness={staleness}")
    taken = []
    for step in range(1, 6):
        graded = stream.take(step, ref(step - 1)).all
        taken += ids(graded)
        assert versions(graded) == [max(0, step - 1 - staleness)] * 3
        assert stream.metrics() == dict.fromkeys(STALENESS, min(step - 1, staleness))
        # In flight when a step begins to learn: that many steps' worth, and nothing beyond the last step.
        assert stream.ahead == 3 * min(staleness, 5 - step)
        assert stream.position == 3 * step
    assert taken == list(range(15))
    assert sorted(int(i) for _, prompts, _ in sampler.asked for i in prompts) == taken
    in_order, _ = make_stream()
    for step in range(1, 6):
        in_order.take(step, ref(0))
    assert [s for _, _, some in sampler.asked for s in some] == [
        s for _, _, some in in_order.sampler.asked for s in some
    ]


def test_an_adapter_that_stands_still_makes_nothing_stale(make_stream: Any) -> None:
    stream, _ = make_stream("rollout.placement=ray", "rollout.max_staleness=2")
    for step in range(1, 6):
        stream.take(step, ref(0))
        assert stream.metrics() == dict.fromkeys(STALENESS, 0.0)


def test_groups_without_signal_are_replaced_up_to_the_limit(make_stream: Any) -> None:
    stream, sampler = make_stream("train.max_problems_per_step=6", dull={1, 2, 4, 10, 11, 12, 13, 14})
    first = stream.take(1, ref(0))
    # 0 1̶ 2̶ | 3 4̶ 5: two groups are missing and one in three had a signal, but the limit leaves only three.
    assert (ids(first.to_learn), ids(first.replaced)) == ([0, 3, 5], [1, 2, 4])
    assert [len(prompts) for _, prompts, _ in sampler.asked] == [3, 3]
    assert (first.rollout_s, first.grade_s) == (2 * 2.0, 2 * 0.5)
    assert stream.metrics()["groups/replaced"] == 3
    assert ids(stream.take(2, ref(1)).all) == [6, 7, 8]
    assert stream.metrics()["groups/replaced"] == 0
    # Six were sampled and one has a signal: two without a signal make up the step's size.
    assert ids(stream.take(3, ref(2)).all) == [9, 10, 11, 12, 13, 14]
    assert stream.position == 15


def test_a_round_asks_for_enough_at_the_share_so_far(make_stream: Any) -> None:
    """One of groups 0 to 2 has a signal. Two are missing, so six more are requested, and all six count as sampled."""
    stream, sampler = make_stream("train.max_problems_per_step=30", dull={1, 2, 4, 6})
    first = stream.take(1, ref(0))
    assert (ids(first.to_learn), ids(first.replaced)) == ([0, 3, 5], [7, 8, 1, 2, 4, 6])
    assert sum(len(prompts) for _, prompts, _ in sampler.asked) == stream.position == 9
    # On policy: nothing requested under this version is left for the next.
    assert stream.ahead == 0
    assert versions(stream.take(2, ref(1)).all) == [1, 1, 1]


def test_without_any_signal_a_round_is_as_large_as_for_one(make_stream: Any) -> None:
    """While no group has had a signal, a round is as large as if one of them had."""
    stream, sampler = make_stream("train.max_problems_per_step=30", dull=set(range(9)))
    assert ids(stream.take(1, ref(0)).to_learn) == [9, 10, 11]
    assert sum(len(prompts) for _, prompts, _ in sampler.asked) == 3 + 3 * 3


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_what_is_asked_for_beyond_the_need_is_for_later_steps(make_stream: Any, staleness: int) -> None:
    """None of these groups grows older than the bound, whichever groups have a signal."""
    overrides = ("rollout.placement=ray", f"rollout.max_staleness={staleness}", "train.steps=9")
    for seed in range(8):
        draw = random.Random(seed)
        dull = {number for number in range(1000) if draw.random() < (0.9 if number // 20 % 2 else 0.2)}
        stream, _ = make_stream(*overrides, "train.max_problems_per_step=20", dull=dull)
        taken: list[int] = []
        for step in range(1, 10):
            found = stream.take(step, ref(step - 1))
            # Groups are taken one at a time, so none with a signal is discarded.
            assert all(number in dull for number in ids(found.replaced))
            assert stream.metrics()["rollout/staleness_max"] <= staleness
            taken += ids(found.all)
        assert sorted(taken) == list(range(len(taken)))


def test_replacing_takes_from_what_is_in_flight_within_bounds(make_stream: Any) -> None:
    overrides = ("rollout.placement=ray", "rollout.max_staleness=2", "train.max_problems_per_step=12")
    stream, _ = make_stream(*overrides, dull={number for number in range(1000) if number % 4})
    taken: list[int] = []
    for step in range(1, 6):
        graded = stream.take(step, ref(step - 1)).all
        assert sum(number % 4 == 0 for number in ids(graded[:3])) == 3
        assert stream.metrics()["rollout/staleness_max"] <= 2
        taken += ids(graded)
        assert stream.position == len(taken)
    assert sorted(taken) == list(range(len(taken)))


def segments(group: GradedGroup) -> list[list[tuple[str, int]]]:
    """(last digit of the version, tokens) of each segment of each completion."""
    return [[(part.adapter[-1], part.tokens) for part in one.segments] for one in group.rollout.completions]


def test_the_unfinished_go_on_until_the_step_before_their_own(make_stream: Any) -> None:
    stream, sampler = make_stream(*SEGMENTS, lengths=(5, 72))
    expected = {
        1: [("0", 72)],  # there is no earlier step
        2: [("0", 72)],  # requested in the step before its own, which samples the last segment
        3: [("0", 10), ("1", 62)],
        4: [("0", 10), ("1", 10), ("2", 52)],
        5: [("1", 10), ("2", 10), ("3", 52)],
    }
    for step in range(1, 6):
        graded = stream.take(step, ref(step - 1)).all
        short = [(expected[step][0][0], 5)]
        assert [segments(each) for each in graded] == [[short, expected[step]]] * 3
        assert stream.position == 3 * step
        if step == 2:  # unfinished groups continue first, in the order they are needed; then new ones begin
            assert sampler.begun[4:] == [(ref(1).key, "6", 72), (ref(1).key, "9", 20), (ref(1).key, "12", 10)]
    # Of 77 tokens, 5 + 10 are from three updates before, 10 from two, and 52 from one.
    assert stream.metrics() == {
        "rollout/staleness_mean": pytest.approx((3 * 15 + 2 * 10 + 52) / 77),
        "rollout/staleness_max": 3.0,
        "rollout/continued_frac": 0.5,
    }


def test_a_leg_is_one_also_where_the_version_stands_still(make_stream: Any) -> None:
    stream, _ = make_stream(*SEGMENTS, lengths=(5, 15))
    for step in range(1, 5):
        graded = stream.take(step, ref(0)).all
    assert segments(graded[0]) == [[("0", 5)], [("0", 10), ("0", 5)]]
    assert stream.metrics() == {**dict.fromkeys(STALENESS, 0.0), "rollout/continued_frac": 0.5}


def test_what_is_taken_before_its_last_segment_is_finished(make_stream: Any) -> None:
    """A step that replaces groups may take some before their last segment; it finishes them itself."""
    # Step 2 finds groups 3 to 5 complete, and 6 to 8 soon will be; only ten tokens of 9 to 11 have been requested.
    stream, sampler = make_stream(*SEGMENTS, "train.max_problems_per_step=9", dull={4, 5, 6, 7, 8}, lengths=(5, 72))
    stream.take(1, ref(0))
    graded = stream.take(2, ref(1)).all
    assert ids(graded) == [3, 9, 10, 4, 5, 6, 7, 8]
    assert [segments(each)[1] for each in graded] == [
        [("0", 72)],
        *[[("0", 10), ("1", 10), ("1", 52)]] * 2,
        *[[("0", 72)]] * 2,
        *[[("0", 10), ("1", 62)]] * 3,
    ]
    assert sampler.begun[-1] == (ref(1).key, "9", 72)
    # Group 11, the last of that request, was finished along with the others and is taken as it is.
    graded = stream.take(3, ref(2)).all
    assert ids(graded) == [11, 12, 13]
    assert segments(graded[0])[1] == [("0", 10), ("1", 10), ("1", 52)]
    assert stream.metrics()["rollout/staleness_max"] == 2


@pytest.mark.parametrize("limit", [3, 4, 7, 12])
def test_in_segments_no_token_is_older_than_the_bound(make_stream: Any, limit: int) -> None:
    """Every problem also comes exactly once."""
    for seed in range(4):
        draw = random.Random(f"{limit}/{seed}")
        dull = {number for number in range(200) if draw.random() < 0.6}
        stream, sampler = make_stream(
            *SEGMENTS, f"train.max_problems_per_step={limit}", "train.steps=8", dull=dull, lengths=(12, 72)
        )
        taken: list[int] = []
        for step in range(1, 9):
            graded = stream.take(step, ref(step - 1)).all
            taken += ids(graded)
            oldest = min(int(adapter) for each in graded for row in segments(each) for adapter, _ in row)
            assert stream.metrics()["rollout/staleness_max"] == step - 1 - oldest <= 3
        assert sorted(taken) == list(range(len(taken)))
        assert len({seed for _, _, seeds in sampler.asked for seed in seeds}) == stream.cursor.position


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_resumed_run_loses_and_repeats_nothing(make_stream: Any, staleness: int) -> None:
    overrides = ["train.max_problems_per_step=5"]
    overrides += ["rollout.placement=ray", f"rollout.max_staleness={staleness}"] if staleness else []
    overrides += ["rollout.leg_tokens=10"] if staleness == 2 else []
    dull = {2, 3, 9, 10, 11, 17}
    whole, _ = make_stream(*overrides, dull=dull)
    expected = [ids(whole.take(step, ref(step - 1)).all) for step in range(1, 6)]
    first, _ = make_stream(*overrides, dull=dull)
    found = [ids(first.take(step, ref(step - 1)).all) for step in (1, 2)]
    second, _ = make_stream(*overrides, dull=dull, position=first.position)
    found += [ids(second.take(step, ref(step - 1)).all) for step in (3, 4, 5)]
    assert found == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.max_staleness=1"], ["rollout.max_staleness is 1", "rollout.placement=ray"]),
        (["rollout.address=auto"], ["rollout.address is 'auto'", "rollout.placement=ray"]),
        (
            ["rollout.placement=ray", "rollout.max_staleness=1", "method=full"],
            ["rollout.max_staleness is 1, and with method=full", "leave it at 0, or use method=lora"],
        ),
        (
            ["rollout.placement=ray", "rollout.max_staleness=2", "loss.name=reinforce"],
            ["loss.name reinforce", "loss.sampler_correction"],
        ),
        (
            ["rollout.placement=ray", "rollout.max_staleness=2", "loss.name=gspo", "loss.sampler_correction=none"],
            ["loss.name gspo", "loss.sampler_correction=token_truncate"],
        ),
        (["train.max_problems_per_step=63"], ["max_problems_per_step is 63", "problems_per_step (64)"]),
        (["rollout.placement=ray", "rollout.workers=max"], ["rollout.workers is max", "in rollout.address"]),
        (["rollout.placement=slurm"], ["'inprocess'", "'ray'"]),
        (["rollout.leg_tokens=8"], ["rollout.leg_tokens is 8", "rollout.max_staleness 2 or more", "not 0"]),
        (["rollout.placement=ray", "rollout.max_staleness=1", "rollout.leg_tokens=8"], ["not 1"]),
        ([*SEGMENTS, "rollout.leg_tokens=72"], ["rollout.leg_tokens is 72", "sampling.max_tokens (72)"]),
        ([*SEGMENTS, "rollout.leg_tokens=0"], ["rollout.leg_tokens", "1"]),
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


@pytest.mark.parametrize("mixed", [False, True], ids=["one source", "a mix"])
@pytest.mark.parametrize(
    "overrides", [(), ("rollout.placement=ray", "rollout.max_staleness=2"), ("train.max_problems_per_step=6",)]
)
def test_a_resumed_run_draws_what_taught_nothing_as_rarely(
    overrides: tuple[str, ...], mixed: bool, make_config: ConfigMaker
) -> None:
    """Stopped after any step and resumed from its state as JSON, a run draws the same problems and seeds as one that
    was not stopped."""
    steps, dull = 14, {0, 2, 3, 5}
    settings = ("train.problems_per_step=3", f"train.steps={steps}", "data.replay=0.3", *overrides)
    config = make_config(*settings)
    if mixed:
        mix = ({"source": "arithmetic", "weight": 2}, {"source": "arithmetic"})
        data = DataConfig.model_validate({**config.data.model_dump(), "source": "mix", "mix": mix})
        config = config.model_copy(update={"data": data})

    def started() -> RolloutStream:
        problems = [Problem(id=str(i), text="", answer="", part=int(mixed and i >= 4)) for i in range(8)]
        prompts = [Prompt(problem=one, text="", token_ids=(int(one.id),)) for one in problems]
        sampler: Any = FakeSampler(dull)
        return RolloutStream(config, cursor_of(config, prompts), sampler, config.sampling)

    whole, states, taken = started(), [], []
    for step in range(1, steps + 1):
        taken.append(ids(whole.take(step, ref(step - 1)).all))
        states.append((whole.position, json.dumps(whole.state())))
    drawn = Counter(itertools.chain(*taken))
    assert max(drawn[i] for i in dull) < min(drawn[i] for i in range(8) if i not in dull and (not mixed or i < 4))
    for stopped, (position, state) in enumerate(states, 1):
        resumed = started()
        resumed.cursor.restore(position, json.loads(state))
        assert [ids(resumed.take(step, ref(step - 1)).all) for step in range(stopped + 1, steps + 1)] == taken[stopped:]
