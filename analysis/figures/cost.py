"""Figure: device time by kind of job, and how much of it sharing jobs between cells has saved."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import labels, stats
from analysis.drawing import facets, style
from analysis.drawing.signs import TIMES
from analysis.memo import once
from trainables import schema
from trainables.graph import snapshot_key
from trainables.schema import FAILED, FINISHED

TITLE = "What it cost, and what sharing saved"
SHARED = CAPTION = (
    "Device time by kind of job: sum over n finished jobs of the wall-clock time that each worked on its device (or "
    "share of a device). Alone: the time if nothing were shared, so that every sparse net needed its own dense nets "
    "(up to the rewind epoch if that is all it uses), pruning rounds and matches; all other jobs count once."
)
TABLE_CAPTION = f"{SHARED} Saved: alone minus took. Reused: the part whose results the store already had."
HOUR = 3600.0
UNITS = ((HOUR, "hours", "h"), (60.0, "minutes", "min"), (1.0, "seconds", "s"))
"""Seconds of a unit of time, its name and its sign."""
TOTAL = "total"


@once
def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one line per kind of job, and their ``total``.

    Columns: ``job``; ``jobs``, finished ones whose time is on record; ``hours``, device-hours that they took;
    ``hours_reused``, the part of ``hours`` that was not spent for this study, because the store had the result;
    ``hours_alone``, device-hours if every sparse net had been computed by itself; ``hours_saved``, ``hours_alone`` -
    ``hours``.
    """
    done = frame[(frame["status"] == FINISHED) & frame[schema.SECONDS].notna()]
    hours = done[schema.SECONDS] / HOUR * pd.to_numeric(done[schema.WORKERS], errors="coerce").fillna(1)
    times = done["key"].map(times_needed(frame)).astype(float)
    costs = pd.DataFrame(
        {
            "job": done[schema.PARAM_STAGE],
            "jobs": 1,
            "hours": hours,
            "hours_reused": hours.where(done["reused"].astype(bool), 0.0),
            "hours_alone": hours * times.fillna(1.0).clip(lower=1.0),
        }
    )
    sums = costs.groupby("job").sum()
    order = {name: place for place, name in enumerate(schema.STAGES)}
    sums = sums.sort_index(key=lambda names: [order.get(name, len(order)) for name in names])
    if len(sums):
        sums.loc[TOTAL] = sums.sum()
    sums["hours_saved"] = sums["hours_alone"] - sums["hours"]
    return sums.astype({"jobs": int}).rename_axis("job").reset_index()


def times_needed(frame: pd.DataFrame) -> dict[str, float]:
    """Return job -> how often the finished sparse nets would have computed it without sharing.

    A sparse net that needs only the first epochs of a dense net counts by that share of the dense net's epochs. Jobs
    that no sparse net depends on are left out.
    """
    parents = dict(zip(frame["key"], frame["parents"].str.split(","), strict=True))
    states = _states(frame, {name for names in parents.values() for name in names if name} - parents.keys())
    times: Counter[str] = Counter()
    for root in facets.finished(frame, schema.SPARSE)["key"]:
        shares: dict[str, float] = {}
        stack = [root]
        while stack:
            name = stack.pop()
            job, share = states.get(name, (name, 1.0))
            if share > shares.get(job, 0.0):
                shares[job] = share
                stack += parents.get(job, [])
        times.update(shares)
    return dict(times)


def _states(frame: pd.DataFrame, keys: set[str]) -> dict[str, tuple[str, float]]:
    """Return key of a dense net's state -> key of the dense net, share of its epochs up to that state."""
    asked = frame[[schema.PARAM_REWIND_EPOCH, schema.PARAM_MATCH_EPOCH]].stack().dropna()
    epochs = {int(epoch) + offset for epoch in set(asked) if epoch >= 0 for offset in (0, 1)}  # see `rewind_offset`
    found = {}
    dense = frame[frame[schema.PARAM_STAGE] == schema.DENSE]
    for key, length in zip(dense["key"], dense.get("epochs", pd.Series("", index=dense.index)), strict=True):
        for epoch in epochs if str(length).isdigit() else ():
            state = snapshot_key(key, epoch)
            if state in keys:
                found[state] = (key, min(1.0, epoch / int(length)))
    return found


def figure(frame: pd.DataFrame) -> Figure:
    """Return the figure: two bars per kind of job."""
    numbers = table(frame)
    drawn, panels = style.panels(1, 1)
    axes = panels[0][0]
    if numbers.empty:
        style.empty(axes, "no finished job with a time")
        return drawn
    kinds = numbers[numbers["job"] != TOTAL]
    total = numbers[numbers["job"] == TOTAL].iloc[0]
    said = f"{_duration(total['hours'])} instead of {_duration(total['hours_alone'])}"
    style.title(axes, f"{labels.task(frame)}, {said}", f"n = {total['jobs']:,} jobs")
    seconds, unit, _ = _unit(float(total["hours_alone"]))
    took, alone = (kinds[name] * HOUR / seconds for name in ("hours", "hours_alone"))
    places = np.arange(len(kinds))
    bars = [
        axes.barh(places - 0.19, took, height=0.36, color=style.INK, label="took"),
        axes.barh(places + 0.19, alone, height=0.36, color=style.GREY, alpha=0.45, label="alone, without sharing"),
    ]
    ratios = [f"{TIMES}{ratio:.1f}" if np.isfinite(ratio) else "" for ratio in alone / took]
    axes.bar_label(bars[1], ratios, padding=3, fontsize=7.5, color=style.INK)
    axes.set_yticks(places, [f"{job} ({jobs:,})" for job, jobs in zip(kinds["job"], kinds["jobs"], strict=True)])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.margins(x=0.16)
    axes.set_xlabel(f"Device time ({unit})")
    style.legend(drawn, bars)
    return drawn


def _unit(hours: float) -> tuple[float, str, str]:
    """Return the largest of the units with a value of at least 2, else the smallest."""
    return next((unit for unit in UNITS if hours * HOUR >= 2 * unit[0]), UNITS[-1])


def _duration(hours: float) -> str:
    """Return a duration with three significant digits."""
    seconds, _, sign = _unit(hours)
    return f"{float(f'{hours * HOUR / seconds:.3g}'):,g} {sign}"


@once
def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table as people read it, in one unit."""
    numbers = table(frame)
    if numbers.empty:
        return pd.DataFrame()
    seconds, unit, _ = _unit(float(numbers["hours_alone"].iloc[-1]))
    columns = {"hours": f"took ({unit})", "hours_alone": f"alone ({unit})"}
    columns |= {"hours_saved": f"saved ({unit})", "hours_reused": f"reused ({unit})"}  # in sight on a phone: saved
    shown = {"job": numbers["job"], "jobs": [f"{jobs:,}" for jobs in numbers["jobs"]]}
    return pd.DataFrame(
        shown
        | {
            head: [stats.format_number(value * HOUR / seconds) for value in numbers[name]]
            for name, head in columns.items()
        }
    )


def notes(frame: pd.DataFrame) -> list[str]:
    """Return what the time was spent on, and what is not counted, one sentence each."""
    numbers = table(frame)
    if numbers.empty:
        return ["No job has finished with its time on record."]
    reused = numbers.iloc[-1]["hours_reused"]
    devices = Counter(frame.loc[(frame["status"] == FINISHED) & (frame["device"] != ""), "device"])
    named = [f"{device} ({labels.plural(count, 'job')})" for device, count in devices.most_common()]
    timeless = int(((frame["status"] == FINISHED) & frame[schema.SECONDS].isna()).sum())
    failed = int((frame["status"] == FAILED).sum())
    return labels.said(
        {
            f"{_duration(reused)} of it was not spent for this study, which reused stored results.": reused > 0,
            f"Device-hours of different devices are added up: {labels.listed(named)}.": len(devices) > 1,
            f"{labels.plural(timeless, 'finished job')} without a time on record, not counted.": timeless,
            f"The time of {labels.plural(failed, 'failed job')} is not on record.": failed,
        }
    )
