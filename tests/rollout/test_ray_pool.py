"""The pool of workers: real Ray actors with a scripted engine for every fault, and with vLLM for what it samples."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl_engine.learner.learner import Learner
from rollout.adapters import AdapterError, AdapterStore
from rollout.config import SamplingConfig
from rollout.engine import PoolError, sample_seed
from rollout.pool.incidents import Incidents
from rollout.segments import is_unfinished, joined
from rollout.types import AdapterRef, Completion, Problem, Prompt, RolloutGroup, Segment
from rollout.work_items import PromptBatch, extended, split
from tests.helpers.batches import LOOSE, alternating
from tests.helpers.pools import SETTINGS, PoolMaker, rays_processes, scripted, until
from tests.helpers.same_groups import assert_same_but_for_rounding
from tests.helpers.scripted_engine import BAD_START, ScriptedEngine, length_of
from tests.helpers.streaming_engine import StreamingScripted

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.engine,
    # Ray closes its log files when it is collected.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SAMPLING = SamplingConfig(n=3)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the pool that most tests share."""
    return tmp_path_factory.mktemp("script")


@pytest.fixture(scope="module")
def pool(ray_cluster: Path, script: Path) -> Iterator[Any]:
    from rollout.pool.ray_pool import RayPool

    pool = RayPool(scripted(script), SETTINGS, ScriptedEngine)
    yield pool
    pool.close()


def prompt_of(number: int, fault: str = "none", name: str = "p") -> Prompt:
    problem = Problem(id=f"{name}{number}", text=fault, answer="")
    return Prompt(problem=problem, text=fault, token_ids=(1,))


def seeds(prompts: list[Prompt]) -> list[str]:
    return [f"seed/{prompt.problem.id}" for prompt in prompts]


def expected(prompts: list[Prompt], adapter: AdapterRef | None = None) -> list[RolloutGroup]:
    """What one engine gives that nothing befalls."""
    engine = ScriptedEngine(scripted(Path("/nowhere")))
    return [
        RolloutGroup(prompt=prompt, completions=engine.complete(seed, SAMPLING.n, adapter.key if adapter else "base"))
        for prompt, seed in zip(prompts, seeds(prompts), strict=True)
    ]


def log_of(directory: Path) -> list[tuple[int, str, list[str]]]:
    """(process, adapter, prompts) of each item that was begun."""
    lines = [line.split() for line in (directory / "log").read_text().splitlines()]
    return [(int(pid), key, ids) for pid, key, *ids in lines]


def published(root: Path, version: int) -> AdapterRef:
    return AdapterStore(root / "adapters").publish(
        version, lambda directory: _write(directory / "weights", f"weights of {version}"), {"rank": 1}
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def test_whatever_befalls_the_workers_the_answer_is_the_same(
    pool: Any, script: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, stopped, failing, answering from another version: each is replaced and its prompts are sampled again."""
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
    # Two pieces of two, half a second for each prompt, side by side.
    figures = pool.figures()
    assert 0.5 < figures["busy_min_frac"] <= figures["busy_frac"] <= 1
    assert figures["queue_s"] < 0.5 > figures["tail_s"]
    at_work = {pid for pid, _, _ in log_of(script)[-2:]}
    until(lambda: not any(psutil.pid_exists(pid) for pid in gone - at_work), 10)


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
    assert pool.collect(ahead, 0.0) is None  # what is urgent goes before what waits
    assert pool.collect(ahead, 60) == expected(prompts, old)
    assert pool.lost == lost + 1
    with pytest.raises(AdapterError, match="never reused"):
        pool.load_adapter(new)
    pool.unload_adapter(old)
    with pytest.raises(AdapterError, match=r"policy-v000000 is not loaded; loaded are \['policy-v000001'\]"):
        pool.submit(PromptBatch(prompts, SAMPLING, old, seeds(prompts)))


def test_what_is_unfinished_goes_on_under_later_versions_whatever_befalls_the_workers(
    pool: Any, script: Path, tmp_path: Path
) -> None:
    """Begun while the segment before may still be under way, in the same items, by whoever is free."""
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
    # Work items stay as they were split, in each of the three segments, and one was given out twice.
    items = Counter(tuple(ids) for _, _, ids in log_of(script)[begun:])
    assert sum(items.values()) == 3 * 5 + 1
    assert items.keys() == {("long0", "long1"), ("long2", "long3"), ("long4", "long5"), ("long6", "long7"), ("long8",)}
    for ref in refs:
        pool.unload_adapter(ref)
    with pytest.raises(AdapterError, match="policy-v000012 is not loaded"):
        pool.extend(request, SAMPLING, refs[-1])
    until(lambda: pool.alive == 2)


def test_an_answer_that_does_not_go_on_with_what_was_given_is_refused() -> None:
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
        begun,  # left as it was
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


def test_an_adapter_that_is_not_what_was_published_reaches_no_worker(pool: Any, tmp_path: Path) -> None:
    ref = published(tmp_path, 2)
    with pytest.raises(AdapterError, match="published anew"):
        pool.load_adapter(replace(ref, sha256="0" * 64))
    _write(ref.path / "weights", "others")
    with pytest.raises(AdapterError, match="sha256 differs"):
        pool.load_adapter(ref)


def test_a_worker_whose_adapter_was_damaged_on_the_way_never_samples(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    put = ray.put
    pool = make_pool(max_restarts=0)
    monkeypatch.setattr(ray, "put", lambda files: put({**files, "weights": b"others"}))
    ref = published(tmp_path, 0)
    pool.load_adapter(ref)
    prompts = [prompt_of(0)]
    with pytest.raises(PoolError, match=r"no sampling worker is left.*was sampled: 1, .*sha256 differs"):
        pool.generate(prompts, SAMPLING, ref, seeds(prompts))
    assert not (tmp_path / "log").exists()


def test_a_request_to_stop_leaves_the_workers_at_work(pool: Any) -> None:
    """A terminal, a scheduler and `timeout` send it to every process; the run ends them itself, when it has saved."""
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
    """The last test of this pool: it ends it."""
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
    with pytest.raises(PoolError, match=r"no sampling worker is left.*was sampled: 1, .*the sampler stumbled"):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))


def test_workers_that_die_while_they_are_idle_are_replaced_and_charge_nobody(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of four at once, one of them at work: one incident, and the pool is soon as large as it was."""
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
    # And of those who have nothing to do it is noticed without any work.
    (pid, *_) = [worker.pid for worker in pool._workers if worker.find()]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.lost == 4 and pool.alive == 4)


def test_a_machine_that_goes_takes_all_its_workers_at_once(
    make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says which machines are there; what is left of the pool goes on elsewhere."""
    from rollout.pool.cluster import machines

    pool = make_pool(workers=3, cpus_per_worker=0)
    until(lambda: pool.alive == 3)
    alive = machines()
    for worker in pool._workers:
        worker.find()
    gone, also, here = pool._workers
    gone.node = also.node = "gone"
    monkeypatch.setattr("rollout.pool.ray_pool.machines", lambda: alive)
    os.kill(gone.pid, signal.SIGKILL)
    prompts = [prompt_of(number) for number in range(8)]
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    until(lambda: pool.lost == 2 and pool.alive == 3)
    assert here in pool._workers
    assert also not in pool._workers
    (incident,) = pool._incidents._recent
    assert (incident.node, incident.workers) == ("gone", 2)


@contextlib.contextmanager
def another_machine(cpus: int) -> Iterator[Any]:
    """A second machine of the session's cluster, as far as Ray can tell: a raylet of its own."""
    import ray
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    from rollout.pool.cluster import machines

    address = ray.get_runtime_context().gcs_address
    parameters = RayParams(gcs_address=address, num_cpus=cpus, object_store_memory=2**27, node_ip_address="127.0.0.1")
    parameters.update_if_absent(min_worker_port=0, max_worker_port=0, node_manager_port=0, include_log_monitor=False)
    node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
    try:
        yield node
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        until(lambda: len(machines()) == 1)


def test_the_machine_of_two_of_three_workers_dies(make_pool: PoolMaker, tmp_path: Path) -> None:
    """One of three workers has room here."""
    import ray

    with another_machine(cpus=6) as machine:
        pool = make_pool(workers=3, cpus_per_worker=3, max_restarts=0)
        until(lambda: pool.alive == 3)
        (here,) = [one for one in pool._workers if one.find() == ray.get_runtime_context().get_node_id()]
        prompts = [prompt_of(number, "slow") for number in range(6)]
        request = pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
        until(lambda: (tmp_path / "log").exists())
        machine.kill_raylet(check_alive=False)
        assert pool.collect(request, 60) == expected(prompts)
    until(lambda: pool.lost == 2)
    assert [worker for worker in pool._workers if worker.ready] == [here]
    (incident,) = pool._incidents._recent
    assert incident.workers == 2


def test_a_later_loss_does_not_put_off_others_that_start_for_an_earlier_one(
    make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pool whose workers are lost faster than the pause ends would shrink to nothing."""
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
    """A lost worker gives back all that it had; nothing is lost, and nothing counted twice."""
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 0.0)
    pool = make_together(make_pool, max_restarts=8)
    until(lambda: pool.alive == 2)
    pool.mark()
    prompts = [prompt_of(number, "slow") for number in range(8)]
    start = time.monotonic()
    assert pool.generate(prompts, SAMPLING, None, seeds(prompts)) == expected(prompts)
    # Half a second each: four at a time by two workers, where one at a time took two seconds.
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


def test_an_adapter_is_loaded_and_sampled_from_while_long_completions_of_another_go_on(
    make_pool: PoolMaker, tmp_path: Path
) -> None:
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


def test_of_what_was_sampled_side_by_side_the_prompt_at_fault_is_named_alone(
    make_pool: PoolMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was lost with it twice is sampled alone, then, and blameless."""
    monkeypatch.setattr(Incidents, "pause_s", lambda _: 0.0)
    pool = make_together(make_pool, workers=1, max_restarts=8)
    prompts = [prompt_of(0, "slow"), prompt_of(1, "slow"), prompt_of(2, "poison"), prompt_of(3, "slow")]
    with pytest.raises(PoolError, match=r"lost 3 times while they sampled the same prompts \(p2\): it died"):
        pool.generate(prompts, SAMPLING, None, seeds(prompts))
    # How many are begun before the worker dies is a matter of speed.
    assert [ids for _, _, ids in log_of(tmp_path)][-1] == ["p2"]


def test_a_pool_that_cannot_start_says_why_at_once(make_pool: PoolMaker, tmp_path: Path) -> None:
    (tmp_path / BAD_START).touch()
    with pytest.raises(PoolError, match=r"no sampling worker is left.*the model is not there"):
        make_pool()


def test_a_worker_that_cannot_be_made_says_why(make_pool: PoolMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the project, for one: Ray's first line says only that the actor died."""

    class Unmade:
        def __init__(self, cpus: int) -> None:
            raise ModuleNotFoundError("No module named 'rollout'")

        def start(self, *_: Any) -> None: ...

    monkeypatch.setattr("rollout.pool.member.PoolWorker", Unmade)
    with pytest.raises(PoolError, match=r"no sampling worker is left.*ModuleNotFoundError: No module named 'rollout'"):
        make_pool()


def test_a_directory_whose_name_is_too_long_for_sockets_is_named() -> None:
    from rollout.pool.local_cluster import start_ray
    from rollout.pool.room import LONGEST_DIRECTORY

    with pytest.raises(PoolError, match="set TMPDIR to a directory with a shorter one"):
        start_ray(1, Path("/" + LONGEST_DIRECTORY * "x"))


def test_the_local_cluster_is_out_of_reach(ray_cluster: Path) -> None:
    """Its processes listen on the loopback device alone, and ask for a token."""
    found = []
    for process in rays_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert len(found) >= 4
    assert set(found) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert ray_cluster.is_dir()


def test_workers_sample_what_the_engine_in_process_samples(
    make_pool: PoolMaker, make_learner: Callable[..., Learner], vllm_engine: Any, tokenizer: Any, tmp_path: Path
) -> None:
    """To the last digit, where the batches are the same: a work item is one.

    A batch of other prompts beside it may round a prompt's numbers otherwise, so work items are compared.
    """
    from rollout.pool.worker import vllm_engine as make_vllm

    problems = [
        Problem(id=str(i), text=text, answer="") for i, text in enumerate(("3+4=?", "9+8+1=?", "7-5=?", "2+2=?"))
    ]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    sampling = SamplingConfig(n=4, max_tokens=24)
    learner = make_learner("optim.lr=1e-2")
    groups = vllm_engine.generate(prompts, sampling, None, seeds(prompts))
    learner.step([alternating(groups)], LOOSE)
    weights = learner.weights()
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    store = AdapterStore(tmp_path / "adapters", name="of_the_pool")
    ref = store.publish(
        1, lambda directory: learner.trainable.write(directory, weights), {**learner.trainable.manifest_entries()}
    )
    vllm_engine.load_adapter(ref)
    alone = [
        group
        for start in (0, 2)
        for group in vllm_engine.generate(prompts[start : start + 2], sampling, ref, seeds(prompts)[start : start + 2])
    ]
    vllm_engine.unload_adapter(ref)
    pool = make_pool(vllm_engine.settings, make_vllm, workers=2, start_timeout_s=400, piece_timeout_s=400)
    pool.load_adapter(ref)
    assert pool.generate(prompts, sampling, ref, seeds(prompts)) == alone
    assert {completion.adapter for group in alone for completion in group.completions} == {ref.key}


def test_a_worker_that_samples_side_by_side_samples_what_it_does_alone(
    make_pool: PoolMaker, vllm_engine: Any, tokenizer: Any
) -> None:
    """To rounding, which a batch of others decides too."""
    from rollout.pool.worker import vllm_engine as make_vllm

    texts = ("3+4=?", "9+8+1=?", "7-5=?", "2+2=?", "8+8=?")
    problems = [Problem(id=text, text=text, answer="") for text in texts]
    prompts = [Prompt(problem=p, text=p.text, token_ids=tuple(tokenizer(p.text)["input_ids"])) for p in problems]
    sampling = SamplingConfig(n=4, max_tokens=24)
    alone = [vllm_engine.generate([p], sampling, None, seeds([p]))[0] for p in prompts]
    limits = {"start_timeout_s": 400, "piece_timeout_s": 400}
    pool = make_pool(vllm_engine.settings, make_vllm, prompts_per_piece=1, completions_at_once=12, **limits)
    assert_same_but_for_rounding(pool.generate(prompts, sampling, None, seeds(prompts)), alone)


def test_a_pool_is_closed_at_once_while_its_workers_sample(make_pool: PoolMaker, tmp_path: Path) -> None:
    """A run that is asked to stop has seconds, not what a piece may take; nothing is left behind."""
    import ray

    (tmp_path / "hang").touch()
    pool = make_pool(workers=2)
    prompts = [prompt_of(0, "hang"), prompt_of(1)]
    until(lambda: pool.alive == 2)
    places = [ray.get(worker.where)[2] for worker in pool._workers]
    assert all(place.is_dir() for place in places)
    pool.submit(PromptBatch(prompts, SAMPLING, None, seeds(prompts)))
    until(lambda: (tmp_path / "log").exists() and not (tmp_path / "hang").exists())
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 3
    until(lambda: not any(place.exists() for place in places))


def test_the_program_that_has_a_pool_still_hears_a_request_to_stop() -> None:
    """Ray puts a handler of its own in the place of the program's, which ends it."""
    code = """
import os, signal
from pathlib import Path
from rollout.pool.environment import prepare_ray
prepare_ray(None)
from rollout.pool.local_cluster import start_ray
from rollout.pool.scratch import ScratchDirectory
from rollout.stopping import StopRequest, Stopped
scratch, stop = ScratchDirectory.make("rl_engine_ray_test_"), StopRequest()
try:
    with stop.heard():
        start_ray(1, scratch.path)
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped:
    scratch.remove()
    print("heard", stop.exit_code)
"""
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stdout) == (0, "heard 143\n"), answer.stderr
