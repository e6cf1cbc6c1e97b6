"""What is left of the first task after the second: the runs of `sweep_second_task.yaml` → accuracy, KL, and a figure.

    python -m benchmarks.second_task runs/claims/second_task

Every run is measured by the public commands: `python -m evals` on the held-out sums that the
embedded model was made for, `python -m evals.forgetting` for KL(base‖policy) on their prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.ticker import PercentFormatter

from rl_engine.drawing.style import (
    FULL_COLOUR,
    MARKERS,
    legend_below,
    name_panel,
    paper_figure,
    paper_style,
    rank_colour,
)
from rl_engine.sweep.report import SUMMARY, environment
from rollout.adapters import PEFT_CONFIG

SUITE = "held_out"
MAX_TOKENS = "72"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One run on the second task."""

    arm: str
    seed: int
    steps: int
    second_task_log_loss: float
    directory: Path
    """Its last version."""

    @property
    def label(self) -> str:
        return f"{self.arm}, {self.steps} steps, seed {self.seed}"

    @property
    def is_full(self) -> bool:
        return not (self.directory / PEFT_CONFIG).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What a run learned, and what it left of the first task."""

    arm: str
    seed: int
    steps: int
    second_task_log_loss: float
    """Nats a token of the answers."""
    first_task_accuracy: float
    kl_base: float
    """KL(base‖policy) on the first task's prompts, nats a token, by k3."""


def trained_runs(sweep: Path) -> list[Trained]:
    """Those that are done, in the order of arms and steps."""
    summary = json.loads((sweep / SUMMARY).read_text())
    arms = [arm["name"] for arm in summary["arms"]]
    done = [result for result in summary["results"] if result["status"] == "done"]
    done.sort(key=lambda result: (arms.index(result["arm"]), result["axis_value"], result["seed"]))
    return [
        Trained(
            arm=result["arm"],
            seed=result["seed"],
            steps=int(result["axis_value"]),
            second_task_log_loss=result["score"],
            directory=(sweep / "cells" / result["cell"] / "run" / "adapters" / "latest").resolve(),
        )
        for result in done
    ]


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def adapters(runs: Sequence[Trained]) -> list[str]:
    return [word for one in runs for word in ("--adapter", f"{one.label}={one.directory}")]


def accuracies(runs: Sequence[Trained], place: Path) -> dict[str, float]:
    """avg@4 on the first task by label, the base's among them."""
    wholes = [one for one in runs if one.is_full]
    found: dict[str, float] = {}
    common = ("--suite", SUITE, "--samples", "4", "--temperature", "1", "--top-p", "1", "--max-tokens", MAX_TOKENS)
    output = place / "first_task.json"
    run(
        *("evals", "--model", "embedded", "--output", str(output), "--overwrite", *common),
        *adapters([one for one in runs if not one.is_full]),
    )
    found |= {row["adapter"]: row["avg"] for row in rows_of(output)}
    for one in wholes:
        run(
            "evals",
            "--model",
            str(one.directory),
            "--dtype",
            "float32",
            "--output",
            str(output),
            "--overwrite",
            *common,
        )
        found[one.label] = rows_of(output)[0]["avg"]
    return found


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(output.read_text())["suites"][0]["rows"]
    return rows


def divergences(runs: Sequence[Trained], place: Path) -> dict[str, float]:
    """KL(base‖policy) by label."""
    output = place / "kl.json"
    found = {}
    # A whole model takes the base's place in its engine: each needs one of its own.
    together = [[one for one in runs if not one.is_full], *([one] for one in runs if one.is_full)]
    for some in together:
        run(
            *("evals.forgetting", "--model", "embedded", "--tasks", "", "--prompts", SUITE, "--max-tokens", MAX_TOKENS),
            *("--output", str(output), "--overwrite", *adapters(some)),
        )
        for policy in json.loads(output.read_text())["policies"]:
            if policy["divergence"] is not None:
                # NAME-v000320
                found[policy["label"].rpartition("-v")[0]] = policy["divergence"]["kl_k3"]
    return found


def draw(lefts: Sequence[Left], base: float, path: Path) -> None:
    """Learned against kept, a line for each arm and a mark for each run."""
    with paper_style():
        figure, (axes,) = paper_figure()
        arms = list(dict.fromkeys(one.arm for one in lefts))
        for arm, marker in zip(arms, MARKERS, strict=False):
            own = [one for one in lefts if one.arm == arm]
            colour = FULL_COLOUR if arm == "full" else rank_colour(int(arm.removeprefix("rank ")))
            axes.plot(
                [one.second_task_log_loss for one in own],
                [one.first_task_accuracy for one in own],
                f"{marker}-",
                color=colour,
                label=arm,
            )
        axes.axhline(base, color="grey", linestyle=":", linewidth=1, label=f"before training: {base:.1%}")
        axes.invert_xaxis()
        axes.set_xlabel("log loss on the second task, nats/token (better to the right)")
        name_panel(axes, "Accuracy on the first task", "%")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        legend_below(figure, axes.get_legend_handles_labels()[0])
        figure.savefig(path, metadata={"Date": None})


def main(sweep: Annotated[Path, typer.Argument(help="Output directory of sweep_second_task.yaml.")]) -> None:
    """Measure what the second task left of the first."""
    runs = trained_runs(sweep)
    right, moved = accuracies(runs, sweep), divergences(runs, sweep)
    lefts = [
        Left(
            arm=one.arm,
            seed=one.seed,
            steps=one.steps,
            second_task_log_loss=one.second_task_log_loss,
            first_task_accuracy=right[one.label],
            kl_base=moved[one.label],
        )
        for one in runs
    ]
    facts = {"first_task_accuracy_before": right["base"], "environment": environment()}
    (sweep / "forgetting.json").write_text(
        json.dumps({**facts, "runs": [asdict(one) for one in lefts]}, indent=1) + "\n"
    )
    draw(lefts, right["base"], sweep / "forgetting.svg")
    print(f"{'':12}{'steps':>8}{'log loss':>10}{'first task':>12}{'KL':>8}")
    for one in lefts:
        print(
            f"{one.arm:12}{one.steps:8}{one.second_task_log_loss:10.3f}"
            f"{one.first_task_accuracy:12.1%}{one.kl_base:8.2f}"
        )
    moved_by = {(one.arm, one.steps): one.kl_base for one in lefts}
    # A sweep that is not done has more steps of one arm than of another.
    last = max(one.steps for one in lefts if {("rank 1", one.steps), ("full", one.steps)} <= moved_by.keys())
    print(f"KL of rank 1 over full's after {last} steps ratio {moved_by['rank 1', last] / moved_by['full', last]:.2f}")


if __name__ == "__main__":
    typer.run(main)
