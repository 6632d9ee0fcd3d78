"""Figure: our results beside the paper's, number by number, with differences in standard errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import cells, labels, stats
from analysis.drawing import facets, grid, style
from analysis.drawing.signs import MINUS
from analysis.figures import match_images
from analysis.load import fixed_settings
from analysis.memo import once
from analysis.paper import numbers as published
from trainables import schema

TITLE = "Ours beside the paper's"
CAPTION = (
    f"Ours {MINUS} the paper's against the paper's, a point per number that both have; accuracies in percent. Bars: "
    "standard error of the difference (Welch, from both standard deviations and numbers of runs n), if both have a "
    "standard deviation. Filled markers: two standard errors or more apart; with three runs on each side they are not "
    "rare (p = 0.12). The grey line is agreement."
)
TABLE_CAPTION = (
    "Our means / the paper's; accuracies in percent, all else in the units stated. In brackets: ours minus the paper's "
    "in units of the standard error of the difference (Welch), if both have a standard deviation."
)
CLEAR = 2.0
"""Standard errors from which a difference is marked."""
ORDER = {row: place for place, row in enumerate(("", cells.DENSE, cells.IMP, *cells.MAIN[1:]))}
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
BY_WIDTH = (schema.TEST_ACCURACY, schema.TEST_TOP5_ACCURACY)
"""Measures with so many numbers that each width has a panel of its own."""
SHOWN = "shown"
UNRECORDED = ("sparse_schedule",)
"""Settings that only the study records: a run has the course of its learning rate instead."""
SMALL = (schema.DISAGREEMENT, schema.KL_DIVERGENCE, schema.JS_DIVERGENCE, schema.LOSS_BARRIER)
"""Measures with three decimals."""


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
    theirs, several = published.numbers(), schema.PARAM_MASK_DATASET in cells.varied(frame)
    runs = frame if several else _own_masks(frame, frame)  # several are axes of our numbers, among which to choose
    places = {
        _accuracies: (*cells.CELL, schema.PARAM_MATCH_EPOCH, "method"),
        _votes: (*cells.TASK, schema.PARAM_WIDTH, schema.PARAM_SPARSITY, "method"),
        _barriers: (*cells.TASK, schema.PARAM_WIDTH),
    }
    parts = [_with_ours(theirs, _own_masks(frame, ours(runs)), place) for ours, place in places.items()]
    both = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    compared = [_compared(line) for line in both.to_dict("records")]
    found = pd.DataFrame(compared, columns=["difference", "standard_error", "in_standard_errors", "p"], dtype=float)
    return both.join(found.assign(p_holm=stats.holm(found["p"].tolist())))


def _own_masks(frame: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    """Return lines whose masks are from the same dataset as the paper's: their own, but CIFAR-10 for SVHN.

    Lines that depend on no mask, such as those of dense nets, are among them.

    Args:
        frame: the runs.
        lines: the runs themselves, or numbers of them.
    """
    if schema.PARAM_MASK_DATASET not in lines:
        return lines
    masks, datasets = lines[schema.PARAM_MASK_DATASET], lines[schema.PARAM_DATASET]
    if schema.PARAM_MASK_DATASET in frame.attrs.get(schema.VARIED, ()):
        masks = masks.where(masks.isna() | (masks != ""), datasets)  # empty among values of the setting: its default
    return lines[masks.isna() | (masks == "") | (masks == datasets.replace(published.MASKS))]


def _with_ours(theirs: pd.DataFrame, ours: pd.DataFrame, place: Iterable[str]) -> pd.DataFrame:
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
    return numbers[numbers["method"].isin(cells.MAIN)].drop_duplicates(place)


def _votes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of our ensembles; the members' accuracy with its standard deviation, of the first seed."""
    done = cells.repeated(facets.finished(frame, schema.ENSEMBLE))
    done = done[done[schema.PARAM_MATCHER].isin(["", cells.MATCHER])].dropna(subset=[schema.MEMBERS])
    place = [*cells.CELL, *cells.varied(frame), "method"]
    spread = facets.spread(done, place, published.VOTES).drop(columns="sem")
    spreads = [schema.MEMBER_ACCURACY_MEAN, schema.MEMBER_ACCURACY_STD, schema.MEMBERS]
    firsts = done.sort_values([schema.PARAM_SEED_A, "key"])  # not by start, which differs from run to run of a study
    members = firsts.drop_duplicates(place)[[*place, *spreads]].set_axis([*place, *NUMBERS], axis="columns")
    members = members.assign(measure=schema.MEMBER_ACCURACY_MEAN)
    return pd.concat([members.astype({"n": int}), spread], ignore_index=True)


def _barriers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return our barriers between A and B, for the paper's matching and correction."""
    done = cells.repeated(facets.finished(frame, schema.CONNECT))
    alike = (done[schema.PARAM_MATCHER] == cells.MATCHER) & (
        done[schema.PARAM_CORRECTION] == done[schema.PARAM_MODEL].map(published.CORRECTIONS).fillna("bn_reset")
    )
    alike &= done[schema.PARAM_MATCH_EPOCH].fillna(cells.END) == cells.END
    place = facets.axes(done[alike], [*cells.TASK, schema.PARAM_WIDTH])
    return facets.spread(done[alike], place, list(published.BARRIERS.values())).drop(columns="sem")


# --- the figure -----------------------------------------------------------------------------------------------------
def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: a row of panels per task, a column per measure, and for accuracies one per width."""
    numbers = table(frame).sort_values(["measure", schema.PARAM_WIDTH], key=_rank)
    numbers = numbers.assign(**{SHOWN: _shown(numbers)})
    drawn, panels = grid.panels(
        numbers,
        [*cells.TASK, SHOWN],
        across=SHOWN,
        names=cells.TASK,
        x={text: f"The paper's {text}" for text in numbers[SHOWN]},
        y=f"Ours {MINUS} the paper's",
        absent="nothing in common with the paper",
    )
    for panel in itertools.chain(*panels):
        ours, theirs = facets.count(panel.lines["ours_n"]), facets.count(panel.lines["paper_n"])
        style.title(panel.axes, panel.heading, f"{ours}, paper {theirs.removeprefix('n = ')}".strip(", "))
        if len(panel.lines):
            panel.axes.axhline(0, color=style.GREY, linewidth=1.1)
        for (row, far), points in panel.lines.groupby(["method", panel.lines["in_standard_errors"].abs() >= CLEAR]):
            marked = style.mark(style.look(row), 4.5) | ({} if far else style.OPEN)
            x, y, bars = (points[name].tolist() for name in ("paper_mean", "difference", "standard_error"))
            panel.axes.errorbar(x, y, yerr=bars, linestyle="none", elinewidth=0.8, **marked)
    rows = [row for row in ORDER if row in set(numbers["method"])]
    style.legend(drawn, [style.handle(_method(row), style.look(row), linestyle="none") for row in rows])
    return drawn


def _shown(numbers: pd.DataFrame) -> list[str]:
    """Return what the panel of each line shows: a measure, at one width if that has a panel of its own."""
    apart = numbers["measure"].isin(BY_WIDTH) & (numbers[schema.PARAM_WIDTH].nunique() > 1)
    widths = [f" at width {labels.value(schema.PARAM_WIDTH, width)}" for width in numbers[schema.PARAM_WIDTH]]
    lines = zip(numbers["measure"], widths, apart, strict=True)
    return [MEASURES[measure] + (width if its_own else "") for measure, width, its_own in lines]


def _rank(column: pd.Series) -> pd.Series:
    """Return measures as their place in ``MEASURES``, and widths as they are."""
    return column.map([*MEASURES].index) if column.name == "measure" else column


def _method(row: str) -> str:
    return labels.method(row) or "A to B"


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ours beside the paper's as people read it, a line per cell (or per measure of an ensemble or path)."""
    numbers = table(frame)
    apart = [name for name in numbers.columns if name not in COMPUTED - {"measure"} and name != "method"]
    numbers = numbers.sort_values(apart)
    return facets.crossed(
        numbers.assign(measure=numbers["measure"].map(MEASURES)),
        apart,
        [name for name in apart if numbers[name].nunique(dropna=False) > 1],
        heads=[_method(row) for row in numbers["method"]],
        texts=[_both(line) for line in numbers.to_dict("records")],
        order=[_method(row) for row in ORDER],
    )


def _both(line: Mapping[Any, Any]) -> str:
    """Return both means and their difference in standard errors."""
    decimals = 3 if line["measure"] in SMALL else 2
    apart = stats.format_difference(line["in_standard_errors"], decimals=1)
    both = " / ".join(stats.format_number(line[f"{who}_mean"], decimals) for who in ("ours", "paper"))
    return both + (f" ({apart})" if apart else "")


# --- notes ----------------------------------------------------------------------------------------------
def notes(frame: pd.DataFrame) -> list[str]:
    """Return how many numbers differ, and possible reasons other than chance, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return [
            "This study has no number in common with the paper, which has ResNet20 on CIFAR-10 and CIFAR-100, VGG11 on "
            "CIFAR-10 and ResNet50 on ImageNet at some sparsities and rewind epochs."
        ]
    measures = numbers["measure"]
    assumed = {
        "The folder of images is assumed to be ImageNet.": numbers["dataset"].isin(published.DATASETS.values()).any(),
        "Our barriers are the largest on the path; they are compared with those stored with REPAIR's code, which are "
        "taken at the midpoint.": measures.isin(published.BARRIERS.values()).any(),
        "The paper states neither the rewind epoch of its ensembles nor the logarithm of its divergences.": (
            measures.isin(published.VOTES).any()
        ),
        "The paper says that its ensembles on CIFAR-100 are at 90 % sparsity, but their members are as accurate as its "
        "nets at 95 % (table 12).": (measures.isin(published.VOTES) & (numbers["dataset"] == "cifar100")).any(),
    }
    return [*_agreement(numbers), *_by_method(numbers), *recipes(frame, numbers), *labels.said(assumed)]


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
    items = [f"{labels.method(row)} {stats.format_difference(means[row])}" for row in cells.MAIN if row in means]
    if items:
        yield f"Ours {MINUS} the paper's, mean over its numbers (pp): {labels.listed(items)}."


def recipes(frame: pd.DataFrame, numbers: pd.DataFrame) -> Iterator[str]:
    """Yield how the training of our nets, and of the masks and matches that they have, differs from the paper's.

    Args:
        frame: the study's runs.
        numbers: what is compared with the paper, as returned by :func:`table`.
    """
    sparse = frame[frame[schema.PARAM_STAGE] == schema.SPARSE]
    sparse = sparse[sparse[schema.PARAM_MODEL].isin(numbers[schema.PARAM_MODEL])]
    fixed = fixed_settings(frame)
    for model, group in sparse.groupby(schema.PARAM_MODEL):
        differs = []
        for name, theirs in published.RECIPES[str(model)].items():
            ours = _values(group, fixed, name)
            if any(not _same(value, theirs) for value in ours):
                texts = [_setting(name, value) for value in (*ours, theirs)]
                differs.append(f"{name} {' and '.join(texts[:-1])} ({texts[-1]})")
        if differs:
            yield (
                f"Training of {model} differs from what the paper and its code state (in brackets): "
                f"{labels.listed(differs, most=len(differs))}. Differences are to be expected."
            )


def _values(runs: pd.DataFrame, fixed: Mapping[str, Any], name: str) -> list[str]:
    """Return the values of a setting in runs; of one that no run records, the study's."""
    values = set(runs[name].dropna()) if name in runs else {fixed[name]} if name in UNRECORDED and name in fixed else ()
    return sorted({str(value) for value in values} - {""})


def _setting(name: str, value: object) -> str:
    return "all" if name == match_images.IMAGES and str(value) == str(match_images.ALL) else str(value)


def _same(text: str, value: float | str) -> bool:
    """Return whether a recipe field, which is recorded as text, has the given value."""
    if isinstance(value, bool | str):
        return text == str(value)
    try:
        return float(text) == value
    except ValueError:  # anyone can write to an experiment
        return False
