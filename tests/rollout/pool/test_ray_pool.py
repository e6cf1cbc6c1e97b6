"""The pool of workers: real Ray actors, with a scripted engine for every fault."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout.adapters import AdapterError
from rollout.engine import PoolError, sample_seed
from rollout.pool.incidents import Incidents
from rollout.segments import is_unfinished, joined
from rollout.types import Completion, RolloutGroup, Segment
from rollout.work_items import PromptBatch, extended, split
from tests.helpers.pools import (
    SAMPLING,
    SETTINGS,
    PoolMaker,
    expected,
    log_of,
    prompt_of,
    published,
    rays_processes,
    scripted,
    seeds,
)
from tests.helpers.scripted_engine import ScriptedEngine, length_of
from tests.helpers.streaming_engine import StreamingScripted
from tests.helpers.waiting import until

pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is garbage-collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script directory of the pool that most tests share."""
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="module")
def pool(ray_cluster: Path, script: Path) -> Iterator[Any]:
    from rollout.pool.ray_pool import RayPool

    pool = RayPool(scripted(script), SETTINGS, ScriptedEngine)
    yield pool
    pool.close()


def test_whatever_befalls_the_workers_the_answer_is_the_same(
    pool: Any, script: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers are killed, stopped, fail, or answer from another version: each is replaced and its prompts are sampled
    again."""
    faults = {1: "die", 4: "hang", 7: "raise", 9: "stale", 10: "slow"}
    for fault in faults.values():
        (script / fault).touch()
    prompts = [prompt_of(number, faults.get(number, "none")) for number in range(13)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    assert pool.lost == 4
    begun = Counter(ids[0] for _, _, ids in log_of(script))
    assert begun == {"p0": 2, "p2": 1, "p4": 2, "p6": 2, "p8": 2, "p10": 1, "p12": 1}
    for cause in (
        "it died",
        "it did not answer in time",
        "sampler stumbled",
        "from policy-v000099 when asked for base",
    ):
        assert cause in caplog.text
    until(lambda: pool.alive == 2)
    gone = {pid for pid, _, _ in log_of(script)}
    prompts = [prompt_of(number, "slow") for number in range(20, 24)]
    pool.mark()
    pool.generate(prompts, SAMPLING, None, seeds(prompts))
    # Two pieces of two prompts, half a second per prompt, side by side.
    figures = pool.figures()
    assert 0.5 < figures["busy_min_frac"] <= figures["busy_frac"] <= 1
    assert figures["queue_s"] < 0.5 > figures["tail_s"]
    at_work = {pid for pid, _, _ in log_of(script)[-2:]}
    until(lambda: not any(psutil.pid_exists(pid) for pid in gone - at_work), 10)
    assert capsys.readouterr().out == ""  # where Ray used to print a paragraph of its own for each of them


def test_adapters_reach_every_worker_and_those_that_come_later(pool: Any, script: Path, tmp_path: Path) -> None:
    old, new = published(tmp_path, 0), published(tmp_path, 1)
    prompts = [prompt_of(number, "slow") for number in range(8)]
    pool.load_adapter(old)
    ahead = pool.submit(PromptBatch(prompts, SAMPLING, old, seeds(prompts)))
    pool.load_adapter(new)
    (script / "die").touch()
    lost = pool.lost
    urgent = [prompt_of(8, "die")]
    assert pool.generate(urgent, SAMPLING, new, seeds(urgent)) == expected(urgent, new)
    assert pool.collect(ahead, 0.0) is None  # urgent work goes before waiting work
    assert pool.collect(ahead, 60) == expected(prompts, old)
    assert pool.lost == lost + 1
    until(lambda: pool.alive == 2)
    # Nor do they stay in the store: should Ray end on this machine, it would then end the process without a word.
    until(lambda: not any(version._in_store for version in pool._versions.values()))
    with pytest.raises(AdapterError, match="never reused"):
        pool.load_adapter(new)
    pool.unload_adapter(old)
    with pytest.raises(AdapterError, match=r"policy-v000000 is not loaded; loaded are \['policy-v000001'\]"):
        pool.submit(PromptBatch(prompts, SAMPLING, old, seeds(prompts)))


def test_what_is_unfinished_goes_on_whatever_befalls_workers(pool: Any, script: Path, tmp_path: Path) -> None:
    """An extension may begin while the previous segment is still being sampled, in the same items, on any free
    worker."""
    until(lambda: pool.alive == 2)
    refs = [published(tmp_path, version) for version in (10, 11, 12)]
    faults = {1: "slow", 2: "die"}
    prompts = [prompt_of(number, faults.get(number, "none"), "long") for number in range(9)]
    (script / "log").touch()
    places, lost, begun = seeds(prompts), pool.lost, len(log_of(script))
    shorter, short, whole = (SAMPLING.model_copy(update={"max_tokens": limit}) for limit in (2, 4, 256))
    for ref in refs:
        pool.load_adapter(ref)
    request = pool.extend(pool.submit(PromptBatch(prompts, shorter, refs[0], places)), short, refs[1])
    (script / "die").touch()
    request = pool.extend(request, whole, refs[2])
    groups = pool.collect(request, 60)
    assert pool.lost == lost + 1
    assert [group.prompt for group in groups] == prompts
    for group, seed in zip(groups, places, strict=True):
        for sample, completion in enumerate(group.completions):
            length = length_of(seed, sample)
            assert completion.token_ids == tuple(sample_seed(seed, sample, place) for place in range(length))
            tokens = [end for end in (min(length, 2), min(length, 4) - 2, length - 4) if end > 0]
            assert completion.segments == tuple(
                Segment(adapter=ref.key, tokens=count) for ref, count in zip(refs, tokens, strict=False)
            )
    assert {len(c.segments) for group in groups for c in group.completions} == {1, 2, 3}
    # Work items keep their split in each of the three segments, and one was dealt twice.
    items = Counter(tuple(ids) for _, _, ids in log_of(script)[begun:])
    assert sum(items.values()) == 3 * 5 + 1
    assert items.keys() == {("long0", "long1"), ("long2", "long3"), ("long4", "long5"), ("long6", "long7"), ("long8",)}
    for ref in refs:
        pool.unload_adapter(ref)
    with pytest.raises(AdapterError, match="policy-v000012 is not loaded"):
        pool.extend(request, SAMPLING, refs[-1])
    until(lambda: pool.alive == 2)


def test_an_answer_must_go_on_with_what_was_given() -> None:
    """Otherwise it is refused."""
    engine, prompts = ScriptedEngine(scripted(Path("/nowhere"))), [prompt_of(0, name="long")]
    short = SAMPLING.model_copy(update={"max_tokens": 1})
    request = split(PromptBatch(prompts, short, None, seeds(prompts)), 1)
    begun = next(one for one in engine.complete(seeds(prompts)[0], 9, "base") if is_unfinished(one, 2))
    group = RolloutGroup(prompt=prompts[0], completions=(begun,) * 3)
    assert request.items[0].take([group]) is None
    item = extended(request, SAMPLING.model_copy(update={"max_tokens": 2}), None).items[0]

    def complaint(after: Completion) -> str | None:
        return item.take([replace(group, completions=(after,) * 3)])

    segment = replace(begun, token_ids=(7,))
    whole = joined(begun, segment, (), str)
    for other in (
        begun,  # unchanged
        replace(whole, token_ids=(8, 7)),
        replace(whole, logprobs=(-2.0, -1.0)),
        replace(whole, earlier=(Segment(adapter="policy-v000001", tokens=1),)),
    ):
        assert complaint(other) == "it did not go on with what it was given"
    assert complaint(replace(whole, adapter="policy-v000099")) == "it sampled from policy-v000099 when asked for base"
    fewer = replace(group, completions=(whole,) * 2)
    assert item.take([fewer]) == "it answered other prompts than it was asked"
    assert item.groups is None
    assert complaint(whole) is None


def test_an_adapter_changed_since_published_reaches_no_worker(pool: Any, tmp_path: Path) -> None:
    ref = published(tmp_path, 2)
    with pytest.raises(AdapterError, match="published anew"):
        pool.load_adapter(replace(ref, sha256="0" * 64))
    (ref.path / "weights").write_text("others")
    with pytest.raises(AdapterError, match="sha256 differs"):
        pool.load_adapter(ref)


def test_a_worker_with_a_damaged_adapter_never_samples(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of the adapter that the worker receives does not match the digest."""
    import ray

    put = ray.put
    pool = make_pool(max_restarts=0)
    monkeypatch.setattr(ray, "put", lambda files: put({**files, "weights": b"others"}))
    ref = published(tmp_path, 0)
    pool.load_adapter(ref)
    prompts = [prompt_of(0)]
    with pytest.raises(PoolError, match=r"no sampling worker is left.* 1 failure.*sha256 differs"):
        pool.generate(prompts, SAMPLING, ref, seeds(prompts))
    assert not (tmp_path / "log").exists()


def test_a_request_to_stop_leaves_the_workers_at_work(pool: Any) -> None:
    """A terminal, a scheduler and `timeout` signal every process; the run ends the workers itself, once it has
    saved."""
    until(lambda: pool.alive == 2)
    lost = pool.lost
    for process in rays_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
    prompts = [prompt_of(number, "slow") for number in range(4)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    assert (pool.lost, pool.alive) == (lost, 2)


def test_fewer_workers_go_on_and_none_left_says_why(
    pool: Any, script: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the last test of the shared pool, because it ends it."""
    until(lambda: pool.alive == 2)
    pool.settings = replace(pool.settings, max_restarts=0)
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 60.0)
    (script / "die").touch()
    prompts = [prompt_of(number, "die" if number == 3 else "none") for number in range(9)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    assert pool.alive == 1
    assert "1 of 2 are left, others are started in 60 s" in caplog.text
    (script / "raise").touch()
    prompts = [prompt_of(0, "raise")]
    with pytest.raises(PoolError, match=r"no sampling worker is left.* 1 failure.*the sampler stumbled"):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))


def test_workers_that_die_idle_are_replaced_and_blame_nobody(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four die at once, one of them busy: that is one incident, and the pool is soon at full size again."""
    monkeypatch.setattr("rollout.pool.ray_pool.PING_EVERY_S", 0.2)
    monkeypatch.setattr("rollout.pool.incidents.INCIDENTS_TO_BLAME", 2)
    pool = make_pool(workers=4, cpus_per_worker=0, max_restarts=0)
    until(lambda: pool.alive == 4)
    (tmp_path / "hang").touch()
    prompts = [prompt_of(0, "hang")]
    request = pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
    until(lambda: (tmp_path / "log").exists() and bool(log_of(tmp_path)))
    (busy, _, _) = log_of(tmp_path)[0]
    others = [pid for worker in pool._workers if worker.find() and (pid := worker.pid) != busy]
    for pid in (busy, *others[:2]):
        os.kill(pid, signal.SIGKILL)
    assert pool.collect(request, 60) == expected(prompts)
    until(lambda: pool.alive == 4)
    assert pool.lost == 3
    # The loss of an idle worker is noticed even without any work.
    (pid, *_) = [worker.pid for worker in pool._workers if worker.find()]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.lost == 4 and pool.alive == 4)


def test_a_later_loss_does_not_put_off_an_earlier_start(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a pool that loses workers faster than the pause ends would shrink to nothing."""
    monkeypatch.setattr("rollout.pool.ray_pool.PING_EVERY_S", 0.1)
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 60.0)
    pool = make_pool(workers=3, cpus_per_worker=0)
    until(lambda: pool.alive == 3)
    at = []
    for worker in pool._workers[:2]:
        assert worker.find()
        lost = pool.lost
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda lost=lost: pool.lost == lost + 1)  # type: ignore[misc]
        with pool._locked():  # the loss is counted before the start is put off
            at.append(pool._start_at)
    assert at[0] == at[1]


def test_prompts_that_cost_every_worker_are_named(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.pool.incidents.INCIDENTS_TO_BLAME", 2)
    pool = make_pool()
    prompts = [prompt_of(0), prompt_of(1), prompt_of(2, "poison"), prompt_of(3)]
    with pytest.raises(PoolError, match=r"lost 2 times while they sampled the same prompts \(p2, p3\): it died"):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))


def make_together(make_pool: PoolMaker, **settings: Any) -> Any:
    """A pool whose workers sample up to four groups side by side."""
    several = {"workers": 2, "prompts_per_piece": 1, "completions_at_once": 4 * SAMPLING.n, **settings}
    return make_pool(factory=StreamingScripted, cpus_per_worker=0, **several)


def test_workers_sample_side_by_side_whatever_befalls_them(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost worker's items go back to the queue; none is lost, and none counts twice."""
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 0.0)
    pool = make_together(make_pool, max_restarts=8)
    until(lambda: pool.alive == 2)
    pool.mark()
    prompts = [prompt_of(number, "slow") for number in range(8)]
    start = time.monotonic()
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    # Half a second per prompt: two workers sample four at a time, which would take two seconds one at a time.
    assert time.monotonic() - start < 1.5
    assert Counter(pid for pid, _, _ in log_of(tmp_path)).most_common()[0][1] == 4
    figures = pool.figures()
    assert 0.5 < figures["busy_min_frac"] <= figures["busy_frac"] <= 1
    assert figures["queue_s"] < 0.3
    faults = {1: "die", 6: "hang", 11: "raise", 16: "stale", 3: "slow", 10: "slow"}
    for fault in faults.values():
        (tmp_path / fault).touch()
    prompts = [prompt_of(number, faults.get(number, "none"), "q") for number in range(20)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    assert pool.lost == 4
    assert not pool._incidents._charged


def test_a_new_adapter_samples_while_long_completions_go_on(make_pool: PoolMaker, tmp_path: Path) -> None:
    pool = make_together(make_pool, workers=1)
    old, new = published(tmp_path, 0), published(tmp_path, 1)
    pool.load_adapter(old)
    prompts = [prompt_of(number, "slow") for number in range(2)]
    request = pool.submit(PromptBatch(prompts, SAMPLING, old, seeds(prompts)))
    until(lambda: (tmp_path / "log").exists() and len(log_of(tmp_path)) == 2)
    pool.load_adapter(new)
    quick = [prompt_of(2)]
    assert pool.generate(quick, SAMPLING, new, seeds(quick)) == expected(quick, new)
    assert pool.collect(request, 0) is None
    assert pool.collect(request, 60) == expected(prompts, old)


def test_of_several_side_by_side_the_one_at_fault_is_named(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that were lost twice together with it are then sampled alone, and cleared."""
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 0.0)
    pool = make_together(make_pool, workers=1, max_restarts=8)
    prompts = [prompt_of(0, "slow"), prompt_of(1, "slow"), prompt_of(2, "poison"), prompt_of(3, "slow")]
    with pytest.raises(PoolError, match=r"lost 3 times while they sampled the same prompts \(p2\): it died"):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))
    # How many items begin before the worker dies depends on timing.
    assert [ids for _, _, ids in log_of(tmp_path)][-1] == ["p2"]
