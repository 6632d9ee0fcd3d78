"""Adding a study's runs to its record, and drawing the record's figures and tables from the files in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import labels, load, memo, write
from analysis.record import folder, readme
from analysis.record.folder import Curves, Run
from analysis.sources import AnalysisError, Record, Source, source
from trainables import schema
from trainables.host.redaction import redact_text
from trainables.schema import FAILED, FINISHED
from trainables.storage import documents
from trainables.storage.starts import starts
from trainables.storage.store import Store

SAID = set(load.TAGS.values())
ORIGINS = (schema.TAG_PARENTS, schema.TAG_DENSE_KEY, schema.TAG_LTH_KEY)
"""Tags of a run that name jobs from whose results it descends, or whose results it is compared with."""
KEPT = {*SAID, schema.TAG_KEY, schema.TAG_PLACE, schema.TAG_ASKED, schema.TAG_REUSED, folder.ESTIMATE}
"""Tags of a run that a record keeps, besides those of recipes: the ones that the analysis reads."""
CURVES = (schema.INTERPOLATION_ACCURACY, schema.INTERPOLATION_LOSS)
SUFFIXES = (".csv", ".tex", ".svg")
"""Kinds of files that a record has of each figure and table."""
PLACES = {"--storage": "DIR", "--data-dir": "DIR", "--tracking-uri": "URI", "--address": "ADDR"}
"""Options that say where a study ran -> what a record says in place of their value."""


def add(space: str, tracking_uri: str, store: Store | None, out: Path) -> None:
    """Add the finished and failed runs of a study to a record.

    A run takes the place of the run of the same job, unless that one has finished and the new one has not.

    Args:
        space: name of the search space.
        tracking_uri: where the study recorded its runs; may be the record itself.
        store: has the starts of the study; None if they are out of reach.
        out: folder of the record; created if missing.

    Raises:
        AnalysisError: the runs or the record cannot be read, the record holds runs of another recipe or runs that
            descend from other results of the same jobs, or no job has finished or failed yet.
        StorageError: the starts cannot be read.
    """
    reader = source(tracking_uri)
    experiment = reader.experiment(space)
    found = reader.records(experiment)
    frame = load.frame_of(experiment, found, tracking_uri)  # chooses one of several runs of a job
    ended = frame[frame["status"].isin([FINISHED, FAILED]) & frame["key"].str.fullmatch(documents.KEY_FORM)]
    chosen = set(ended["run_id"])
    runs = {run["run_id"]: run for run in (_run(each) for each in found if each.run_id in chosen)}
    own = {key: run for key, run in runs.items() if run["status"] == FINISHED}
    curves = _curves(reader, ended)
    study: documents.Document = {
        "space": space,
        "question": frame.attrs["question"],
        "recipe": experiment.tags.get(schema.TAG_RECIPE, ""),
        "settings": load.fixed_settings(frame),
        "starts": [],
    }
    if (out / folder.RUNS).exists():
        old_runs, old_curves, old_study = _old(out)
        _check_recipe(out, old_study, study)
        _check_origin(out, old_runs, runs)
        for key, old in old_runs.items():
            new = runs.setdefault(key, old)
            if old["status"] == FINISHED != new["status"]:
                runs[key] = old
            elif folder.ESTIMATE in old["tags"]:
                new["tags"][folder.ESTIMATE] = old["tags"][folder.ESTIMATE]
        curves, study["starts"] = old_curves | curves, old_study["starts"]
    if not runs:
        raise AnalysisError(f"no job of {space} has finished or failed yet")
    if store is not None:
        _add_starts(starts(store, space), study, runs, own)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_runs(out, runs.values())
    folder.write_curves(out, curves)
    folder.write_study(out, study)


@memo.remembered()
def draw(space: str, out: Path) -> list[Path]:
    """Write the tables, figures and README.md of a record from its own files, and return all files, README.md first.

    Raises:
        AnalysisError: the record cannot be read.
    """
    frame = load.runs(space, str(out))
    written = write.write_parts(frame, space, str(out), out, SUFFIXES).written
    page = out / readme.PAGE
    page.write_text(readme.page(frame, out, written), encoding="utf-8")
    return [page, *(out / name for name in (folder.RUNS, folder.CURVES, folder.STUDY)), *written]


def _run(found: Record) -> Run:
    """Return a run as a record keeps it: safe to print, and without what says where it was computed."""
    texts = {name: load.printed(text) for name, text in found.tags.items()}
    return {
        "run_id": found.tags.get(schema.TAG_KEY, ""),
        "name": load.printed(found.name),
        "status": found.status,
        "started": found.started,
        "ended": found.ended,
        "params": {name: load.printed(text) for name, text in found.params.items()},
        "metrics": {name: value for name, value in found.metrics.items() if not name.startswith("system/")},
        "tags": {
            name: redact_text(text) if name in SAID else text
            for name, text in texts.items()
            if name in KEPT or name.startswith(f"{schema.TAG_RECIPE}.")
        },
    }


def _curves(reader: Source, frame: pd.DataFrame) -> Curves:
    """Return the interpolation curves of the finished runs."""
    done = frame[(frame[schema.PARAM_STAGE] == schema.CONNECT) & (frame["status"] == FINISHED)]
    keys = dict(zip(done["run_id"], done["key"], strict=True))
    return {
        (keys[run_id], metric): {step: value for step, _, value in sorted(points)}
        for metric in CURVES
        for run_id, points in reader.histories(list(keys), metric).items()
        if points
    }


def _old(out: Path) -> tuple[dict[str, Run], Curves, documents.Document]:
    try:
        return {run["run_id"]: run for run in folder.read_runs(out)}, folder.read_curves(out), folder.read_study(out)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"the record {out} cannot be read: {error}") from error


def _check_recipe(out: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise AnalysisError if a record is of another study, or of another recipe of the same study."""
    if old["space"] != new["space"]:
        raise AnalysisError(f"{out} is the record of {old['space']}, not of {new['space']}: choose another --out")
    if old["recipe"] != new["recipe"]:
        changes = [
            f"{name} {old['settings'].get(name)} there and {new['settings'].get(name)} here"
            for name in sorted({*old["settings"], *new["settings"]})
            if old["settings"].get(name) != new["settings"].get(name)
        ]
        what = ", ".join(changes) or "other settings vary"
        raise AnalysisError(f"{out} holds runs of another recipe ({what}): choose another --out")


def _check_origin(out: Path, old: Mapping[str, Run], new: Mapping[str, Run]) -> None:
    """Raise AnalysisError if runs that stay in a record descend from results that others are to take the place of.

    A machine with other rounding gives the same job another result. Nets of one pair would then no longer be of one
    pair, though nothing in the record would say so.
    """
    changed = {key for key, run in new.items() if key in old and _differ(old[key], run)}
    replaced = {key for key, run in new.items() if run["status"] == FINISHED}
    stay = {key: run for key, run in old.items() if key not in replaced and run["status"] == FINISHED}
    while True:  # a net of which only a state is a parent names its job under another tag
        more = {key for key, run in stay.items() if key not in changed and not changed.isdisjoint(_origins(run))}
        if not more:
            break
        changed |= more
    if stale := sorted(stay[key]["name"] for key in changed & stay.keys()):
        runs = labels.plural(len(stale), "run")
        raise AnalysisError(
            f"{runs} of {out} would descend from results that this study has computed again, with other numbers: "
            f"{labels.listed(stale)}; let the study compute these, too, or choose another --out"
        )


def _origins(run: Run) -> set[str]:
    """Return the keys of the jobs that a run is said to descend from."""
    return {key for tag in ORIGINS for key in run["tags"].get(tag, "").split(",") if key}


def _differ(old: Run, new: Run) -> bool:
    """Return whether two finished runs of a job have different results; times are none."""
    if not old["status"] == new["status"] == FINISHED:
        return False
    names = (old["metrics"].keys() & new["metrics"].keys()) - {*schema.OF_THE_MACHINE, *schema.GAPS}
    return any(repr(old["metrics"][name]) != repr(new["metrics"][name]) for name in names)


def _add_starts(
    found: Mapping[str, documents.Document], study: dict[str, Any], runs: Mapping[str, Run], own: Mapping[str, Run]
) -> None:
    """Add the starts in a storage to a record: how long each ran, and the estimate of its new jobs that have finished.

    A job counts if it is among the storage's own finished ones, `own`; the others have been computed elsewhere.

    Starts of other recipes are left out. A start that does not name its recipe counts if it had a job of the record to
    run. A job that was interrupted is in several starts; the estimate of the first one counts, and the result belongs
    to the last one. A start that was killed has ended with its last result.
    """

    def belongs(start: documents.Document) -> bool:
        if study["recipe"] and "recipe" in start:
            return bool(start["recipe"] == study["recipe"])
        return not runs.keys().isdisjoint(start["jobs"])

    found = {name: start for name, start in found.items() if belongs(start)}
    estimates: dict[str, float] = {}
    added = {}
    for name, start in found.items():
        new = start["jobs"].keys() - estimates.keys()
        counted = new & own.keys()
        total = sum(start["jobs"].values())
        share = sum(start["jobs"][key] for key in counted) / total if total else 0.0
        estimates |= {key: start["jobs"][key] for key in new}
        added[name] = {
            "id": name,
            "command": _without_places(start["command"]),
            "started": start["started"],
            "ended": start.get("ended"),
            "jobs": len(start["jobs"]),
            "new_jobs": len(counted),
            "estimated_seconds": round(share * start["seconds"], 1),
        }
    last = {key: name for name, start in found.items() for key in start["jobs"]}
    results: dict[str, int] = {name: start["started"] for name, start in found.items()}
    for key, run in runs.items():
        if key in estimates and key in own:
            run["tags"].setdefault(folder.ESTIMATE, repr(round(estimates[key], 3)))
            results[last[key]] = max(results[last[key]], run["ended"] or 0)
    for name, start in added.items():
        start["end_noted"] = start["ended"] is not None
        start["ended"] = folder.time_text(start["ended"] or results[name])
        start["started"] = folder.time_text(start["started"])
    for start in study["starts"]:  # another place may have recorded the runs of an earlier start
        if start["new_jobs"] > added.get(start["id"], {}).get("new_jobs", -1):
            added[start["id"]] = start
    study["starts"] = sorted(added.values(), key=lambda start: start["started"])


def _without_places(command: str) -> str:
    """Return a command line without paths and addresses of the machine that it ran on."""
    words = shlex.split(command)
    for place, word in enumerate(words):
        option, equals, _ = word.partition("=")
        if option in PLACES and equals:
            words[place] = f"{option}={PLACES[option]}"
        elif option in PLACES and place + 1 < len(words):
            words[place + 1] = PLACES[option]
    return shlex.join(words)
