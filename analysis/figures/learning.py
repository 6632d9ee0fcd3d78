"""Figure: accuracy on test and training images epoch by epoch, in one cell of the grid per task."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels
from analysis.drawing import facets, grid, style
from analysis.load import DEFAULT_TRACKING_URI, histories, runs
from analysis.memo import once
from trainables import schema

TITLE = "Learning curves"
CAPTION = (
    "Accuracy after each epoch of a net's own training: mean over n nets, with a band of ± one sample standard "
    "deviation. Shown is the sparsest cell in which the most methods have results, at the largest width and rewind "
    "epoch. Training accuracy is that of the augmented batches while the weights change."
)
EPOCH = "epoch"
MEASURES = (schema.TEST_ACCURACY, schema.TRAIN_ACCURACY)


def load(space: str, tracking_uri: str = DEFAULT_TRACKING_URI) -> pd.DataFrame:
    """Return the accuracies of the nets of one cell per task, one row per net and epoch.

    Columns: the cell's axes, ``row``, ``run_id``; ``epoch`` of the net's own training, from 1; ``test_accuracy`` and
    ``train_accuracy`` (percent).

    Raises:
        AnalysisError: as :func:`analysis.load.runs`.
    """
    frame = runs(space, tracking_uri)
    scored, by = cells.scores(frame), cells.axes(frame)
    places = scored.groupby(by, dropna=False).agg(methods=(cells.ROW, "nunique"), nets=("run_id", "nunique"))
    order = ["methods", schema.PARAM_SPARSITY, schema.PARAM_WIDTH, schema.PARAM_REWIND_EPOCH, "nets"]
    chosen = places.reset_index().sort_values(order).drop_duplicates([*cells.TASK], keep="last")
    nets = scored.merge(chosen[by], on=by)[[*by, cells.ROW, "run_id"]]
    measured = histories(nets["run_id"].tolist(), MEASURES, tracking_uri)
    found = nets.merge(measured.rename(columns={"step": EPOCH}), on="run_id")
    found.attrs[AXES] = by
    return found


AXES = "axes"
"""Attribute of the frame: the axes of the grid."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return mean, std and n of both accuracies (percent) of every row and epoch, one line each."""
    return facets.spread(frame, [*_axes(frame), cells.ROW, EPOCH], MEASURES)


def _axes(frame: pd.DataFrame) -> list[str]:
    return list(frame.attrs.get(AXES, cells.CELL))


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task, a column per measure."""
    numbers = table(frame)
    by = _axes(frame)
    drawn, panels = grid.panels(
        numbers,
        by,
        across="measure",
        without=[EPOCH],
        names=facets.told_apart(numbers, by, always=cells.CELL[2:]),
        x="Epoch",
        y={name: style.AXES[name] for name in MEASURES},
        absent="not recorded",
    )
    for line in panels:
        for panel in line:
            _panel(panel)
    rows = cells.row_order(numbers[cells.ROW])
    style.legend(drawn, [style.handle(labels.method(row), style.look(row), marker="None") for row in rows])
    return drawn


def _panel(panel: grid.Panel) -> None:
    panel.title(panel.lines["n"])
    for row in cells.row_order(panel.lines[cells.ROW]):
        line, look = panel.lines[panel.lines[cells.ROW] == row].sort_values(EPOCH), style.look(row)
        epochs, mean, std = line[EPOCH].to_numpy(), line["mean"], line["std"].fillna(0)
        panel.axes.plot(epochs, mean, color=look.colour, linestyle=look.dash)
        panel.axes.fill_between(epochs, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    return [] if len(frame) else ["No net has recorded its epochs yet."]
