"""metrics.jsonl → a picture: reward, held-out accuracy and length of the chain of thought over the steps."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl_engine.records import read_metrics

NAME = "curves.png"


def plot_run(run: Path) -> Path:
    """Draw `curves.png` into the run's directory."""
    lines = read_metrics(run)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    reward, accuracy, length = figure.subplots(1, 3)
    _series(reward, lines, "reward/mean", "sampled reward")
    _suites(accuracy, lines)
    _series(length, lines, "completion/tokens_mean", "all")
    _series(length, lines, "completion/tokens_mean_correct", "correct")
    for axes, title in (
        (reward, "reward"),
        (accuracy, "held-out accuracy"),
        (length, "tokens a completion (CoT length)"),
    ):
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    reward.set_ylim(bottom=min(0.0, reward.get_ylim()[0]))
    accuracy.set_ylim(0, 1.02)
    length.set_ylim(bottom=0)
    figure.suptitle(run.name)
    path = run / NAME
    figure.savefig(path, dpi=120)
    return path


def _series(axes: Axes, lines: list[dict[str, float]], key: str, label: str) -> None:
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
        axes.plot(*zip(*points, strict=True), label=label)


def _suites(axes: Axes, lines: list[dict[str, float]]) -> None:
    """Each suite with its 95 % interval as a band."""
    suites = sorted({key.split("/")[1] for line in lines for key in line if key.startswith("eval/")})
    for suite in suites:
        rows = [line for line in lines if f"eval/{suite}/avg" in line]
        steps = [line["step"] for line in rows]
        (curve,) = axes.plot(steps, [line[f"eval/{suite}/avg"] for line in rows], marker="o", label=suite)
        low = [line[f"eval/{suite}/low"] for line in rows]
        high = [line[f"eval/{suite}/high"] for line in rows]
        axes.fill_between(steps, low, high, alpha=0.2, color=curve.get_color())
