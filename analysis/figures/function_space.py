"""Figure and table: accuracy of ensembles, and how differently their members predict (the paper's table 1)."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.load import runs
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
PLACE = (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH, schema.PARAM_SEED_A)
OPEN = {"markerfacecolor": "none", "markeredgewidth": 1.2}
"""How the marker of an ensemble differs from that of its members."""
PERCENT = {schema.DISAGREEMENT: 100.0}
"""Measure -> factor from what is recorded to what is drawn."""

load = runs


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per ensemble.

    Columns: ``model``, ``dataset``, ``width``, ``sparsity``, ``rewind_epoch`` and ``seed_a`` (of the first net A);
    ``row``; ``members``; ``member_accuracy_mean`` (percent), ``member_accuracy_std`` (percentage points),
    ``ensemble_accuracy`` (percent), ``ensemble_gain`` (percentage points over the members' mean), ``disagreement``
    (share in [0, 1]), ``kl_divergence`` and ``js_divergence`` (nats). Ensembles of dense nets, which have no sparsity,
    and of IMP's fine-tuned nets, which have no rewind epoch, are repeated at every place that they can be compared at.
    """
    found = facets.finished(frame.assign(**{cells.ROW: cells.rows(frame)}), schema.ENSEMBLE)
    found = found.dropna(subset=[schema.MEMBERS, schema.ENSEMBLE_ACCURACY])
    found = _beside(found)[[*PLACE, cells.ROW, *NUMBERS]]
    gain = found[schema.ENSEMBLE_ACCURACY] - found[schema.MEMBER_ACCURACY_MEAN]
    found.insert(found.columns.get_loc(schema.ENSEMBLE_ACCURACY) + 1, "ensemble_gain", gain)
    order = {row: place for place, row in enumerate(cells.row_order(found[cells.ROW]))}
    return found.sort_values(
        [*PLACE, cells.ROW], key=lambda column: column.map(order) if column.name == cells.ROW else column
    ).reset_index(drop=True)


def _beside(found: pd.DataFrame) -> pd.DataFrame:
    """Return the ensembles, those without a sparsity or rewind epoch once for each that the others have."""
    axes = [schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH]
    for name, shared in ((axes[0], PLACE[:3]), (axes[1], PLACE[:4])):
        missing = found[found[name].isna()].drop(columns=name)
        places = found.loc[found[name].notna(), [*shared, name]].drop_duplicates()
        found = pd.concat([found[found[name].notna()], missing.merge(places, on=list(shared), how="left")])
    return found


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per place in the grid, in each panel a line per method."""
    numbers = table(frame)
    places = numbers[list(PLACE)].drop_duplicates()
    names = facets.told_apart(numbers, PLACE)
    drawn, panels = style.panels(max(min(len(places), grid.MOST_ROWS), 1), 1 + len(MEASURES))
    for place, line in zip(places.to_dict("records"), panels, strict=False):
        here = facets.at(numbers, place).iloc[::-1]
        members = facets.count(here[schema.MEMBERS])
        style.title(line[0], labels.cell(place, names), members)
        _accuracies(line[0], here)
        for measure, axes in zip(MEASURES, line[1:], strict=True):
            style.title(axes, "", members)
            _dots(axes, here, measure)
    if places.empty:
        for axes in panels[0]:
            style.empty(axes, "not measured")
    for name, axes in zip((schema.MEMBER_ACCURACY_MEAN, *MEASURES), panels[-1], strict=True):
        axes.set_xlabel(style.AXES[name])
    if len(places):
        _legend(drawn)
    return drawn


def _accuracies(axes: Axes, numbers: pd.DataFrame) -> None:
    """Draw the members' mean and standard deviation, the ensemble, and a line between the two."""
    axes.set_yticks(range(len(numbers)), [labels.method(row) for row in numbers[cells.ROW]])
    for height, one in enumerate(numbers.to_dict("records")):
        look = style.look(one[cells.ROW])
        mean, ensemble = one[schema.MEMBER_ACCURACY_MEAN], one[schema.ENSEMBLE_ACCURACY]
        axes.plot([mean, ensemble], [height, height], color=look.colour, linewidth=1.0, alpha=0.6)
        axes.errorbar(mean, height, xerr=one[schema.MEMBER_ACCURACY_STD], color=look.colour, capsize=2, elinewidth=1.4)
        axes.plot(mean, height, **style.mark(look))
        axes.plot(ensemble, height, **style.mark(look) | OPEN)
    axes.set_ylim(-0.6, len(numbers) - 0.4)


def _dots(axes: Axes, numbers: pd.DataFrame, measure: str) -> None:
    axes.set_yticks(range(len(numbers)), [""] * len(numbers))
    for height, one in enumerate(numbers.to_dict("records")):
        look, value = style.look(one[cells.ROW]), PERCENT.get(measure, 1.0) * one[measure]
        axes.plot([0, value], [height, height], color=look.colour, linewidth=1.0, alpha=0.6)
        axes.plot(value, height, **style.mark(look))
    axes.set_ylim(-0.6, len(numbers) - 0.4)
    axes.set_xlim(left=0)


def _legend(figure: Figure) -> None:
    member = style.mark(style.Look(colour=style.INK, marker="o"))
    kinds = {"Members, mean ± std": member, "Ensemble": member | OPEN}
    handles = [Line2D([], [], linestyle="none", label=name, **kind) for name, kind in kinds.items()]
    with style.themed():
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it, in the order of the paper's table 1."""
    numbers = table(frame)
    if numbers.empty:
        return pd.DataFrame()
    shown = facets.told_apart(numbers, PLACE)
    columns = {labels.axis(name): [labels.value(name, value) for value in numbers[name]] for name in shown}
    columns["method"] = [labels.method(row) for row in numbers[cells.ROW]]
    members = numbers[[schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.MEMBERS]]
    columns["members (%)"] = [
        stats.format_mean(mean, std, int(n), decimals=2) for mean, std, n in members.itertuples(index=False)
    ]
    columns["ensemble (%)"] = [f"{value:.2f}" for value in numbers[schema.ENSEMBLE_ACCURACY]]
    columns[f"ensemble {MINUS} members (pp)"] = [stats.format_difference(value) for value in numbers["ensemble_gain"]]
    columns["disagreement (%)"] = [f"{100 * value:.1f}" for value in numbers[schema.DISAGREEMENT]]
    columns["KL (nats)"] = [f"{value:.3f}" for value in numbers[schema.KL_DIVERGENCE]]
    columns["JS (nats)"] = [f"{value:.3f}" for value in numbers[schema.JS_DIVERGENCE]]
    return pd.DataFrame(columns)


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the figure leaves out, one sentence each."""
    ensembles = frame[frame[schema.PARAM_STAGE] == schema.ENSEMBLE]
    finished = ensembles["status"] == FINISHED
    if not finished.any():
        return ["No ensemble was measured; a space asks for them by members, as ensemble_diversity does."]
    said = []
    if not finished.all():
        said.append(f"{labels.plural(int((~finished).sum()), 'ensemble')} without a result, left out.")
    return said + grid.cut_off(table(frame), PLACE)
