"""The style of all figures: one colour, marker and name per method.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; the marker repeats the
information. Text and lines other than data are drawn in a single colour, which a page can replace by its theme's.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text

from analysis import cells, labels, stats
from analysis.drawing import hover, media
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

LEGEND_HEIGHT = 0.4
NARROW = 2.2
"""Inches below which titles need more lines."""
LINE = 1.2
"""Height of a line of labels in units of the font size."""
LOWEST = 0.75
"""Inches, without titles and labels, to which panels are lowered at most so that more rows fit."""
MOST_TICKS = 6
GROUND = 'style="background: white"'
OPEN = {"markerfacecolor": "none", "markeredgewidth": 1.2}
"""How a hollow marker differs from a filled one."""
HANDLE = 2.6
"""Length of a line in the legend, in units of the font size."""
LEGEND_COLUMN = 0.68
"""Inches of a legend column without its text."""
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "axes.titlesize": "medium",
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
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "pdf.fonttype": 42,  # text stays text in the PDF, as publishers ask
    "svg.fonttype": "none",
    "axes.unicode_minus": True,
}


def themed(**more: Any) -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws in the study's style and ignores the user's own settings."""
    font = media.current().font
    sizes = {"font.size": font, "xtick.labelsize": font - 0.5, "ytick.labelsize": font - 0.5}
    ours: dict[str, Any] = {**cast(Any, matplotlib.rcParamsDefault), **RC, **sizes, **more}
    ours.pop("backend")  # setting it would start a graphical backend
    return matplotlib.rc_context(cast(Any, ours))


def look(row: str) -> Look:
    """Return how a row of :func:`analysis.cells.rows` is drawn: the colour tells the method, the dash the matching."""
    known = LOOKS.get(cells.method_of(row), STRANGER)
    if not (how := cells.how_of(row)):
        return known
    dash = MATCHER_DASHES.get(how, OTHER_DASHES[sum(map(ord, how)) % len(OTHER_DASHES)])
    return Look(colour=known.colour, marker=known.marker, dash=dash)


def panels(
    rows: int, columns: int, tall: float = 0.56, *, wrap: bool = False, entries: int = 0
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of empty panels, as a list of rows: those that the medium has room for.

    A row is broken into several lines where the medium is too narrow for it. Where the medium is too low for all rows,
    panels are lowered, to ``LOWEST`` at most, or rows stand side by side, before any row is left out.

    Args:
        rows: number of rows, at least 1.
        columns: number of columns, at least 1.
        tall: height of a panel over its width, without titles and labels.
        wrap: whether rows of a single panel stand side by side even if all fit below each other, which fills more of
            the page.
        entries: number of labels on the vertical axis of a panel that need a line each; no panel is lowered below that.
    """
    medium = media.current()
    fit = int(medium.width / medium.panel[0])
    most = max(1, min(rows, fit // columns))
    least = most if wrap and columns == 1 else 1
    layouts = [_layout(rows, columns, beside, tall, entries) for beside in range(least, most + 1)]
    chosen = max(layouts, key=lambda layout: (layout.rows, layout.plot))
    down = math.ceil(chosen.rows * chosen.slots / chosen.across)
    with themed():
        size = (max(chosen.width * chosen.across, medium.least), chosen.height * down + LEGEND_HEIGHT)
        figure = Figure(figsize=size, layout="constrained")
        spec = figure.add_gridspec(down, chosen.across)
        drawn = [
            [figure.add_subplot(spec[divmod(row * chosen.slots + column, chosen.across)]) for column in range(columns)]
            for row in range(chosen.rows)
        ]
    return figure, drawn


class _Layout(NamedTuple):
    """Sizes of panels in inches, and how many there are.

    Attributes:
        rows: number of rows that there is room for.
        plot: height of a panel without titles and labels.
        across: number of panels side by side.
        slots: places in the grid that a row takes.
        width: width of a panel.
        height: height of a panel with titles and labels.
    """

    rows: int
    plot: float
    across: int
    slots: int
    width: float
    height: float


def _layout(rows: int, columns: int, beside: int, tall: float, entries: int) -> _Layout:
    """Return how rows fit the medium, of which `beside` stand side by side: all of them if the lowest panels do."""
    medium = media.current()
    fit = int(medium.width / medium.panel[0])
    lines = math.ceil(columns / fit)
    across = beside * math.ceil(columns / lines)
    width = min(medium.width / across, medium.panel[1])
    around = 0.55 if width > NARROW else 0.8
    room = medium.height - LEGEND_HEIGHT
    natural = around + tall * width
    least = min(natural, around + max(LOWEST, entries * LINE * medium.font / 72))
    shown = min(rows, max(1, int(room / least + 1e-9) // lines) * beside)
    height = min(natural, room / (lines * math.ceil(shown / beside)))
    return _Layout(shown, height - around, across, across * lines // beside, width, height)


def place(axes: Axes) -> SubplotSpec:
    """Return where in its figure a panel is."""
    spec = axes.get_subplotspec()
    assert spec is not None
    return spec


def title(axes: Axes, left: str, n: str = "", beside: float = 0.0) -> None:
    """Write a panel's title and its number of pairs; a long title is broken into lines so that both fit.

    Args:
        axes: the panel.
        left: the title.
        n: the number of pairs, in words.
        beside: inches of the panel that are taken by something to its right.
    """
    room = _cell(axes)[0] - int((0.55 + beside) / _character())
    lines = _broken(left, max(12, room))
    if len(lines[-1]) + len(n) >= room:
        lines.append(" ")  # for n, below the title
    with themed():
        axes.set_title("\n".join(lines), loc="left")
        axes.set_title(n, loc="right", alpha=FAINT)


def label(axes: Axes, *, x: str | None = None, y: str | None = None) -> None:
    """Label the axes of a panel, in several lines where a label is longer than the panel."""
    wide, high = _cell(axes)
    if x is not None:
        axes.set_xlabel(textwrap.fill(x, wide - 4))
    if y is not None:
        axes.set_ylabel(textwrap.fill(y, high))


def _cell(axes: Axes) -> tuple[int, int]:
    """Return the width and the height of a panel with all that is around it, in characters."""
    figure, spec = axes.get_figure(root=True), place(axes).get_gridspec()
    assert figure is not None
    width, height = figure.get_size_inches()
    return int(width / spec.ncols / _character()), int(height / spec.nrows / _character())


def _character() -> float:
    """Return the approximate width of a character in inches."""
    return 0.0077 * media.current().font


def _broken(text: str, room: int) -> list[str]:
    """Return the lines of a text, of at most `room` characters, broken after commas where that is enough."""
    lines: list[str] = []
    for part in text.replace(", ", ",\n").split("\n"):
        if lines and len(lines[-1]) + len(part) < room:
            lines[-1] += f" {part}"
        else:
            lines += textwrap.wrap(part, room, break_long_words=False) or [""]
    return lines


def empty(axes: Axes, text: str = "no finished run") -> None:
    """Mark a panel for which there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK, alpha=FAINT)


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


def handle(name: str, drawn: Look, **changed: Any) -> Line2D:
    """Return an entry of a legend; `changed` are properties of the line that differ from the look's."""
    return Line2D([], [], label=name, **{"linestyle": drawn.dash, **mark(drawn, 4.5), **changed})


def legend(figure: Figure, entries: Iterable[Artist | Container]) -> None:
    """Put one legend above all panels, with as many columns as fit."""
    handles = list(entries)
    if handles:
        columns = _columns([str(each.get_label()) for each in handles], figure.get_size_inches()[0])
        with themed():
            figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=HANDLE)


def _columns(names: Sequence[str], room: float) -> int:
    """Return the largest number of columns, at most five, that keep a legend within `room` inches."""
    for columns in range(min(len(names), 5), 1, -1):
        widest = (max(map(len, part)) for part in np.array_split(names, columns))
        if sum(LEGEND_COLUMN + _character() * width for width in widest) <= room:
            return columns
    return 1


def ticks(axes: Axes, positions: Sequence[float], texts: Iterable[str], margin: float = 0.5) -> None:
    """Label positions on the horizontal axis, which ends a margin beyond the first and the last."""
    axes.set_xticks(positions, list(texts))
    axes.set_xlim(min(positions) - margin, max(positions) + margin)


def category_axis(axes: Axes, values: Iterable[Any], text: Callable[[Any], str] = str) -> Callable[[Any], float]:
    """Make the horizontal axis one of evenly spaced values, in the order in which they come; return their positions."""
    every = list(dict.fromkeys(values))
    ticks(axes, range(len(every)), map(text, every))
    return every.index


def epoch_axis(axes: Axes, epochs: Iterable[int]) -> Callable[[Any], float]:
    """Make the horizontal axis one of epochs, labelled at each if they are few; return the positions of epochs."""
    every = sorted({float(epoch) for epoch in epochs})
    if len(every) <= MOST_TICKS:
        axes.set_xticks(every)
    margin = 0.05 * (every[-1] - every[0]) or 2.0
    axes.set_xlim(every[0] - margin, every[-1] + margin)
    return float


def width_axis(axes: Axes, widths: Iterable[float]) -> Callable[[Any], float]:
    """Make the horizontal axis one of log2 of the width, with a tick at each; return the positions of widths."""
    every = sorted(set(widths))
    ticks(axes, [math.log2(width) for width in every], [labels.value(schema.PARAM_WIDTH, width) for width in every])
    return math.log2


def sparsity_axis(
    axes: Axes, sparsities: Iterable[float], rounds: Mapping[float, int] | None = None
) -> Callable[[Any], float]:
    """Make the horizontal axis one on which pruning rounds are evenly spaced; return the positions of sparsities.

    A position is minus log2 of the remaining share of weights.

    Args:
        axes: the panel.
        sparsities: measured sparsities in [0, 1). If there are too many for ticks, the last one has a tick and evenly
            spaced ones before it.
        rounds: sparsity -> pruning round, written below it; sparsities are then whole percents.
    """
    every = sorted(set(sparsities))
    shown = every[::-1][:: math.ceil(len(every) / MOST_TICKS)][::-1]
    texts = [f"{100 * each:.0f}\n{rounds[each]}" if rounds else f"{round(100 * each, 1):g}" for each in shown]
    axes.set_xticks([_halvings(each) for each in shown], texts)
    low, high = _halvings(every[0]), _halvings(every[-1])
    margin = 0.06 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    return _halvings


def _halvings(sparsity: float) -> float:
    return -math.log2(1 - sparsity)


def _settle(figure: Figure) -> None:
    """Lay a figure out once for all its formats, because layout is the slowest part of drawing."""
    for text in figure.findobj(Text):  # a dollar sign in the name of a dataset, say, begins no formula
        text.set_parse_math(False)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        with themed():
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # with "none", Matplotlib would draw twice for each file


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
