"""The paper's figures and tables, of studies whose jobs are those of real plans."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces
from scipy import stats as scipy_stats

from analysis import cells
from analysis.drawing import style
from analysis.drawing.signs import TIMES
from analysis.figures import (
    early_matching,
    function_space,
    imp_path,
    interpolation,
    landscape,
    rewind,
    sparsity,
    top5,
    width,
)
from analysis.figures.__main__ import main
from analysis.figures.table import FIGURES, loader
from search_spaces import SPACES
from trainables import schema

SWEEP = {"width": (1.0, 4.0), "sparsity": (0.8, 0.95), "rewind_epoch": (0, 5, 10, 25, 50), "interpolation_points": 3}
MODE = {"width": (1.0, 4.0), "sparsity": (0.5,), "plane_resolution": 9, "interpolation_points": 3}
STUDIES = {
    "sweep": dataclasses.replace(
        SPACES["resnet20_width_sweep"], name="sweep", seeds=(0, 1), rewind_epochs_of_width=(), **SWEEP
    ),
    "mode": dataclasses.replace(SPACES["mode_connectivity"], name="mode", seeds=(0, 1), **MODE),
    "ensembles": dataclasses.replace(SPACES["ensemble_diversity"], name="ensembles", members=3),
    "early": dataclasses.replace(
        SPACES["early_matching"], name="early", sparsity=(0.8, 0.95), match_epoch=(5, 100, -1)
    ),
    "always_early": dataclasses.replace(
        SPACES["early_matching"], name="always_early", match_epoch=(5,), sparsity=(0.8,)
    ),
    "imagenet": dataclasses.replace(SPACES["resnet50_imagenet_sweep"], name="imagenet", sparsity=(0.8, 0.9)),
}
PARTIAL = ("mode", "early")
PAPER = (rewind, top5, sparsity, width, interpolation, imp_path, landscape, function_space, early_matching)
OURS = [name for name, module in FIGURES.items() if module in PAPER]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One store for all tests: to make the tables of a new one takes seconds."""
    place = tmp_path_factory.mktemp("paper")
    for space in STUDIES.values():
        synthetic_spaces.write_space(place, space)
    for name in PARTIAL:
        space = dataclasses.replace(STUDIES[name], name=f"partial_{name}")
        synthetic_spaces.write_space(place, space, status=synthetic_spaces.half_way)
    return place


@pytest.fixture(scope="module")
def uri(folder):
    return synthetic.tracking_uri(folder)


@pytest.fixture(scope="module")
def read(uri):
    """Return what a figure's module loads of a study, once."""
    known = {}

    def loaded(module, study):
        load = loader(module)
        if (load, study) not in known:
            known[load, study] = load(study, uri)
        return known[load, study]

    return loaded


def errorbars(axes):
    """Return (x, y) of each line of means, by colour and dash."""
    lines = [container.lines[0] for container in axes.containers]
    return {(line.get_color(), line.get_linestyle()): np.array(line.get_data(), float) for line in lines}


def drawn_as(row):
    return (style.look(row).colour, style.look(row).dash)


# --- all of them ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OURS)
def test_a_figure_by_itself(name, folder, tmp_path, capsys):
    """As ``python -m analysis.figures NAME`` does it."""
    assert main([name, "--space", "partial_mode", "--storage", str(folder), "--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    said = capsys.readouterr().out.splitlines()
    assert f"{name}.csv" in written or (not written and said), "without numbers it says why, and writes nothing"
    assert {line.rpartition("/")[2] for line in said if line.startswith(str(tmp_path))} == written


@pytest.mark.parametrize("study", ["sweep", "ensembles", "always_early", "partial_mode", "partial_early"])
@pytest.mark.parametrize("name", OURS)
def test_a_figure_without_numbers_says_so(name, study, read):
    module = FIGURES[name]
    frame = read(module, study)
    assert len(module.table(frame)) or module.notes(frame)
    assert module.table(frame.iloc[:0]).empty
    assert module.notes(frame.iloc[:0])


@pytest.mark.parametrize("study", ["imagenet", "partial_mode", "partial_early", "ensembles"])
@pytest.mark.parametrize("name", OURS)
def test_panels_say_their_n_and_axes_what_they_are(name, study, read):
    module = FIGURES[name]
    frame = read(module, study)
    if module.table(frame).empty:
        return
    figure = module.figure(frame)
    panels = [axes for axes in figure.axes if axes.get_subplotspec() is not None and (axes.lines or axes.collections)]
    assert panels
    assert any("n = " in axes.get_title(loc) for axes in panels for loc in ("left", "right"))
    labelled = [axes for axes in figure.axes if axes.get_xlabel() or axes.get_ylabel()]
    assert labelled, "an axis has a name, with its unit"


# --- sparsity (figures 9 and 10) ------------------------------------------------------------------------------------
def test_accuracy_against_sparsity(read):
    frame = read(sparsity, "sweep")
    figure = sparsity.figure(frame)
    assert len(figure.axes) == 4 * 2  # rewind epochs 5, 10, 25, 50 x widths
    panel = figure.axes[-1]
    assert f"width {TIMES}4" in panel.get_title("left").replace("\n", " ")
    assert "rewind epoch 50" in panel.get_title("left").replace("\n", " ")
    assert panel.get_title("right") == "n = 2"
    runs = frame[(frame["stage"] == "sparse") & (frame["width"] == 4) & (frame["rewind_epoch"] == 50)]
    for method in ("lth", "naive", "permuted"):
        means = runs[runs["method"] == method].groupby("sparsity")["test_accuracy"].mean()
        x, y = errorbars(panel)[drawn_as(method)]
        assert y == pytest.approx(means.to_numpy())
        assert x == pytest.approx([-np.log2(0.2), -np.log2(0.05)], abs=0.1)
    dense = frame[(frame["stage"] == "dense") & (frame["width"] == 4)]["test_accuracy"].mean()
    assert any(line.get_ydata()[0] == pytest.approx(dense) for line in panel.lines if len(set(line.get_ydata())) == 1)
    assert [text.get_text() for text in panel.get_xticklabels()] == ["80", "95"]


def test_the_pruned_net_itself_is_the_same_at_every_rewind_epoch(read):
    figure = sparsity.figure(read(sparsity, "sweep"))
    lines = [errorbars(axes)[drawn_as("imp")][1] for axes in figure.axes[0::2]]
    assert all(line == pytest.approx(lines[0]) for line in lines)
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        ([0, 10, 25, 50], [0, 10, 25, 50]),
        ([0, 10, 25, 50, 100], [10, 25, 50, 100]),  # the paper's
        ([0, 5, 10, 15, 20, 25, 50, 75, 100], [5, 15, 50, 100]),
        ([20], [20]),
        ([], []),
    ],
)
def test_rewind_epochs_that_are_drawn(epochs, shown):
    assert sparsity.chosen_rewinds(pd.Series(epochs, dtype="Int64")) == shown


def test_rewind_epochs_of_dense_nets_alone_make_no_row_of_panels(read):
    frame = read(sparsity, "sweep")
    sparse = frame["stage"] == schema.SPARSE
    running = frame.assign(status=frame["status"].mask(sparse & frame["rewind_epoch"].isin([25, 50]), "RUNNING"))
    titles = [axes.get_title("left").replace("\n", " ") for axes in sparsity.figure(running).axes]
    assert [title.rpartition("rewind epoch ")[2] for title in titles[::2]] == ["0", "5", "10"]
    assert not any("Left to the table" in note for note in sparsity.notes(running))


def test_rewind_epochs_that_are_not_drawn_are_named(read):
    assert "Left to the table: rewind epoch 0." in sparsity.notes(read(sparsity, "sweep"))
    assert "Only one sparsity has results." in sparsity.notes(read(sparsity, "mode"))


# --- the path to the pruned net (figure 4a) -------------------------------------------------------------------------
def test_barriers_by_pruning_round(read):
    frame = read(imp_path, "mode")
    table = imp_path.table(frame)
    assert len(table) == 2 * 2 * 4 * 2  # widths x corrections x rounds to 50 % x barriers
    assert set(table["n"]) == {2}
    assert table.drop_duplicates("round").set_index("round")["sparsity"].to_dict() == pytest.approx(
        {1: 0.2, 2: 0.36, 3: 0.488, 4: 0.5}
    )
    runs = frame[(frame["path"] == "imp") & (frame["width"] == 1) & (frame["round"] == 3)]
    lines = table[(table["width"] == 1) & (table["round"] == 3)].set_index(["correction", "measure"])["mean"]
    for correction, measure in itertools.product(("none", "bn_reset"), imp_path.BARRIERS):
        assert lines[correction, measure] == pytest.approx(runs[runs["correction"] == correction][measure].mean())


def test_the_barrier_with_and_without_correction(read):
    figure = imp_path.figure(read(imp_path, "mode"))
    assert len(figure.axes) == 2
    assert len({axes.get_ylim() for axes in figure.axes}) == 1  # widths can be compared
    for axes in figure.axes:
        found = errorbars(axes)
        plain, corrected = (found[imp_path.CORRECTIONS[name][1].colour, "-"] for name in ("none", "bn_reset"))
        assert (np.diff(plain[0]) > 0).all()
        assert plain[1][-1] > corrected[1][-1]
        assert axes.get_title("right") == "n = 2"
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["20\n1", "36\n2", "49\n3", "50\n4"]


def test_barriers_that_are_missing_or_infinite(read):
    frame = read(imp_path, "mode").copy()
    first = frame.index[frame["path"] == "imp"][0]
    frame.loc[first, schema.ERROR_BARRIER] = np.inf
    assert imp_path.notes(frame) == ["1 path with a missing or infinite barrier, left out."]
    assert np.isfinite(imp_path.table(frame)["mean"]).all()
    assert "Nothing was measured with a correction yet." in imp_path.notes(frame[frame["correction"] != "bn_reset"])
    assert "Nothing was measured without a correction yet." in imp_path.notes(frame[frame["correction"] != "none"])
    assert "imp_path=true" in imp_path.notes(read(imp_path, "sweep"))[0]


def test_paths_between_two_nets_and_to_a_pruned_one_are_kept_apart(read):
    curves = read(interpolation, "mode")
    barriers = interpolation.table(curves)
    assert set(barriers["n"]) == {2}
    assert set(curves["matcher"]) == {"identity", "activation"}


# --- the plane (figure 4b) ------------------------------------------------------------------------------------------
def test_the_plane_marks_its_nets(read):
    frame = read(landscape, "mode")
    figure = landscape.figure(frame)
    assert len(figure.axes) == 2
    for axes, net_width in zip(figure.axes, (1.0, 4.0), strict=True):
        nets = frame[(frame["width"] == net_width) & (frame["seed_a"] == 0) & (frame["net"] != "")].set_index("net")
        marks = {line.get_color(): line.get_xydata()[0] for line in axes.lines}
        for net in landscape.NETS:
            assert marks[style.look(net).colour] == pytest.approx(nets.loc[net, ["x", "y"]].astype(float))
        assert axes.get_aspect() == 1.0
        assert axes.get_title("left").replace("\n", " ").endswith("n = 1 of 2")
        assert axes.texts, "contours are labelled"
        levels = [float(text.get_text()) for text in axes.texts]
        grid = frame[(frame["width"] == net_width) & (frame["net"] == "")]["error"]
        assert grid.min() < min(levels) <= max(levels) < grid.max()
    assert len(landscape.table(frame)) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(4.0, 31.0, [5, 6, 8, 10, 12, 15, 20, 25, 30]), (3.2, 3.8, [3.5]), (0.1, 95.0, None)],
)
def test_levels_of_contours(low, high, expected):
    levels = landscape.chosen_levels(low, high)
    assert all(low < level < high for level in levels)
    assert 1 <= len(levels) <= landscape.MOST_LEVELS
    if expected:
        assert set(levels) <= set(expected)


def test_a_plane_that_is_flat_or_has_holes_is_drawn(read):
    frame = read(landscape, "mode")
    flat = frame.assign(error=10.0)
    holes = frame.assign(error=frame["error"].where(frame["x"] > 0))
    for changed in (flat, holes):
        landscape.figure(changed)
    assert "4 planes with points without an error, left blank." in landscape.notes(holes)


def test_planes_that_cannot_be_read_are_counted(read):
    lost = read(landscape, "sweep")
    assert landscape.notes(lost) == ["No plane was measured; a space asks for them by plane_resolution."]
    lost.attrs["unreadable"] = 2
    assert landscape.notes(lost) == ["2 planes whose file plane.json is not among the artifacts, left out."]
    lost.attrs["unreadable"] = 0


# --- ensembles (table 1) --------------------------------------------------------------------------------------------
def test_ensembles_are_those_that_were_measured(read):
    frame = read(function_space, "ensembles")
    table = function_space.table(frame)
    assert table["row"].tolist() == ["dense", "imp", "lth", "naive", "permuted"]
    assert set(table["members"]) == {3}
    assert table["sparsity"].tolist() == [0.9] * 5  # dense and IMP stand beside the others
    assert table["rewind_epoch"].tolist() == [25] * 5
    runs = frame[frame["stage"] == schema.ENSEMBLE].set_index("method").loc[table["row"]]
    for name in function_space.NUMBERS:
        assert table[name].tolist() == runs[name].tolist()
    gain = runs["ensemble_accuracy"] - runs["member_accuracy_mean"]
    assert table["ensemble_gain"].tolist() == pytest.approx(gain.tolist())


def test_ensembles_as_people_read_them(read):
    frame = read(function_space, "ensembles")
    one = frame[(frame["stage"] == schema.ENSEMBLE) & (frame["method"] == "lth")].iloc[0]
    line = function_space.formatted(frame).set_index("method").loc["LTH"]
    assert line["members (%)"] == f"{one['member_accuracy_mean']:.2f} ± {one['member_accuracy_std']:.2f} (3)"
    assert line["ensemble (%)"] == f"{one['ensemble_accuracy']:.2f}"
    assert line["disagreement (%)"] == f"{100 * one['disagreement']:.1f}"
    assert (line["KL (nats)"], line["JS (nats)"]) == (f"{one['kl_divergence']:.3f}", f"{one['js_divergence']:.3f}")


def test_members_and_ensembles_are_drawn(read):
    frame = read(function_space, "ensembles")
    table = function_space.table(frame).set_index("row")
    accuracies, disagreement, *_ = function_space.figure(frame).axes
    assert [text.get_text() for text in accuracies.get_yticklabels()] == ["Permuted", "Naive", "LTH", "IMP", "Dense"]
    filled = {tuple(line.get_xydata()[0]) for line in accuracies.lines if len(line.get_xydata()) == 1}
    height = 4 - list(table.index).index("naive")
    naive = table.loc["naive"]
    assert (naive["member_accuracy_mean"], height) in filled
    assert (naive["ensemble_accuracy"], height) in filled
    ends = [line.get_xdata()[-1] for line in disagreement.lines]
    assert 100 * naive["disagreement"] in ends
    assert accuracies.get_title("right") == "n = 3"


def test_ensembles_without_a_result(read):
    frame = read(function_space, "ensembles")
    running = frame.assign(
        status=frame["status"].mask((frame["stage"] == "ensemble") & (frame["method"] == "lth"), "FAILED")
    )
    assert function_space.notes(running) == ["1 ensemble without a result, left out."]
    assert "lth" not in set(function_space.table(running)["row"])
    assert "members" in function_space.notes(read(function_space, "sweep"))[0]


# --- early matching (table 15) --------------------------------------------------------------------------------------
def accuracies(frame, method, at, match_epoch=None):
    chosen = (frame["stage"] == "sparse") & (frame["method"] == method) & (frame["sparsity"] == at)
    if match_epoch is not None:
        chosen &= frame["match_epoch"] == match_epoch
    return frame[chosen].sort_values("seed_a")["test_accuracy"].to_numpy()


def test_early_matches_against_naive(read):
    frame = read(early_matching, "early")
    table = early_matching.table(frame)
    assert len(table) == 2 * (3 + 2)  # sparsities x (match epochs, LTH and naive)
    for at, (shown, recorded) in itertools.product((0.8, 0.95), {5: 5, 100: 100, 200: -1}.items()):
        line = table[(table["sparsity"] == at) & (table["match_epoch"] == shown)].iloc[0]
        permuted, naive = accuracies(frame, "permuted", at, recorded), accuracies(frame, "naive", at)
        assert (line["n"], line["mean"], line["std"]) == (
            3,
            pytest.approx(permuted.mean()),
            pytest.approx(permuted.std(ddof=1)),
        )
        theirs = scipy_stats.ttest_rel(permuted, naive).confidence_interval(0.95)
        assert line["minus_naive"] == pytest.approx((permuted - naive).mean())
        assert (line["ci_low"], line["ci_high"]) == pytest.approx(tuple(theirs))
        assert line["pairs"] == 3
    level = table[table["match_epoch"].isna()].set_index(["sparsity", "row"])["mean"]
    assert level[0.95, "lth"] == pytest.approx(accuracies(frame, "lth", 0.95).mean())
    assert level[0.8, "naive"] == pytest.approx(accuracies(frame, "naive", 0.8).mean())


def test_early_matching_as_people_read_it(read):
    frame = read(early_matching, "early")
    text = early_matching.formatted(frame)
    assert text.columns.tolist() == ["width", "sparsity", "LTH", "Naive", "t = 5", "t = 100", "t = 200"]
    permuted, naive = accuracies(frame, "permuted", 0.95, 5), accuracies(frame, "naive", 0.95)
    expected = f"{permuted.mean():.2f} ± {permuted.std(ddof=1):.2f} (3), {(permuted - naive).mean():+.2f}"
    assert text.loc[text["sparsity"] == "95 %", "t = 5"].item() == expected


def test_early_matching_is_drawn_between_naive_and_lth(read):
    frame = read(early_matching, "early")
    figure = early_matching.figure(frame)
    assert len(figure.axes) == 2
    panel = figure.axes[1]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["5", "100", "200"]
    y = errorbars(panel)[drawn_as("permuted")][1]
    assert y == pytest.approx([accuracies(frame, "permuted", 0.95, epoch).mean() for epoch in (5, 100, -1)])
    level = {line.get_color(): line.get_ydata()[0] for line in panel.lines if len(set(line.get_ydata())) == 1}
    assert level[style.look("naive").colour] == pytest.approx(accuracies(frame, "naive", 0.95).mean())
    assert panel.get_title("right") == "n = 3"


def test_a_study_that_only_matches_early_has_its_figure(read):
    table = early_matching.table(read(early_matching, "always_early"))
    assert table["match_epoch"].dropna().tolist() == [5]
    assert early_matching.table(read(early_matching, "sweep")).empty


def test_other_figures_leave_early_matches_to_theirs(read):
    frame = read(rewind, "early")
    for module in (rewind, width, sparsity):
        panel = module.figure(frame).axes[0]
        assert len([colour for colour, _ in errorbars(panel) if colour == style.look("permuted").colour]) == 1
    assert any("in the figure on early matching" in note for note in rewind.notes(frame))


# --- top 5 (figure 7, table 10) -------------------------------------------------------------------------------------
def test_top5_is_drawn_and_top1_stands_beside_it(read):
    frame = read(top5, "imagenet")
    figure = top5.figure(frame)
    assert len(figure.axes) == 2
    runs = frame[(frame["method"] == "lth") & (frame["stage"] == "sparse") & (frame["sparsity"] == 0.9)]
    runs = runs.sort_values("rewind_epoch")
    assert errorbars(figure.axes[1])[drawn_as("lth")][1] == pytest.approx(runs[schema.TEST_TOP5_ACCURACY].to_numpy())
    assert [axes.get_ylabel() for axes in figure.axes] == ["Top-5 test accuracy (%)", ""]  # side by side
    assert [axes.get_xlabel() for axes in figure.axes] == ["Rewind epoch", "Rewind epoch"]
    line = top5.formatted(frame).set_index(["sparsity", "rewind epoch"]).loc[("90 %", "25")]
    one = runs[runs["rewind_epoch"] == 25].iloc[0]
    assert line["LTH, top-1 (%)"] == f"{one['test_accuracy']:.2f} (1)"
    assert line["LTH, top-5 (%)"] == f"{one[schema.TEST_TOP5_ACCURACY]:.2f} (1)"


def test_without_top5_there_is_a_note(read):
    frame = read(top5, "sweep")
    assert top5.table(frame).empty
    assert top5.notes(frame) == ["Top-5 accuracy is only recorded for datasets of 20 classes or more."]


# --- interpolation at several match epochs --------------------------------------------------------------------------
def test_paths_to_young_nets_are_not_pooled_with_those_to_old_ones(read):
    curves = read(interpolation, "mode")
    young = curves.assign(match_epoch=5, run_id=curves["run_id"] + "y", error_barrier=curves["error_barrier"] + 10)
    both = pd.concat([curves, young], ignore_index=True)
    barriers = interpolation.table(both).set_index(["match_epoch", "width", "matcher", "measure"])["mean"]
    place = (1.0, "identity", schema.ERROR_BARRIER)
    assert barriers[(5, *place)] == pytest.approx(barriers[(-1, *place)] + 10)
    figure = interpolation.figure(both)
    assert len(figure.axes) == 4 * 3
    assert "match epoch 5" in figure.axes[-2].get_title("left").replace("\n", " ")


def test_rows_of_the_methods_look_the_same_in_every_figure(read):
    for module, study in ((sparsity, "sweep"), (rewind, "sweep"), (top5, "imagenet")):
        assert drawn_as(cells.PERMUTED) in errorbars(module.figure(read(module, study)).axes[0])
