"""A run that is asked to stop, or loses its sampler, in the middle of slow work exits within seconds with the last
finished step saved, and resumes as if nothing had happened. The engine is scripted; everything else is the real
command."""

from __future__ import annotations

import errno
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rl_engine.run.records import read_metrics
from tests.drills.equality import timeless
from tests.helpers import forked
from tests.helpers.answering_engine import UNCHECKED
from tests.helpers.held_engine import HeldEngine, prepare
from tests.helpers.ports import meeting_place

pytestmark = pytest.mark.engine
SETTINGS = (
    "data.limit=16",
    "train.steps=3",
    "train.problems_per_step=2",
    "sampling.n=4",
    "eval.every=2",
    "eval.limit=4",
    "log.tensorboard=false",
    "rewards.workers=1",
    *UNCHECKED,
)
LEAVES_WITHIN_S = 10
ROOT = Path(__file__).parents[2]
CODE = 128 + 15


def run(directory: Path, *arguments: str, at: str = "nowhere", **environment: str) -> tuple[int, str]:
    (directory / "asked").unlink(missing_ok=True)
    environment |= {"HELD_AT": at, "HELD_PLACE": str(directory)}
    code, output = forked.train(directory, *SETTINGS, *arguments, environment=environment, prepare=prepare)
    if (directory / "asked").exists():
        assert time.time() - float((directory / "asked").read_text()) < LEAVES_WITHIN_S
    assert "Traceback" not in output
    return code, output


def kept(directory: Path) -> dict[str, Any]:
    """The files and metrics that a run leaves behind, without times and without metrics about workers."""
    root = directory / "runs" / "quickstart"
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in ("adapters/v*/*", "checkpoints/step000003/*", "rollouts/*", "evals/*")
        for path in root.glob(pattern)
        if path.suffix != ".json" or path.name == "adapter_config.json"
    }
    return {"metrics": timeless(root), **files}


def saved(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "runs" / "quickstart" / "checkpoints").glob("step*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    code, output = run(directory)
    assert code == 0, output
    assert saved(directory) == ["step000002", "step000003"]  # saved at every step, and the newest two are kept
    return kept(directory)


def test_a_run_stopped_anywhere_ends_as_one_that_was_not(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    seldom = "checkpoint.every=100"
    stops = [
        ("eval/", "0", "before the first step was done: nothing was trained", []),
        ("starting", "0", "stopped as asked before training began: nothing was trained", []),
        ("learning", "1", "stopped after step 1 as asked, and saved", ["step000001"]),
        ("eval/", "0", "stopped after step 2 as asked, and saved: --resume continues, with its eval", ["step000002"]),
        ("0/3/", "0", "stopped after step 2 as asked, and saved: --resume continues\n", ["step000002"]),
        ("eval/", "0", "stopped after step 3 as asked, and saved: --resume continues, with its eval", ["step000003"]),
    ]
    for at, but, words, steps in stops:
        code, output = run(tmp_path, "--resume", seldom, at=at, HELD_BUT=but)
        assert code == CODE, output
        assert words in output
        assert saved(tmp_path)[-1:] == steps[-1:]
    code, output = run(tmp_path, "--resume", seldom)
    assert code == 0, output
    assert "resumed after step 3" in output
    assert "every step of this run is done" not in output  # the last evaluation is left
    assert kept(tmp_path) == undisturbed


def test_a_run_stopped_while_workers_sample_leaves_at_once(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Two real workers are in the middle of a piece each. The run then resumes without workers."""
    pool = ("rollout.placement=ray", "rollout.workers=2", "rollout.prompts_per_piece=1")
    code, output = run(tmp_path, *pool, at="0/2/", HELD_IN="workers", PYTHONPATH=str(ROOT))
    assert code == CODE, output
    assert "stopped after step 1 as asked, and saved" in output
    assert saved(tmp_path)[-1:] == ["step000001"]
    code, output = run(tmp_path, "--resume")
    assert code == 0, output
    assert kept(tmp_path) == undisturbed


def test_groups_graded_as_they_come_give_the_same_run(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Groups are streamed, as on a GPU. This engine's tokens do not depend on what else it samples, so the run is the
    same."""
    as_on_a_gpu = {"HELD_QUEUE": "streaming"}
    code, output = run(tmp_path, "checkpoint.every=100", at="0/3/", **as_on_a_gpu)
    assert code == CODE, output
    assert "stopped after step 2 as asked, and saved" in output
    code, output = run(tmp_path, "--resume", "checkpoint.every=100", **as_on_a_gpu)
    assert code == 0, output
    assert kept(tmp_path) == undisturbed


def test_a_step_is_saved_when_what_samples_is_lost(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    code, output = run(tmp_path, "checkpoint.every=100", at="0/2/", HELD_DO="fail")
    assert code == 1
    assert "error: step 2: no sampling worker is left\nstep 1 is saved: --resume continues after it." in output
    assert saved(tmp_path) == ["step000001"]
    code, output = run(tmp_path, "--resume")
    assert code == 0, output
    assert kept(tmp_path) == undisturbed


def test_two_ranks_leave_together_while_one_of_them_samples(tmp_path: Path) -> None:
    """Rank 0 is sampling in step 2; rank 1, which has nothing left to sample, waits for it."""
    place = meeting_place(2)

    def rank(number: int) -> tuple[int, str]:
        launcher = {"RANK": str(number), "LOCAL_RANK": str(number), **place}
        return run(tmp_path, "train.problems_per_step=1", "checkpoint.every=100", at="0/2/", **launcher)

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(rank, (0, 1)))
    assert [code for code, _ in ended] == [CODE, CODE], ended
    assert "stopped after step 1 as asked, and saved" in ended[0][1]
    assert saved(tmp_path) == ["step000001"]
    lines = read_metrics(tmp_path / "runs" / "quickstart")
    assert [line["step"] for line in lines] == [0, 1]
    with gzip.open(tmp_path / "runs" / "quickstart" / "rollouts" / "step000001.jsonl.gz", "rt") as file:
        assert {json.loads(line)["step"] for line in file} == {1}


def without_room(function: str) -> None:
    """Simulate a full disk when the run records its start, or when it publishes an adapter and then records its end."""
    from rl_engine.run import records
    from rl_engine.sampling.publish import Publisher

    prepare()
    HeldEngine.close = lambda self: print("the engine is closed", flush=True)  # type: ignore[method-assign]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{function} in starts.jsonl")

    def full_of_adapters(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "adapters")

    setattr(records, function, full)
    if function == "note_end":
        setattr(Publisher, "publish", full_of_adapters)  # noqa: B010 - mypy knows its type


@pytest.mark.parametrize(
    ("function", "named"), [("note_start", "note_start in starts.jsonl"), ("note_end", "adapters")]
)
def test_a_full_disk_closes_the_engine_and_names_the_file(function: str, named: str, tmp_path: Path) -> None:
    """vLLM complains at process exit if it was left open. A failure to record the end must not hide the first error."""
    environment = {"HELD_AT": "nowhere", "HELD_PLACE": str(tmp_path)}
    given = partial(without_room, function)
    code, output = forked.train(tmp_path, *SETTINGS, environment=environment, prepare=given)
    assert code == 1
    assert f"error: [Errno 28] No space left on device: '{named}'" in output
    assert output.count("the engine is closed") == 1


def without_room_to_save() -> None:
    from rl_engine.run.checkpoint import Checkpoints

    prepare()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "step000001")

    setattr(Checkpoints, "save", full)  # noqa: B010 - mypy knows its type


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("fail", "error: step 2: no sampling worker is left\nNo checkpoint of this run was saved."),
        ("stop", "error: [Errno 28] No space left on device: 'step000001'\nMake space. No checkpoint of this run was"),
    ],
)
def test_the_first_error_is_reported_though_saving_fails_too(do: str, said: str, tmp_path: Path) -> None:
    """A request to stop is not an error: then the failed save is the only error to report."""
    environment = {"HELD_AT": "0/2/", "HELD_DO": do, "HELD_PLACE": str(tmp_path)}
    settings = (*SETTINGS, "checkpoint.every=100")
    code, output = forked.train(tmp_path, *settings, environment=environment, prepare=without_room_to_save)
    assert code == 1, output
    assert said in output
    assert "Traceback" not in output
    noted = "step 1 could not be saved: [Errno 28] No space left on device" in " ".join(output.split())
    assert noted == (do == "fail")
