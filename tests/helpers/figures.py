"""Checks that a figure, whatever it shows, is legible in a paper."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from rl_engine.drawing.style import COLUMN, PAGE

SMALLEST_POINTS = 7


def assert_reads_in_a_paper(figure: Figure) -> None:
    """The figure is a column or a page wide; text is large enough, on the page and not overlapping; the legend is
    outside the data; lines can be told apart without colour."""
    draw(figure)
    assert figure.get_figwidth() in (COLUMN, PAGE)
    page = figure.bbox.padded(1)
    texts = [text for text in visible_texts(figure) if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, (name, box) in zip(texts, boxes, strict=True):
        assert float(text.get_fontsize()) >= SMALLEST_POINTS, name
        assert page.containsx(box.x0), name
        assert page.containsx(box.x1), name
        assert page.containsy(box.y0), name
        assert page.containsy(box.y1), name
    for (one, here), (other, there) in itertools.combinations(boxes, 2):
        assert not overlap(here, there), f"{one!r} lies on {other!r}"
    for legend in legends(figure):
        assert not any(overlap(legend.get_window_extent(), axes.get_window_extent()) for axes in figure.axes)
        signs = [looks_in_grey(line) for line in legend.get_lines()]
        assert len(set(signs)) == len(signs), signs


def draw(figure: Figure) -> None:
    """Lay out the figure, as saving it would."""
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]


def visible_texts(figure: Figure) -> Iterator[Text]:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield axis.label
            yield from (
                tick.label1 for tick in axis.get_major_ticks() if low - 1e-12 <= tick.get_loc() <= high * (1 + 1e-9)
            )
        yield from (axes.title, axes._left_title)  # type: ignore[attr-defined]
    for legend in legends(figure):
        yield from legend.get_texts()


def legends(figure: Figure) -> list[Legend]:
    return [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]


def looks_in_grey(line: Line2D) -> tuple[object, ...]:
    return line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "white"


def overlap(one: Bbox, other: Bbox) -> bool:
    met = Bbox.intersection(one, other)
    return met is not None and met.width > 1 and met.height > 1
