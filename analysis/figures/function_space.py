"""Figure and table: accuracy of ensembles, and how differently their members predict (the paper's table 1)."""

from __future__ import annotations

import itertools
from collections.abc import Collection

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.memo import once
from trainables import schema
from trainables.schema import FINISHED

TITLE = "Ensembles, and how differently their members predict"
CAPTION = (
    "Test accuracy of the n members (mean ± sample standard deviation) and of the ensemble, which averages their "
    "predicted probabilities. Disagreement: share of test images on which two members predict different classes. "
    "Kullback-Leibler and Jensen-Shannon divergence between the probabilities of two members. All three are means over "
    "pairs of members. LTH members share mask and initialisation and differ in the order of the data; permuted and "
    "naive members share A's mask and start from different nets B; dense and IMP members are different nets."
)
MEASURES = (schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE)
NUMBERS = (
    schema.MEMBERS,
    schema.MEMBER_ACCURACY_MEAN,
    schema.MEMBER_ACCURACY_STD,
    schema.ENSEMBLE_ACCURACY,
    *MEASURES,
)
PERCENT = {schema.DISAGREEMENT: 100.0}
"""Measure -> factor from what is recorded to what is drawn."""


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per ensemble.

    Columns: those of :func:`analysis.cells.axes` and ``seed_a`` (of the first net A);
    ``row``; ``members``; ``member_accuracy_mean`` (percent), ``member_accuracy_std`` (percentage points),
    ``ensemble_accuracy`` (percent), ``ensemble_gain`` (percentage points over the members' mean), ``disagreement``
    (share in [0, 1]), ``kl_divergence`` and ``js_divergence`` (nats). Ensembles of dense nets, which have no sparsity,
    and of IMP's fine-tuned nets, which have no rewind epoch, are repeated at every place that they can be compared at.
    """
    found = facets.finished(frame.assign(**{cells.ROW: cells.rows(frame)}), schema.ENSEMBLE)
    found = cells.repeated(found.dropna(subset=[schema.MEMBERS, schema.ENSEMBLE_ACCURACY]))
    by = _axes(frame)
    found = _at_every_place(found, by)[[*by, cells.ROW, *NUMBERS]]
    gain = found[schema.ENSEMBLE_ACCURACY] - found[schema.MEMBER_ACCURACY_MEAN]
    found.insert(found.columns.get_loc(schema.ENSEMBLE_ACCURACY) + 1, "ensemble_gain", gain)
    order = {row: place for place, row in enumerate(cells.row_order(found[cells.ROW]))}
    return found.sort_values(
        [*by, cells.ROW], key=lambda column: column.map(order) if column.name == cells.ROW else column
    ).reset_index(drop=True)


def _axes(frame: pd.DataFrame) -> list[str]:
    return [*cells.axes(frame), schema.PARAM_SEED_A]


def _at_every_place(found: pd.DataFrame, by: Collection[str]) -> pd.DataFrame:
    """Return the ensembles, those without a sparsity or rewind epoch once for each that the others have."""
    axes = (schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
    shared = [name for name in by if name not in (*axes, schema.PARAM_SEED_A)]
    for name in axes:
        missing = found[found[name].isna()].drop(columns=name)
        places = found.loc[found[name].notna(), [*shared, name]].drop_duplicates()
        found = pd.concat([found[found[name].notna()], missing.merge(places, on=shared, how="left")])
        shared.append(name)
    return found


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per place in the grid, in each panel a line per method."""
    numbers = table(frame)
    columns = {name: style.AXES[name] for name in (schema.MEMBER_ACCURACY_MEAN, *MEASURES)}
    drawn, panels = grid.panels(
        pd.concat([numbers.assign(measure=name) for name in columns]),
        _axes(frame),
        across="measure",
        x=columns,
        absent="not measured",
        listed=True,
    )
    for panel in itertools.chain(*panels):
        accuracies = panel.place["measure"] == schema.MEMBER_ACCURACY_MEAN
        style.title(panel.axes, panel.heading if accuracies else "", facets.count(panel.lines[schema.MEMBERS]))
        _draw(panel, panel.lines.iloc[::-1], panel.place["measure"])
    member = style.Look(colour=style.INK, marker="o", dash="None")
    handles = [style.handle("Members, mean ± std", member), style.handle("Ensemble", member, **style.OPEN)]
    style.legend(drawn, handles if panels else [])
    return drawn


def _draw(panel: grid.Panel, numbers: pd.DataFrame, measure: str) -> None:
    """Draw a measure from zero on; for accuracies the members' mean with its standard deviation, and the ensemble."""
    axes = panel.axes
    names = [labels.method(row) if panel.leads else "" for row in numbers[cells.ROW]]
    axes.set_yticks(range(len(numbers)), names)
    axes.set_ylim(-0.6, len(numbers) - 0.4)
    for height, one in enumerate(numbers.to_dict("records")):
        look = style.look(one[cells.ROW])
        value, start = PERCENT.get(measure, 1.0) * one[measure], 0.0
        if measure == schema.MEMBER_ACCURACY_MEAN:
            start = one[schema.ENSEMBLE_ACCURACY]
            spread = one[schema.MEMBER_ACCURACY_STD]
            axes.errorbar(value, height, xerr=spread, color=look.colour, capsize=2, elinewidth=1.4)
            axes.plot(start, height, **style.mark(look) | style.OPEN)
        axes.plot([start, value], [height, height], color=look.colour, linewidth=1.0, alpha=0.6)
        axes.plot(value, height, **style.mark(look))
    if measure != schema.MEMBER_ACCURACY_MEAN:
        axes.set_xlim(left=0)


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it, in the order of the paper's table 1."""
    numbers = table(frame)
    if numbers.empty:
        return pd.DataFrame()
    shown = facets.told_apart(numbers, _axes(frame))
    columns = {labels.axis(name): [labels.value(name, value) for value in numbers[name]] for name in shown}
    columns["method"] = [labels.method(row) for row in numbers[cells.ROW]]
    members = numbers[[schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.MEMBERS]]
    columns["members (%)"] = [
        stats.format_mean(mean, std, int(n), decimals=2) for mean, std, n in members.itertuples(index=False)
    ]
    columns["ensemble (%)"] = [stats.format_number(value) for value in numbers[schema.ENSEMBLE_ACCURACY]]
    columns[f"ensemble {MINUS} members (pp)"] = [stats.format_difference(value) for value in numbers["ensemble_gain"]]
    columns["disagreement (%)"] = [stats.format_number(100 * value, 1) for value in numbers[schema.DISAGREEMENT]]
    columns["KL (nats)"] = [stats.format_number(value, 3) for value in numbers[schema.KL_DIVERGENCE]]
    columns["JS (nats)"] = [stats.format_number(value, 3) for value in numbers[schema.JS_DIVERGENCE]]
    return pd.DataFrame(columns)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    ensembles = frame[frame[schema.PARAM_STAGE] == schema.ENSEMBLE]
    finished = ensembles["status"] == FINISHED
    if not finished.any():
        return ["No ensemble was measured; a space asks for them by members, as ensemble_diversity does."]
    left = int((~finished).sum())
    return [f"{labels.plural(left, 'ensemble')} without a result, left out."] if left else []
