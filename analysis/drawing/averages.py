"""Means over seeds in the form in which MLflow shows them: runs with points, and charts of these points.

MLflow draws all runs of a page into each chart, one line per run and metric. A *cell run* is one row at one width and
sparsity, with its statistics by rewind epoch. A *method run* is one row in all cells: it has a metric for each panel of
a figure, so that every chart of a page with method runs is a panel with one line per method.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets, style
from trainables import schema
from trainables.knobs import KNOBS
from trainables.methods import METHODS
from trainables.schema import FINISHED

MEASURES = (*schema.GAPS, schema.TEST_ACCURACY, schema.GENERALIZATION_GAP)
"""Measures of the charts of method runs. Values by width and by sparsity are means over rewind epochs."""
SIGNS = {schema.PARAM_WIDTH: "w", schema.PARAM_SPARSITY: "S", **dict.fromkeys(cells.TASK, "")}
"""Axis -> what stands before its value where space is short; nothing before models and datasets."""
BRIEF = {
    schema.GAP_TO_DENSE: "to dense",
    schema.GAP_TO_LTH: "to LTH",
    schema.TEST_ACCURACY: "accuracy",
    schema.GENERALIZATION_GAP: "train-test",
}
"""Measure -> its name in a curve's metric, which MLflow repeats in every entry of a legend of two lines."""
SHADES = 0.55
"""Shares of white and of black in the lightest and in the darkest shade of a method's colour."""
DECIMALS = 9
"""Values that agree to this many decimals are the same."""
UNUSUAL = re.compile(r"[^\w\-. :]")
"""Characters that MLflow does not allow in the name of a metric, and the slash, which groups names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """A run that shows means over seeds.

    Attributes:
        level: ``cell`` or ``method``.
        name: for people.
        colour: of the method in all figures; a shade of it for each way of matching other than the main one.
        order: sorts as text in the order in which runs are to be listed.
        params: the run's place in the grid.
        points: name of a metric and step -> value.
    """

    level: str
    name: str
    colour: str
    order: str
    params: dict[str, str]
    points: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of the run's level and place, which do not change."""
        return _digest([self.level, self.params])

    @property
    def content(self) -> str:
        """Digest of all that the run shows, but for the rounding of sums."""
        values = sorted((point, round(value, DECIMALS)) for point, value in self.points.items())
        return _digest([self.level, self.name, self.colour, self.order, self.params, values])


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart of method runs.

    Attributes:
        measure: one of ``MEASURES``.
        axis: one of ``cells.GRID``.
        metric: the metric that it draws, whose name is the chart's title.
        late: whether means over rewind epochs leave epoch 0 out, as they do where there are others.
    """

    measure: str
    axis: str
    metric: str
    late: bool


def averages(frame: pd.DataFrame) -> tuple[list[Average], list[Chart]]:
    """Return a study's cell runs and method runs, and the charts of the latter.

    Args:
        frame: the study's runs, as :func:`analysis.load.runs` returns them.
    """
    by, scored = cells.axes(frame), cells.scores(frame)
    epochs = cells.shared_epochs(scored, by, cells.scores(frame.assign(status=FINISHED)))
    seeds, gains = cells.by_seed(scored, by), _gains(scored, by)
    pooled = cells.over_rewind_epochs(seeds, epochs, by, MEASURES)
    colours = _shades(cells.row_order(seeds[cells.ROW]))
    found = _cell_runs(seeds, gains, epochs, pooled, by, _ignored(frame, by), colours)
    drawn, means = (numbers[numbers[cells.ROW] != cells.IMP] for numbers in (seeds, pooled))
    late = bool((epochs[schema.PARAM_REWIND_EPOCH] > 0).any())
    rows, charts = _method_runs(drawn, means, by, colours, late=late)
    return [*found, *rows], charts


def _ignored(frame: pd.DataFrame, by: Sequence[str]) -> dict[str, list[str]]:
    """Return the axes on which no run of a row depends: row -> axes.

    The scores repeat such a run for every value of these axes, to be compared there.
    """
    free: dict[str, list[str]] = {}
    for row, runs in frame.groupby(cells.rows(frame)):
        recipes = [recipe for combinations in runs.get(schema.RECIPES, ()) for recipe in combinations]
        settings = [name for name in by if name not in cells.CELL]
        found = [name for name in settings if all(recipe.get(name) is None for recipe in recipes)]
        free[str(row)] = [schema.PARAM_SPARSITY, *found] if runs[schema.PARAM_SPARSITY].isna().all() else found
    return free


def _shades(rows: Sequence[str]) -> dict[str, str]:
    """Return the colour of each row: that of its method, from light to dark for its other ways of matching."""
    colours = {row: style.look(row).colour for row in rows}
    for method in {cells.method_of(row) for row in rows}:
        others = [row for row in rows if row.startswith(f"{method}:")]
        steps = max(1, len(others) + len(others) % 2 - 1)  # odd, so that no shade is the colour itself
        for place, row in enumerate(others):
            colours[row] = _shade(colours[row], SHADES * (1 - 2 * place / steps))
    return colours


def _shade(colour: str, light: float) -> str:
    """Return a colour mixed with white, or with black if `light`, the share of white, is negative."""
    mixed = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    shares = (value + (255 - value) * light if light > 0 else value * (1 + light) for value in mixed)
    return "#" + "".join(f"{round(share):02X}" for share in shares)


# --- cell runs --------------------------------------------------------------------------------------------------
def _cell_runs(
    scored: pd.DataFrame,
    gains: pd.DataFrame,
    epochs: pd.DataFrame,
    pooled: pd.DataFrame,
    by: list[str],
    ignored: Mapping[str, Sequence[str]],
    colours: Mapping[str, str],
) -> list[Average]:
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    gain = (schema.PERMUTED_MINUS_NAIVE,)
    over = schema.OVER_REWIND_EPOCHS
    points: dict[tuple[Any, ...], dict[tuple[str, int], float]] = {}
    for numbers, measures, suffix in (
        (_alone(scored, ignored), MEASURES, ""),
        (gains, gain, ""),
        (_alone(pooled, ignored), MEASURES, over),
        (cells.over_rewind_epochs(gains, epochs, by, gain), gain, over),
    ):
        axes = [*apart, cells.ROW]
        rewound = [] if suffix else [schema.PARAM_REWIND_EPOCH]
        for place, group in facets.places(numbers, [*axes, *rewound]):
            of_run = points.setdefault(tuple(_param(place[name]) for name in axes), {})
            for measure in measures:
                of_run.update(_statistics(measure + suffix, _step(place), group[measure]))
    named = [*facets.several_tasks(scored), *cells.GRID[:2], *(name for name in apart if name not in cells.CELL)]
    places = [dict(zip([*apart, cells.ROW], place, strict=True)) for place in points]
    return [_cell_run(place, named, colours, found) for place, found in zip(places, points.values(), strict=True)]


def _gains(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the paired differences permuted - naive in test accuracy, a line per cell, permuted row and net A."""
    pairs = cells.paired(scored, by)
    permuted = [row for row in pairs.columns if cells.method_of(row) == cells.PERMUTED]
    naive = pairs.reindex(columns=[cells.NAIVE])[cells.NAIVE]
    gains = cells.by_mask(pairs[permuted].sub(naive, axis="index"))
    long = gains.melt(ignore_index=False, var_name=cells.ROW, value_name=schema.PERMUTED_MINUS_NAIVE)
    return long.dropna().reset_index().assign(**{schema.PARAM_DATA_ORDER: pd.NA})


def _alone(numbers: pd.DataFrame, ignored: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return numbers in which the runs of a row are missing on the axes that it ignores, and appear once."""
    alone = numbers.copy()
    for name in {name for names in ignored.values() for name in names}:
        alone[name] = alone[name].mask(alone[cells.ROW].isin([row for row, names in ignored.items() if name in names]))
    nets = [name for name in alone if name not in MEASURES]  # not the means, which differ in their last digits
    return alone.groupby(nets, dropna=False, sort=False).first().reset_index()


def _statistics(name: str, step: int, values: pd.Series) -> Iterator[tuple[tuple[str, int], float]]:
    """Yield the mean of values, their standard deviation and number, and the interval of the mean, where they exist."""
    spread, mean = stats.summarize(values), stats.interval(values)
    if spread.n:
        yield (name, step), spread.mean
        yield (name + schema.N, step), spread.n
        for suffix, value in ((schema.STD, spread.std), (schema.LOW, mean.low), (schema.HIGH, mean.high)):
            if value == value:
                yield (name + suffix, step), value


def _cell_run(
    place: Mapping[str, str],
    named: Sequence[str],
    colours: Mapping[str, str],
    points: dict[tuple[str, int], float],
) -> Average:
    row = place[cells.ROW]
    params = {name: text for name, text in place.items() if text} | {schema.PARAM_METHOD: cells.method_of(row)}
    counts = [int(value) for (name, _), value in points.items() if name == schema.TEST_ACCURACY + schema.N]
    return Average(
        level=schema.CELL,
        name=" · ".join([row, *_words(place, named), facets.count(pd.Series(counts))]),
        colour=colours[row],
        order=" ".join([*(_sortable(text) for name, text in place.items() if name != cells.ROW), _row_order(row)]),
        params=params,
        points=points,
    )


def _words(place: Mapping[Any, Any], named: Sequence[str], signs: Mapping[str, str] = SIGNS) -> list[str]:
    """Return a place in words, ``w4``, ``S0.95``, ``weight_decay=0.02``, without the axes on which it has no value."""
    texts = {name: _param(place[name]) for name in named}
    return [f"{signs.get(name, f'{name}=')}{text}" for name, text in texts.items() if text]


def _row_order(row: str) -> str:
    """Return a text by which rows sort as in the table of methods, and ways of matching by their numbers."""
    method, how = cells.method_of(row), cells.how_of(row)
    place = list(METHODS).index(method) if method in METHODS else len(METHODS)
    return f"{place:02d} {method} {re.sub('[0-9]+', lambda digits: digits[0].zfill(9), how)}".rstrip()


def _sortable(text: str) -> str:
    """Return a text that sorts as its number, if it is one and not negative; a missing one comes first."""
    try:
        return f"{float(text):020.9f}"
    except ValueError:
        return text


# --- method runs ------------------------------------------------------------------------------------------------
def _method_runs(
    scored: pd.DataFrame, pooled: pd.DataFrame, by: list[str], colours: Mapping[str, str], *, late: bool
) -> tuple[list[Average], list[Chart]]:
    """Return a run for each row, and a chart for each curve of each measure that some row has."""
    points: dict[str, dict[tuple[str, int], float]] = {row: {} for row in cells.row_order(scored[cells.ROW])}
    measured: dict[str, set[str]] = {row: set() for row in points}
    charts: dict[Chart, None] = {}
    for axis in cells.GRID:
        rewound = axis == schema.PARAM_REWIND_EPOCH
        numbers, places = (scored, by) if rewound else (pooled, _without(by))
        ticks = {value: step for step, value in enumerate(sorted(set(scored[axis].dropna())))}
        if not rewound:  # MLflow's steps are whole numbers, so that the axis is a metric with the same steps
            for of_row in points.values():
                of_row.update({(axis, step): value for value, step in ticks.items()})
        shown = facets.told_apart(numbers, [name for name in places if name != axis])
        # First what tells a chart from those beside it: what varies, and of that the settings, the last one first.
        settings = [name for name in reversed(shown) if name not in SIGNS]
        shown = [*settings, *(name for name in shown if name in SIGNS)]
        shown.sort(key=lambda name: numbers[name].nunique(dropna=False) < 2)
        for measure in MEASURES:
            lines = facets.spread(numbers.dropna(subset=axis), [*places, cells.ROW], [measure])
            for line in lines.to_dict("records"):
                metric = UNUSUAL.sub("_", " ".join([*_words(line, shown, _signs(shown)), BRIEF[measure]]))
                points[line[cells.ROW]][metric, _step(line) if rewound else ticks[line[axis]]] = line["mean"]
                measured[line[cells.ROW]].add(measure)
                charts.setdefault(Chart(measure=measure, axis=axis, metric=metric, late=late))
    counts = facets.spread(scored, [*by, cells.ROW], [schema.TEST_ACCURACY])
    runs = [
        Average(
            level=schema.METHOD,
            name=f"{_method(row)} · {facets.count(counts.loc[counts[cells.ROW] == row, 'n'])}",
            colour=colours[row],
            # A legend shows its first entries only: last come those that have no curve in most charts, dense nets.
            order=f"{0 if measured[row] & set(schema.GAPS) else 1} {_row_order(row)}",
            params={cells.ROW: row, schema.PARAM_METHOD: cells.method_of(row)},
            points=found,
        )
        for row, found in points.items()
    ]
    return runs, list(charts)


def _method(row: str) -> str:
    """Return the name of a row, which begins with what tells it from the method's other rows: MLflow cuts names."""
    settings = (part.partition("=") for part in cells.how_of(row).split(", ") if part)
    parts = [f"{value} {name}" if name in KNOBS else f"{name}{sign}{value}" for name, sign, value in settings]
    return labels.short(" · ".join([*parts, labels.method(cells.method_of(row))]))


def _signs(shown: Sequence[str]) -> dict[str, str]:
    """Return what stands before values in the names of metrics, ``w_decay:`` for ``weight_decay``, if it is unique."""
    short = {name: re.sub("([^_])[^_]*(?=_)", r"\1", name) for name in shown if name not in SIGNS}
    counts = Counter(short.values())
    return SIGNS | {name: f"{text if counts[text] == 1 else name}:" for name, text in short.items()}


def _without(by: Sequence[str]) -> list[str]:
    return [name for name in by if name != schema.PARAM_REWIND_EPOCH]


def _step(place: Mapping[Any, Any]) -> int:
    """Return the rewind epoch of a place; 0 if it has none."""
    epoch: Any = place.get(schema.PARAM_REWIND_EPOCH, pd.NA)
    return 0 if pd.isna(epoch) else int(epoch)


def _param(value: Any) -> str:
    """Return a value as a param of a run; empty if it is missing."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.12g}"
    return "" if value is None or value is pd.NA else str(value)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
