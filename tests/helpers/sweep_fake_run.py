"""A stand-in for `rl_engine.train` in the tests of sweeps: plain Python, so that it starts in milliseconds.

    python sweep_fake_run.py --config FILE key=value … --resume

It writes metrics.jsonl as a run does. `test.kind` says how it goes wrong; the file `repaired` beside the base heals it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def wait_for_company(cells: Path, company: int) -> None:
    """Until that many cells have begun: two at a time are seen at work together however fast one of them is."""
    limit = time.monotonic() + 60
    while len(list(cells.glob("*/run/attempts.jsonl"))) < company and time.monotonic() < limit:
        time.sleep(0.01)


def main() -> None:
    base = Path(sys.argv[sys.argv.index("--config") + 1])
    settings = {key: json.loads(text) for key, _, text in (a.partition("=") for a in sys.argv if "=" in a)}
    kind, rate, steps = (
        settings.get("test.kind", "ok"),
        settings["optim.lr"],
        json.loads(base.read_text())["train"]["steps"],
    )
    run = Path(settings["output_dir"])
    metrics = run / "metrics.jsonl"
    (run / "adapters").mkdir(parents=True, exist_ok=True)
    done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
    facts = {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "from": done, "at": time.monotonic()}
    with (run / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    signal.signal(signal.SIGTERM, leave)
    wait_for_company(run.parents[1], settings.get("test.company", 1))
    if kind == "broken" and not (base.parent / "repaired").exists():
        raise RuntimeError("the gap is too large")
    for step in range(done, steps + 1):
        # Best at 10^-3 and 10^-3.5, a little better with each seed.
        score = 0.9 - 0.1 * abs(rate * 10 ** settings.get("test.shift", 3.0) - 1) + 0.001 * settings["seed"]
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "score": score * step / steps}) + "\n")
        time.sleep(settings.get("test.step_s", 0.0))
    (run / "ended").write_text(str(time.monotonic()))


if __name__ == "__main__":
    main()
