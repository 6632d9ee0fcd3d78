import os

from checkout import ROOT

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import contextlib
import html
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_effects
import synthetic_runs as synthetic
from matplotlib.colors import to_hex
from mlflow import MlflowClient
from scipy import stats as scipy_stats

from analysis import cells, command, load, memo, report, summary, write
from analysis.drawing import files, hover, media, style
from analysis.drawing.signs import DASH
from analysis.figures import __main__ as figures_command
from analysis.figures import accuracy_table, interpolation, landscape, learning, rewind, sparsity, width
from analysis.figures.table import FIGURES, loader
from analysis.page import STYLE, coverage, headline, how
from trainables import schema
from trainables.methods import METHODS

COLOUR = re.compile(r"--(\w+): #([0-9a-f]{6}|[0-9a-f]{3});")
SEEDS = [pair[0] for pair in synthetic.PAIRS]
MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all tests: to make the tables of a new one takes seconds."""
    place = tmp_path_factory.mktemp("study")
    synthetic.write_study(place, "full", methods=("lth", "naive", "permuted", "shuffled"))
    synthetic.write_partial(place, "partial")
    return place


@pytest.fixture(scope="module")
def uri(folder):
    return synthetic.tracking_uri(folder)


@pytest.fixture(scope="module")
def frame(uri):
    return load.runs("full", uri)


@pytest.fixture(scope="module")
def partial(uri):
    return load.runs("partial", uri)


@pytest.fixture(scope="module")
def curves(uri):
    return load.curves("full", uri)


@pytest.fixture(scope="module")
def sources(uri):
    """What each way to load returns of the full study."""
    return {each: each("full", uri) for each in {loader(module) for module in FIGURES.values()}}


@pytest.fixture(scope="module")
def drawn(sources):
    """Names of the figures for which the full study has numbers."""
    return [name for name, module in FIGURES.items() if len(module.table(sources[loader(module)]))]


@pytest.fixture(scope="module")
def commanded(folder):
    """Exit code and output of the command that writes the report of the partial study."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = report.main(["--space", "partial", "--storage", str(folder)])
    return code, out.getvalue()


@pytest.fixture(scope="module")
def written(folder, uri, commanded):
    full = write.write_report("full", uri, folder / "report" / "full")
    return {"full": full, "partial": Path(commanded[1].strip())}


@pytest.fixture(scope="module")
def pages(written):
    return {space: path.read_text(encoding="utf-8") for space, path in written.items()}


def values(method, *cell):
    return [synthetic.accuracy(method, *cell, seed) for seed in SEEDS]


# --- numbers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", list(itertools.product(synthetic.WIDTHS, synthetic.SPARSITIES, synthetic.REWINDS)))
def test_every_cell_of_the_table(frame, cell):
    table = accuracy_table.table(frame).set_index(["width", "sparsity", "rewind_epoch"])
    line = table.loc[cell]
    for method in ("lth", "naive", "permuted", "shuffled", "imp"):
        expected = values(method, *cell)
        assert line[f"{method}_n"] == 3
        assert line[f"{method}_mean"] == pytest.approx(np.mean(expected))
        assert line[f"{method}_std"] == pytest.approx(np.std(expected, ddof=1))
    dense = [synthetic.accuracy("dense", cell[0], 0, 0, seed) for pair in synthetic.PAIRS for seed in pair]
    assert (line["dense_n"], line["dense_mean"]) == (6, pytest.approx(np.mean(dense)))
    theirs = scipy_stats.ttest_rel(values("permuted", *cell), values("naive", *cell))
    assert (line["ci_low"], line["ci_high"]) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert (line["pairs"], line["p"]) == (3, pytest.approx(theirs.pvalue))
    assert line["p_holm"] == pytest.approx(min(1, 8 * theirs.pvalue))  # all eight cells have the same p
    gain = np.mean([synthetic.PERMUTED_GAIN[seed] for seed in SEEDS]) * (1 if cell[2] else 0.1)
    lead = 3.0 / cell[0]
    assert line["permuted_minus_naive"] == pytest.approx(gain)
    assert line["share_closed"] == pytest.approx(gain / lead)


def test_pruning_rounds_on_the_way_are_no_result(frame):
    assert (frame["stage"] == "prune").sum() == 18  # a third of them at 20 %, which no sparse net has
    assert set(accuracy_table.table(frame)["sparsity"]) == set(synthetic.SPARSITIES)


def test_the_table_as_people_read_it(frame):
    main, controls = accuracy_table.formatted(frame), accuracy_table.controls(frame)
    assert main.columns[:7].tolist() == ["width", "sparsity", "rewind epoch", "Dense", "LTH", "Permuted", "Naive"]
    line = main[(main["width"] == "\N{MULTIPLICATION SIGN}1") & (main["sparsity"] == "95 %")].iloc[1]
    assert (line["rewind epoch"], line["LTH"], line["Naive"]) == ("10", "90.00 ± 0.26 (3)", "87.00 ± 0.26 (3)")
    assert line[f"Permuted {MINUS} naive {accuracy_table.INTERVAL}"] == "+0.90 [+0.15, +1.65] (3)"
    assert line["Gap closed"] == "30 %"
    assert controls[f"Permuted {MINUS} shuffled {accuracy_table.INTERVAL}"].iloc[1] == "+1.00 [+0.25, +1.75] (3)"
    imp = accuracy_table.imp(frame)
    assert imp.columns.tolist() == ["width", "sparsity", "IMP"]
    assert len(imp) == 4, "once for all rewind epochs"


def test_pruned_nets_that_depend_on_the_rewind_epoch_are_told_apart_by_it():
    lines = gaps((1.0, 0), (1.0, 10))
    for epoch, seed in itertools.product((0, 10), (0, 2)):
        place = {"sparsity": 0.9, "rewind_epoch": epoch, "seed_a": seed}
        lines.append({"stage": schema.PRUNE, "method": "imp", schema.TEST_ACCURACY: 70.0 + epoch, **place})
    imp = accuracy_table.imp(synthetic_effects.runs(lines))
    assert imp[["rewind epoch", "IMP"]].to_numpy().tolist() == [["0", "70.00 ± 0.00 (2)"], ["10", "80.00 ± 0.00 (2)"]]
    assert "which has no rewind epoch" not in sparsity.CAPTION


def test_unfinished_runs_do_not_count(partial):
    line = accuracy_table.table(partial).iloc[0]
    assert (line["lth_n"], line["naive_n"], line["permuted_n"], line["pairs"]) == (2, 1, 1, 1)
    assert np.isnan(line["naive_std"])
    assert np.isnan(line["ci_low"])
    assert accuracy_table.formatted(partial).iloc[0]["Naive"] == "87.30 (1)"


def test_recipes_are_told_apart_and_not_averaged(frame):
    other = frame.assign(lr="0.01", test_accuracy=frame["test_accuracy"] - 30, key=frame["key"] + "x")
    both = pd.concat([frame, other[other["stage"] == "sparse"]], ignore_index=True).assign(augment=True)
    both.attrs["varied"] = ["lr", "augment"]
    assert cells.varied(both) == ["lr"]
    table = accuracy_table.table(both)
    assert len(table) == 16
    assert set(table["naive_n"]) == {3}
    assert "lr = 0.01" in summary.short_table(both)


def test_the_page_names_every_setting_and_marks_those_that_are_no_defaults(frame):
    varied = frame.assign(epochs=[20, 30] * (len(frame) // 2) + [20] * (len(frame) % 2), augment=False)
    varied.attrs |= {
        "varied": ["epochs", "augment"],
        "settings": json.dumps({"lr": 0.2, "momentum": 0.9, "pruner": "<x>"}),
    }
    assert how.settings(varied) == {
        "lr": "0.2",
        "momentum": "0.9",
        "pruner": "<x>",
        "epochs": "20 and 30",
        "augment": "False",
    }
    section = how.section(varied, "full", "sqlite:///mlflow.db")
    assert all(
        f"<b>{said}</b>" in section for said in ("epochs 20 and 30", "lr 0.2", "augment False", "pruner &lt;x&gt;")
    )
    assert ">momentum 0.9</span>" in section
    varied.attrs["settings"] = "[damaged"
    assert how.settings(varied).keys() == {"epochs", "augment"}


def test_recipes_of_dense_nets_are_followed_by_key(frame):
    dense, sparse = frame[frame["stage"] == "dense"], frame[frame["stage"] == "sparse"].copy()
    nets = dense.set_index(["width", "seed_a"])["key"]
    own = sparse["seed_b"].fillna(sparse["seed_a"])
    sparse["dense_key"] = [nets[place] for place in zip(sparse["width"], own, strict=True)]
    better = dense.assign(lr="0.5", key=dense["key"] + "x", test_accuracy=99.0)
    again = sparse.assign(lr="0.5", key=sparse["key"] + "x", dense_key=sparse["dense_key"] + "x")
    both = pd.concat([dense, sparse, better, again], ignore_index=True)
    both.attrs["varied"] = ["lr"]
    table = accuracy_table.table(both)
    assert set(table.loc[table["lr"] == "0.5", "dense_mean"]) == {99.0}
    assert (table.loc[table["lr"] == "0.08", "dense_mean"] < 95).all()
    assert set(table["dense_n"]) == {6}


def test_matchers_are_rows_of_their_own(frame):
    permuted = frame[frame["method"] == "permuted"]
    more = permuted.assign(matcher="weight", key=permuted["key"] + "w", test_accuracy=50.0)
    more["matching"] = [{**how, "matcher": "weight"} for how in more["matching"]]
    table = accuracy_table.table(pd.concat([frame, more], ignore_index=True))
    assert set(table["permuted:weight_mean"]) == {50.0}
    assert set(table["permuted_n"]) == {3}
    assert (table["permuted_minus_naive"] > 0).all()


def test_runs_that_nothing_tells_apart_are_reported(frame):
    naive = frame[frame["method"] == "naive"]
    doubled = pd.concat([frame, naive.assign(key=naive["key"] + "2")], ignore_index=True)
    assert any("24 entries average several runs" in note for note in accuracy_table.notes(doubled))


def test_reinit_stands_beside_every_rewind_epoch(frame):
    fresh = frame[(frame["method"] == "naive") & (frame["rewind_epoch"] == 0)]
    fresh = fresh.assign(method="reinit", rewind_epoch=pd.NA).astype({"rewind_epoch": "Int64"})
    table = accuracy_table.table(pd.concat([frame, fresh], ignore_index=True))
    assert len(table) == 8
    assert set(table["reinit_n"]) == {3}


# --- sentences --------------------------------------------------------------------------------------------------
def test_headline_pools_over_pairs_and_not_over_cells(frame):
    per_pair = [synthetic.PERMUTED_GAIN[seed] * 0.55 for seed in SEEDS]  # half of the cells have a tenth of the gain
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(per_pair), scipy_stats.sem(per_pair))
    said = headline.headline(frame)
    numbers = re.search(r"permuting the mask gains (.*) points .* CI \[(.*), (.*)\]; 3 pairs of nets, 8 cells", said)
    assert [float(number) for number in numbers.groups()] == pytest.approx([np.mean(per_pair), low, high], abs=0.0051)
    assert "8 of 8 cells" in headline.details(frame)[-1]


@pytest.mark.parametrize(
    ("shift", "text"),
    [(0.052, "gains 0.55 points"), (-2.0, "loses"), (-0.495, "do not differ significantly")],
)
def test_headline_says_no_more_than_the_interval(frame, shift, text):
    moved = frame.copy()
    moved.loc[moved["method"] == "permuted", "test_accuracy"] += shift
    assert text in headline.headline(moved)


def test_headline_of_a_single_pair_claims_nothing(partial):
    assert "in the only pair so far (1 pair of nets, 1 cell of the grid): too few" in headline.headline(partial)


def test_headline_without_any_result(frame):
    some = frame[frame["method"] != "permuted"]
    assert "error barrier between A and B" in headline.headline(some)
    assert re.search(
        r"LTH is \d\.\d+ points of test accuracy ahead of naive", headline.headline(some[some["stage"] != "connect"])
    )
    assert headline.headline(frame.assign(status="RUNNING")) == "No run has finished yet."


def test_short_table_fits_a_terminal(frame, partial):
    text = summary.short_table(frame)
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"1\s+95%\s+10 .*90\.00±0\.26 \(3\) .*\+0\.90 \[\+0\.15,\+1\.65\]", text)
    assert "Also measured, see the report: Shuffled." in text
    assert "Failed and left out: 1 sparse." in summary.short_table(partial)
    assert "no run has finished" in summary.short_table(frame.assign(status="RUNNING"))


def test_short_table_says_how_many_runs_of_a_cell_are_missing(frame):
    place = (frame["width"] == 1) & (frame["sparsity"] == 0.95) & (frame["rewind_epoch"] == 10)
    first, of_naive = frame["seed_a"] == 0, frame["method"] == "naive"
    missing = place & (of_naive | (first & (frame["method"] == "permuted")))
    text = summary.short_table(frame.assign(status=frame["status"].mask(missing, "SCHEDULED")))
    (line,) = re.findall(r"^.*\b1 +95% +10 .*$", text, flags=re.MULTILINE)
    assert re.search(rf"\(6\) .*\(3\) .*\(2/3\) .*{DASH} \(0/3\) +{DASH}$", line), line
    whole = summary.short_table(frame)
    assert "/" not in whole
    assert len(whole.splitlines()) == len(text.splitlines())


def test_short_table_gives_up_decimals_before_it_gets_too_wide(frame):
    wide = frame.assign(test_accuracy=frame["test_accuracy"] + 50 * (frame["method"] == "permuted"))
    assert max(map(len, summary.short_table(wide).splitlines())) <= 100


def test_short_table_of_dense_nets_alone(frame):
    text = summary.short_table(frame[frame["stage"] == "dense"])
    assert "94.02±0.17 (6)" in text


def test_coverage_counts_what_is_missing(frame, partial):
    assert coverage.is_complete(frame)
    assert not coverage.is_complete(partial)
    counts = coverage.counts(partial).set_index("job")
    assert counts.loc["sparse", ["finished", "running", "failed", "total"]].tolist() == [4, 1, 1, 6]
    missing = coverage.missing(partial).set_index("method")
    assert missing["missing"].to_dict() == {"LTH": 1, "Naive": 2, "Permuted": 2}
    failed = coverage.failures(partial).iloc[0]
    assert (failed["job"], failed["error"]) == ("naive 2", "loss is <NaN> & gone")


# --- figures ----------------------------------------------------------------------------------------------------
def lines(axes):
    return {container.lines[0].get_color(): container.lines[0] for container in axes.containers}


def test_rewind_figure_draws_the_means(frame):
    figure = rewind.figure(frame)
    assert len(figure.axes) == 4
    panel = figure.axes[-1]  # the last row is 95 %, the last column width 1
    drawn = lines(panel)
    for method in ("lth", "naive", "permuted"):
        line = drawn[style.look(method).colour]
        expected = [np.mean(values(method, 1.0, 0.95, epoch)) for epoch in synthetic.REWINDS]
        assert np.asarray(line.get_ydata()) == pytest.approx(expected)
    assert panel.get_title(loc="right") == "n = 3"
    assert "95 % sparse" in panel.get_title(loc="left").replace("\n", " ")


def test_width_figure_takes_the_largest_common_rewind_epoch(frame):
    some = frame[~((frame["width"] == 1.0) & (frame["rewind_epoch"] == 10))]
    numbers = width.table(some)
    assert width.chosen_rewind(numbers) == 0
    assert width.chosen_rewind(width.table(frame)) == 10
    figure = width.figure(frame)
    assert len(figure.axes) == 6
    gap_to_lth = lines(figure.axes[1])[style.look("naive").colour]
    assert np.asarray(gap_to_lth.get_ydata()) == pytest.approx([6.0, 3.0])


def gaps(*places, **more):
    """Return sparse jobs with all three gaps at each width and rewind epoch."""
    gap = {schema.GAP_TO_DENSE: 3.0, schema.GAP_TO_LTH: 1.0, schema.GENERALIZATION_GAP: 9.0}
    methods = {"lth": [80.0, 81.0], "naive": [70.0, 71.0]}
    return [
        line
        for wide, epoch in places
        for line in synthetic_effects.cell(methods, width=wide, rewind=epoch, **gap, **more)
    ]


def test_width_figure_shows_an_epoch_of_finished_sparse_nets_although_dense_ones_stand_at_every_epoch():
    dense = [synthetic_effects.dense(90.0, seed, **{schema.GENERALIZATION_GAP: 8.0}) for seed in range(4)]
    done, running = gaps((1.0, 0), (1.0, 5)), gaps((1.0, 10), status="RUNNING")
    drawn = width.figure(synthetic_effects.runs([*dense, *done, *running]))
    assert [axes.get_title(loc="left").rpartition(", ")[2] for axes in drawn.axes[:1]] == ["rewind epoch 5"]
    assert "not measured yet" not in [text.get_text() for axes in drawn.axes for text in axes.texts]
    alone = width.table(synthetic_effects.runs([*dense, *running]))
    assert width.chosen_rewind(alone) == 10  # dense nets are drawn as long as there is nothing else


def test_widths_without_the_rewind_epoch_that_the_width_figure_shows_are_named():
    frame = synthetic_effects.runs(gaps((1.0, 5), (4.0, 25)))
    assert width.notes(frame) == [
        "Left to the table: width \N{MULTIPLICATION SIGN}1, without sparse nets at rewind epoch 25."
    ]
    both = synthetic_effects.runs([*gaps((1.0, 5), (4.0, 5), (4.0, 25)), *gaps((1.0, 5), (4.0, 25), sparsity=0.5)])
    assert width.notes(both) == [
        "Left to the table: width \N{MULTIPLICATION SIGN}1, without sparse nets at rewind epoch 25 (50 % sparse)."
    ]


def test_interpolation_figure_and_barriers(curves):
    figure = interpolation.figure(curves)
    assert len(figure.axes) == 6
    table = interpolation.table(curves).set_index(["width", "matcher", "measure"])
    assert table.loc[(0.5, "identity", "error_barrier"), "mean"] == pytest.approx(40.0)
    assert table.loc[(1.0, "activation", "loss_barrier"), "mean"] == pytest.approx(0.4)
    assert set(table["n"]) == {3}
    middle = figure.axes[0].lines[0].get_ydata()
    assert np.min(middle) == pytest.approx(50.0)


def test_learning_curves_are_those_of_the_sparsest_widest_cell(uri):
    curves = learning.load("full", uri)
    place = curves[["width", "sparsity", "rewind_epoch"]].drop_duplicates()
    assert place.to_numpy().tolist() == [[1.0, 0.95, 10]]
    numbers = learning.table(curves).set_index(["row", "measure", "epoch"])
    assert numbers.loc[("naive", "test_accuracy", 10), "mean"] == pytest.approx(np.mean(values("naive", 1.0, 0.95, 10)))
    assert numbers.loc[("dense", "test_accuracy", 2), ["n", "mean"]].tolist() == [6, 70.0]
    assert [axes.get_ylabel() for axes in learning.figure(curves).axes] == [
        "Test accuracy (%)",
        "Training accuracy (%)",
    ]


def test_figures_leave_infinite_losses_out_and_say_so(curves):
    broken = curves.copy()
    broken.loc[broken.index[5], schema.INTERPOLATION_LOSS] = np.inf
    interpolation.figure(broken)
    assert any("1 curve with a missing or infinite value" in note for note in interpolation.notes(broken))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_survive_whatever_is_there(name, sources):
    module = FIGURES[name]
    source = sources[loader(module)]
    with memo.remembered():
        for part in (source.iloc[:0], source.iloc[:1], source.iloc[-1:], source[source["width"] == 1.0]):
            module.figure(part)
            module.table(part)
            assert all(isinstance(note, str) for note in module.notes(part))


def test_many_recipes_do_not_make_an_endless_figure(frame):
    parts = [frame.assign(lr=str(n), key=frame["key"] + str(n)) for n in range(12)]
    sampled = pd.concat([part[part["stage"] == "sparse"] for part in parts], ignore_index=True)
    sampled.attrs["varied"] = ["lr"]
    with media.drawing_for(*media.STYLES["slides"]):
        figure = rewind.figure(sampled)
        assert figure.get_size_inches()[1] <= media.current().height
    assert figure.get_supxlabel() == f"{24 - len(figure.axes) // 2} more rows of panels left to the table."


def test_every_method_has_a_look_of_its_own():
    looks = [style.LOOKS[name] for name in METHODS]
    assert len({look.colour for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks)


# --- files and the page -----------------------------------------------------------------------------------------
def test_files_beside_the_page(written, drawn):
    names = {path.name for path in written["full"].parent.iterdir()}
    figures = {f"{name}.{suffix}" for name in drawn for suffix in ("png", "svg", "pdf")}
    tables = {f"{name}.csv" for name in drawn if name != "sparsity"}  # whose table is that of `rewind`
    tables |= {f"accuracy.{suffix}" for suffix in ("csv", "md", "tex")}
    assert names >= {"index.html", "runs.csv"} | figures | tables
    written_tables = [path.read_bytes() for path in written["full"].parent.glob("*.csv")]
    assert len(set(written_tables)) == len(written_tables)
    assert all(content.count(b"\n") > 1 for content in written_tables)
    assert {name for name in names if name.endswith(".png")} == {f"{name}.png" for name in drawn}
    table = pd.read_csv(written["full"].parent / "accuracy.csv")
    assert table["naive_mean"].iloc[-1] == pytest.approx(87.0)
    markdown = (written["full"].parent / "accuracy.md").read_text(encoding="utf-8")
    assert "90.00 ± 0.26 (3)" in markdown


def test_the_page_has_everything(pages, frame, drawn, sources):
    page = pages["full"]
    assert html.escape(headline.headline(frame)) in page
    assert len(drawn) >= 4
    assert page.count("<svg") == 2 * len(drawn), "for wide screens and for phones"
    for name, module in FIGURES.items():
        assert f'id="{name}"' in page
        shown = module.CAPTION if name in drawn else module.notes(sources[loader(module)])[0]
        assert html.escape(shown) in page
    assert "90.00 ± 0.26 (3)" in page
    assert "Nothing: all jobs on record have finished" in page
    assert "PyTorch 2.11.0" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_fetches_nothing(pages):
    for page in pages.values():
        references = re.findall(r"""(?:src|href|data|action)\s*=\s*["']?([^"'\s>]+)""", page)
        assert references
        assert not [target for target in references if re.match(r"(?i)(https?:)?//", target)]
        assert not re.findall(r"(?i)url\(\s*[\"']?(?!#)|@import|<iframe|<link", page)
        assert "default-src 'none'" in page
        assert page.count("<script") == 1


RUN = 7
"""Words in a row that two captions do not have in common by chance."""


@pytest.mark.parametrize("name", [name for name, module in FIGURES.items() if hasattr(module, "TABLE_CAPTION")])
def test_what_figure_and_table_share_is_said_once_on_the_page(name):
    module = FIGURES[name]
    assert module.CAPTION.startswith(getattr(module, "SHARED", ""))
    assert module.TABLE_CAPTION.startswith(getattr(module, "SHARED", ""))
    caption = write.caption(module)
    assert caption.startswith(module.CAPTION)
    words = caption.split()
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    assert len(runs) == len(set(runs))
    assert words[-3:] == module.TABLE_CAPTION.split()[-3:]


DATUM = re.compile(r'<t[hd](?: class="([^"]*)")?[^>]*>(.*?)</t[hd]>')


def tables(page):
    """Name of a section of a page -> its tables, each as classes and texts by column, the heading first."""
    found = {}
    for name, section in re.findall(r'<section id="(\w+)">(.*?)</section>', page, flags=re.DOTALL):
        for table in re.findall("<table>.*?</table>", section, flags=re.DOTALL):
            every = zip(*(DATUM.findall(row) for row in table.split("<tr>")[1:]), strict=True)
            columns = [(column[0][0].split(), [html.unescape(text) for _, text in column]) for column in every]
            found.setdefault(name, []).append(columns)
    return found


def test_gains_stand_where_a_phone_shows_them(pages):
    """They follow what a line is about, and long columns may be broken, but not within an interval and its n."""
    found = tables(pages["full"])
    assert found.keys() >= {"accuracy", "effects", "controls"}
    gained = {}
    for name, columns in ((name, columns) for name, each in found.items() for columns in each):
        heads = [texts[0] for _, texts in columns]
        gains = [place for place, head in enumerate(heads) if MINUS in head]
        places = [place for place, head in enumerate(heads) if head in files.PLACES]
        gained[name] = gained.get(name, False) or bool(gains)
        if gains:
            assert sorted([*places, *gains]) == list(range(len(places) + len(gains))), heads
            assert max(places) < min(gains)
        for classes, (_, *texts) in columns:
            long = max(map(len, texts)) > files.LONG and "wide" not in classes
            assert ("narrow" in classes) == long, texts
            assert not [text for text in texts if re.search(r"\[[^\]]* |\] ", text)]
    assert gained["accuracy"]
    assert gained["effects"]


def test_the_first_screen_asks_answers_and_shows(pages, frame):
    top = pages["full"].partition('<section id="accuracy">')[0]
    asked, said = top.index("<h1>Does a lottery-ticket mask help"), top.index(html.escape(headline.headline(frame)))
    assert asked < said < top.index("<svg")
    table = pages["full"].partition('<section id="accuracy">')[2]
    heads = [re.sub("<.*?>", "", each) for each in re.findall("<th.*?</th>", table)]
    assert heads[:4] == ["width", "sparsity", "rewind epoch", accuracy_table.GAIN]


SCREEN = 390 - 2 * 0.9 * 16
"""CSS pixels of a phone within the margins of the page."""


def test_every_figure_has_a_drawing_for_phones_that_fits_and_can_be_read(pages, drawn):
    drawings = re.findall(r'<div class="scroll phone" role="img".*?</svg>\s*</div>', pages["full"], flags=re.DOTALL)
    assert len(drawings) == len(drawn)
    for drawing in drawings:
        width, unit = re.search(r'<svg [^>]*width="([\d.]+)(pt)"', drawing).groups()
        assert float(width) * 4 / 3 <= SCREEN, unit
        points = map(float, re.findall(r"font(?:-size)?: ([\d.]+)px", drawing))  # in units of the drawing
        assert min(points) * 4 / 3 >= 8


def test_points_of_a_figure_say_their_value(pages):
    (figure,) = re.findall('<section id="rewind">.*?</section>', pages["full"], flags=re.DOTALL)
    said = re.findall(r'<g class="point" aria-label="([^"]+)"><use [^>]+/><circle', figure)
    assert len(said) == 2 * 4 * 4 * 2, "drawings, panels, methods, rewind epochs"
    assert said.count("Naive: 87.00 ± 0.26 (3)") == 2
    assert ' aria-label="Naive: 87.00 ± 0.26 (3)"' in figure.partition("width")[2]


def test_points_keep_silent_where_their_texts_may_belong_to_others():
    line = '<g id="said:a|b">\n<g clip-path="url(#c)">\n<use href="#m" x="1" y="2" style=""/>\n</g>\n</g>'
    assert "aria-label" not in hover.spoken(line)
    assert 'aria-label="a"' in hover.spoken(line.replace("a|b", "a"))


def _luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(first, second):
    low, high = sorted(map(_luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def _blended(ink, ground, alpha):
    parts = [round(alpha * int(ink[i : i + 2], 16) + (1 - alpha) * int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)


def test_colours_have_the_contrast_that_wcag_asks_for():
    """Level AA: 4.5 for text, and 3 for the lines of figures, which the dark theme keeps from the light one."""
    light, dark, _ = re.findall(r":root \{(.*?)\}", STYLE, flags=re.DOTALL)
    for theme in (light, dark):
        found = {name: "#" + 2 * digits if len(digits) == 3 else "#" + digits for name, digits in COLOUR.findall(theme)}
        ink, ground = found["ink"], found["ground"]
        texts = [(found[name], ground) for name in ("ink", "soft", "accent")]
        texts += [(ink, found["shade"]), (ground, ink), (found["warn"], found["warnground"])]
        texts += [(_blended(ink, ground, style.FAINT), ground)]
        assert all(_contrast(*pair) >= 4.5 for pair in texts), theme
    grounds = [to_hex(landscape.GROUND(share)) for share in (0.0, 0.5, 1.0)]
    assert all(_contrast(landscape.CONTOUR, each) >= 4.5 for each in grounds), "labels of contours"
    for name, look in style.LOOKS.items():
        assert look.colour == style.INK or _contrast(look.colour, ground) >= 3, name


def test_no_text_has_the_colour_of_a_method(pages):
    """These have the contrast that lines need, which is less than what text needs."""
    texts = re.findall(r'<text style="([^"]*)"', pages["full"])
    assert texts
    assert {re.search("fill: ([^;]+)", text)[1] for text in texts} <= {"currentColor", landscape.CONTOUR}


def test_ids_are_unique_and_resolved(pages):
    ids = re.findall(r'\bid="([^"]+)"', pages["full"])
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', pages["full"])
    assert set(used) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_drawings_take_the_colours_of_the_page(pages):
    drawings = re.findall(r"<svg.*?</svg>", pages["full"], flags=re.DOTALL)
    for drawing in drawings:
        assert style.INK not in drawing
        assert "currentColor" in drawing
        assert "<text" in drawing


def test_a_partial_sweep_says_what_is_missing(pages):
    page = pages["partial"]
    assert "Not complete: 6 of 8 jobs on record have finished" in page
    assert "loss is &lt;NaN&gt; &amp; gone" in page
    assert "1 LTH running, 1 Naive failed" in page
    assert "No interpolation between A and B has finished" in page
    assert "Only one width has results." in page


def test_credentials_do_not_reach_the_page(frame):
    page = how.section(frame, "full", "postgresql://me:secret@db/mlflow")
    assert "postgresql://***@db/mlflow" in page
    assert "secret" not in page


def test_hardware_and_software_are_named_as_far_as_runs_say(frame):
    cores, ray = ["2", "1", "", "²", "many"], ["2.60.0", "", "", "", ""]
    said = frame.head(5).assign(device="EPYC", cores=cores, ray=ray)
    facts = how.facts(said, "full", "")
    assert facts["Hardware"] == "EPYC (3 jobs), EPYC, 2 cores (1 job), EPYC, 1 core (1 job)"
    assert facts["Software"] == "PyTorch 2.11.0, Ray 2.60.0"


def test_markdown_keeps_its_columns():
    table = files.markdown(pd.DataFrame({"a|b": ["1", "22"], "c": ["x", ""]}))
    assert [line.count(" | ") for line in table.splitlines() if "---" not in line] == [1, 1, 1]
    assert "a\\|b" in table


# --- the command ------------------------------------------------------------------------------------------------
def test_command_prints_the_path_and_leaves_zero(folder, commanded):
    expected = folder / "report" / "partial" / "index.html"
    assert commanded == (0, f"{expected}\n")
    assert expected.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "outputs/report/x"),
        (["--storage", "elsewhere"], "elsewhere/report/x"),
        (["--storage", "s3://bucket/y"], "outputs/report/x"),
        (["--storage", "elsewhere", "--out", "here"], "here"),
    ],
)
def test_where_the_report_goes(options, expected):
    arguments = command.parser("report", "").parse_args(["--space", "x", *options])
    assert command.folder(arguments) == Path(expected)


@pytest.mark.parametrize("space", ["ful", "partial"])
def test_command_says_in_one_line_what_is_wrong(folder, tmp_path, space, capsys):
    storage = folder if space == "ful" else tmp_path / "nothing"
    assert report.main(["--space", space, "--storage", str(storage)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


@pytest.fixture(scope="module")
def odd(folder):
    """Experiments from which little can be said, beside the others."""
    client = MlflowClient(tracking_uri=synthetic.tracking_uri(folder))
    client.create_experiment("empty", artifact_location=str(folder / "mlartifacts"))
    earlier = {schema.TAG_KEY: 64 * "a"}
    later = {**earlier, schema.TAG_PLACE: json.dumps({"stage": "distil", "width": 1.0})}
    for name, tags in {"foreign": {}, "earlier_version": earlier, "later_version": later}.items():
        experiment = client.create_experiment(name, artifact_location=str(folder / "mlartifacts"))
        run = client.create_run(experiment, tags=tags).info.run_id
        client.log_param(run, "kind", "train")
        client.log_metric(run, "val_acc", 0.93)
        client.set_terminated(run)
    failing = synthetic.Recorder(folder, "failed")
    for method in ("lth", "naive"):
        failing.sparse(
            method, 1.0, 0.95, 10, (0, 1), status="FAILED", tags={schema.TAG_ERROR: "loss is nan\nat epoch 3"}
        )
    return folder


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("empty", "experiment 'empty' has no runs yet"),
        ("foreign", "experiment 'foreign' has 1 runs, but none is a study's job (no tag 'job_key')"),
        ("earlier_version", "recorded by an earlier version; running the study's command again brings it up to date"),
        ("later_version", "stage: 'distil' is not of the form dense|prune|"),
    ],
)
@pytest.mark.parametrize("name", ["report", "rewind", "interpolation", "landscape", "accuracy"])
def test_experiments_of_which_nothing_can_be_shown(odd, tmp_path, capsys, name, space, message):
    options = ["--space", space, "--storage", str(odd), "--out", str(tmp_path / "out")]
    code = report.main(options) if name == "report" else figures_command.main([name, *options])
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rewind", "interpolation", "accuracy"])
def test_nothing_but_failures_gives_no_figure(odd, tmp_path, capsys, name):
    options = ["--space", "failed", "--storage", str(odd), "--out", str(tmp_path / "out")]
    assert figures_command.main([name, *options]) == 2
    failed = "none of its 2 jobs on record has finished (2 failed); the first error: loss is nan"
    assert capsys.readouterr().err == f"error: nothing to show of 'failed': {failed}\n"
    assert not (tmp_path / "out").exists()


def test_nothing_but_failures_gives_a_page_that_says_so(odd, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("analysis.write.FIGURES", {"rewind": rewind, "interpolation": interpolation})
    assert report.main(["--space", "failed", "--storage", str(odd), "--out", str(tmp_path), "--no-log"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: none of its 2 jobs on record has finished (2 failed); the first error: ")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "No run has finished yet." in page
    assert "0 of 2 jobs on record have finished" in page
    assert page.count("loss is nan") == 2
    assert "<svg" not in page


def test_what_an_earlier_report_had_and_this_one_has_not_is_removed(folder, uri, frame, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.write.FIGURES", {"rewind": rewind, "landscape": landscape})
    for name in ("landscape.png", "landscape.tex", "notes.md"):
        (tmp_path / name).write_text("from before")
    written = write.write_files(frame, "full", uri, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in written} == names - {"notes.md"}
    assert "notes.md" in names, "it is somebody else's"
    assert {"rewind.png", "rewind.csv"} <= names
    assert "landscape.csv" not in names
    linked = set(re.findall(r'<a href="([^"#]+)">', written[0].read_text(encoding="utf-8")))
    assert linked == names - {"notes.md", "index.html"}


def test_a_single_figure_by_itself(folder, tmp_path):
    line = [
        sys.executable,
        "-m",
        "analysis.figures",
        "rewind",
        "--space",
        "full",
        "--storage",
        str(folder),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {f"rewind.{suffix}" for suffix in ("csv", "png", "svg", "pdf")}


def test_help_is_quick():
    code = (
        "import sys, json\nfrom analysis import report\n"
        "try:\n    report.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps([n for n in ('pandas', 'matplotlib', 'mlflow', 'scipy') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout.splitlines()[-1]) == []
