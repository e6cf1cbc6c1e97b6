"""The style of all figures: drawn at the size at which a paper prints them, with fonts of at least 7 points.

Figures are readable without colour too: each line has its own marker or dashes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
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

from rollout.files.durable import replacing

Sign = Artist | Container
"""A labelled entry of a legend."""
COLUMN, PAGE = 3.3, 6.8
"""Width in inches of one column of a paper, and of the page's two."""
LABELS = 0.32
"""Height in inches of the tick labels and the name of a horizontal axis."""
# Okabe and Ito's colours, which colour-blind readers can tell apart, slightly darker; the HTML report uses them too.
COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b8528e", "#a87400", "#5b4bb5", "#3c8fb8", "#555555")
MARKERS = "osD^vPX<>*hpd"
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
HATCHES = ("", "////", "....", "xxxx")
FULL_COLOUR = "black"
"""The colour of full fine-tuning in every figure."""
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
    # Embed TrueType fonts in PDFs: publishers reject matplotlib's default, Type 3.
    "pdf.fonttype": 42,
    # Make the same data give the same file.
    "svg.hashsalt": "rl_engine",
}


def paper_style() -> AbstractContextManager[None]:
    """A context in which figures are created and saved in this style."""
    return style.context(STYLE)


def paper_figure(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with one panel, as wide as a column, or several, as wide as a page: two or four panels are in rows of
    two, other numbers in rows of three."""
    columns = {1: 1, 2: 2, 4: 2}.get(panels, 3)
    rows = math.ceil(panels / columns)
    width, height = (COLUMN, 2.2) if panels == 1 else (PAGE, {2: 2.2, 3: 1.8}[columns] * rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subplot(grid[divmod(place, columns)]) for place in range(panels)]


def rank_colour(rank: int) -> str:
    """A rank's colour, the same in every figure: the higher, the darker, towards black for full fine-tuning."""
    place = min(math.log2(max(rank, 1)) / math.log2(HIGHEST_RANK), 1.0)
    return to_hex(matplotlib.colormaps["plasma"](0.65 - 0.63 * place))


def legend_below(figure: Figure, signs: Sequence[Sign]) -> None:
    """Add one legend for all panels below them, in as many columns as fit. The figure grows; no panel shrinks."""
    if not signs:
        return
    place = partial(figure.legend, loc="outside lower center")
    _grow(figure, _fitting(place, signs, figure.get_figwidth()))


def legends_under(figure: Figure, signs: Mapping[Axes, Sequence[Sign]]) -> None:
    """Add a legend below each of the given panels, in as many columns as fit. The figure grows by the tallest legend of
    each row."""
    heights: dict[int, float] = {}
    for axes, some in signs.items():
        below = axes.transAxes + ScaledTranslation(0, -LABELS, figure.dpi_scale_trans)
        place = partial(axes.legend, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below)
        row, columns = _place_of(axes)
        heights[row] = max(heights.get(row, 0.0), _fitting(place, some, figure.get_figwidth() / columns))
    _grow(figure, sum(heights.values()))


def _place_of(axes: Axes) -> tuple[int, int]:
    """The row of a panel, and the number of panels per row."""
    spec = axes.get_subplotspec()
    assert spec is not None
    return spec.rowspan.start, spec.get_gridspec().ncols


def _fitting(place: Callable[..., Legend], signs: Sequence[Sign], width_in: float) -> float:
    """Create a legend by `place` that is at most `width_in` wide. Returns its height in inches."""
    # Wrap long names, at 14 letters per inch plus room for the marker.
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
    """Turn off math parsing: names of runs and suites are the user's, and a dollar sign in them starts no formula."""
    for text in texts:
        text.set_parse_math(False)


def _grow(figure: Figure, by_in: float) -> None:
    figure.set_figheight(figure.get_figheight() + by_in)


def name_panel(axes: Axes, title: str, unit: str) -> None:
    """Set a panel's title, wrapped to its width, and the unit on its vertical axis."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width_in = figure.bbox.width / figure.dpi / _place_of(axes)[1]
    written = "\n".join(textwrap.fill(line, int(13 * width_in)) for line in title.split("\n"))
    _as_written(axes.set_title(written, loc="left"))
    axes.set_ylabel(unit)


def count_along(axes: Axes, what: str) -> None:
    """Name the horizontal axis, and put its ticks at integers, for counts such as steps."""
    axes.set_xlabel(what)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=2))


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure in the format of its name's ending, whole or not at all; `options` are those of `savefig`."""
    with replacing(path) as scratch:
        figure.savefig(scratch, format=path.suffix.removeprefix(".").lower(), **options)
