"""Figure: our results beside the paper's, number by number, with differences in standard errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle

from analysis import cells, labels, stats
from analysis.drawing import facets, style
from analysis.drawing.signs import MINUS
from analysis.load import recipe_fields, runs
from analysis.memo import once
from analysis.paper import numbers as published
from trainables import schema

TITLE = "Ours beside the paper's"
CAPTION = (
    f"Our mean {MINUS} the paper's, in percentage points for accuracies. In brackets: the difference in units of its "
    "standard error (Welch, from both standard deviations and numbers of runs), if both have a standard deviation. "
    "Differences of two standard errors or more are coloured and marked; with three runs on each side they are not "
    "rare (p = 0.12). Table: ours / the paper's, with the same brackets."
)
CLEAR, LARGE = 2.0, 3.0
"""Standard errors from which a difference is marked, and strongly marked."""
ABOVE, BELOW = ("#cce8f7", "#8ccbef"), ("#f9e3b8", "#efbe59")
"""Backgrounds of marked and of strongly marked numbers: tints of the palette's sky and orange."""
ON_GROUND = "#111111"
"""Colour of the text on these backgrounds, in any theme of the page."""
LEAST_COLUMNS = 5
"""A panel is at least this many columns wide, so that backgrounds have about the same size in all panels."""
MOST_SHEETS = 12
ROWS = (cells.DENSE, cells.LTH, cells.PERMUTED, cells.NAIVE)
ORDER = {row: place for place, row in enumerate(("", cells.DENSE, cells.IMP, *ROWS[1:]))}
NUMBERS = ("mean", "std", "n")
SIDES = ("paper", "ours")
COMPUTED = {"source", "measure", "difference", "standard_error", "in_standard_errors", "p", "p_holm"} | {
    f"{who}_{name}" for who in SIDES for name in NUMBERS
}
"""Columns of the table that are not settings of the study."""
MEASURES = {
    schema.TEST_ACCURACY: "test accuracy",
    schema.TEST_TOP5_ACCURACY: "top-5 accuracy",
    schema.MEMBER_ACCURACY_MEAN: "member accuracy",
    schema.ENSEMBLE_ACCURACY: "ensemble accuracy",
    schema.DISAGREEMENT: "disagreement",
    schema.KL_DIVERGENCE: "KL (nats)",
    schema.JS_DIVERGENCE: "JS (nats)",
    schema.ERROR_BARRIER: "error barrier (pp)",
    schema.LOSS_BARRIER: "loss barrier (nats)",
}
"""Measure -> its name; accuracies in percent."""
SMALL = (schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE, schema.LOSS_BARRIER)
"""Measures with three decimals."""

load = runs


# --- ours -----------------------------------------------------------------------------------------------------------
@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per number that this study and the paper have in common.

    Columns: those of :func:`analysis.paper.numbers.numbers` with ``mean``, ``std``, ``n`` prefixed ``paper_`` and the
    study's own prefixed ``ours_``; the recipe fields that the study varied; ``difference`` (ours minus the paper's),
    ``standard_error``, ``in_standard_errors``, ``p`` (Welch), missing where either has no standard deviation;
    ``p_holm``, adjusted for the number of lines. Lines of ensembles have our rewind epoch, because the paper does not
    state its own.
    """
    frame, theirs = _own_masks(frame), published.numbers()
    parts = [
        _beside(theirs, _accuracies(frame), (*cells.CELL, schema.PARAM_MATCH_EPOCH, "method")),
        _beside(theirs, _votes(frame), (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_SPARSITY, "method")),
        _beside(theirs, _barriers(frame), (*cells.TASK, schema.PARAM_WIDTH)),
    ]
    both = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    compared = [_compared(line) for line in both.to_dict("records")]
    found = pd.DataFrame(compared, columns=["difference", "standard_error", "in_standard_errors", "p"], dtype=float)
    return both.join(found.assign(p_holm=stats.holm(found["p"].tolist())))


def _own_masks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs whose mask is from the same dataset as the paper's: their own, but CIFAR-10 for SVHN."""
    if schema.PARAM_MASK_DATASET not in frame:
        return frame
    masks = frame[schema.PARAM_MASK_DATASET]
    return frame[(masks == "") | (masks == frame[schema.PARAM_DATASET].replace(published.MASKS))]


def _beside(theirs: pd.DataFrame, ours: pd.DataFrame, place: Iterable[str]) -> pd.DataFrame:
    """Return the numbers that both have at the same place; all other columns are taken from ours."""
    on = [*place, "measure"]
    theirs = theirs.drop(columns=[name for name in published.PLACE if name not in on and name in ours])
    prefixed = ({name: f"{who}_{name}" for name in NUMBERS} for who in SIDES)
    left, right = (numbers.rename(columns=names) for numbers, names in zip((theirs, ours), prefixed, strict=True))
    both = left.merge(right, on=on)
    first = ["source", *published.PLACE, "measure", *(f"{who}_{name}" for who in SIDES for name in NUMBERS)]
    return both.reindex(columns=[*first, *both.columns.difference(first, sort=False)])


def _compared(line: Mapping[Any, Any]) -> list[float]:
    first, second = (
        stats.Summary(line[f"{who}_n"], line[f"{who}_mean"], line[f"{who}_std"]) for who in ("ours", "paper")
    )
    found = stats.welch(first, second)
    return [found.mean, found.sem, found.in_standard_errors, found.p]


def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Return our accuracies of the rows that the paper has; dense nets once per width."""
    numbers = facets.summaries(frame, [schema.TEST_ACCURACY, schema.TEST_TOP5_ACCURACY]).drop(columns="sem")
    numbers = numbers.rename(columns={cells.ROW: "method"})
    early = numbers["method"].str.extract(rf"^{cells.PERMUTED}:t=(\d+)$")[0]
    numbers = numbers.assign(**{schema.PARAM_MATCH_EPOCH: early.astype("Int64")})
    numbers["method"] = numbers["method"].mask(early.notna(), cells.PERMUTED)
    main = cells.main_matching(frame)
    if (main[schema.PARAM_MATCHER], main[schema.PARAM_MATCH_EPOCH]) != (cells.MATCHER, cells.END):
        numbers = numbers[(numbers["method"] != cells.PERMUTED) | early.notna()]
    dense = numbers["method"] == cells.DENSE
    numbers.loc[dense, schema.PARAM_SPARSITY] = stats.NAN
    numbers.loc[dense, schema.PARAM_REWIND_EPOCH] = pd.NA
    place = [*cells.axes(frame), schema.PARAM_MATCH_EPOCH, "method", "measure"]
    return numbers[numbers["method"].isin(ROWS)].drop_duplicates(place)


def _votes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of our ensembles; the members' accuracy with its standard deviation, of the first seed."""
    done = facets.finished(frame, schema.ENSEMBLE)
    done = done[done[schema.PARAM_MATCHER].isin(["", cells.MATCHER])].dropna(subset=[schema.MEMBERS])
    place = [*cells.CELL, "method"]
    spread = facets.spread(done, place, published.VOTES).drop(columns="sem")
    spreads = [schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.MEMBERS]
    members = done.drop_duplicates(place)[[*place, *spreads]].set_axis([*place, *NUMBERS], axis="columns")
    members = members.assign(measure=schema.MEMBER_ACCURACY_MEAN)
    return pd.concat([members.astype({"n": int}), spread], ignore_index=True)


def _barriers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return our barriers between A and B, for the paper's matching and correction."""
    done = facets.finished(frame, schema.CONNECT)
    alike = (done[schema.PARAM_MATCHER] == cells.MATCHER) & (
        done[schema.PARAM_CORRECTION] == done[schema.PARAM_MODEL].map(published.CORRECTIONS).fillna("bn_reset")
    )
    alike &= done[schema.PARAM_MATCH_EPOCH].fillna(cells.END) == cells.END
    place = [*cells.TASK, schema.PARAM_WIDTH]
    return facets.spread(done[alike], place, list(published.BARRIERS.values())).drop(columns="sem")


# --- the figure -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A panel: numbers in rows and columns, each a line of :func:`table`."""

    title: str
    rows: list[str]
    columns: list[str]
    across: str
    cells: dict[tuple[str, str], Mapping[Any, Any]]


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a panel per task and width (and varied recipe) for each kind of number."""
    sheets = list(_sheets(table(frame)))[:MOST_SHEETS]
    if not sheets:
        drawn, panels = style.panels(1, 1)
        style.empty(panels[0][0], "nothing in common with the paper")
        return drawn
    beside = 2 if len(sheets) > 1 else 1
    lines = [sheets[start : start + beside] for start in range(0, len(sheets), beside)]
    heights = [max(len(sheet.rows) for sheet in line) for line in lines]
    with style.themed():
        size = (
            max(style.PAGE_WIDTH * beside / 2, style.LEAST_WIDTH),
            0.4 + sum(0.33 * each + 0.85 for each in heights),
        )
        drawn = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.09))
        grid = drawn.subplots(len(lines), beside, squeeze=False, height_ratios=[height + 2 for height in heights])
    for axes in grid.flat[len(sheets) :]:
        axes.set_axis_off()
    for number, (sheet, axes) in enumerate(zip(sheets, grid.flat, strict=False)):
        _draw(axes, sheet, heights[number // beside])
    grounds = [(f"▲ ours above by ≥ {CLEAR:g} SE", ABOVE[0]), (f"▲ ≥ {LARGE:g} SE", ABOVE[1])]
    grounds += [(f"▼ ours below by ≥ {CLEAR:g} SE", BELOW[0]), (f"▼ ≥ {LARGE:g} SE", BELOW[1])]
    with style.themed():
        handles = [Patch(facecolor=colour, label=label) for label, colour in grounds]
        drawn.legend(handles=handles, loc="outside upper left", ncols=4 if beside > 1 else 2)
    return drawn


def _sheets(numbers: pd.DataFrame) -> Iterator[Sheet]:
    apart = [*cells.TASK, schema.PARAM_WIDTH, *sorted(set(recipe_fields(numbers)) - COMPUTED)]
    accuracies = numbers[numbers["measure"].isin([schema.TEST_ACCURACY, schema.TEST_TOP5_ACCURACY])]
    early = accuracies[schema.PARAM_MATCH_EPOCH].notna()
    for at, group in facets.places(accuracies[~early], [*apart, "measure"]):
        yield _accuracies_sheet(labels.cell(at, apart), at["measure"], group)
    for at, group in facets.places(accuracies[early], [*apart, schema.PARAM_REWIND_EPOCH]):
        rows = [labels.value(schema.PARAM_SPARSITY, value) for value in group[schema.PARAM_SPARSITY]]
        title = f"permuted, {labels.cell(at, at)}"
        yield _sheet(title, "Epoch of B when matched", rows, group[schema.PARAM_MATCH_EPOCH].astype(str), group)
    votes = numbers[numbers["measure"].isin([schema.MEMBER_ACCURACY_MEAN, *published.VOTES])]
    for at, group in facets.places(votes, [*apart, schema.PARAM_SPARSITY]):
        rows = [
            labels.method(name) + ("" if pd.isna(epoch) else f", epoch {epoch:g}")
            for name, epoch in zip(group["method"], group[schema.PARAM_REWIND_EPOCH], strict=True)
        ]
        columns = [MEASURES[name].replace(" ", "\n", 1) for name in group["measure"]]
        yield _sheet(f"ensembles, {labels.cell(at, at)}", "", rows, columns, group)
    for at, group in facets.places(numbers[numbers["measure"].isin(published.BARRIERS.values())], list(cells.TASK)):
        rows = [MEASURES[name].replace(" (", "\n(") for name in group["measure"]]
        columns = [labels.value(schema.PARAM_WIDTH, width) for width in group[schema.PARAM_WIDTH]]
        yield _sheet(f"from π(A) to B, {labels.cell(at, at)}", "Width multiplier", rows, columns, group)


def _accuracies_sheet(place: str, measure: str, group: pd.DataFrame) -> Sheet:
    title = place if measure == schema.TEST_ACCURACY else f"{MEASURES[measure]}, {place}"
    dense = group[group["method"] == cells.DENSE]
    sparse = group[group["method"] != cells.DENSE].sort_values(
        [schema.PARAM_SPARSITY, "method"], key=lambda column: column.map(ORDER) if column.name == "method" else column
    )
    if sparse.empty:
        return _sheet(title, "", [labels.method(cells.DENSE)], [""], dense)
    if len(dense):
        title += f", dense {_text(dense.to_dict('records')[0])}"
    rows = [
        f"{labels.value(schema.PARAM_SPARSITY, sparsity)} {labels.method(row)}"
        for sparsity, row in zip(sparse[schema.PARAM_SPARSITY], sparse["method"], strict=True)
    ]
    return _sheet(title, "Rewind epoch", rows, sparse[schema.PARAM_REWIND_EPOCH].astype(str), sparse)


def _sheet(title: str, across: str, rows: Iterable[str], columns: Iterable[str], group: pd.DataFrame) -> Sheet:
    places = list(zip(rows, columns, strict=True))
    heads = list(dict.fromkeys(column for _, column in places))
    return Sheet(
        title=title,
        rows=list(dict.fromkeys(row for row, _ in places)),
        columns=sorted(heads, key=int) if all(map(str.isdigit, heads)) else heads,
        across=across,
        cells=dict(zip(places, group.to_dict("records"), strict=True)),
    )


def _draw(axes: Axes, sheet: Sheet, height: int) -> None:
    counts = pd.DataFrame(sheet.cells.values())
    n = f"{facets.count(counts['ours_n'])}, paper {facets.count(counts['paper_n']).removeprefix('n = ')}"
    style.title(axes, sheet.title, n, beside=0.6)
    axes.set_xlim(0, max(len(sheet.columns), LEAST_COLUMNS))
    axes.set_ylim(height, 0)
    axes.set_xticks([place + 0.5 for place in range(len(sheet.columns))], sheet.columns)
    axes.set_yticks([place + 0.5 for place in range(len(sheet.rows))], sheet.rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=7.5)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(sheet.across, loc="left")
    for (row, column), line in sheet.cells.items():
        x, y = sheet.columns.index(column), sheet.rows.index(row)
        size, colour = abs(line["in_standard_errors"]), style.INK
        if size >= CLEAR:
            ground = (ABOVE if line["difference"] > 0 else BELOW)[size >= LARGE]
            axes.add_patch(Rectangle((x + 0.02, y + 0.04), 0.96, 0.92, color=ground, linewidth=0))
            colour = ON_GROUND
        axes.text(x + 0.5, y + 0.5, _text(line, broken=True), ha="center", va="center", fontsize=6.5, color=colour)


def _text(line: Mapping[Any, Any], *, broken: bool = False) -> str:
    """Return a difference, also in standard errors, with an arrow from two standard errors on."""
    size = line["in_standard_errors"]
    decimals = 3 if line["measure"] in SMALL else 2
    arrow = "" if not abs(size) >= CLEAR else "▲ " if size > 0 else "▼ "
    errors = "" if pd.isna(size) else f"{chr(10) if broken else ' '}({_signed(size, 1)})"
    return f"{arrow}{_signed(line['difference'], decimals)}{errors}"


def _signed(value: float, decimals: int) -> str:
    return stats.format_difference(round(value, decimals) + 0.0, decimals=decimals)  # + 0.0: no negative zero


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ours beside the paper's as people read it, a line per cell (or per measure of an ensemble or path)."""
    numbers = table(frame)
    apart = [name for name in numbers.columns if name not in COMPUTED - {"measure"} and name != "method"]
    told = [name for name in apart if numbers[name].nunique(dropna=False) > 1]
    lines = []
    for at, group in facets.places(numbers, apart):
        line = labels.place(at | {"measure": MEASURES[at["measure"]]}, told)
        lines.append(line | {one["method"]: _both(one) for one in group.to_dict("records")})
    heads = sorted(set(numbers["method"]), key=ORDER.__getitem__)
    shown = pd.DataFrame(lines, columns=[*map(labels.axis, told), *heads]).fillna("")
    return shown.rename(columns={name: labels.method(name) or "A to B" for name in heads})


def _both(line: Mapping[Any, Any]) -> str:
    """Return both means and their difference in standard errors."""
    decimals = 3 if line["measure"] in SMALL else 2
    size = "" if pd.isna(line["in_standard_errors"]) else f" ({_signed(line['in_standard_errors'], 1)})"
    return f"{line['ours_mean']:.{decimals}f} / {line['paper_mean']:.{decimals}f}{size}"


# --- notes ----------------------------------------------------------------------------------------------
def notes(frame: pd.DataFrame) -> list[str]:
    """Return how many numbers differ, and possible reasons other than chance, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [
            "This study has no number in common with the paper, which has ResNet20 on CIFAR-10 and CIFAR-100, VGG11 on "
            "CIFAR-10 and ResNet50 on ImageNet at some sparsities and rewind epochs."
        ]
    said = [*_agreement(numbers), *_by_method(numbers), *_recipe(frame, numbers)]
    if numbers["dataset"].isin(published.DATASETS.values()).any():
        said.append("The folder of images is assumed to be ImageNet.")
    if numbers["measure"].isin(published.BARRIERS.values()).any():
        said.append(
            "Our barriers are the largest on the path; they are compared with those stored with REPAIR's code, which "
            "are taken at the midpoint."
        )
    if numbers["measure"].isin(published.VOTES).any():
        said.append("The paper states neither the rewind epoch of its ensembles nor the logarithm of its divergences.")
    more = len(list(_sheets(numbers))) - MOST_SHEETS
    return said + ([f"{labels.plural(more, 'more panel')} left to the table."] if more > 0 else [])


def _agreement(numbers: pd.DataFrame) -> Iterator[str]:
    tested = numbers[numbers["p"].notna()]
    if len(tested):
        differ, clear = ((tested[name] < stats.LEVEL).sum() for name in ("p", "p_holm"))
        yield (
            f"{differ} of {labels.plural(len(tested), 'mean')} differ from the paper's with p < {stats.LEVEL} (Welch), "
            f"where chance alone would give about {stats.LEVEL * len(tested):.0f}; {clear or 'none'} after Holm's "
            "correction."
        )
    if len(numbers) > len(tested):
        yield (
            f"{labels.plural(len(numbers) - len(tested), 'number')} of single runs or without a standard deviation, "
            "where only the difference is given."
        )


def _by_method(numbers: pd.DataFrame) -> Iterator[str]:
    accuracies = numbers[numbers["measure"] == schema.TEST_ACCURACY]
    means = accuracies.groupby("method")["difference"].mean()
    items = [f"{labels.method(row)} {means[row]:+.2f}".replace("-", MINUS) for row in ROWS if row in means]
    if items:
        yield f"Ours {MINUS} the paper's, mean over its numbers (pp): {labels.listed(items)}."


def _recipe(frame: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[str]:
    """Yield how the training of our nets differs from the paper's."""
    sparse = frame[frame[schema.PARAM_STAGE] == schema.SPARSE]
    sparse = sparse[sparse[schema.PARAM_MODEL].isin(numbers[schema.PARAM_MODEL])]
    for model, group in sparse.groupby(schema.PARAM_MODEL):
        differs = []
        for name, theirs in published.RECIPES[str(model)].items():
            ours = sorted(set(group.get(name, pd.Series(dtype=str))) - {"", str(theirs)})
            if any(not _same(value, theirs) for value in ours):
                differs.append(f"{name} {' and '.join(ours)} ({theirs})")
        if differs:
            yield (
                f"{model} was not trained as the paper and its code state (in brackets): "
                f"{labels.listed(differs, most=12)}. Differences are to be expected."
            )


def _same(text: str, value: float | str) -> bool:
    """Return whether a recipe field, which is recorded as text, has the given value."""
    return text == value if isinstance(value, str) else float(text) == value
