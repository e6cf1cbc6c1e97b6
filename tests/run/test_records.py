"""What a run records about its steps, and which services it reports them to."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards import Verdict
from rl_engine.config import load_config
from rl_engine.run.records import Records, read_metrics
from rollout.files.durable import write_synced
from rollout.types import Segment
from tests.helpers.builders import completion, graded_group, prompt, result


class Tracker:
    """Stands in for a tracking service's module, and fails at the call that it is told to fail at."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.calls: list[tuple[str, Any]] = []
        self.settings: list[dict[str, Any]] = []

    def _called(self, what: str, detail: Any) -> None:
        self.calls.append((what, detail))
        if what == self.fails_at:
            raise ConnectionError("no route to host\nmore of it")

    def init(self, **settings: Any) -> None:
        self.settings.append(settings)
        self._called("init", settings["project"])

    def log(self, line: dict[str, float], step: int) -> None:
        self._called("log", step)

    def finish(self) -> None:
        self._called("finish", None)


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recorded(run: Path, service: str, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, done: int = -1) -> None:
    """Report two steps of a run to the tracker."""
    monkeypatch.setitem(sys.modules, service, tracker)
    records = Records(run, load_config("quickstart.yaml", [f"output_dir={run}", f"log.{service}=sums"]))
    records.open(done)
    for step in (done + 1, done + 2):
        records.metrics({"step": step, "reward/mean": 0.5})
    records.close()


def test_a_tracking_service_gets_every_step(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker()
    recorded(tmp_path / "run", service, tracker, monkeypatch)
    assert tracker.calls == [("init", "sums"), ("log", 0), ("log", 1), ("finish", None)]


def test_a_resumed_run_goes_on_where_its_service_knows_it(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run, in another directory of the same name, is another run there."""
    tracker = Tracker()
    recorded(tmp_path / "a" / "run", service, tracker, monkeypatch)
    recorded(tmp_path / "a" / "run", service, tracker, monkeypatch, done=1)
    recorded(tmp_path / "b" / "run", service, tracker, monkeypatch)
    assert all(settings["resume"] == "allow" for settings in tracker.settings)
    first, resumed, other = ((settings.get("id"), settings["name"]) for settings in tracker.settings)
    assert first == resumed != other
    assert (first[0] is None) == (service == "trackio")


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_failing_service_is_reported_once_and_the_run_goes_on(
    what: str, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(fails_at=what)
    recorded(tmp_path / "run", service, tracker, monkeypatch)
    (warning,) = caplog.messages
    assert warning.startswith(f"log.{service}: {what} failed (no route to host): ")
    assert [name for name, _ in tracker.calls].count(what) == 1
    assert tracker.calls[-1][0] == what  # nothing is called after it
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [0, 1]


def test_a_service_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path / 'run'}", "log.wandb=sums"])
    with pytest.raises(ValueError, match="pip install wandb"):
        Records(tmp_path / "run", config).open(-1)


def test_going_on_drops_what_was_written_of_later_steps(tmp_path: Path) -> None:
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"])
    records = Records(tmp_path, config)
    records.open(-1)
    (tmp_path / "rollouts").mkdir()
    for step in range(4):
        records.metrics({"step": step})
        (tmp_path / "rollouts" / f"step{step:06d}.jsonl.gz").write_bytes(b"")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "cut sho')
    records.open(1)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1]
    assert len(list((tmp_path / "rollouts").iterdir())) == 2


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path, load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"]))
    records.open(-1)
    records.metrics({"step": 0})
    before = {path.name for path in tmp_path.iterdir()}

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rollout.files.durable.sync", full)
    with pytest.raises(OSError, match="No space left"):
        records.open(0)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]


def test_a_scratch_file_of_another_writer_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next writer begins its own as soon as ours has its name."""
    other = tmp_path / ".a.json.partial"
    monkeypatch.setattr("rollout.files.durable.sync", lambda path: path.is_dir() and other.write_text("half"))
    write_synced(tmp_path / "a.json", "whole")
    assert other.read_text() == "half"


def test_a_row_says_which_version_produced_which_tokens(tmp_path: Path) -> None:
    at_once = completion("6", adapter="policy-v000002")
    earlier = (Segment(adapter="policy-v000000", tokens=2), Segment(adapter="policy-v000001", tokens=2))
    in_segments = replace(completion("6", tokens=6, adapter="policy-v000002"), earlier=earlier)
    graded = graded_group(prompt("3+3=?"), [(at_once, result()), (in_segments, result())])
    records = Records(tmp_path, load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"]))
    records.open(-1)
    records.rollouts(3, [graded], [[0.0, 0.0]])
    with gzip.open(tmp_path / "rollouts" / "step000003.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [(row["prompt_ids"], row["completion_ids"]) for row in rows] == [
        (list(graded.rollout.prompt.token_ids), list(sampled.token_ids)) for sampled in (at_once, in_segments)
    ]
    assert [(row["adapter"], row["completion_tokens"], row["legs"]) for row in rows] == [
        ("policy-v000002", 1, [["policy-v000002", 1]]),
        ("policy-v000002", 6, [["policy-v000000", 2], ["policy-v000001", 2], ["policy-v000002", 2]]),
    ]


def test_a_completion_that_is_not_scored_says_why(tmp_path: Path) -> None:
    config = load_config("quickstart.yaml", [f"output_dir={tmp_path}", "log.tensorboard=false"])
    records = Records(tmp_path, config)
    records.open(-1)
    failed = replace(result(Verdict.ERROR, scored=False), detail="ValueError: no number\nmine.py, line 3")
    group = graded_group(prompt(), [(completion(), result()), (completion(), failed)])
    records.rollouts(1, [group], [[0.0, 0.0]])
    with gzip.open(tmp_path / "rollouts" / "step000001.jsonl.gz", "rt") as lines:
        good, bad = map(json.loads, lines)
    assert not {"scored", "detail"} & good.keys()
    assert (bad["scored"], bad["detail"]) == (False, "ValueError: no number\nmine.py, line 3")


class Mirror:
    """A service that cannot write its last data, like TensorBoard's files on a full disk."""

    def __init__(self) -> None:
        self.closed = 0

    def log(self, line: dict[str, float]) -> None: ...

    def close(self) -> None:
        self.closed += 1
        raise OSError(28, "No space left on device")


def test_closing_hides_nothing_and_leaves_nobody_open(tmp_path: Path) -> None:
    records = Records(tmp_path, load_config("quickstart.yaml", [f"output_dir={tmp_path}"]))
    mirrors = Mirror(), Mirror()
    records._sinks += mirrors
    records.close()
    assert [mirror.closed for mirror in mirrors] == [1, 1]
