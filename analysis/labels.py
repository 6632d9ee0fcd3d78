"""Names of values, axes and methods wherever people read them: tables, figures, terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis import cells
from analysis.drawing.signs import DASH, TIMES
from trainables import schema
from trainables.methods import METHODS

NAMES = {
    schema.PARAM_MODEL: "model",
    schema.PARAM_DATASET: "dataset",
    schema.PARAM_WIDTH: "width",
    schema.PARAM_SPARSITY: "sparsity",
    schema.PARAM_REWIND_EPOCH: "rewind epoch",
    schema.PARAM_MATCH_EPOCH: "match epoch",
    schema.PARAM_MATCHER: "matcher",
    schema.PARAM_CORRECTION: "correction",
    schema.PARAM_SEED_A: "net A",
}
"""Axis -> its name; a recipe field keeps its own."""
SEVERAL_EPOCHS, IMAGES = "rewind epochs", "images"
"""Headings of columns that say what a line is about and hold no value of an axis: the rewind epochs that the line is a
mean over, and the images of a match, of which there may be all."""
LONGEST = 60
"""Characters of a name in a figure, at most."""


def method(row: str) -> str:
    """Return the name of a row of :func:`cells.rows`: the method's label, and the matching unless it is the main."""
    name, how = cells.method_of(row), cells.how_of(row)
    label = METHODS[name].label if name in METHODS else short(name)
    return f"{label} ({short(how)})" if how else label


def axis(name: str) -> str:
    """Return the name of an axis of the grid."""
    return NAMES.get(name, name)


def value(name: str, raw: Any) -> str:
    """Return a value on an axis of the grid: a width as a factor, ``95 %``, ``10``; a dash where there is none."""
    if pd.isna(raw) or raw == "":
        return DASH
    if name == schema.PARAM_WIDTH:
        return f"{TIMES}{raw:g}"
    if name == schema.PARAM_SPARSITY:
        return f"{round(100 * raw, 6):g} %"
    if name == schema.PARAM_MATCH_EPOCH and raw == cells.END:
        return "at the end"
    return short(str(raw))


def short(text: str) -> str:
    """Return a text on one line and short enough for a figure: users choose the names of datasets and matchers."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def place(values: Mapping[Any, Any], names: Iterable[str]) -> dict[str, str]:
    """Return a place in the grid as entries of a table, name of the axis -> value, for the axes named."""
    return {axis(name): value(name, values[name]) for name in names}


def cell(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return a place in the grid in words, ``resnet20 on cifar10, width x4, 95 % sparse``, from the axes named."""
    parts = []
    for name in names:
        if pd.isna(values[name]) or values[name] == "":
            continue
        text = value(name, values[name])
        if name == schema.PARAM_MODEL:
            parts.append(text)
        elif name == schema.PARAM_DATASET:
            parts[-1:] = [f"{parts[-1]} on {text}"] if parts else [text]
        elif name == schema.PARAM_SPARSITY:
            parts.append(f"{text} sparse")
        else:
            parts.append(f"{axis(name)} {text}" if name in NAMES else f"{name} = {text}")
    return ", ".join(parts)


def task(frame: pd.DataFrame) -> str:
    """Return the models and datasets of a study, ``resnet20 and vgg11 on cifar10``."""
    models, datasets = (" and ".join(map(short, sorted(set(frame[name]) - {""}))) for name in cells.TASK)
    return f"{models or 'unknown model'} on {datasets or 'unknown data'}"


def plural(n: int, noun: str, nouns: str = "") -> str:
    """Return ``1 run``, ``3 runs``."""
    return f"{n} {noun if n == 1 else nouns or noun + 's'}"


def listed(items: Iterable[str], most: int = 8) -> str:
    """Return items separated by commas; beyond `most`, only how many more there are."""
    every = list(items)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def said(sentences: Mapping[str, Any]) -> list[str]:
    """Return the sentences whose condition holds."""
    return [sentence for sentence, holds in sentences.items() if holds]
