"""Figures as inline SVG that follows the page: its fonts, and its colours in the light and in the dark.

Matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..core.report import Figure
from .tables import COLOURS, Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLOT = [f"#01{slot:02x}fe" for slot in range(COLOURS)]
INK, MUTED, LINE, PAGE = "#02fe01", "#02fe02", "#02fe03", "#02fe04"
VARIABLES = {colour: f"var(--c{slot})" for slot, colour in enumerate(SLOT)}
VARIABLES |= {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAGE: "var(--page)"}
LABEL = 28  # letters of a name that fit into a figure
WIDTH = 5.2  # inches of 72 units; the page scales it
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "stillhouse", "text.parse_math": False, "font.size": 9, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 0, "ytick.major.size": 0, "grid.color": LINE,
    "grid.linewidth": 0.6, "axes.grid": True, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """A number with its interval and the words beside it."""

    subject: Subject
    value: float
    low: float | None
    high: float | None
    text: str


def dots(rows: Sequence[Dot], axis: str, *, scale: float = 1.0, zero: bool = False) -> str:
    """One line per row: its name, its number, and below them the dot on its interval, times `scale`.

    `zero` marks no difference.
    """

    def draw(axes: Axes) -> None:
        for y, row in enumerate(rows):
            colour = SLOT[row.subject.slot]
            if row.low is not None and row.high is not None:
                axes.plot([scale * row.low, scale * row.high], [y, y], color=colour, linewidth=2.6, solid_capstyle="round")
            axes.plot([scale * row.value], [y], "o", color=colour, markersize=6.5)
            above: dict[str, Any] = {"y": y - 0.36, "va": "center", "transform": axes.get_yaxis_transform()}
            above["bbox"] = {"facecolor": PAGE, "edgecolor": "none", "pad": 1}  # the grid does not cross words
            axes.text(0, s=row.subject.label[:LABEL], color=INK, **above)
            axes.text(1, s=row.text, color=MUTED, ha="right", **above)
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_ylim(len(rows) - 0.5, -0.75)
        axes.margins(x=0.06)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)

    return _svg(draw, height=0.55 + 0.48 * len(rows))


@dataclass(frozen=True)
class Point:
    """What something costs and how good it is, with its interval."""

    subject: Subject
    x: float
    y: float
    low: float | None
    high: float | None


def scatter(points: Sequence[Point], x: str, y: str, scale: float = 1.0) -> str:
    """Quality, times `scale`, against cost on a logarithmic scale; every point has its name beside it."""

    def draw(axes: Axes) -> None:
        for point in points:
            colour = SLOT[point.subject.slot]
            if point.low is not None and point.high is not None:
                axes.plot([point.x, point.x], [scale * point.low, scale * point.high], color=colour, linewidth=1.6)
            axes.plot([point.x], [scale * point.y], "o", color=colour, markersize=6.5, label=point.subject.label[:LABEL])
        axes.set_xscale("log")
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0, "borderpad": 0.2}
        axes.legend(ncols=2, handlelength=1.0, labelcolor=INK, **place)

    return _svg(draw, height=2.7 + 0.16 * ((len(points) + 1) // 2))


def lines(figure: Figure, who: Mapping[str, Subject], smooth: bool = False) -> str:
    """The curves of a figure; with `smooth`, what was measured in thin lines below its running mean."""

    def draw(axes: Axes) -> None:
        # the longest first, so that a shorter run of the same beginning stays visible
        for name, points in sorted(figure.series.items(), key=lambda item: -len(item[1])):
            subject = who.get(name)
            x, y = [p[0] for p in points], [p[1] for p in points]
            if subject is None:
                axes.plot(x, y, color=MUTED, linewidth=1, linestyle=(0, (3, 2)), label=name[:LABEL])
                continue
            colour = SLOT[subject.slot]
            if smooth:
                axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
                y = _running_mean(y)
            axes.plot(
                x, y, color=colour, linewidth=1.7, marker="" if smooth else "o", markersize=3.5, label=subject.label[:LABEL]
            )
        axes.set_xlabel(figure.x)
        axes.set_ylabel(figure.y)
        order = {subject.label[:LABEL]: n for n, subject in enumerate(who.values())}
        drawn = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda d: order.get(d[1], len(order)))
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0, "borderpad": 0.2}
        axes.legend([d[0] for d in drawn], [d[1] for d in drawn], ncols=2, handlelength=1.4, labelcolor=INK, **place)

    return _svg(draw, height=2.5 + 0.16 * ((len(figure.series) + 1) // 2))


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean over about a twentieth of the curve around each point."""
    reach, sums = len(values) // 40, [0.0, *accumulate(values)]
    spans = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[end] - sums[start]) / (end - start) for start, end in spans]


def _svg(draw: Any, height: float) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        draw(axes)
        text = io.StringIO()
        canvas.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to them, and they repeat from figure to figure
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 var(--sans)", svg)
    svg = svg.replace("xlink:href", "href")
    return re.sub("|".join(VARIABLES), lambda m: VARIABLES[m[0]], svg)
