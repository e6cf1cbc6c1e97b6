"""Wall time and peak memory of eight cells of the quickstart's task: one after another, in two processes, and together.

    python -m benchmarks.together [--steps 3] [--cells 8] [--ways one,two,together] [--output FILE.json]

The cells are those of a sweep over ranks 1, 8 and 64 and three rates, except the last. Each way runs such a sweep with
the public command, changing only `jobs` and `together`: (a) `one`, one process per cell, with all cores; (b) `two`, two
processes at a time with half of the cores each; (c) `together`, all in one process with all cores. The wall time is
that of the command, including startup and figures. Memory is the proportional set size (PSS) of the command and all its
children, summed and sampled every half second, of which the maximum is reported; shared pages count once.

The last line is (a)'s time divided by (c)'s. It takes a quarter of an hour on two idle cores. Startup, which (c) pays
only once, is a large part of such short cells: `--steps 12` corresponds to a sweep of `make claims`, and takes three
quarters of an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer

from rl_engine.sweep.report import SUMMARY, environment

LOOK_S = 0.5
LONGEST_S = 3600
RANKS, RATES = (1, 8, 64), (3e-4, 1e-3, 3e-3)
GIB = 1024**3
BASE = "quickstart.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a sweep runs its cells."""

    name: str
    title: str
    jobs: int
    shares: bool


WAYS = {
    way.name: way
    for way in (
        Way(name="one", title="(a) one after another", jobs=1, shares=False),
        Way(name="two", title="(b) two processes", jobs=2, shares=False),
        Way(name="together", title="(c) together", jobs=1, shares=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measurements of one way."""

    way: str
    wall_s: float
    peak_gib: float
    """The highest sum of proportional set sizes."""
    tokens: int
    """Completion tokens that the cells' steps sampled."""
    scores: dict[str, float]
    """Cell → its score."""


def sweep_of(cells: int, steps: int, output: Path) -> str:
    """The sweep's configuration file: an arm per rank, with only the first `cells` combinations of rank and rate."""
    wanted = [(rank, rate) for rank in RANKS for rate in RATES][:cells]
    arms = {f"rank {rank}": {"lora.rank": rank, "optim.lr": [r for of, r in wanted if of == rank]} for rank in RANKS}
    return json.dumps(
        {
            "base": BASE,
            # Evaluated as in the quickstart: every five steps, and before and after training.
            "set": {"train.steps": steps, "log.tensorboard": False},
            "grid": {"optim.lr": list(RATES)},
            "arms": {name: given for name, given in arms.items() if given["optim.lr"]},
            "score": {"metric": "eval/held_out/avg"},
            "output_dir": str(output),
        }
    )


def go(way: Way, cells: int, steps: int, place: Path) -> Measured:
    """Run the cells in one way and measure it. Raises `RuntimeError` if a cell is not done."""
    output, file = place / way.name, place / f"{way.name}.yaml"
    file.write_text(sweep_of(cells, steps, output))
    command = [sys.executable, "-m", "rl_engine.sweep", "--config", str(file), f"jobs={way.jobs}"]
    command.append(f"together={cells if way.shares else 1}")
    start, peak = time.monotonic(), 0
    with (place / f"{way.name}.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if time.monotonic() - start > LONGEST_S:
                    raise RuntimeError(f"{way.title}: still at work after {LONGEST_S} s")
                peak = max(peak, shares_of(process.pid))
                time.sleep(LOOK_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    wall_s = time.monotonic() - start
    results = json.loads((output / SUMMARY).read_text())["results"] if (output / SUMMARY).is_file() else []
    scores = {result["cell"]: result["score"] for result in results if result["status"] == "done"}
    if len(scores) < cells:
        raise RuntimeError(f"{way.title}: {len(scores)} of {cells} cells are done\n{log_of(place, way)}")
    return Measured(way=way.name, wall_s=wall_s, peak_gib=peak / GIB, tokens=tokens_of(output), scores=scores)


def log_of(place: Path, way: Way) -> str:
    return (place / f"{way.name}.txt").read_text()[-2000:]


def shares_of(pid: int) -> int:
    """Proportional set size of a process and its children, in bytes: shared pages are divided among their users."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended in the meantime
            continue
    return total


def tokens_of(output: Path) -> int:
    """Completion tokens of all cells, from their metrics: tokens per second of each step times its seconds."""
    total = 0.0
    for file in output.glob("cells/*/run/metrics.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            total += line.get("throughput/tokens_per_s", 0.0) * line.get("time/step_s", 0.0)
    return round(total)


def show(measured: list[Measured]) -> None:
    print(f"{'':24}{'wall s':>8}{'peak GiB':>10}{'tokens':>10}{'tokens/s':>10}")
    for one in measured:
        speed = one.tokens / one.wall_s
        print(f"{WAYS[one.way].title:24}{one.wall_s:8.0f}{one.peak_gib:10.2f}{one.tokens:10,}{speed:10.0f}")
    by_way = {one.way: one for one in measured}
    if not {"two", "together"} - by_way.keys():
        two, together = by_way["two"], by_way["together"]
        print(f"together against two processes: {two.wall_s / together.wall_s:.2f} times as fast, ", end="")
        print(f"{together.peak_gib / two.peak_gib:.2f} of the memory")
    if not {"one", "together"} - by_way.keys():
        print(f"together ratio {by_way['one'].wall_s / by_way['together'].wall_s:.2f}")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of every cell.")] = 3,
    cells: Annotated[int, typer.Option(min=2, max=9, help="How many of the nine cells to run.")] = 8,
    ways: Annotated[str, typer.Option(help=f"Ways to run them, of {','.join(WAYS)}.")] = ",".join(WAYS),
    output: Annotated[Path | None, typer.Option(help="Where the figures are written, as JSON.")] = None,
) -> None:
    """Run the same cells in three ways."""
    unknown = set(ways.split(",")) - WAYS.keys()
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(WAYS)}", param_hint="--ways")
    print(f"{cells} cells of {BASE}, {steps} steps each, on {len(os.sched_getaffinity(0))} cores", flush=True)
    measured = []
    with tempfile.TemporaryDirectory() as place:
        for name in ways.split(","):
            measured.append(go(WAYS[name], cells, steps, Path(place)))
            print(f"{WAYS[name].title}: {measured[-1].wall_s:.0f} s, {measured[-1].peak_gib:.2f} GiB", flush=True)
    if output is not None:
        facts = {"cells": cells, "steps": steps, "environment": environment()}
        output.write_text(json.dumps({**facts, "ways": [asdict(one) for one in measured]}, indent=1) + "\n")
    show(measured)


if __name__ == "__main__":
    typer.run(main)
