"""Means over seeds in the form in which MLflow shows them: runs with points, and charts of these points.

MLflow draws all runs of a page into each chart, one line per run and metric. A *cell run* is one row at one width and
sparsity, with its statistics by rewind epoch. A *method run* is one row in all cells: it has a metric for each panel of
a figure, so that every chart of a page with method runs is a panel with one line per method.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis import cells, labels, stats
from analysis.drawing import facets, style
from trainables import schema

MEASURES = (schema.GAP_TO_DENSE, schema.GAP_TO_LTH, schema.TEST_ACCURACY, schema.GENERALIZATION_GAP)
AXES = (schema.PARAM_WIDTH, schema.PARAM_SPARSITY, schema.PARAM_REWIND_EPOCH)
"""Axes of the charts of method runs. Values by width and by sparsity are means over rewind epochs."""
SIGNS = {schema.PARAM_WIDTH: "w", schema.PARAM_SPARSITY: "S", **dict.fromkeys(cells.TASK, "")}
"""Axis -> what stands before its value where space is short; nothing before models and datasets."""
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
        colour: of the row in all figures.
        params: the run's place in the grid.
        points: name of a metric and step -> value.
    """

    level: str
    name: str
    colour: str
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
        return _digest([self.level, self.name, self.colour, self.params, values])


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart of method runs.

    Attributes:
        measure: one of ``MEASURES``.
        axis: one of ``AXES``.
        metric: the metric that it draws, whose name is the chart's title.
    """

    measure: str
    axis: str
    metric: str


def averages(frame: pd.DataFrame) -> tuple[list[Average], list[Chart]]:
    """Return a study's cell runs and method runs, and the charts of the latter.

    Args:
        frame: the study's runs, as :func:`analysis.load.runs` returns them.
    """
    by, scored = cells.axes(frame), cells.scores(frame)
    epochs = cells.shared_epochs(scored, by)
    scored = _nets(scored, by)
    pooled = cells.over_rewind_epochs(scored, epochs, by, MEASURES)
    found = _cell_runs(scored, epochs, pooled, by)
    rows, charts = _method_runs(scored[scored[cells.ROW] != cells.IMP], pooled[pooled[cells.ROW] != cells.IMP], by)
    return [*found, *rows], charts


def _nets(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the scores with one line per cell, row and pair: data orders are averaged, as they share seeds."""
    place = [*by, cells.ROW, cells.PAIR, schema.PARAM_SEED_A, schema.PARAM_SEED_B]
    means = scored.groupby(place, dropna=False)[[*MEASURES]].mean().reset_index()
    return means.assign(**{schema.PARAM_DATA_ORDER: pd.NA})


# --- cell runs --------------------------------------------------------------------------------------------------
def _cell_runs(scored: pd.DataFrame, epochs: pd.DataFrame, pooled: pd.DataFrame, by: list[str]) -> list[Average]:
    apart = [name for name in by if name != schema.PARAM_REWIND_EPOCH]
    gains, gain = _gains(scored, by), (schema.PERMUTED_MINUS_NAIVE,)
    over = schema.OVER_REWIND_EPOCHS
    points: dict[tuple[Any, ...], dict[tuple[str, int], float]] = {}
    for numbers, measures, suffix in (
        (_alone(scored), MEASURES, ""),
        (gains, gain, ""),
        (_alone(pooled), MEASURES, over),
        (cells.over_rewind_epochs(gains, epochs, by, gain), gain, over),
    ):
        axes = [*apart, cells.ROW]
        rewound = [] if suffix else [schema.PARAM_REWIND_EPOCH]
        for place, group in facets.places(numbers, [*axes, *rewound]):
            of_run = points.setdefault(tuple(_param(place[name]) for name in axes), {})
            for measure in measures:
                of_run.update(_statistics(measure + suffix, _step(place), group[measure]))
    return [_cell_run(dict(zip([*apart, cells.ROW], place, strict=True)), found) for place, found in points.items()]


def _gains(scored: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the paired differences permuted - naive in test accuracy, a line per cell, permuted row and pair."""
    pairs = cells.paired(scored, by)
    permuted = [row for row in pairs.columns if row.split(":")[0] == cells.PERMUTED]
    naive = pairs.reindex(columns=[cells.NAIVE])[cells.NAIVE]
    gains = pairs[permuted].sub(naive, axis="index")
    long = gains.melt(ignore_index=False, var_name=cells.ROW, value_name=schema.PERMUTED_MINUS_NAIVE)
    return long.dropna().reset_index().assign(**{schema.PARAM_DATA_ORDER: pd.NA})


def _alone(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return numbers in which dense nets, repeated for each sparsity to be compared there, appear once."""
    dense = numbers[cells.ROW] == cells.DENSE
    alone = numbers.assign(**{schema.PARAM_SPARSITY: numbers[schema.PARAM_SPARSITY].mask(dense)})
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


def _cell_run(place: Mapping[str, str], points: dict[tuple[str, int], float]) -> Average:
    row = place[cells.ROW]
    params = {name: text for name, text in place.items() if text} | {schema.PARAM_METHOD: row.split(":")[0]}
    where = [f"{sign}{place[name]}" for name, sign in SIGNS.items() if sign and place[name]]
    others = [text for name, text in params.items() if name not in (*cells.CELL, cells.ROW, schema.PARAM_METHOD)]
    counts = [int(value) for (name, _), value in points.items() if name == schema.TEST_ACCURACY + schema.N]
    name = " · ".join([row, *where, *others, facets.count(pd.Series(counts))])
    return Average(level=schema.CELL, name=name, colour=style.look(row).colour, params=params, points=points)


# --- method runs ------------------------------------------------------------------------------------------------
def _method_runs(scored: pd.DataFrame, pooled: pd.DataFrame, by: list[str]) -> tuple[list[Average], list[Chart]]:
    """Return a run for each row, and a chart for each curve of each measure that some row has."""
    points: dict[str, dict[tuple[str, int], float]] = {row: {} for row in cells.row_order(scored[cells.ROW])}
    charts: dict[str, Chart] = {}
    for axis in AXES:
        rewound = axis == schema.PARAM_REWIND_EPOCH
        numbers, places = (scored, by) if rewound else (pooled, _without(by))
        ticks = {value: step for step, value in enumerate(sorted(set(scored[axis].dropna())))}
        if not rewound:  # MLflow's steps are whole numbers, so that the axis is a metric with the same steps
            for of_row in points.values():
                of_row.update({(axis, step): value for value, step in ticks.items()})
        shown = facets.told_apart(numbers, [name for name in places if name != axis])
        for measure in MEASURES:
            lines = facets.spread(numbers.dropna(subset=axis), [*places, cells.ROW], [measure])
            for line in lines.to_dict("records"):
                metric = _metric(measure, axis, line, shown)
                points[line[cells.ROW]][metric, _step(line) if rewound else ticks[line[axis]]] = line["mean"]
                charts.setdefault(metric, Chart(measure=measure, axis=axis, metric=metric))
    counts = facets.spread(scored, [*by, cells.ROW], [schema.TEST_ACCURACY])
    runs = [
        Average(
            level=schema.METHOD,
            name=f"{labels.method(row)} · {facets.count(counts.loc[counts[cells.ROW] == row, 'n'])}",
            colour=style.look(row).colour,
            params={cells.ROW: row, schema.PARAM_METHOD: row.split(":")[0]},
            points=found,
        )
        for row, found in points.items()
    ]
    return runs, list(charts.values())


def _metric(measure: str, axis: str, line: Mapping[Any, Any], shown: Sequence[str]) -> str:
    """Return the name of a curve's metric, which is the title of its chart: first what tells it from its neighbours."""
    words = [f"{SIGNS.get(name, f'{name} ')}{_param(line[name])}" for name in shown if _param(line[name])]
    return UNUSUAL.sub("_", f"{' '.join(words)} - {measure} by {axis}")


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
