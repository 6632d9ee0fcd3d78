"""Records of studies: runs added by job key, figures from the record alone, time beside estimates, pages that trace."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import synthetic_runs as synthetic
from checkout import ROOT

from analysis import load, sources, stats, write
from analysis.drawing import files
from analysis.drawing.signs import MINUS, TIMES
from analysis.figures import accuracy_table
from analysis.figures.table import FIGURES
from analysis.page import how
from analysis.paper import numbers
from analysis.record import __main__ as command
from analysis.record import folder, readme, update
from trainables import schema
from trainables.storage.store import Store

FIRST, SECOND, _ = synthetic.PAIRS
SPACE = "two_pairs"
SETTINGS = {"epochs": 20, "lr": 0.08}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A study of two pairs in one cell, with a failure and a run that has not ended."""
    outputs = synthetic.with_tables(tmp_path_factory.mktemp("study"))
    recorder = synthetic.Recorder(outputs, SPACE)
    for pair in (FIRST, SECOND):
        for seed in pair:
            recorder.dense(1.0, seed)
        for method in ("lth", "naive", "permuted", "shuffled"):
            recorder.sparse(method, 1.0, 0.9, 10, pair)
        for matcher in ("identity", "activation"):
            recorder.connect(1.0, pair, matcher)
    failure = {schema.TAG_ERROR: "=1+1\r\nis <NaN>"}
    for seed, status in ((FIRST[0], "FAILED"), (SECOND[0], "RUNNING")):
        place = {"stage": schema.PRUNE, "method": "imp", "width": 1.0, "sparsity": 0.5, "seed_a": seed}
        recorder.run({}, status=status, tags=failure, **place)
    tags = {schema.NOTE: "Does it add up?\n\nMore.", schema.TAG_SETTINGS: json.dumps(SETTINGS)}
    for name, value in tags.items():
        recorder.client.set_experiment_tag(recorder.experiment_id, name, value)
    return synthetic.tracking_uri(outputs)


@pytest.fixture(scope="module")
def record(uri, tmp_path_factory):
    """The record of that study, to be read only. It is a source of runs, too, that needs no database."""
    out = tmp_path_factory.mktemp("records") / SPACE
    update.add(SPACE, uri, None, out)
    return out


@pytest.fixture
def study(record, tmp_path):
    """Return a function that makes a study of some runs of the record, each changed, and returns where to read it."""

    def made(chosen, change=lambda run: run, **changes):
        out = tmp_path / f"study{len(list(tmp_path.iterdir()))}"
        shutil.copytree(record, out)
        folder.write_runs(out, [change(run) for run in folder.read_runs(record) if chosen(run)])
        folder.write_study(out, folder.read_study(record) | changes)
        return str(out)

    return made


def of_pair(pair):
    return lambda run: int(run["params"]["seed_a"]) in pair


def outputs_of(uri):
    return Path(uri.removeprefix("sqlite:///")).parent


def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


# --- rows -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("read", [load.runs, load.curves])
def test_a_record_holds_the_frame_of_the_study(uri, record, read):
    order = ["key", "alpha"] if read is load.curves else ["key"]
    original = read(SPACE, uri)
    original = original[original["status"] != "RUNNING"]
    kept, original = (
        frame.drop(columns="run_id").sort_values(order, ignore_index=True)
        for frame in (read(SPACE, str(record)), original)
    )
    assert len(kept) > 10
    pd.testing.assert_frame_equal(kept, original)
    assert {**kept.attrs, "experiment": ""} == {**original.attrs, "experiment": ""}
    assert read is load.curves or (kept.attrs["question"], how.settings(kept)["lr"]) == ("Does it add up?", "0.08")


def test_what_a_run_holds_survives_a_file(tmp_path):
    texts = ("=1+1", "-1", "+x", "@a", "'quoted", "' =2", 'a,b\n"c"\r\nd', "µ → π", "1e5", "\t=3")
    metrics = {"far": -math.inf, "none": math.nan, "plane_error/a.b": 0.1 + 0.2, "tiny": 5e-324, "whole": 3.0}
    runs = [
        {
            "run_id": str(number),
            "name": text,
            "status": "FINISHED",
            "started": 1_700_000_000_123 + number,
            "ended": None if number % 2 else 1_800_000_000_001,
            "params": {"text": text},
            "metrics": metrics,
            "tags": {"error": text, schema.TAG_KEY: str(number)},
        }
        for number, text in enumerate(texts)
    ]
    folder.write_runs(tmp_path, reversed(runs))
    assert list(map(repr, map(sorted, map(dict.items, folder.read_runs(tmp_path))))) == [
        repr(sorted(run.items())) for run in runs
    ]
    cells = re.split(r"[,\n]", (tmp_path / folder.RUNS).read_text(encoding="utf-8"))
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))], "a spreadsheet would evaluate these"


def test_pairs_of_nets_add_up_on_whichever_machine_they_ran(study, record, tmp_path):
    out = tmp_path / "record"
    update.add(SPACE, study(of_pair(FIRST)), None, out)
    before = content(out)
    update.add(SPACE, study(of_pair(FIRST)), None, out)
    assert content(out) == before, "nothing is new"
    update.add(SPACE, study(of_pair(SECOND)), None, out)
    old, new = (set(files[folder.RUNS].decode().split("\n")) for files in (before, content(out)))
    assert old - new <= {before[folder.RUNS].decode().split("\n")[0]}, "lines of the first pair stay as they are"
    assert content(out)[folder.RUNS] == content(record)[folder.RUNS], "in whichever order they came"
    assert load.curves(SPACE, str(out))["key"].nunique() == 4
    assert accuracy_table.table(load.runs(SPACE, str(out)))["pairs"].tolist() == [2]


def test_a_result_takes_the_place_of_an_earlier_one_but_no_failure_does(study, tmp_path):
    out = tmp_path / "record"
    for status, accuracy, expected in (
        ("RUNNING", 10.0, None),
        ("FAILED", 20.0, ("FAILED", 20.0)),
        ("FINISHED", 30.0, ("FINISHED", 30.0)),
        ("FAILED", 40.0, ("FINISHED", 30.0)),
        ("FINISHED", 50.0, ("FINISHED", 50.0)),
    ):

        def outcome(run, status=status, accuracy=accuracy):
            if run["params"].get("method") != "naive":
                return run
            return {**run, "status": status, "metrics": {schema.TEST_ACCURACY: accuracy}}

        update.add(SPACE, study(of_pair(FIRST), outcome), None, out)
        frame = load.runs(SPACE, str(out))
        naive = frame[frame["method"] == "naive"]
        assert list(zip(naive["status"], naive["test_accuracy"], strict=True)) == ([expected] if expected else [])


def test_a_net_is_not_left_with_another_origin(study, tmp_path):
    """A lost storage is computed again in part, on a machine with other rounding."""
    out = tmp_path / "record"
    update.add(SPACE, study(of_pair(FIRST)), None, out)
    named = {run["name"].split()[0]: run["run_id"] for run in folder.read_runs(out)}
    descent = {
        "naive": {schema.TAG_DENSE_KEY: named["dense"]},
        "permuted": {schema.TAG_PARENTS: f"{'0' * 64},{named['naive']}"},
    }

    def descended(run, change=0.0):
        metrics = {name: value + change for name, value in run["metrics"].items()} | {schema.SECONDS: 1.0 + change}
        return {**run, "metrics": metrics, "tags": run["tags"] | descent.get(run["name"].split()[0], {})}

    def again(*names, failed=""):
        keys = {named[name] for name in names}

        def once_more(run):
            return descended(run, 0.01) | ({"status": "FAILED"} if run["name"].startswith(failed or "no run") else {})

        return study(lambda run: run["run_id"] in keys, once_more)

    update.add(SPACE, study(of_pair(FIRST), descended), None, out)
    before = content(out)
    refused = r"2 runs of .* would descend from .*: naive .*, permuted .*; let the study compute these, too"
    with pytest.raises(sources.AnalysisError, match=refused):
        update.add(SPACE, again("dense"), None, out)
    with pytest.raises(sources.AnalysisError, match=r"1 run of .* would descend from .*: permuted "):
        update.add(SPACE, again("dense", "naive"), None, out)
    with pytest.raises(sources.AnalysisError, match=r"1 run of .* would descend from .*: permuted "):
        update.add(SPACE, again("dense", "naive", "permuted", failed="permuted"), None, out)
    assert content(out) == before
    update.add(SPACE, again("permuted"), None, out)
    update.add(SPACE, again("dense", "naive", "permuted"), None, out)
    assert content(out) != before


@pytest.mark.parametrize("status", ["KILLED", "RUNNING"])
def test_a_duplicate_does_not_take_the_place_of_a_finished_run(uri, tmp_path, status):
    recorder = synthetic.Recorder(outputs_of(uri), f"twice_{status}")
    recorder.sparse("naive", 1.0, 0.9, 10, FIRST)
    recorder.sparse("naive", 1.0, 0.9, 10, FIRST, status=status)
    update.add(f"twice_{status}", uri, None, tmp_path / "record")
    assert [run["status"] for run in folder.read_runs(tmp_path / "record")] == ["FINISHED"]


def test_a_record_is_drawn_from_its_own_files(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "FIGURES", {name: FIGURES[name] for name in ("rewind", "landscape")})
    out = tmp_path / "records" / SPACE
    assert command.main(["--space", SPACE, "--tracking-uri", study(of_pair(FIRST))]) == 0
    written = capsys.readouterr().out.split()
    whole = content(out)
    assert {path.split("/")[-1] for path in written} == whole.keys()
    assert whole.keys() == {
        *(folder.RUNS, folder.CURVES, folder.STUDY, "README.md"),
        *("accuracy.csv", "accuracy.tex", "rewind.csv", "rewind.svg"),
    }
    for name in whole.keys() - {folder.RUNS, folder.CURVES, folder.STUDY}:
        (out / name).unlink()
    assert command.main(["--space", SPACE, "--tracking-uri", str(out)]) == 0
    assert content(out) == whole


@pytest.mark.parametrize("place", ["records", "my records", "elsewhere"])
def test_a_record_says_how_it_is_drawn_again(place, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = (tmp_path if place != "elsewhere" else record.parent) / place / SPACE
    shutil.copytree(record, out)
    text = readme.page(load.runs(SPACE, str(out)), out, [])
    said = re.search(r"`python -m analysis\.record (.*)` writes this folder again", text)[1]
    monkeypatch.setattr(write, "FIGURES", {})
    assert command.main(shlex.split(said)) == 0
    assert (out / "README.md").exists()
    assert (
        said
        == {
            "records": f"--space {SPACE} --tracking-uri records/{SPACE}",
            "my records": f"--space {SPACE} --tracking-uri 'my records/{SPACE}' --out 'my records/{SPACE}'",
            "elsewhere": f"--space {SPACE} --tracking-uri {out} --out {out}",
        }[place]
    )


def test_runs_of_another_recipe_or_study_are_refused(study, tmp_path):
    out = tmp_path / "record"
    update.add(SPACE, study(of_pair(FIRST)), None, out)
    before = content(out)

    def again(run):
        return {**run, "tags": {**run["tags"], "recipe.ab": '{"varied": {}}'}}

    with pytest.raises(sources.AnalysisError, match=r"another recipe \(lr 0\.08 there and 0\.1 here\): choose another"):
        update.add(SPACE, study(of_pair(FIRST), again, recipe="ab", settings={**SETTINGS, "lr": 0.1}), None, out)
    with pytest.raises(sources.AnalysisError, match=f"is the record of {SPACE}, not of other"):
        update.add("other", study(of_pair(FIRST), space="other"), None, out)
    with pytest.raises(sources.AnalysisError, match=f"no experiment 'two_pears' in .*did you mean '{SPACE}'"):
        load.runs("two_pears", str(out))
    assert content(out) == before


def test_a_record_of_jobs_that_have_not_ended_is_refused_before_there_is_a_folder(study, tmp_path, capsys):
    out = tmp_path / "record"
    source = study(of_pair(FIRST), lambda run: {**run, "status": "RUNNING"})
    assert command.main(["--space", SPACE, "--tracking-uri", source, "--out", str(out)]) == 2
    assert f"no job of {SPACE} has finished or failed yet" in capsys.readouterr().err
    assert not out.exists()


def test_runs_whose_key_is_no_key_are_left_out(uri, tmp_path):
    recorder = synthetic.Recorder(outputs_of(uri), "forged")
    recorder.connect(1.0, FIRST, "identity", tags={schema.TAG_KEY: "=1+1"})
    key = recorder.connect(1.0, SECOND, "identity")
    update.add("forged", uri, None, tmp_path)
    assert [run["run_id"] for run in folder.read_runs(tmp_path)] == [key]
    assert {of_run for of_run, _ in folder.read_curves(tmp_path)} == {key}


@pytest.mark.parametrize("name", [folder.RUNS, folder.CURVES, folder.STUDY])
@pytest.mark.parametrize("damaged", ["", "key\nab", "{}", "\x00", 'key,"a'])
def test_a_damaged_record_is_named(study, name, damaged, capsys):
    out = Path(study(of_pair(FIRST)))
    (out / name).write_text(damaged, encoding="utf-8")
    assert command.main(["--space", SPACE, "--tracking-uri", study(of_pair(FIRST)), "--out", str(out)]) == 2
    assert f"the record {out} cannot be read: " in capsys.readouterr().err
    assert (out / name).read_text(encoding="utf-8") == damaged, "nothing is overwritten"


# --- time -------------------------------------------------------------------------------------------------------------
def note_start(store, name, *, jobs, started, ended=None, seconds, space=SPACE, **more):
    """Keep a document of a start; times in hours."""
    document = {"space": space, "command": f"python -m study.run --space {space} --storage=/home/me/x --set seeds=0"}
    document |= {"started": round(3_600_000 * started), "seconds": 3600.0 * seconds}
    document |= {"jobs": {key: 3600.0 * each for key, each in jobs.items()}}
    document |= more | ({"ended": round(3_600_000 * ended)} if ended is not None else {})
    store.storage.write(f"starts/{name * 12}.json", json.dumps(document).encode())


def test_time_taken_stands_beside_the_first_estimate_of_each_job(study, record, tmp_path):
    out, store = tmp_path / "record", Store(tmp_path / "outputs")
    first, second, third, *_ = [run["run_id"] for run in folder.read_runs(record) if of_pair(FIRST)(run)]
    # A start was killed after its first result, the next one finished; then a new job came beside an old one. A job of
    # the first start has no result yet.
    note_start(store, "a", jobs={first: 1.0, second: 1.0, "f" * 64: 8.0}, started=10, seconds=7.5)
    note_start(store, "b", jobs={second: 9.0}, started=20, ended=21, seconds=9.0)
    note_start(store, "c", jobs={second: 3.0, third: 1.0}, started=30, ended=31.5, seconds=2.0)
    note_start(store, "d", jobs={first: 1.0}, started=40, ended=50, seconds=99.0, space="another")
    ends = {first: 12, second: 21, third: 31}

    def at(run):
        hours = ends.get(run["run_id"], 0)
        return {**run, "ended": 3_600_000 * hours, "metrics": {schema.SECONDS: 3600.0}}

    source = study(lambda run: run["run_id"] in ends, at)
    update.add(SPACE, source, store, out)
    starts = folder.read_study(out)["starts"]
    assert [(each["id"][0], each["new_jobs"], each["estimated_seconds"] / 3600) for each in starts] == [
        ("a", 2, 1.5),
        ("b", 0, 0.0),
        ("c", 1, 0.5),
    ]
    assert {each["command"] for each in starts} == {f"python -m study.run --space {SPACE} --storage=DIR --set seeds=0"}
    text = readme.page(load.runs(SPACE, str(out)), out, [])
    assert "- Time of the finished jobs: 3 h 0 min (1.00 times the estimate of 3 h 0 min)\n" in text
    wall_clock = "- Wall-clock time: 4 h 30 min (2.25 times the estimate of 2 h 0 min), in 3 starts, 1 of which counts"
    assert wall_clock in text
    (whole,) = {(out / folder.STUDY).read_bytes()}
    update.add(SPACE, source, Store(tmp_path / "lost"), out)
    assert (out / folder.STUDY).read_bytes() == whole, "starts of a storage that is gone stay in the record"
    assert "(1.00 times the estimate of 3 h 0 min)" in readme.page(load.runs(SPACE, str(out)), out, [])


def test_a_result_of_another_storage_neither_ends_nor_counts_for_a_start(study, record, tmp_path):
    out = tmp_path / "record"
    first, second, *_ = [run["run_id"] for run in folder.read_runs(record) if of_pair(FIRST)(run)]

    def ended(hours):
        return lambda run: {**run, "ended": 3_600_000 * hours, "metrics": {schema.SECONDS: 3600.0}}

    killed, later = Store(tmp_path / "killed"), Store(tmp_path / "later")
    note_start(killed, "a", jobs={first: 1.0, second: 1.0}, started=10, seconds=2.0)
    note_start(later, "b", jobs={second: 1.0}, started=30, ended=32, seconds=1.0)
    lost = study(lambda run: run["run_id"] == first, ended(12))
    update.add(SPACE, lost, killed, out)
    update.add(SPACE, study(lambda run: run["run_id"] == second, ended(31)), later, out)
    before = folder.read_study(out)["starts"]
    assert [(each["ended"][11:16], each["new_jobs"]) for each in before] == [("12:00", 1), ("08:00", 1)]
    update.add(SPACE, lost, killed, out)
    assert folder.read_study(out)["starts"] == before


def test_starts_of_other_recipes_are_left_out(study, record, tmp_path):
    out, store = tmp_path / "record", Store(tmp_path / "outputs")
    first, *_ = [run["run_id"] for run in folder.read_runs(record) if of_pair(FIRST)(run)]
    when = {"started": 10, "ended": 11, "seconds": 1.0}
    note_start(store, "a", jobs={first: 1.0}, **when)
    note_start(store, "b", jobs={"f" * 64: 1.0}, **when)
    note_start(store, "c", jobs={first: 1.0}, **when, recipe="0ld")
    note_start(store, "d", jobs={"f" * 64: 1.0}, **when, recipe="ab")

    def tagged(run):
        return {**run, "tags": {**run["tags"], f"{schema.TAG_RECIPE}.ab": '{"varied": {}}'}}

    update.add(SPACE, study(of_pair(FIRST), tagged, recipe="ab"), store, out)
    assert sorted(each["id"][0] for each in folder.read_study(out)["starts"]) == ["a", "d"]


# --- pages ------------------------------------------------------------------------------------------------------------
def untraced(text, root):
    """Return the decimal numbers in sections of a page with tables of results that no record of theirs has."""
    found = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        if names := [match["record"] for match in readme.SECTION.finditer(section)]:
            known = "".join((root / name / readme.PAGE).read_text(encoding="utf-8") for name in names)
            decimals = re.compile(r"\d+\.\d+")
            found += sorted(set(decimals.findall(section)) - set(decimals.findall(known)))
    return found


def test_the_readme_shows_the_results_of_its_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.refreshed(text, ROOT) == text, "run `python -m analysis.record` with `--readme README.md`"
    assert untraced(text, ROOT) == []


def committed():
    """Return the records in the repository."""
    return sorted(path.parent for path in (ROOT / folder.RECORDS).glob(f"*/{folder.STUDY}"))


@pytest.mark.parametrize("record", committed(), ids=lambda path: path.name)
def test_a_committed_record_says_what_its_runs_say(record, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    space = folder.read_study(record)["space"]
    page = readme.page(load.runs(space, str(record)), record, record.iterdir())
    assert page == (record / readme.PAGE).read_text(encoding="utf-8"), readme._drawn_by(space, record)
    for name, module in {write.ACCURACY: accuracy_table, **FIGURES}.items():
        if (kept := record / f"{name}.csv").exists():
            files.write_tables(module, name, write.loader(module)(space, str(record)), tmp_path)
            pd.testing.assert_frame_equal(pd.read_csv(tmp_path / kept.name), pd.read_csv(kept), rtol=1e-6, atol=1e-9)


def test_a_record_whose_folder_has_another_name_shows_its_results(study, tmp_path):
    root = Path(study(of_pair(FIRST))).parent
    (own,) = (path.name for path in root.iterdir())
    assert own != SPACE
    page = readme.refreshed(f"<!-- results: {own} -->\n<!-- results end -->\n", root)
    assert "Permuted" in page


def test_results_that_some_methods_lack_are_named(study):
    source = study(lambda run: not (run["params"].get("method") == "shuffled" and of_pair(SECOND)(run)))
    page = readme.page(load.runs(SPACE, source), Path(source), [])
    assert "Still missing: Shuffled (1 of 2 nets)." in page


@pytest.mark.parametrize(
    ("width", "theirs"), [(0.5, 1.0), (1.0, 1.0), (2.1, 4.0), (3.0, 4.0), (100.0, 16.0), (0.0, None)]
)
def test_the_gain_of_the_paper_at_its_nearest_width_stands_beside_ours(record, width, theirs):
    frame = load.runs(SPACE, str(record))
    table = "\n".join(readme.results(frame.assign(width=width)))
    found = numbers.numbers().set_index(["model", "dataset", "width", "sparsity", "rewind_epoch", "method", "measure"])
    means = found.loc[found["match_epoch"].isna(), "mean"]
    if theirs is None:
        assert "paper" not in table.lower()
        return
    cell = ("resnet20", "cifar10", theirs, 0.9, 10)
    gain = means[(*cell, "permuted", schema.TEST_ACCURACY)] - means[(*cell, "naive", schema.TEST_ACCURACY)]
    own = width == theirs
    assert f"(2)<br>paper{'' if own else f' at {TIMES}{theirs:g}:'} {stats.format_difference(gain)} |" in table
    assert table.count("<br>paper") == (5 if own else 1), "accuracies of another width are not comparable"


def test_a_page_that_differs_from_its_record_is_found_and_written_again(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "FIGURES", {})
    page = tmp_path / "page.md"
    page.write_text(
        f"## Results\nIt gains 1.05 or 7.77 points.\n<!-- results: records/{SPACE} -->\nold\n<!-- results end -->\n"
        "## More\n1.23\n",
        encoding="utf-8",
    )
    assert command.main(["--space", SPACE, "--tracking-uri", study(lambda _: True), "--readme", "page.md"]) == 0
    text = page.read_text(encoding="utf-8")
    assert readme.refreshed(text, tmp_path) == text
    head, _, line = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    assert dict(zip(head, line, strict=True)) == {
        "width": f"{TIMES}1",
        "sparsity": "90 %",
        "rewind epoch": "10",
        "Dense": "94.08 ± 0.26 (4)<br>paper 92.88",
        "LTH": "91.10 ± 2.54 (2)<br>paper 91.34",
        "Permuted": "89.15 ± 0.64 (2)<br>paper 89.56",
        "Naive": "88.10 ± 2.54 (2)<br>paper 88.77",
        "Shuffled": "88.00 ± 2.54 (2)",
        accuracy_table.GAIN: f"+1.05 [{MINUS}0.86, +2.96] (2)<br>paper +0.79",
    }
    assert readme.refreshed(text.replace("89.15", "89.16"), tmp_path) == text
    assert untraced(text, tmp_path) == ["7.77"]
