"""How a study was computed: its recipe, the engines and machines that trained it, and the runs that it is made of."""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis import labels
from analysis.load import fixed_settings
from trainables import schema
from trainables.host.databases import is_server
from trainables.host.redaction import redact
from trainables.knobs import KNOBS, MATCHING, NETWORK, PRUNING, READING, REWINDING, TRAINING
from trainables.training.way import SETTINGS

PARTS = {
    TRAINING: "Training",
    NETWORK: "Network",
    REWINDING: "Rewinding",
    PRUNING: "Pruning",
    MATCHING: "Matching",
    READING: "Images",
}
"""Part of the study -> its name; what is measured beside training shows in the figures."""
MOST_DEVICES = 20


def section(frame: pd.DataFrame, space: str, tracking_uri: str) -> str:
    """Return the section of the report's page, HTML."""
    said = {name: html.escape(text) for name, text in facts(frame, space, tracking_uri).items() if text}
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in (_recipe(frame) | said).items())
    note = '<p class="note">Settings in bold are not the defaults, which are the paper\'s for ResNet20 on CIFAR-10.</p>'
    return f'<section id="how"><h2>How it was computed</h2><dl>{lines}</dl>{note}</section>'


def facts(frame: pd.DataFrame, space: str, tracking_uri: str) -> dict[str, str]:
    """Return what is known beside the recipe, as plain text: name -> fact, empty if there is none."""
    started, ended = frame["started"].min(), frame["ended"].max()
    set_aside, reused = frame.attrs.get("set_aside", 0), int(frame["reused"].sum())
    experiment = frame.attrs.get("experiment", "")
    where = f"experiment {space} (ID {experiment}) in {redact(tracking_uri)}"
    if is_server(tracking_uri):
        where += f", {redact(tracking_uri).rstrip('/')}/#/experiments/{experiment}"
    shared = f", of which {reused} were reused from the storage" if reused else ""
    return {
        "Precision and engine": trained_in(frame),
        "Hardware": _counted(_hardware(frame), "job"),
        "Micro-batches per batch": _counted(frame[schema.MICRO_BATCHES], "job"),
        "Workers of a net": _counted(frame[schema.WORKERS], "job"),
        "Software": labels.listed(
            f"{called} {version}" for name, called in schema.SOFTWARE.items() for version in _distinct(frame[name])
        ),
        "Commit": labels.listed(_distinct(frame["commit"])),
        "Command": frame.attrs.get("command", ""),
        "Started": f"{started:%Y-%m-%d %H:%M} UTC" if started == started else "not recorded",
        "Ended": f"{ended:%Y-%m-%d %H:%M} UTC" if ended == ended else "not yet",
        "Runs": f"{len(frame)} of {where}{shared}; runs.csv has the name, key and ID of each",
        "Set aside": f"{labels.plural(set_aside, 'run')} of earlier recipes" if set_aside else "",
        "Left out": labels.listed(frame.attrs.get("left_out", ())),
        "Page written": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }


def settings(frame: pd.DataFrame) -> dict[str, str]:
    """Return the study's settings that are no axes of every grid: name -> value, or its values if it is varied."""
    values: dict[str, Iterable[Any]] = {name: [value] for name, value in fixed_settings(frame).items()}
    values |= {name: sorted(set(frame[name].dropna())) for name in frame.attrs.get(schema.VARIED, ())}
    return {name: " and ".join(labels.short(str(value)) for value in each) for name, each in values.items()}


def _recipe(frame: pd.DataFrame) -> dict[str, str]:
    """Return the settings by part of the study, HTML; those that are not at their default are bold."""
    asked = settings(frame)
    found: dict[str, str] = {}
    for part, called in PARTS.items():
        said = []
        for name, knob in KNOBS.items():
            if knob.part == part and name not in SETTINGS and asked.get(name):
                text = html.escape(f"{name} {asked[name]}")
                bold = asked[name] != str(knob.default)
                said.append(f'<span title="{html.escape(knob.meaning)}">{f"<b>{text}</b>" if bold else text}</span>')
        if said:
            found[called] = ", ".join(said)
    return found


def trained_in(frame: pd.DataFrame) -> str:
    """Return in which precision and by which engine each network was trained, which may affect results."""
    found: dict[str, list[str]] = {}
    trained = frame[frame[schema.ENGINE] != ""]
    for (model, width), engines in trained.groupby([schema.PARAM_MODEL, schema.PARAM_WIDTH])[schema.ENGINE]:
        network = f"{model} {labels.value(schema.PARAM_WIDTH, width)}"
        ways = [way if " " in way else f"{way} (plain PyTorch)" for way in _distinct(engines)]
        found.setdefault(labels.listed(ways), []).append(network)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{labels.listed(networks)}: {engines}" for engines, networks in found.items())


def _hardware(frame: pd.DataFrame) -> pd.Series:
    """Return the device of each run and, of a CPU, its cores; empty if a run does not say."""
    cores = frame[schema.CORES]  # text that anyone can write
    return frame[schema.DEVICE] + cores.map(lambda n: f", {labels.plural(int(n), 'core')}" if n.isdecimal() else "")


def _distinct(texts: pd.Series) -> list[str]:
    return sorted(set(texts) - {""})


def _counted(texts: pd.Series, noun: str) -> str:
    counts = texts[texts != ""].value_counts()
    return labels.listed((f"{text} ({labels.plural(n, noun)})" for text, n in counts.items()), MOST_DEVICES)
