"""How figures look: one colour, marker and name per method, everywhere.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; the marker says the same again.
Text and lines that are not data are drawn in one ink, so that a page can let them follow its theme.
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import labels
from analysis.drawing.signs import ALPHA
from trainables import schema

INK = "#1f2328"
"""Text, axes and the dense reference."""
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE, GREY = (
    *("#E69F00", "#56B4E9", "#009E73", "#C7B100", "#0072B2", "#D55E00", "#CC79A7"),
    "#8A8F98",
)
"""Okabe and Ito's colours; their yellow is darkened, because on white it cannot be seen as a thin line."""


Dash = Literal["-", "--", "-.", ":", "None"] | tuple[int, tuple[float, ...]]
"""How a line is broken: a name of Matplotlib, or an offset and the lengths of dashes and gaps."""


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
"""What is measured -> axis label with its unit; pp are percentage points."""

PAGE_WIDTH = 10.4
PANEL_WIDTHS = (2.3, 3.45)
"""Inches: three panels in a row fill the page; many make the figure wider than the page rather than unreadable."""
MOST_ACROSS = 4
"""Panels that a single column of them is set side by side."""
LEAST_WIDTH = 5.6
"""Inches: what the legend needs."""
LEGEND_HEIGHT = 0.4
GROUND = 'style="background: white"'
HANDLE = 2.6
"""Length of a line in the legend, in units of the font size."""
LEGEND_COLUMN = 0.68
"""Inches of a column of the legend beside its text."""
CHARACTER = 0.066
"""Width of a character of a title or legend in inches, roughly."""
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
    """Return a context in which Matplotlib draws in the study's style, whatever the user's own settings are."""
    ours: dict[str, Any] = {**cast(Any, matplotlib.rcParamsDefault), **RC, **more}
    ours.pop("backend")  # to set it would start a graphical backend
    return matplotlib.rc_context(cast(Any, ours))


def look(row: str) -> Look:
    """Return how a row of :func:`analysis.cells.rows` is drawn; another match changes the dash, not the colour."""
    name, _, how = row.partition(":")
    known = LOOKS.get(name, STRANGER)
    if not how:
        return known
    dash = MATCHER_DASHES.get(how, OTHER_DASHES[sum(map(ord, how)) % len(OTHER_DASHES)])
    return Look(colour=known.colour, marker=known.marker, dash=dash)


def panels(rows: int, columns: int, tall: float = 0.56, *, wrap: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of empty panels, as a list of rows.

    Args:
        rows: of panels.
        columns: of panels.
        tall: height of a panel over its width, what is around it left aside.
        wrap: whether the rows of a single column may stand side by side, which leaves less of the page empty.
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
    """Say what the axes are: below the lowest panel of each column, and left of the first panel of each row."""
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
    """Say what a panel shows, and over how many pairs; a long title is broken so that both fit.

    Args:
        axes: the panel.
        left: what it shows.
        n: over how many pairs.
        beside: inches that something to the right of the panel takes from it.
    """
    figure, spec = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None
    assert spec is not None
    room = (figure.get_size_inches()[0] / spec.get_gridspec().ncols - 0.75 - beside) / CHARACTER
    with themed():
        axes.set_title(_broken(left, max(12, int(room) - len(n))), loc="left")
        axes.set_title(n, loc="right", alpha=0.7)


def _broken(text: str, room: int) -> str:
    """Return a text with its lines broken after commas only, as far as they are longer than `room` characters."""
    blank = "\N{NO-BREAK SPACE}"
    joined = text.replace(" ", blank).replace(f",{blank}", ", ")
    return "\n".join(textwrap.wrap(joined, room, break_long_words=False)).replace(blank, " ")


def empty(axes: Axes, text: str = "no finished run") -> None:
    """Mark a panel for which there is nothing to draw."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK, alpha=0.6, fontsize=8)


def mark_size(look: Look, size: float = 5.5) -> float:
    """Return the size at which a marker on its own looks as large as the others: points and stars are drawn smaller."""
    return size * {".": 1.7, "*": 1.5}.get(look.marker, 1.0)


def errorbars(axes: Axes, x: Sequence[float], mean: Sequence[float], std: Sequence[float], drawn: Look) -> None:
    """Draw means joined by a line, with one standard deviation up and down where there is one."""
    axes.errorbar(
        x,
        mean,
        yerr=std,
        color=drawn.colour,
        marker=drawn.marker,
        linestyle=drawn.dash,
        linewidth=1.4,
        markersize=mark_size(drawn, 4.5),
        markeredgewidth=0,
        elinewidth=1.0,
    )


def level(axes: Axes, mean: float, std: float, drawn: Look) -> None:
    """Draw a value that does not depend on the horizontal axis: a line, and a band of one standard deviation."""
    axes.axhline(mean, color=drawn.colour, linestyle=drawn.dash, linewidth=1.1)
    if std > 0:
        axes.axhspan(mean - std, mean + std, color=drawn.colour, alpha=0.12, linewidth=0)


def legend(figure: Figure, drawn: Iterable[tuple[str, Look]]) -> None:
    """Put one legend above all panels, in as many columns as the figure has room for."""
    entries = list(drawn)
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            markersize=mark_size(look, 4.5),
            linestyle=look.dash,
            markeredgewidth=0,
            label=name,
        )
        for name, look in entries
    ]
    if handles:
        columns = _columns([name for name, _ in entries], figure.get_size_inches()[0])
        with themed():
            figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=HANDLE)


def _columns(names: Sequence[str], room: float) -> int:
    """Return the largest number of columns, at most five, in which a legend is no wider than the room in inches."""
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
    """Make the horizontal axis a doubling scale with a tick at each width."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(widths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([labels.value(schema.PARAM_WIDTH, width) for width in widths])
    axes.set_xlim(min(widths) / 1.3, max(widths) * 1.3)


def sparsity_position(sparsity: float) -> float:
    """Return where a sparsity lies on :func:`sparsity_axis`: at minus the logarithm of the share that is left."""
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
        sparsities: what was measured, in [0, 1); ticks stand at these.
        most: how many ticks to set at most; if there are more, the last and others evenly before it.
        decimals: digits after the point at most.
        below: sparsity -> what is said under its tick, too.
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
    """Lay a figure out once and for all its formats: it is the slowest part of drawing."""
    for text in figure.findobj(Text):  # names of datasets, matchers, ... are written as they are, dollars and all
        text.set_parse_math(False)
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        with themed():
            figure.draw_without_rendering()
        figure.set_layout_engine("none")


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element on a white ground, in which text stays text.

    Args:
        figure: the figure.
        name: distinguishes the ids inside from those of other figures on the same page.
    """
    _settle(figure)
    stream = io.StringIO()
    with themed(**{"svg.hashsalt": name, "svg.id": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(rf'\bid="(?!{re.escape(name)}")', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f"<svg {GROUND} ", 1)


def on_page(svg: str) -> str:
    """Return what :func:`svg` returned without its ground, and with all that is ink in the colour of the page."""
    return svg.replace(f"{GROUND} ", "", 1).replace(INK, "currentColor")


def save(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure to a file on a white ground, in the format that the name ends in.

    The same figure makes the same file: the time of writing is not in it.
    """
    if path.suffix == ".svg":
        path.write_text(svg(figure, f"fig-{path.stem}"), encoding="utf-8")
        return
    _settle(figure)
    undated = {"CreationDate": None} if path.suffix == ".pdf" else None
    with themed():
        figure.savefig(path, facecolor="white", metadata=undated, **options)
