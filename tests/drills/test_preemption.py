"""SIGTERM in each phase: finished work is saved, the process exits, and the run resumes as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from rl_engine.run.checkpoint import Checkpoints
from rl_engine.run.records import read_metrics
from tests.drills.conftest import Reference
from tests.drills.equality import different
from tests.drills.fork import TINY, Moment, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
# (phase, occurrence, step that is saved then), one after the other in one run, which resumes after each. The canary
# samples first, then the evaluation before the first step, if that is still to come.
ASKED = [
    ("starting vLLM", 0, 0),
    ("sampling", 2, 0),
    ("learning", 0, 0),
    ("learning", 1, 1),
    ("checkpointing", 0, 2),
    ("sampling", 1, 2),
]


def test_a_run_asked_to_stop_saves_and_resumes_bit_for_bit(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "quickstart"
    for phase, occurrence, step in ASKED:
        moment = Moment(phase=phase, occurrence=occurrence, do="terminate")
        ended = train(tmp_path, "--resume", moment=moment)
        assert ended.code == 128 + signal.SIGTERM, ended.output
        assert "Traceback" not in ended.output
        found = Checkpoints(run / "checkpoints", keep=1).newest()
        saved = found[0].step if found else 0
        assert saved == step
        assert ended.after_signal_s < 10
        print(f"SIGTERM while {phase}: gone after {ended.after_signal_s:.1f} s, saved step {saved}", flush=True)
        assert saved == (read_metrics(run) or [{"step": 0}])[-1]["step"]
        assert list((tmp_path / "tmp").iterdir()) == []
    ended = train(tmp_path, "--resume")
    assert ended.code == 0, ended.output
    assert different(run, reference.run) == []


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@contextmanager
def on_two_ranks(place: Path, *settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command under torchrun, with its output in a file. Nothing of it is left afterwards, whatever happens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*TORCHRUN, "-m", "rl_engine.train", "--config", "quickstart.yaml", *TINY, "eval.every=0", *settings]
    with (place / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for rank in ranks_of(process):
                rank.kill()
            process.kill()
        process.wait()


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that torchrun has started, rank 0 first."""
    return sorted(psutil.Process(process.pid).children(), key=lambda each: int(each.environ()["RANK"]))


def stopped(place: Path, process: subprocess.Popen[bytes], after: int, ask: Callable[[], None], name: str) -> int:
    """Ask when `after` steps are recorded and the next is under way → the step that was saved."""
    run, text = place / "runs" / "quickstart", place / "output.txt"
    deadline = time.monotonic() + 900
    while len(read_metrics(run)) <= after:
        assert process.poll() is None, text.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks, start = ranks_of(process), time.monotonic()
    ask()
    process.wait(60)
    print(f"{name}: gone after {time.monotonic() - start:.1f} s", flush=True)
    assert not any(each.is_running() for each in ranks)
    found = Checkpoints(run / "checkpoints", keep=1).newest()
    assert found is not None, text.read_text()
    assert found[0].step == read_metrics(run)[-1]["step"] >= after
    assert text.read_text().count(f"stopped after step {found[0].step} as asked, and saved") == 1
    return found[0].step


def test_ctrl_c_under_torchrun_saves(tmp_path: Path) -> None:
    """The terminal interrupts all processes, and torchrun passes the signal on again: one request, not two."""
    with on_two_ranks(tmp_path, "train.steps=100") as process:
        stopped(tmp_path, process, 1, lambda: os.killpg(process.pid, signal.SIGINT), "Ctrl-C under torchrun")


def test_a_killed_rank_ends_the_others_in_a_line(tmp_path: Path) -> None:
    """Whichever rank is killed, and whatever the other one does then: the kill comes at two moments of a step."""
    run, text = tmp_path / "runs" / "quickstart", tmp_path / "output.txt"
    settings = "train.steps=1000", "checkpoint.every=1", "learner.zero_stage=1"
    for number, later_s in ((0, 0.3), (1, 0.0)):
        begun = len(read_metrics(run))
        with on_two_ranks(tmp_path, *settings, "--resume") as process:
            while len(read_metrics(run)) <= begun + 2:  # two steps, one of which is saved
                assert process.poll() is None, text.read_text()
                time.sleep(0.05)
            time.sleep(later_s)
            ranks_of(process)[number].kill()
            process.wait(60)
        output = text.read_text().partition("ChildFailedError")[0]
        assert f"rank {1 - number} lost another rank (" in output
        assert "\nWhat was saved before stands: --resume continues it.\n" in output
        assert f"[rank{1 - number}]: Traceback" not in output
        assert "gloo/transport" not in "".join(output.split())


def test_a_rank_that_hangs_is_given_up_and_the_run_goes_on(tmp_path: Path) -> None:
    """A rank is suspended; afterwards each rank in turn is killed while the other still loads."""
    steps = "train.steps=4"
    for name in ("whole", "struck"):
        (tmp_path / name).mkdir()
    with on_two_ranks(tmp_path / "whole", steps) as process:
        assert process.wait(1800) == 0, (tmp_path / "whole" / "output.txt").read_text()
    place = tmp_path / "struck"
    run, text = place / "runs" / "quickstart", place / "output.txt"
    with on_two_ranks(place, steps) as process:
        # A step is recorded before it is saved, for which both ranks are needed.
        wait_for(process, lambda: any((run / "checkpoints").glob("step*")), text)
        ranks_of(process)[1].suspend()
        assert process.wait(300) == 1
    assert "rank 0 lost another rank (no sign of rank 1 for 120 s): if" in text.read_text()
    assert "\nWhat was saved before stands: --resume continues it.\n" in text.read_text()
    for number in (0, 1):
        with on_two_ranks(place, steps, "--resume") as process:
            wait_for(process, lambda: "output    runs" in text.read_text(), text)
            ranks_of(process)[number].kill()
            assert process.wait(60) == 1
        assert f"rank {1 - number} lost another rank (rank {number} failed or stopped responding" in text.read_text()
        assert "as asked" not in text.read_text()
    with on_two_ranks(place, steps, "--resume") as process:
        assert process.wait(1800) == 0, text.read_text()
    assert different(run, tmp_path / "whole" / "runs" / "quickstart") == []


def wait_for(process: subprocess.Popen[bytes], there: Callable[[], bool], text: Path) -> None:
    deadline = time.monotonic() + 900
    while not there():
        assert process.poll() is None, text.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sigterm_to_one_rank_stops_all_and_the_run_goes_on(tmp_path: Path) -> None:
    """A scheduler asks torchrun, or one rank's machine goes away: all ranks leave with the same step saved."""
    steps = "train.steps=8"
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    with on_two_ranks(tmp_path / "whole", steps) as process:
        assert process.wait(1800) == 0, (tmp_path / "whole" / "output.txt").read_text()
    place, saved = tmp_path / "stopped", 0
    asks: dict[str, Callable[[subprocess.Popen[bytes]], None]] = {
        "SIGTERM to torchrun": lambda process: process.terminate(),
        "SIGTERM to rank 1": lambda process: ranks_of(process)[1].terminate(),
        "SIGTERM to rank 0": lambda process: ranks_of(process)[0].terminate(),
    }
    for name, ask in asks.items():
        with on_two_ranks(place, steps, "--resume") as process:
            saved = stopped(place, process, saved + 1, partial(ask, process), name)
    with on_two_ranks(place, steps, "--resume") as process:
        assert process.wait(1800) == 0, (place / "output.txt").read_text()
    assert different(place / "runs" / "quickstart", tmp_path / "whole" / "runs" / "quickstart") == []
