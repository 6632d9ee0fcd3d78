"""Means over seeds as MLflow shows them: the numbers are those of the tables, and every chart has its metric."""

import dataclasses
import itertools
import math
import re

import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import cells, load, stats
from analysis.drawing import averages as drawing
from analysis.drawing import style
from analysis.drawing.averages import MEASURES, averages
from analysis.figures import accuracy_table
from search_spaces import SPACES
from study.plan import override
from trainables import schema

MOST_RUNS = 100
"""Runs that MLflow's pages load at first."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.with_tables(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def frame(folder):
    synthetic.write_study(folder, "whole")
    return load.runs("whole", synthetic.tracking_uri(folder))


@pytest.fixture(scope="module")
def averaged(frame):
    """The runs and charts of the whole study."""
    return averages(frame)


def found(averaged, level=schema.CELL):
    """Return the runs of one level, by their row, width and sparsity."""
    runs = [run for run in averaged[0] if run.level == level]
    return {(run.params["row"], run.params.get("width"), run.params.get("sparsity")): run for run in runs}


def test_a_run_for_each_row_width_and_sparsity_and_dense_nets_once_per_width(averaged):
    runs = found(averaged)
    methods = ("lth", "naive", "permuted", "imp")
    grid = {(row, f"{w:g}", f"{s:g}") for row in methods for w in synthetic.WIDTHS for s in synthetic.SPARSITIES}
    assert runs.keys() == grid | {("dense", f"{width:g}", None) for width in synthetic.WIDTHS}
    assert len({run.key for run in runs.values()}) == len(runs)
    for (row, *_), run in runs.items():
        assert {step for _, step in run.points} == set(synthetic.REWINDS)
        assert run.colour == style.look(row).colour


def test_values_are_those_of_the_statistics_over_seeds(averaged):
    run = found(averaged)["permuted", "0.5", "0.95"]
    for rewind in synthetic.REWINDS:
        values = [synthetic.accuracy("permuted", 0.5, 0.95, rewind, pair[0]) for pair in synthetic.PAIRS]
        spread, mean = stats.summarize(values), stats.interval(values)
        shown = {suffix: run.points[schema.TEST_ACCURACY + suffix, rewind] for suffix in ("", "_std", "_n")}
        assert shown == pytest.approx({"": spread.mean, "_std": spread.std, "_n": spread.n})
        ends = [run.points[schema.TEST_ACCURACY + suffix, rewind] for suffix in ("_low", "_high")]
        assert ends == pytest.approx([mean.low, mean.high])


def test_paired_difference_is_that_of_the_table(frame, averaged):
    for line in accuracy_table.table(frame).to_dict("records"):
        run = found(averaged)["permuted", f"{line['width']:g}", f"{line['sparsity']:g}"]
        step = int(line["rewind_epoch"])
        shown = [run.points[schema.PERMUTED_MINUS_NAIVE + suffix, step] for suffix in ("", "_low", "_high", "_n")]
        assert shown == pytest.approx([line[name] for name in ("permuted_minus_naive", "ci_low", "ci_high", "pairs")])


def test_means_over_rewind_epochs_leave_the_initialisation_out(averaged):
    run, over = found(averaged)["naive", "1", "0.8"], schema.TEST_ACCURACY + schema.OVER_REWIND_EPOCHS
    late = max(synthetic.REWINDS)
    for suffix in ("", "_std", "_n", "_low", "_high"):
        assert run.points[over + suffix, 0] == pytest.approx(run.points[schema.TEST_ACCURACY + suffix, late])


def test_what_a_row_lacks_is_not_logged(averaged):
    runs = found(averaged)
    assert not [name for name, _ in runs["lth", "1", "0.8"].points if schema.GAP_TO_LTH in name]
    assert not [name for name, _ in runs["naive", "1", "0.8"].points if schema.PERMUTED_MINUS_NAIVE in name]
    assert all(math.isfinite(value) for run in runs.values() for value in run.points.values())


def test_an_incomplete_study_says_how_many_seeds_there_are(folder):
    synthetic.write_partial(folder, "partial")
    runs = found(averages(load.runs("partial", synthetic.tracking_uri(folder))))
    counts = {row: run.points[schema.TEST_ACCURACY + "_n", 10] for (row, _, s), run in runs.items() if s}
    assert counts == {"lth": 2, "naive": 1, "permuted": 1}
    one = runs["permuted", "1", "0.95"]
    assert one.name.endswith("n = 1")
    assert not [name for name, _ in one.points if name.endswith(("_std", "_low", "_high"))]


def test_lines_over_width_are_means_over_the_rewind_epochs_that_all_widths_have(tmp_path):
    space = dataclasses.replace(
        SPACES["resnet20_width_sweep"],
        seeds=(0, 1),
        width=(1.0, 16.0),
        sparsity=(0.9,),
        rewind_epoch=(0, 5, 10, 15),
        rewind_epochs_of_width=((16.0, (0, 10)),),
    )
    synthetic_spaces.write_space(synthetic.with_tables(tmp_path), space)
    frame = load.runs(space.name, synthetic.tracking_uri(tmp_path))
    name = schema.TEST_ACCURACY
    for width in ("1", "16"):
        points = found(averages(frame))["naive", width, "0.9"].points
        assert points[name + schema.OVER_REWIND_EPOCHS, 0] == pytest.approx(points[name, 10])


def test_a_seed_that_has_only_begun_takes_no_rewind_epoch_from_the_others(frame):
    begun = frame["seed_a"] == synthetic.PAIRS[0][0]
    late = (frame["stage"] == "sparse") & (frame["rewind_epoch"] == max(synthetic.REWINDS))
    whole = found(averages(frame))["naive", "1", "0.95"].points
    part = found(averages(frame.assign(status=frame["status"].mask(begun & late, "RUNNING"))))[
        "naive", "1", "0.95"
    ].points
    assert {step for _, step in part} == {step for _, step in whole}
    name = schema.TEST_ACCURACY + schema.OVER_REWIND_EPOCHS
    assert part[name + schema.N, 0] == whole[name + schema.N, 0] - 1


def test_nets_under_one_mask_and_data_orders_count_once(tmp_path):
    space = dataclasses.replace(SPACES["ensemble_diversity"], seeds=(0, 1000))
    synthetic_spaces.write_space(synthetic.with_tables(tmp_path), space)
    frame = load.runs(space.name, synthetic.tracking_uri(tmp_path))
    sparse = frame[frame["stage"] == "sparse"]
    assert (sparse.groupby("method").size() > 2).all(), "members of the ensembles of two nets A"
    runs = [run for run in averages(frame)[0] if run.params["row"] in set(sparse["method"])]
    counts = {value for run in runs for (metric, _), value in run.points.items() if metric.endswith(schema.N)}
    assert runs
    assert counts == {2}


@pytest.mark.parametrize("pruned", [False, True])
def test_before_the_first_sparse_run_there_are_averages_of_dense_nets(folder, pruned):
    recorder = synthetic.Recorder(folder, f"early {pruned}")
    for seed in (0, 1):
        recorder.dense(1.0, seed)
    if pruned:
        recorder.run({schema.TEST_ACCURACY: 80.0}, stage=schema.PRUNE, method="imp", width=1.0, sparsity=0.8, seed_a=0)
    runs, charts = averages(load.runs(f"early {pruned}", synthetic.tracking_uri(folder)))
    dense = found((runs, charts))["dense", "1", None]
    assert dense.points[schema.TEST_ACCURACY + "_n", 0] == 2
    (method,) = [run for run in runs if run.level == schema.METHOD]
    assert method.params["row"] == "dense"
    assert {chart.axis for chart in charts} == {schema.PARAM_WIDTH, *([schema.PARAM_SPARSITY] if pruned else [])}


def test_dense_nets_count_once_although_means_of_other_cells_may_round_differently(frame):
    scored = cells.scores(frame)
    wobbly = scored.assign(**{name: scored[name] + 1e-12 * scored["sparsity"] for name in MEASURES})
    dense = drawing._alone(wobbly[wobbly["row"] == "dense"], {"dense": ["sparsity"]})
    assert (
        len(dense)
        == len(synthetic.WIDTHS) * len(synthetic.REWINDS) * frame.query("stage == 'dense'")["seed_a"].nunique()
    )


def test_data_orders_of_a_pair_count_as_one(folder):
    recorder = synthetic.Recorder(folder, "orders")
    for pair in ((0, 1), (2, 3)):
        for order in (0, 1, 2):
            recorder.sparse("naive", 1.0, 0.8, 10, pair, data_order=order)
    run = found(averages(load.runs("orders", synthetic.tracking_uri(folder))))["naive", "1", "0.8"]
    over = f"{schema.TEST_ACCURACY}{schema.OVER_REWIND_EPOCHS}_n"
    assert (run.points[schema.TEST_ACCURACY + "_n", 10], run.points[over, 0]) == (2, 2)
    assert run.name.endswith("n = 2")


def test_digests_tell_a_changed_run_from_the_same(frame, averaged):
    before, after = found(averaged), found(averages(frame[frame["seed_a"] != 0]))
    assert {place: run.key for place, run in before.items()} == {place: run.key for place, run in after.items()}
    assert all(before[place].content != after[place].content for place in before)
    assert [run.content for run in averages(frame)[0]] == [run.content for run in averaged[0]]


def test_method_runs_have_the_points_of_the_cells(averaged):
    runs, methods = found(averaged), found(averaged, schema.METHOD)
    assert {row for row, *_ in methods} == {"dense", "lth", "naive", "permuted"}
    for row in ("lth", "naive", "permuted"):
        points = methods[row, None, None].points
        for (_, width, sparsity), cell in ((place, run) for place, run in runs.items() if place[0] == row):
            for measure in MEASURES:
                panel = f"w{width} S{sparsity} {drawing.BRIEF[measure]}"
                curve = {step: value for (name, step), value in points.items() if name == panel}
                shown = {step: value for (name, step), value in cell.points.items() if name == measure}
                assert curve == pytest.approx(shown)
            step = [f"{each:g}" for each in synthetic.WIDTHS].index(width)
            assert points["width", step] == float(width)
            mean = cell.points[schema.TEST_ACCURACY + schema.OVER_REWIND_EPOCHS, 0]
            assert points[f"S{sparsity} accuracy", step] == pytest.approx(mean)


def test_every_chart_has_a_metric_of_its_own_that_some_run_has(averaged):
    runs, charts = averaged
    metrics = {name for run in runs if run.level == schema.METHOD for name, _ in run.points}
    assert sorted(chart.metric for chart in charts) == sorted(metrics - {"width", "sparsity"})
    assert all(chart.late for chart in charts)
    assert {(chart.axis, chart.measure) for chart in charts} == set(itertools.product(cells.GRID, MEASURES))


def test_cells_are_listed_by_the_numbers_of_their_place_and_methods_with_gaps_before_dense_nets(averaged):
    runs = sorted((run for run in averaged[0] if run.level == schema.CELL), key=lambda run: run.order)
    methods = {row: place for place, row in enumerate(("dense", "imp", "lth", "naive", "permuted"))}
    places = [(float(run.params["width"]), float(run.params.get("sparsity", 0))) for run in runs]
    listed = [(*place, methods[run.params["row"]]) for place, run in zip(places, runs, strict=True)]
    assert listed == sorted(listed)
    rows = sorted((run for run in averaged[0] if run.level == schema.METHOD), key=lambda run: run.order)
    assert [run.name for run in rows] == ["LTH · n = 3", "Naive · n = 3", "Permuted · n = 3", "Dense · n = 6"]


def test_numbers_sort_by_value():
    numbers = ["", "0.0001", "0.5", "1", "4", "8", "16", "0.1e3"]
    assert sorted(set(numbers), key=drawing._sortable) == numbers
    rows = ["dense", "lth", "permuted", "permuted:t=5", "permuted:t=10", "unknown"]
    assert sorted(set(rows), key=drawing._row_order) == rows


def test_settings_tell_charts_and_cells_apart_by_name_and_nets_that_ignore_one_count_once(tmp_path):
    space = override(SPACES["digits_quickstart"], ["imp_epochs=1,2", "weight_decay=0.01,0.02", "sparsity=0.95"])
    synthetic_spaces.write_space(synthetic.with_tables(tmp_path), space)
    runs, charts = averages(load.runs(space.name, synthetic.tracking_uri(tmp_path)))
    settings = itertools.product((1, 2), ("0.01", "0.02"))
    by_width = [chart.metric for chart in charts if (chart.measure, chart.axis) == (schema.GAP_TO_DENSE, "width")]
    assert sorted(by_width) == [f"i_epochs:{epochs} w_decay:{decay} S0.95 to dense" for epochs, decay in settings]
    names = [run.name for run in runs if run.level == schema.CELL]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("lth · w1 · S0.95 · weight_decay=0.02 · imp_epochs=2 · n = ")]
    assert sorted(name.rpartition(" · ")[0] for name in names if name.startswith("dense · w1")) == [
        "dense · w1 · weight_decay=0.01",
        "dense · w1 · weight_decay=0.02",
    ]
    dense = {run.name: run for run in runs if run.name.startswith("dense · w1")}
    assert {run.params.get("imp_epochs") for run in dense.values()} == {None}


def test_short_names_of_settings_are_unique():
    assert drawing._signs(["width", "weight_decay"])["weight_decay"] == "w_decay:"
    signs = drawing._signs(["match_epoch", "mask_epoch", "lr"])
    assert (signs["match_epoch"], signs["mask_epoch"], signs["lr"]) == ("match_epoch:", "mask_epoch:", "lr:")


def test_ways_of_matching_have_names_that_differ_at_once_and_a_shade_of_their_method_s_colour(tmp_path):
    synthetic_spaces.write_space(synthetic.with_tables(tmp_path), SPACES["match_images"])
    runs, _ = averages(load.runs("match_images", synthetic.tracking_uri(tmp_path)))
    rows = sorted((run for run in runs if run.level == schema.METHOD), key=lambda run: run.order)
    images = [f"{count} match_images · Permuted" for count in (100, 300, 1000, 3000)]
    names = [run.name.removesuffix(" · n = 3") for run in rows]
    assert names == ["LTH", "Naive", "Permuted", *images, "Dense · n = 6"]
    colours = {name: run.colour for name, run in zip(names, rows, strict=True)}
    assert len(set(colours.values())) == len(rows)
    assert colours["Permuted"] == style.look("permuted").colour
    light = [sum(bytes.fromhex(colours[name][1:])) for name in images]
    assert light == sorted(light, reverse=True)
    assert {run.colour for run in runs if run.params["row"] == "permuted:match_images=100"} == {colours[images[0]]}


@pytest.mark.parametrize("others", range(1, 6))
def test_no_shade_is_the_colour_itself(others):
    rows = ["permuted", *(f"permuted:t={epoch}" for epoch in range(others))]
    colours = drawing._shades(rows)
    assert len(set(colours.values())) == len(rows)
    assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_every_space_has_names_that_mlflow_takes_and_few_enough_method_runs(tmp_path, name):
    synthetic_spaces.write_space(synthetic.with_tables(tmp_path), SPACES[name])
    frame = load.runs(name, synthetic.tracking_uri(tmp_path))
    runs, charts = averages(frame)
    assert charts
    assert len({chart.metric for chart in charts}) == len(charts)
    assert sum(run.level == schema.METHOD for run in runs) <= MOST_RUNS
    assert len({run.key for run in runs}) == len(runs)
    for run in runs:
        assert all(re.fullmatch(r"[\w\-./ :]{1,250}", metric) for metric, _ in run.points)
        assert all(math.isfinite(value) for value in run.points.values())
    assert {run.params["row"] for run in runs} == set(cells.scores(frame)[cells.ROW])
