"""How every figure looks: drawn at the size at which a paper prints it, with type of 7 points and more.

A figure is told apart without colour too: lines have markers or dashes of their own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import matplotlib
from cycler import cycler
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

Sign = Artist | Container
"""What stands in a legend, with its label."""
COLUMN, PAGE = 3.3, 6.8
"""Inches: one column of a paper, and both."""
LABELS = 0.32
"""Inches that the ticks and the name of a horizontal axis take."""
# Okabe and Ito's colours, which colour-blind readers tell apart, a little darker; the report's page has the same.
COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b8528e", "#a87400", "#5b4bb5", "#3c8fb8", "#555555")
MARKERS = "osD^vPX<>*hpd"
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "xxxx")
FULL_COLOUR = "black"
"""Full fine-tuning, in every figure."""
HIGHEST_RANK = 512
STYLE: dict[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.formatter.useoffset": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "savefig.dpi": 300,
    # Letters stay letters in a PDF: publishers refuse the other kind.
    "pdf.fonttype": 42,
    # The same data are the same file.
    "svg.hashsalt": "rl_engine",
}


def paper_style() -> AbstractContextManager[None]:
    """Within it figures are made and saved in this style."""
    return style.context(STYLE)


def paper_figure(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of one panel for a column, or of several for a page: two or four in rows of two, others of three."""
    columns = {1: 1, 2: 2, 4: 2}.get(panels, 3)
    rows = math.ceil(panels / columns)
    width, height = (COLUMN, 2.2) if panels == 1 else (PAGE, {2: 2.2, 3: 1.8}[columns] * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[divmod(place, columns)]) for place in range(panels)]


def rank_colour(rank: int) -> str:
    """A rank's colour, the same in every figure: the higher, the darker, towards full fine-tuning's black."""
    place = min(math.log2(max(rank, 1)) / math.log2(HIGHEST_RANK), 1.0)
    return to_hex(matplotlib.colormaps["plasma"](0.65 - 0.63 * place))


def legend_below(figure: Figure, signs: Sequence[Sign]) -> None:
    """One legend for all panels, under them, in as many columns as fit. The figure grows by it: no panel shrinks."""
    if not signs:
        return
    place = partial(figure.legend, loc="outside lower center")
    _grow(figure, _fitting(place, signs, figure.get_figwidth()))


def legends_under(figure: Figure, signs: Mapping[Axes, Sequence[Sign]]) -> None:
    """A legend under each panel that has one, in as many columns as fit. The figure grows by the highest of a row."""
    heights: dict[int, float] = {}
    for axes, some in signs.items():
        below = axes.transAxes + ScaledTranslation(0, -LABELS, figure.dpi_scale_trans)
        place = partial(axes.legend, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below)
        row, columns = _place_of(axes)
        heights[row] = max(heights.get(row, 0.0), _fitting(place, some, figure.get_figwidth() / columns))
    _grow(figure, sum(heights.values()))


def _place_of(axes: Axes) -> tuple[int, int]:
    """The row of a panel, and how many panels a row has."""
    spec = axes.get_subplotspec()
    assert spec is not None
    return spec.rowspan.start, spec.get_gridspec().ncols


def _fitting(place: Callable[..., Legend], signs: Sequence[Sign], width_in: float) -> float:
    """Put a legend there, at most so wide. Returns its height in inches."""
    # Long names in lines, at 14 letters an inch and a sign before them.
    labels = [textwrap.fill(str(sign.get_label()), int(14 * (width_in - 0.5))) for sign in signs]
    for columns in range(min(len(signs), 4), 0, -1):
        legend = place(handles=list(signs), labels=labels, ncols=columns)
        _as_written(*legend.get_texts())
        box = legend.get_window_extent()
        figure = legend.get_figure(root=True)
        assert figure is not None
        dpi = figure.dpi
        if box.width <= width_in * dpi or columns == 1:
            return box.height / dpi
        legend.remove()
    raise ValueError("a legend of nothing")


def _as_written(*texts: Text) -> None:
    """The names of runs and suites are anybody's: dollar signs in them are no formula."""
    for text in texts:
        text.set_parse_math(False)


def _grow(figure: Figure, by_in: float) -> None:
    figure.set_figheight(figure.get_figheight() + by_in)


def name_panel(axes: Axes, title: str, unit: str) -> None:
    """What a panel shows, in as many lines as its width asks for, and in which unit."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width_in = figure.bbox.width / figure.dpi / _place_of(axes)[1]
    written = "\n".join(textwrap.fill(line, int(13 * width_in)) for line in title.split("\n"))
    _as_written(axes.set_title(written, loc="left"))
    axes.set_ylabel(unit)


def count_along(axes: Axes, what: str) -> None:
    """The horizontal axis counts, as steps are counted: there is none between two."""
    axes.set_xlabel(what)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=2))
