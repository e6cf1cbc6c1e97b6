"""A stand-in for `rl_engine.train` in the tests of sweeps: plain Python, so that it starts in milliseconds.

    python sweep_fake_run.py --config FILE key=value … --resume
    python sweep_fake_run.py --config FILE --config FILE … --together K --resume

It writes metrics.jsonl as a run does. `test.kind` says how it fails; a file `repaired` beside the base fixes it. While
a file `held` exists, no cell continues once three have made a step, so that a test can stop a sweep in the middle.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml


def leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def wait_for_others(cells: Path, concurrent: int) -> None:
    """Wait until this many cells have begun, so that two concurrent cells overlap however fast one of them is."""
    limit = time.monotonic() + 60
    while len(list(cells.glob("*/run/attempts.jsonl"))) < concurrent and time.monotonic() < limit:
        time.sleep(0.01)


def wait_while_held(cells: Path, root: Path) -> None:
    # The first line is that of step 0.
    while (root / "held").exists() and sum(file.read_bytes().count(b"\n") > 1 for file in metrics_in(cells)) >= 3:
        time.sleep(0.01)


def metrics_in(cells: Path) -> Iterator[Path]:
    return cells.glob("*/run/metrics.jsonl")


def steps_of(settings: dict[str, Any], root: Path, *, alone: bool) -> Iterator[None]:
    """One run, as a generator that yields after each step."""
    kind, rate, steps = settings.get("test.kind", "ok"), settings["optim.lr"], settings["train.steps"]
    run = Path(settings["output_dir"])
    metrics = run / "metrics.jsonl"
    (run / "adapters").mkdir(parents=True, exist_ok=True)
    done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    facts = {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "from": done, "at": time.monotonic()}
    facts["cards"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Before the attempt is on record: whoever reads of it may ask the process to stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else leave)
    with (run / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    if kind == "deaf":
        time.sleep(60)
    if alone:
        wait_for_others(run.parents[1], settings.get("test.concurrent", 1))
    if kind == "broken" and not (root / "repaired").exists():
        raise RuntimeError("the gap is too large")
    for step in range(done, steps + 1):
        if kind == "deadly" and step == steps and not alone:
            os.kill(os.getpid(), signal.SIGKILL)
        # Best at 10^-3 and 10^-3.5, a little better with each seed.
        score = 0.9 - 0.1 * abs(rate * 10 ** settings.get("test.shift", 3.0) - 1) + 0.001 * settings["seed"]
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "score": score * step / steps}) + "\n")
        time.sleep(settings.get("test.step_s", 0.0))
        wait_while_held(run.parents[1], root)
        yield
    (run / "ended").write_text(str(time.monotonic()))


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def say(name: str, text: str) -> None:
    print(f"{name}  {text}", flush=True)


def run_together(every: list[dict[str, Any]], root: Path, at_once: int) -> None:
    """Runs that take steps in turn and report their state as those of `rl_engine.train` do."""
    waiting, at_work = deque(every), deque[tuple[str, Iterator[None]]]()
    while waiting or at_work:
        while waiting and len(at_work) < at_once:
            settings = waiting.popleft()
            name = Path(settings["output_dir"]).parent.name
            at_work.append((name, steps_of(settings, root, alone=False)))
            say(name, "state: begun")
        name, steps = at_work.popleft()
        try:
            next(steps)
            at_work.append((name, steps))
        except StopIteration:
            say(name, "state: done")
        except RuntimeError as error:
            say(name, f"RuntimeError: {error}")  # the end of a traceback
            say(name, "state: failed")


def main() -> None:
    words = sys.argv[1:]
    files = [Path(value) for word, value in itertools.pairwise(words) if word == "--config"]
    root = files[0].parent if len(files) == 1 else files[0].parents[3]
    if (root / "refuses").exists() and len(files) > 1:
        sys.exit("error: there is no room for several")
    given = [flat(yaml.safe_load(file.read_text())) for file in files]
    if len(files) > 1:
        run_together(given, root, int(words[words.index("--together") + 1]))
    else:
        settings = {key: json.loads(text) for key, _, text in (word.partition("=") for word in words if "=" in word)}
        for _ in steps_of({**given[0], **settings}, root, alone=True):
            pass


if __name__ == "__main__":
    main()
