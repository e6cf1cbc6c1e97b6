"""The first ten minutes on a card: does everything in this project run there, and how fast?

    python -m benchmarks.gpu_contact --deadline 590 --out DIR [--model DIR] [--only STAGE …]

Every stage is a process with its own time limit and log, `DIR/<stage>.log`. A stage that fails or takes too long never
stops the next, and stages for which no time is left are reported as cut. All stages except the doctor are planned to
fit into 590 s on a card like an H100 (`stages.py`); `--only doctor` takes 70 s, and `--model` adds 130 s. As each stage
ends, `DIR/contact.jsonl` gets a line and `DIR/contact.md` is rewritten, with tables and the last lines of what failed.
On a machine without a card the same stages run with tiny shapes in a few minutes, which only shows that they run.

It needs what a run of the quickstart needs, and no network. For machines that have only Python and torch, `python -m
benchmarks.gpu_bundle` packs the rest into one archive for PYTHONPATH.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu_contact.page import adapter_ratio, page
from benchmarks.gpu_contact.running import PASSED, Outcome, run_all
from benchmarks.gpu_contact.sizes import SIZES
from benchmarks.gpu_contact.stages import Stage, stages

OUT = Path("runs/gpu_contact")


def contact(asked: list[Stage], deadline: float, out: Path, sizes: str) -> list[Outcome]:
    """Run the stages until the deadline (monotonic seconds); record and print each outcome, and update the page."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for outcome in run_all(asked, deadline, out):
        outcomes.append(outcome)
        with (out / "contact.jsonl").open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        (out / "contact.md").write_text(page(outcomes, sizes))
        reason = f" ({outcome.reason})" if outcome.reason else ""
        print(f"{outcome.seconds:6.1f} s  {outcome.name}: {outcome.outcome}{reason}", flush=True)
    return outcomes


def chosen(every: list[Stage], names: list[str]) -> list[Stage]:
    """The named stages and the stages they depend on, in order; all of them if none is named."""
    after = {stage.name: stage.after for stage in every}
    if unknown := [name for name in names if name not in after]:
        raise typer.BadParameter(f"--only {unknown[0]}: the stages are {', '.join(after)}")
    wanted = set(names or after)
    wanted |= {before for name in wanted if (before := after[name])}
    return [stage for stage in every if stage.name in wanted]


def main(
    deadline: Annotated[float, typer.Option(min=1, help="Seconds that all stages may take together.")] = 590,
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory for the tables, figures and logs.")] = OUT,
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Directory of a real model, such as SmolLM2, if there is one."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A stage to run; may be repeated. Default: all.")] = None,
) -> None:
    """Run every stage that the deadline leaves time for."""
    end = time.monotonic() + deadline
    # Like an interrupt, SIGTERM must reach the running stage.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if model is not None and not (model / "config.json").is_file():
        raise typer.BadParameter(f"--model {model}: no config.json is there")
    import torch

    sizes = SIZES["card" if torch.cuda.is_available() else "cpu"]
    with tempfile.TemporaryDirectory(prefix="gpu_contact-") as scratch:
        asked = chosen(stages(sizes, Path(scratch), model.resolve() if model else None), only or [])
        outcomes = contact(asked, end, out, sizes.name)
    print(f"{sum(one.outcome == PASSED for one in outcomes)} of {len(outcomes)} stages passed: {out / 'contact.md'}")
    ratio = adapter_ratio(outcomes)
    print(f"gpu_contact ratio {math.nan if ratio is None else ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
