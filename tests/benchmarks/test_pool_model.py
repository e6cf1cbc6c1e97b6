"""The simulated pool against closed forms, brute force and bounds."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.pool_model import Scale, lognormal_lengths, mean_of_cut
from benchmarks.pool_setting import (
    Cores,
    Decoding,
    StepWork,
    pieces_of,
)
from benchmarks.pool_simulation import simulate, steady
from tests.helpers.pool_settings import (
    COSTS,
    DECODING,
    EXACT,
    PROBLEMS,
    SAMPLES,
    SYNC_S,
    learner_s,
    pieces,
    setting,
    works,
)


def list_schedule(seconds: list[float], workers: int) -> float:
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def test_a_batch_takes_the_sum_of_its_decoding_steps() -> None:
    """Each decoding step gets cheaper once a sequence has ended."""
    lengths = np.array([3, 1, 7, 7])
    steps = sum(0.02 + 0.001 * int((lengths > at).sum()) for at in range(7))
    assert DECODING.seconds(lengths) == pytest.approx(0.5 + 4 * 0.01 + steps)


def test_a_request_is_cut_as_the_pool_cuts_it() -> None:
    lengths = works(1)[0].lengths
    by_hand = [float(DECODING.seconds(lengths[at : at + 5].reshape(-1))) for at in (0, 5, 10)]
    assert pieces_of(lengths, 5, DECODING) == pytest.approx(by_hand)


def test_one_worker_on_policy_takes_the_sum_of_everything() -> None:
    steps = works(3)
    for work, found in zip(steps, simulate(COSTS, setting(1), steps), strict=True):
        assert found.rollout_s == pytest.approx(sum(pieces(work)), rel=EXACT)
        assert found.learn_s == pytest.approx(work.learned_tokens * 0.002, rel=EXACT)
        assert found.sync_s == pytest.approx(SYNC_S, rel=EXACT)
        assert found.step_s == pytest.approx(sum(pieces(work)) + learner_s(work, stale=False) + SYNC_S, rel=EXACT)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_on_policy_sampling_takes_what_dealing_in_order_takes(workers: int) -> None:
    steps = works(3)
    for work, found in zip(steps, simulate(COSTS, setting(workers), steps), strict=True):
        assert found.rollout_s == pytest.approx(list_schedule(pieces(work), workers), rel=EXACT)


def test_with_a_worker_for_each_piece_the_longest_is_waited_for() -> None:
    steps = works(3)
    for work, found in zip(steps, simulate(COSTS, setting(500), steps), strict=True):
        assert found.rollout_s == pytest.approx(max(pieces(work)), rel=EXACT)


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_faster_sampling_makes_a_step_as_long_as_learning(staleness: int) -> None:
    """If sampling is faster than learning, a step of an asynchronous run takes as long as the learner."""
    steps, slow = works(12), replace(COSTS, learn_token_s=0.02)
    found = simulate(slow, setting(6, staleness), steps)
    for work, step in list(zip(steps, found, strict=True))[1 + staleness :]:
        assert step.rollout_s == 0.0
        assert step.learn_s == pytest.approx(work.learned_tokens * 0.02 + work.tokens * 0.0005, rel=EXACT)
        # Free workers load the adapter at once, and the first of them gets the canary.
        assert step.sync_s == pytest.approx(SYNC_S, rel=EXACT)


def test_where_learning_is_faster_one_worker_is_never_idle_ahead() -> None:
    """The period is the worker's own work: its pieces, loading a version and a canary."""
    steps, fast = works(30), replace(COSTS, learn_token_s=1e-5, check_token_s=0.0, record_completion_s=0.0)
    found = steady(1, simulate(fast, setting(1, 1), steps))
    sampled = [sum(pieces(work)) + COSTS.load_s + COSTS.canary_s for work in steps[2:-1]]
    # Step s waits for pieces of s, and its canary for a piece of s + 1; over many steps that evens out.
    assert sum(step.step_s for step in found) == pytest.approx(sum(sampled), rel=0.03)


def test_the_first_request_ahead_is_of_several_steps() -> None:
    """The first request covers several steps, and the last steps request nothing."""
    steps = works(4)
    found = simulate(COSTS, setting(1, 2), steps)
    assert found[0].rollout_s == pytest.approx(sum(sum(pieces(work)) for work in steps[:3]), rel=EXACT)
    assert found[1].rollout_s == found[2].rollout_s == 0.0
    # The first step's version is the learner's own; the later steps are checked.
    for work, step, stale in zip(steps, found, (False, True, True, True), strict=True):
        assert step.grade_s + step.learn_s == pytest.approx(learner_s(work, stale=stale), rel=EXACT)


def test_a_canary_waits_for_the_worker_and_goes_first() -> None:
    """Pieces of 10 s, a learner of 5 s: the canary waits until the worker has finished its piece of the next step."""
    costs = replace(
        COSTS,
        decoding=Decoding(call_s=10.0, sequence_s=0, longest_s=0, token_s=0),
        learn_token_s=0.0,
        check_token_s=0.0,
        grade_completion_s=5 / (PROBLEMS * SAMPLES),
        record_completion_s=0.0,
        publish_s=0.0,
    )
    found = simulate(costs, setting(1, 1, prompts_per_piece=6), works(3))
    # The first request is 4 pieces, 40 s. From the start of the second step, 2 pieces of step 3; the canary runs after
    # the first of them.
    assert found[0].step_s == pytest.approx(40 + 5 + 0.2 + 0.3)
    assert found[1].rollout_s == 0.0
    assert found[1].sync_s == pytest.approx(5 + 0.2 + 0.3)
    assert found[2].rollout_s == pytest.approx(10)


def test_threads_share_the_cores() -> None:
    """By hand: 3 threads on 2 cores get 2/3 of a core each. A learner with two threads takes 6 s alone, and a worker
    has a piece of 4 s. The piece ends after 6 s, with 4 s of the learning done, and the last 2 s have both cores."""
    costs = replace(
        COSTS,
        decoding=Decoding(call_s=4.0, sequence_s=0, longest_s=0, token_s=0),
        learn_token_s=6 / 100,
        check_token_s=0.0,
        grade_completion_s=0.0,
        record_completion_s=0.0,
        publish_s=0.0,
    )
    steps = [StepWork(lengths=work.lengths, learned_tokens=100) for work in works(4)]
    shared = setting(1, 1, prompts_per_piece=PROBLEMS, cores=Cores(count=2, worker=1, learner=2))
    found = simulate(costs, shared, steps)
    assert [step.learn_s for step in found] == pytest.approx([6, 6 + 2, 6 + 2, 6])
    alone = simulate(costs, replace(shared, cores=Cores()), steps)
    assert [step.learn_s for step in alone] == pytest.approx([6] * 4)


def test_cores_that_slow_each_other_down() -> None:
    """Two single threads run at 0.8 each, so two workers take 1 / 0.8 as long as one alone. For the learner's two
    threads the measured seconds already include this."""
    cores = Cores(count=2, worker=1, learner=2, all_busy=0.8)
    assert [cores.pace(threads) for threads in (1, 2, 4)] == pytest.approx([1, 0.8, 0.4])
    work = works(1)
    one, two = ([float(step.rollout_s) for step in simulate(COSTS, setting(n, cores=cores), work)] for n in (1, 2))
    assert one[0] == pytest.approx(sum(pieces(work[0])))
    assert two[0] >= sum(pieces(work[0])) / 2 / 0.8 * (1 - EXACT)
    assert simulate(COSTS, setting(1, cores=cores), work)[0].learn_s == pytest.approx(work[0].learned_tokens * 0.002)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("cores", [Cores(), Cores(count=2, worker=1, learner=2, all_busy=0.9)])
def test_nothing_is_faster_than_there_is_capacity_for(staleness: int, cores: Cores) -> None:
    steps = works(9)
    for workers in (1, 2, 4, 7):
        found = simulate(COSTS, setting(workers, staleness, cores=cores), steps)
        total = sum(step.step_s + step.between_s for step in found)
        sampling = sum(sum(pieces(work)) for work in steps)
        learning = sum(learner_s(work, stale=False) for work in steps)
        assert total >= sampling / workers
        assert total >= learning
        if math.isfinite(cores.count):
            threads = sampling + 2 * 0.9 * sum(step.learned_tokens for step in steps) * 0.002
            assert total >= threads / (2 * 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_more_workers_never_sample_a_step_more_slowly(seed: int) -> None:
    """This holds on policy, where a piece waits for nothing but a free worker."""
    steps = works(2, seed)
    times = [[step.rollout_s for step in simulate(COSTS, setting(n), steps)] for n in range(1, 9)]
    for fewer, more in pairwise(times):
        assert all(b <= a * (1 + EXACT) for a, b in zip(fewer, more, strict=True))


def test_the_driver_sends_and_answers_one_call_after_the_other() -> None:
    """100 workers with a piece of 1 s each: all are sent in 100 × 0.1 s, then the answers are taken, 0.05 s each, in
    passes."""
    costs = replace(
        COSTS, decoding=Decoding(call_s=1.0, sequence_s=0, longest_s=0, token_s=0), send_s=0.1, answer_s=0.05
    )
    work = StepWork(lengths=np.ones((100, 1), dtype=np.int64), learned_tokens=1)
    found = simulate(costs, setting(100, prompts_per_piece=1), [work])
    assert found[0].rollout_s == pytest.approx(10 + 100 * 0.05)
    slower = simulate(replace(costs, scan_s=0.001), setting(100, prompts_per_piece=1), [work])
    # 90 have finished while the driver sends; the other 10 finish while it takes those answers. A piece that finishes
    # just as a pass begins may count for either pass.
    assert slower[0].rollout_s == pytest.approx(10 + 100 * 0.05 + 0.001 * (100 + 10), abs=0.0011)


def test_prompts_side_by_side_by_hand() -> None:
    """One worker with two slots, and three prompts of one sequence each, of 10, 30 and 20 tokens. A decoding step takes
    1 + 2 s for two sequences and 1 + 1 s for one. After ten steps of 3 s the third joins; after twenty more of 3 s both
    are done."""
    costs = replace(
        COSTS, decoding=Decoding(call_s=0.0, sequence_s=0.0, longest_s=1.0, token_s=1.0), canary_s=0.0, load_s=0.0
    )
    work = StepWork(lengths=np.array([[10], [30], [20]]), learned_tokens=1)
    (found,) = simulate(costs, setting(1, continuous=True), [work])
    assert found.rollout_s == pytest.approx(90)
    assert found.busy_s == pytest.approx(90)
    (pieces,) = simulate(costs, setting(1), [work])
    # In pieces of two: 30 steps and 40 tokens, then 20 and 20.
    assert pieces.rollout_s == pytest.approx(70 + 40)
    # Nothing is decoded during the prefill of a prompt.
    reading = replace(costs, decoding=replace(costs.decoding, sequence_s=0.5))
    assert simulate(reading, setting(1, continuous=True), [work])[0].rollout_s == pytest.approx(90 + 1.5)


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_continuous_admission_is_never_slower_than_there_is_work(workers: int) -> None:
    steps = works(6)
    found = simulate(COSTS, setting(workers, 1, continuous=True), steps)
    busy = sum(step.busy_s for step in found)
    assert busy <= sum(step.step_s + step.between_s for step in found) * workers * (1 + EXACT)
    tokens = sum(work.tokens for work in steps)
    assert busy >= tokens * DECODING.token_s


def test_with_continuous_admission_long_tails_hold_up_less() -> None:
    scale = Scale(problems=64, samples=2, mean_tokens=100, max_tokens=3000, learner_ranks=10, signal=0.5)
    pieces_of_16, slots = (scale.answer(COSTS, 2, 1.5, 0, continuous=flag) for flag in (False, True))
    assert slots.step_s < pieces_of_16.step_s
    assert 0 < slots.idle < 1
    assert slots.lost == pieces_of_16.lost == 0


@pytest.mark.parametrize("tail", [0.5, 1.0, 1.5])
def test_every_tail_has_the_same_mean_and_ends_at_the_limit(tail: float) -> None:
    lengths = lognormal_lengths((200_000,), 512, tail, 8192, 0)
    assert lengths.mean() == pytest.approx(512, rel=0.02)
    assert lengths.min() >= 1
    assert lengths.max() <= 8192
    # Numerical check: E[min(X, limit)] as a mean over draws.
    drawn = np.exp(3.0 + tail * np.random.default_rng(1).standard_normal(1_000_000))
    assert mean_of_cut(3.0, tail, 50) == pytest.approx(float(np.minimum(drawn, 50).mean()), rel=5e-3)
    with pytest.raises(ValueError, match="not below the limit of 512"):
        lognormal_lengths((1,), 512, tail, 512, 0)


def test_a_larger_run_feeds_every_worker_and_divides_learning() -> None:
    scale = Scale(problems=8, samples=4, mean_tokens=50, max_tokens=400, learner_ranks=10, signal=0.5)
    steps = scale.steps(1.0, 0)
    assert all(a.tokens != b.tokens for a, b in pairwise(steps))
    by_hand = [
        max(DECODING.seconds(work.lengths)) + 32 * 0.01 / 10 + work.tokens * 0.5 * 0.002 / 10 + SYNC_S + 32 * 0.02
        for work in steps[2:-1]
    ]
    assert scale.step_s(COSTS, 8, 1.0, 0) == pytest.approx(float(np.mean(by_hand)), rel=EXACT)
    # In an asynchronous run, learning hides behind sampling.
    assert scale.step_s(COSTS, 1, 1.0, 1) < scale.step_s(COSTS, 1, 1.0, 0)
