"""The style of all figures: one colour, marker and name per method.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; the marker repeats the
information. Text and lines other than data are drawn in a single colour, which a page can replace by its theme's.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import labels, stats
from analysis.drawing import hover
from analysis.drawing.signs import ALPHA
from trainables import schema

INK = "#1f2328"
"""Text, axes and the dense reference."""
FAINT = 0.7
"""Opacity of text that is of less weight, which leaves it the contrast that text needs on either theme."""
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE, GREY = (
    *("#E69F00", "#56B4E9", "#009E73", "#C7B100", "#0072B2", "#D55E00", "#CC79A7"),
    "#8A8F98",
)
"""Okabe and Ito's colours; the yellow is darkened, because thin lines of theirs cannot be seen on white."""


Dash = Literal["-", "--", "-.", ":", "None"] | tuple[int, tuple[float, ...]]
"""A dash pattern: one of Matplotlib's names, or an offset and the lengths of dashes and gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a line is drawn."""

    colour: str
    marker: str
    dash: Dash = "-"


LOOKS: dict[str, Look] = {
    "dense": Look(colour=INK, marker=".", dash="--"),
    "imp": Look(colour=GREY, marker="P", dash=":"),
    "lth": Look(colour=BLUE, marker="o"),
    "naive": Look(colour=VERMILLION, marker="s"),
    "permuted": Look(colour=GREEN, marker="D"),
    "shuffled": Look(colour=ORANGE, marker="v"),
    "layerwise_random": Look(colour=SKY, marker="^"),
    "own_mask": Look(colour=PURPLE, marker="X"),
    "reinit": Look(colour=YELLOW, marker="*"),
}
STRANGER = Look(colour=GREY, marker="h", dash="-.")
MATCHER_DASHES: dict[str, Dash] = {
    "activation_inner": "--",
    "weight": "-.",
    "identity": ":",
    "random": (0, (1, 4)),
}
OTHER_DASHES: tuple[Dash, ...] = ((0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (6, 4)), (0, (8, 1, 1, 1)))

AXES = {
    schema.TEST_ACCURACY: "Test accuracy (%)",
    schema.TEST_TOP5_ACCURACY: "Top-5 test accuracy (%)",
    schema.TRAIN_ACCURACY: "Training accuracy (%)",
    schema.TEST_LOSS: "Test loss (nats)",
    schema.GENERALIZATION_GAP: "Generalization gap (pp)",
    schema.GAP_TO_DENSE: "Gap to dense (pp)",
    schema.GAP_TO_LTH: "Gap to LTH (pp)",
    schema.INTERPOLATION_ACCURACY: "Test accuracy (%)",
    schema.INTERPOLATION_LOSS: "Test loss (nats)",
    schema.ERROR_BARRIER: "Error barrier (pp)",
    schema.LOSS_BARRIER: "Loss barrier (nats)",
    schema.PARAM_REWIND_EPOCH: "Rewind epoch",
    schema.PARAM_WIDTH: "Width multiplier",
    schema.PARAM_SPARSITY: "Sparsity (%)",
    schema.PARAM_MATCH_EPOCH: "Epoch t of B when it was matched",
    schema.MEMBER_ACCURACY_MEAN: "Test accuracy (%)",
    schema.DISAGREEMENT: "Disagreement (%)",
    schema.KL_DIVERGENCE: "KL divergence (nats)",
    schema.JS_DIVERGENCE: "JS divergence (nats)",
    "alpha": f"Position {ALPHA}, from π(A) to B",
}
"""Measure -> axis label with its unit; pp are percentage points."""

PAGE_WIDTH = 10.4
PANEL_WIDTHS = (2.3, 3.45)
"""Bounds in inches: three panels in a row fill the page; with many, the figure grows wider than the page."""
MOST_ACROSS = 4
"""Panels per row, at most, if a single column of panels is wrapped."""
LEAST_WIDTH = 5.6
"""Inches that the legend needs."""
LEGEND_HEIGHT = 0.4
GROUND = 'style="background: white"'
HANDLE = 2.6
"""Length of a line in the legend, in units of the font size."""
LEGEND_COLUMN = 0.68
"""Inches of a legend column without its text."""
CHARACTER = 0.066
"""Approximate width of a character of a title or legend in inches."""
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "pdf.fonttype": 42,  # text stays text in the PDF, as publishers ask
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
}


def themed(**more: Any) -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws in the study's style and ignores the user's own settings."""
    ours: dict[str, Any] = {**cast(Any, matplotlib.rcParamsDefault), **RC, **more}
    ours.pop("backend")  # setting it would start a graphical backend
    return matplotlib.rc_context(cast(Any, ours))


def look(row: str) -> Look:
    """Return how a row of :func:`analysis.cells.rows` is drawn: the colour tells the method, the dash the matching."""
    name, _, how = row.partition(":")
    known = LOOKS.get(name, STRANGER)
    if not how:
        return known
    dash = MATCHER_DASHES.get(how, OTHER_DASHES[sum(map(ord, how)) % len(OTHER_DASHES)])
    return Look(colour=known.colour, marker=known.marker, dash=dash)


def panels(rows: int, columns: int, tall: float = 0.56, *, wrap: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of empty panels, as a list of rows.

    Args:
        rows: number of rows.
        columns: number of columns.
        tall: height of a panel over its width, without titles and labels.
        wrap: whether a single column may be wrapped into several, which fills more of the page.
    """
    across = min(rows, MOST_ACROSS) if wrap and columns == 1 else columns
    down = math.ceil(rows * columns / across)
    width = min(max(PAGE_WIDTH / across, PANEL_WIDTHS[0]), PANEL_WIDTHS[1])
    height = 0.55 + tall * width
    with themed():
        figure = Figure(figsize=(max(width * across, LEAST_WIDTH), height * down + LEGEND_HEIGHT), layout="constrained")
        every = [axes for line in figure.subplots(down, across, squeeze=False) for axes in line]
    for axes in every[rows * columns :]:
        axes.remove()
    return figure, [every[start : start + columns] for start in range(0, rows * columns, columns)]


def axis_labels(panels: Iterable[Iterable[Axes]], x: str, y: str) -> None:
    """Label the axes below the lowest panel of each column and left of the first panel of each row."""
    lowest: dict[int, Axes] = {}
    for axes in (axes for line in panels for axes in line):
        spec = axes.get_subplotspec()
        assert spec is not None
        if spec.is_first_col():
            axes.set_ylabel(y)
        lowest[spec.colspan.start] = axes
    for axes in lowest.values():
        axes.set_xlabel(x)


def title(axes: Axes, left: str, n: str = "", beside: float = 0.0) -> None:
    """Write a panel's title and its number of pairs; a long title is broken into lines so that both fit.

    Args:
        axes: the panel.
        left: the title.
        n: the number of pairs, in words.
        beside: inches of the panel that are taken by something to its right.
    """
    figure, spec = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert spec is not None
    room = (figure.get_size_inches()[0] / spec.get_gridspec().ncols - 0.75 - beside) / CHARACTER
    with themed():
        axes.set_title(_broken(left, max(12, int(room) - len(n))), loc="left")
        axes.set_title(n, loc="right", alpha=FAINT)


def _broken(text: str, room: int) -> str:
    """Return a text with lines of at most `room` characters, as far as breaks after commas allow."""
    blank = "\N{NO-BREAK SPACE}"
    joined = text.replace(" ", blank).replace(f",{blank}", ", ")
    return "\n".join(textwrap.wrap(joined, room, break_long_words=False)).replace(blank, " ")


def empty(axes: Axes, text: str = "no finished run") -> None:
    """Mark a panel for which there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK, alpha=FAINT, fontsize=8)


def mark(look: Look, size: float = 5.5) -> dict[str, Any]:
    """Return how a marker is drawn, as keywords of ``plot``; points and stars are enlarged to look like the others."""
    size *= {".": 1.7, "*": 1.5}.get(look.marker, 1.0)
    return {"color": look.colour, "marker": look.marker, "markersize": size, "markeredgewidth": 0}


def errorbars(axes: Axes, x: Iterable[float], numbers: pd.DataFrame, drawn: Look) -> None:
    """Draw the column ``mean`` as points joined by a line, with ``std`` up and down where there is one."""
    mean, std = numbers["mean"].tolist(), numbers["std"].tolist()
    bars = axes.errorbar(
        list(x), mean, yerr=std, linestyle=drawn.dash, linewidth=1.4, elinewidth=1.0, **mark(drawn, 4.5)
    )
    hover.say(bars.lines[0], _values(numbers))


def _values(numbers: pd.DataFrame) -> list[str]:
    """Return each line's value in words, with its row if there is one."""
    texts = []
    for one in numbers.to_dict("records"):
        row = f"{labels.method(one['row'])}: " if "row" in one else ""
        texts.append(row + stats.format_mean(one["mean"], one["std"], int(one.get("n", 1))))
    return texts


def level(axes: Axes, mean: float, std: float, drawn: Look) -> None:
    """Draw a value that does not depend on x: a horizontal line, and a band of one standard deviation."""
    axes.axhline(mean, color=drawn.colour, linestyle=drawn.dash, linewidth=1.1)
    if std > 0:
        axes.axhspan(mean - std, mean + std, color=drawn.colour, alpha=0.12, linewidth=0)


def legend(figure: Figure, drawn: Iterable[tuple[str, Look]]) -> None:
    """Put one legend above all panels, with as many columns as fit."""
    entries = list(drawn)
    handles = [Line2D([], [], linestyle=look.dash, label=name, **mark(look, 4.5)) for name, look in entries]
    if handles:
        columns = _columns([name for name, _ in entries], figure.get_size_inches()[0])
        with themed():
            figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=HANDLE)


def _columns(names: Sequence[str], room: float) -> int:
    """Return the largest number of columns, at most five, that keep a legend within `room` inches."""
    for columns in range(min(len(names), 5), 1, -1):
        rows = math.ceil(len(names) / columns)
        widest = (max(map(len, names[start : start + rows])) for start in range(0, len(names), rows))
        if sum(LEGEND_COLUMN + CHARACTER * width for width in widest) <= room:
            return columns
    return 1


def methods_legend(figure: Figure, rows: Iterable[str]) -> None:
    """Put the legend of the given rows above all panels."""
    legend(figure, [(labels.method(row), look(row)) for row in rows])


def width_axis(axes: Axes, widths: Sequence[float]) -> None:
    """Make the horizontal axis a base-2 logarithmic scale with a tick at each width."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(widths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([labels.value(schema.PARAM_WIDTH, width) for width in widths])
    axes.set_xlim(min(widths) / 1.3, max(widths) * 1.3)


def sparsity_position(sparsity: float) -> float:
    """Return the position of a sparsity on :func:`sparsity_axis`: minus log2 of the remaining share of weights."""
    return -math.log2(1 - sparsity)


def sparsity_axis(
    axes: Axes,
    sparsities: Iterable[float],
    *,
    most: int = 6,
    decimals: int = 1,
    below: Mapping[float, str] | None = None,
) -> None:
    """Make the horizontal axis one of :func:`sparsity_position`, on which pruning rounds are evenly spaced.

    Args:
        axes: the panel.
        sparsities: measured sparsities in [0, 1), which get the ticks.
        most: number of ticks, at most; if there are more sparsities, the last one and evenly spaced ones before it.
        decimals: digits after the decimal point, at most.
        below: sparsity -> a second line under its tick.
    """
    every = sorted(set(sparsities))
    step = math.ceil(len(every) / most)
    shown = every[::-1][::step][::-1]
    axes.xaxis.set_major_locator(FixedLocator([sparsity_position(sparsity) for sparsity in shown]))
    texts = [f"{round(100 * sparsity, decimals):g}" for sparsity in shown]
    axes.set_xticklabels(
        ["\n".join([text, (below or {}).get(s, "")]).strip() for s, text in zip(shown, texts, strict=True)]
    )
    low, high = sparsity_position(every[0]), sparsity_position(every[-1])
    margin = 0.06 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)


def _settle(figure: Figure) -> None:
    """Lay a figure out once for all its formats, because layout is the slowest part of drawing."""
    for text in figure.findobj(Text):  # a dollar sign in the name of a dataset, say, begins no formula
        text.set_parse_math(False)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        with themed():
            figure.draw_without_rendering()
        figure.set_layout_engine("none")


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element on a white ground, in which text stays text.

    Args:
        figure: the figure.
        name: prefix that makes the ids inside unique among the figures of a page.
    """
    _settle(figure)
    stream = io.StringIO()
    with themed(**{"svg.hashsalt": name, "svg.id": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = hover.spoken(re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL))
    text = re.sub(rf'\bid="(?!{re.escape(name)}")', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f"<svg {GROUND} ", 1)


def on_page(svg: str) -> str:
    """Return a drawing of :func:`svg` without its ground, with its ink in the text colour of the page."""
    return svg.replace(f"{GROUND} ", "", 1).replace(INK, "currentColor")


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure on a white ground to a file, in the format of the file's suffix.

    The same figure makes the same file, because no time stamp is written.
    """
    if path.suffix == ".svg":
        path.write_text(svg(figure, f"fig-{path.stem}"), encoding="utf-8")
        return
    _settle(figure)
    undated = {"CreationDate": None} if path.suffix == ".pdf" else None
    with themed():
        figure.savefig(path, facecolor="white", metadata=undated, **options)
