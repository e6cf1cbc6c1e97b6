"""The command: `python -m rl_engine.inspect ADAPTER… [--base MODEL] [--plot FILE.png] [--output FILE.json]`.

Shows what was learned, from the files alone: norms of A, B and ΔW, and how many directions of the rank are used.
"""

from __future__ import annotations

if __name__ == "__main__":
    from datafiles.leaving import leave_while_loading

    leave_while_loading()

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from evals.command import (
    exit_explained,
    lasting_console,
    print_loading,
    print_table,
    settle_torch,
    stoppable,
)
from rewards.command import Command
from rewards.streams import check_heard
from rl_engine.inspect.figures import FIGURES, by_kind, median_over
from rl_engine.inspect.versions import directories
from rollout.adapters import PEFT_CONFIG
from rollout.files.durable import check_writable, write_synced
from rollout.files.ownership import figure_metadata, is_figure, is_json, replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rl_engine.inspect.deltas import VersionSpectra
    from rl_engine.inspect.spectrum import Spectrum

OF_ITS_SHAPE = ("stable rank", "of the rank")
"""Columns without a value for an update of zero: a line from 0 to the first value would be meaningless."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PLOTS = (".png", ".svg", ".pdf", ".eps", ".jpg")
ROWS = 30
"""Maximum number of versions in the table."""


@app.command(cls=Command, epilog="Example: python -m rl_engine.inspect runs/quickstart --plot norms.png")
def main(
    adapters: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER…",
            help="Adapters, whole models from `method: full`, or a run directory for all its versions.",
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            help="Model that whole models are compared with; by default version 0 of the run.", metavar="MODEL"
        ),
    ] = None,
    only: Annotated[str, typer.Option(help="Show only modules whose name contains this text.", metavar="TEXT")] = "",
    modules: Annotated[bool, typer.Option("--modules", help="Show every module of the last version.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Plot the figures over the versions.", metavar="FILE.png")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write every figure for every module.", metavar="FILE.json")
    ] = None,
) -> None:
    """Show what adapters learned: norms, stable rank, and how much of the rank is used."""
    if plot is not None and not plot.suffix and not plot.is_dir():
        plot = plot.with_suffix(".png")  # matplotlib's default
    try:
        signs = {"--plot": (plot, is_figure), "--output": (output, is_json(("version", "modules")))}
        notes = []
        for key, (file, sign) in signs.items():
            if file is not None:
                check_writable(file.parent, key)
                notes += replaced({file: sign}, key)
        if plot is not None and plot.suffix not in PLOTS:
            raise ValueError(f"--plot is {str(plot)!r}: give a name that ends in {', '.join(PLOTS)}")
        found = [directory for path in adapters for directory in directories(path)]
        if base is not None and all((directory / PEFT_CONFIG).is_file() for directory in found):
            raise ValueError(f"--base is {base}, and has no effect: an adapter is an update by itself")
        with stoppable():
            print_loading("torch")
            settle_torch()
            show(found, base, only, notes, modules=modules, plot=plot, output=output)
    except (ValueError, OSError) as error:
        exit_explained(error)


def show(
    found: Sequence[Path],
    base: Path | None,
    only: str,
    notes: Sequence[str],
    *,
    modules: bool,
    plot: Path | None,
    output: Path | None,
) -> None:
    """Print notes on replaced files and the tables, and write the files."""
    console = lasting_console()
    versions = inspect(found, base, only)
    for note in notes:
        console.print(note)
    if len(versions) > 1:
        # Evenly spaced, including the last.
        shown = versions[:: len(versions) // -ROWS][::-1]
        rows = zip(titles(shown), (version.spectra for version in shown), strict=True)
        print_table(table("version", rows), console)
        console.print()
    last = versions[-1]
    each = {spectrum.module: [spectrum] for spectrum in last.spectra} if modules else by_kind(last.spectra)
    print_table(table(last.path.name, each.items()), console)
    if plot is not None:
        draw(versions, plot)
        console.print(f"plot     {plot}")
    if output is not None:
        write_synced(output, json.dumps(as_json(versions), indent=1) + "\n")
        console.print(f"figures  {output}")
    check_heard()


def inspect(found: Sequence[Path], base: Path | None = None, only: str = "") -> list[VersionSpectra]:
    """The versions in these directories, each with the spectra of its modules. See `deltas.read_version`."""
    from rl_engine.inspect.deltas import read_version

    return [read_version(directory, base, only) for directory in found]


def titles(versions: Sequence[VersionSpectra]) -> list[str]:
    """Short names if they are unique, otherwise full paths."""
    names = [version.path.name for version in versions]
    return names if len(set(names)) == len(names) else [str(version.path) for version in versions]


def table(title: str, rows: Iterable[tuple[str, Sequence[Spectrum]]]) -> Table:
    """A table with a row for each group of modules: its size, its rank, the median of each figure."""
    made = Table(box=None, pad_edge=False, padding=(0, 2))
    made.add_column(title)
    for column in ("modules", "rank", *FIGURES):
        made.add_column(column, justify="right")
    for name, spectra in rows:
        ranks = sorted({spectrum.rank for spectrum in spectra})
        figures = (median_over(spectra, figure) for figure in FIGURES.values())
        made.add_row(
            name,
            str(len(spectra)),
            str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}",
            *("" if figure is None else f"{figure:.4g}" for figure in figures),
        )
    return made


def as_json(versions: Sequence[VersionSpectra]) -> list[dict[str, object]]:
    return [
        {"version": str(version.path), "modules": [{**asdict(s), "used": s.used} for s in version.spectra]}
        for version in versions
    ]


def draw(versions: Sequence[VersionSpectra], path: Path) -> Figure:
    """Plot norms of the factors, norm of the update, stable rank and used share of the rank over the versions, as
    medians for each kind of layer."""
    # Importing matplotlib takes a second, and tables do not need it.
    from rl_engine.drawing.style import count_along, legend_below, name_panel, paper_figure, paper_style, save_figure

    with paper_style():
        figure, panels = paper_figure(4)
        factors, update, stable, used = panels
        _series(factors, versions, "‖A‖₂", "--")
        _series(factors, versions, "‖B‖₂", "-")
        _series(update, versions, "‖ΔW‖F", "-")
        _series(stable, versions, "stable rank", "-")
        _series(used, versions, "of the rank", "-")
        for axes, title, unit in (
            (factors, "‖A‖₂ (dashed), ‖B‖₂", "median over modules"),
            (update, "‖ΔW‖ (Frobenius)", "median over modules"),
            (stable, "stable rank", "median over modules"),
            (used, "values for 90 %", "share of the rank"),
        ):
            name_panel(axes, title, unit)
            count_along(axes, "version")
            axes.set_ylim(bottom=0)
        # From the panel of ΔW: the update of a full matrix has no factors A and B.
        legend_below(figure, update.get_legend_handles_labels()[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, metadata=figure_metadata(path))
    return figure


def numbers(versions: Sequence[VersionSpectra]) -> list[int]:
    """Positions of the versions on an axis: their own numbers, or 0, 1, … if they are not all versions of one run."""
    names = [version.path.name for version in versions]
    mine = [int(name[1:]) for name in names if re.fullmatch(r"v\d+", name)]
    return mine if len(set(mine)) == len(names) else list(range(len(names)))


def _series(axes: Axes, versions: Sequence[VersionSpectra], column: str, dash: str) -> None:
    """Draw one line for each group of layers: attention, mlp, other."""
    from rl_engine.drawing.style import COLOURS, MARKERS
    from rl_engine.policy.lora.targets import group_of

    for group, colour, marker in zip(("attention", "mlp", "other"), COLOURS, MARKERS, strict=False):
        parts = [
            [
                one
                for one in version.spectra
                if group_of(one.module) == group and (one.norm or column not in OF_ITS_SHAPE)
            ]
            for version in versions
        ]
        values = [median_over(part, FIGURES[column]) for part in parts]
        drawn = [(x, y) for x, y in zip(numbers(versions), values, strict=True) if y is not None]
        if drawn:
            label = None if dash == "--" else group
            look: dict[str, Any] = {"color": colour, "marker": marker, "markevery": max(1, len(drawn) // 10)}
            axes.plot(*zip(*drawn, strict=True), linestyle=dash, label=label, **look)


if __name__ == "__main__":
    sys.exit(app())
