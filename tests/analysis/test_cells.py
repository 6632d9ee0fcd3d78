"""Which runs belong together, in studies whose jobs are those of real plans."""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import cells, labels, load, summary
from analysis.figures import accuracy_table
from analysis.page import coverage
from search_spaces import SPACES
from study.plan import override, varied_settings
from study.tracking.stored_runs import stored_runs
from trainables import schema
from trainables.storage.store import Store

SMALL = {"seeds": (0, 1), "sparsity": (0.9,)}
STUDIES = {
    "early": dataclasses.replace(SPACES["early_matching"], name="early", match_epoch=(5, 100, -1), **SMALL),
    "always_early": dataclasses.replace(SPACES["early_matching"], name="always_early", match_epoch=(5,), **SMALL),
    "ended": dataclasses.replace(SPACES["early_matching"], name="ended", match_epoch=(5, 200), **SMALL),
    "matchers": dataclasses.replace(
        SPACES["matcher_ablation"], name="matchers", method=("naive", "permuted"), width=(1.0,), **SMALL
    ),
    "images": dataclasses.replace(SPACES["early_matching"], name="images", match_epoch=(-1,), **SMALL),
    "ensembles": dataclasses.replace(SPACES["ensemble_diversity"], name="ensembles", members=3),
    "controls": dataclasses.replace(SPACES["mask_controls"], name="controls", width=(1.0,), **SMALL),
    "tolerant": dataclasses.replace(
        SPACES["mask_controls"], name="tolerant", method=("imp", "lth"), width=(1.0,), seeds=(0,), sparsity=(0.9, 0.95),
        prune_tolerance=0.005, mask_overlap=False,
    ),
    "rates": dataclasses.replace(
        SPACES["mask_controls"], name="rates", method=("dense", "lth", "naive"), width=(0.3125,), lr=(0.08, 0.1),
        sparse_lr=(0.01, 0.02), interpolation_points=(3, 5), mask_overlap=False, **SMALL,
    ),
}  # fmt: skip
STUDIES["pruned_rates"] = dataclasses.replace(
    STUDIES["rates"], name="pruned_rates", method=("dense", "imp"), sparse_lr=0.01, interpolation_points=3
)
STUDIES["one_diverged"] = dataclasses.replace(
    STUDIES["rates"], name="one_diverged", method=("dense", "lth", "naive", "reinit", "imp"), lr=(0.08, 0.1),
    sparse_lr=(0.01, 0.02), imp_lr=(0.01, 0.02), rewind_epoch=(0, 10), interpolation_points=0,
)  # fmt: skip
STUDIES["pruned"] = dataclasses.replace(STUDIES["pruned_rates"], name="pruned", lr=0.1)
STUDIES["dense_rates"] = dataclasses.replace(STUDIES["pruned_rates"], name="dense_rates", method=("dense",))
STUDIES["images"] = dataclasses.replace(STUDIES["images"], match_images=(1_000, 10_000))


def finished(_job, _cell):
    return "FINISHED"


def diverged(job, cell):
    """Let reinitialised nets fail at one learning rate, all nets at another one, and pruning at a third one."""
    if (job.kind == schema.SPARSE and cell.method == "reinit" and cell.sparse_lr == 0.02) or cell.lr == 0.1:
        return "FAILED"
    return None if job.kind == schema.PRUNE and cell.imp_lr == 0.02 else "FINISHED"


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    for space in STUDIES.values():
        synthetic_spaces.write_space(folder, space, status=diverged if space.name == "one_diverged" else finished)
    return {name: load.runs(name, synthetic.tracking_uri(folder)) for name in STUDIES}


def by_row(frame):
    scored = cells.scores(frame)
    return {row: scored[scored["row"] == row] for row in cells.row_order(scored["row"])}


# --- how nets were matched makes rows, not cells ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("study", "rows"),
    [
        ("early", ["permuted", "permuted:t=5", "permuted:t=100"]),
        ("always_early", ["permuted"]),
        ("ended", ["permuted", "permuted:t=5"]),
        (
            "matchers",
            ["permuted", *(f"permuted:{name}" for name in ("activation_inner", "identity", "random", "weight"))],
        ),
        ("images", ["permuted", "permuted:match_images=1000"]),
    ],
)
def test_other_ways_to_match_are_rows_of_the_same_cells(frames, study, rows):
    frame = frames[study]
    assert cells.varied(frame) == []
    found = by_row(frame)
    assert [row for row in found if row.startswith("permuted")] == rows
    pairs = cells.paired(cells.scores(frame), cells.axes(frame))
    assert pairs[[*rows, "naive"]].notna().all(axis=None)
    place = pairs.index.names[:-1]
    assert len(pairs) == 2 * len(pairs.groupby(place))  # both pairs of nets, in each cell


def test_every_early_match_is_compared_with_the_same_naive_net(frames):
    frame = frames["early"]
    pairs = cells.paired(cells.scores(frame), cells.axes(frame)).droplevel([*cells.CELL])
    runs = frame[(frame["stage"] == "sparse") & (frame["seed_a"] == 2)].set_index(["method", "match_epoch"])
    accuracy = runs["test_accuracy"]
    line = pairs.loc["A2→B3"]
    assert line["naive"] == accuracy[("naive", pd.NA)].item()
    assert [line["permuted:t=5"], line["permuted"]] == [accuracy["permuted", 5], accuracy["permuted", -1]]
    table = accuracy_table.table(frame)
    assert len(table) == 1
    gains = [accuracy_of(frame, seed, "permuted", -1) - accuracy_of(frame, seed, "naive") for seed in (0, 2)]
    assert table["permuted_minus_naive"].item() == pytest.approx(np.mean(gains))


def accuracy_of(frame, seed, method, match_epoch=None):
    runs = frame[(frame["stage"] == "sparse") & (frame["method"] == method) & (frame["seed_a"] == seed)]
    if match_epoch is not None:
        runs = runs[runs["match_epoch"] == match_epoch]
    return runs["test_accuracy"].item()


def test_what_goes_without_saying_is_said_where_it_matters(frames):
    assert cells.main_matching(frames["early"])["match_epoch"] == cells.END
    assert cells.main_matching(frames["always_early"])["match_epoch"] == 5
    (note,) = accuracy_table.notes(frames["matchers"])
    assert note == "Permuted, if not stated otherwise: matched by activation, at the end of B's training."
    assert "match_images=10000" in accuracy_table.notes(frames["images"])[0]
    assert accuracy_table.notes(frames["controls"]) == []


def test_rows_that_are_early():
    names = pd.Series(
        ["permuted", "permuted:t=5", "permuted:weight, t=5", "permuted:weight", "naive", "permuted:random"]
    )
    assert cells.early(names).tolist() == [False, True, True, False, False, False]
    assert cells.early(names.iloc[:0]).dtype == bool


def test_rows_are_in_the_order_of_the_method_table_and_of_numbers():
    names = pd.Series(["permuted:t=100", "stranger", "permuted:t=20", "naive", "permuted", "permuted:t=5", "dense"])
    assert cells.row_order(names) == [
        "dense", "naive", "permuted", "permuted:t=5", "permuted:t=20", "permuted:t=100", "stranger",
    ]  # fmt: skip
    assert labels.method("permuted:weight, t=5") == "Permuted (weight, t=5)"


# --- settings that vary -------------------------------------------------------------------------------------------
def test_settings_that_the_study_varies_tell_cells_apart(frames):
    frame = frames["rates"]
    assert cells.varied(frame) == ["lr", "sparse_lr"]
    scored = cells.scores(frame)
    place = ["width", "lr", "sparse_lr"]
    assert set(scored.groupby(place).groups) == {(0.3125, lr, sparse) for lr in (0.08, 0.1) for sparse in (0.01, 0.02)}
    for _, group in scored.groupby(place):
        counts = group.drop_duplicates("run_id").groupby("row").size()
        assert counts.to_dict() == {"dense": 2, "lth": 4, "naive": 4, "imp": 2}


@pytest.mark.parametrize(
    ("row", "setting", "value"), [("reinit", "sparse_lr", 0.02), ("dense", "lr", 0.1), ("imp", "imp_lr", 0.02)]
)
def test_results_that_are_missing_are_not_taken_from_another_recipe(frames, row, setting, value):
    frame = frames["one_diverged"]
    assert cells.varied(frame) == ["lr", "sparse_lr", "imp_lr"]
    found = by_row(frame)[row]
    assert len(found)
    assert value not in set(found[setting])
    assert value in set(frame[setting])


def test_results_stand_beside_those_of_every_recipe_on_which_they_do_not_depend(frames):
    found = by_row(frames["one_diverged"])
    dense, imp, reinit = (found[row].groupby("run_id") for row in ("dense", "imp", "reinit"))
    assert set(dense[["imp_lr", "sparse_lr", "rewind_epoch"]].value_counts().groupby("run_id").size()) == {2 * 2 * 2}
    assert set(imp[["sparse_lr", "rewind_epoch"]].value_counts().groupby("run_id").size()) == {2 * 2}
    assert set(reinit[["rewind_epoch"]].value_counts().groupby("run_id").size()) == {2}


@pytest.mark.parametrize(
    "settings",
    [
        ["sparse_schedule=restart,resume", "sparse_lr=0.01,0.02"],
        ["prune_tolerance=0.0,0.005,0.02", "sparsity=0.8,0.9,0.95"],
        ["pruner=imp_finetune,imp_rewind", "imp_lr=0.01,0.02"],
        ["init=default,fan_in", "model=resnet20,vgg11"],
        ["kernels=dense,sparse", "sparsity=0.5,0.9"],
        ["rewind_offset=0,1", "rewind_offset_counts=false,true"],
        ["schedule=cosine,constant", "imp_schedule=,constant"],
        ["lr=0.05,0.1", "imp_lr=0.01,0.02", "sparse_lr=0.01,0.02"],
    ],
    ids=lambda settings: settings[0],
)
def test_the_cells_of_a_recipe_hold_the_nets_of_a_study_with_that_recipe_alone(settings, tmp_path):
    """Also where a setting has an effect in a part of the grid only: nothing is lost, and nothing stands elsewhere.

    The same holds for the nets of a rewind epoch.
    """
    base = dataclasses.replace(
        SPACES["mask_controls"], method=("dense", "lth", "naive", "reinit"), width=(0.3125,), seeds=(0,),
        sparsity=(0.9,), rewind_epoch=(5, 10), mask_overlap=False,
    )  # fmt: skip
    space = override(base, settings)
    plan, names = synthetic_spaces.plan_of(space), [*varied_settings(space), "rewind_epoch"]
    frame = stored_runs(plan, Store(tmp_path)).assign(status="FINISHED")
    scored = cells.scores(frame)
    keys = frame.set_index("run_id")["key"]
    shown = [name for name in names if name in scored]
    for values in itertools.product(*(getattr(space, name) for name in names)):
        recipe = dict(zip(names, values, strict=True))
        alone = synthetic_spaces.plan_of(dataclasses.replace(space, **recipe))
        here = scored[(scored[shown] == pd.Series(recipe)[shown]).all(axis="columns")]
        for row, kind in (("dense", "dense"), ("lth", "sparse"), ("naive", "sparse"), ("reinit", "sparse")):
            expected = {
                key
                for key, job in alone.jobs.items()
                if job.kind == kind and row in (kind, alone.cells[key].method) and None in alone.closure.outputs[key]
            }
            assert set(keys[here.loc[here["row"] == row, "run_id"]]) == expected, (recipe, row)


@pytest.mark.parametrize("method", [("dense", "reinit"), ("dense", "lth", "naive", "reinit")], ids=", ".join)
def test_no_net_is_lost_where_some_reinitialised_nets_depend_on_the_rewind_epoch(method, tmp_path):
    space = dataclasses.replace(
        SPACES["mask_controls"], method=method, pruner=("imp_finetune", "imp_rewind"), width=(0.3125,), seeds=(0,),
        sparsity=(0.9,), rewind_epoch=(5, 10), mask_overlap=False,
    )  # fmt: skip
    frame = stored_runs(synthetic_spaces.plan_of(space), Store(tmp_path)).assign(status="FINISHED")
    trained = frame[frame["stage"].isin(["dense", "sparse"])]
    assert set(trained["run_id"]) <= set(cells.scores(frame)["run_id"])
    assert coverage.is_complete(frame), coverage.missing(frame)


# --- pairs --------------------------------------------------------------------------------------------------------
def test_members_under_one_mask_are_pairs_of_their_own(frames):
    frame = frames["ensembles"]
    pairs = cells.paired(cells.scores(frame), cells.axes(frame)).droplevel([*cells.CELL])
    assert pairs.index.tolist() == ["A0→B1", "A0→B3", "A0→B5", "A2", "A4"]  # the last two: IMP nets without a B
    assert pairs.loc["A0→B1":"A0→B5", ["naive", "permuted"]].notna().all(axis=None)
    lth = frame[(frame["stage"] == "sparse") & (frame["method"] == "lth")]
    assert lth["data_order"].tolist() == [0, 1, 2]
    assert pairs.loc["A0→B1":"A0→B5", "lth"].tolist() == pytest.approx([lth["test_accuracy"].mean()] * 3)
    assert cells.indistinct(cells.scores(frame), cells.axes(frame)) == 0
    table = accuracy_table.table(frame).iloc[0]
    assert (table["lth_n"], table["permuted_n"], table["imp_n"]) == (1, 3, 3), "data orders of one net are no nets"
    assert table["pairs"] == 1
    assert pd.isna(table["ci_low"]), "one mask says nothing about others"
    assert coverage.is_complete(frame)


def test_a_control_s_own_chain_of_pruning_is_no_pair(frames):
    pairs = cells.paired(cells.scores(frames["controls"]), cells.axes(frames["controls"])).reset_index("pair")
    b_nets = pairs[pairs["pair"].isin(["A1", "A3"])]
    assert b_nets.drop(columns=["pair", "imp"]).isna().all(axis=None)
    whole = pairs[pairs["pair"].isin(["A0→B1", "A2→B3"])]
    assert whole.notna().all(axis=None)
    assert set(whole.columns) >= {"imp", "lth", "naive", "permuted", "shuffled", "own_mask", "reinit"}


def test_missing_results_are_counted_by_pair(frames):
    frame = frames["ensembles"]
    lost = frame[~((frame["method"] == "permuted") & (frame["seed_b"] == 3) & (frame["stage"] == "sparse"))]
    missing = coverage.missing(lost).set_index("method")
    assert missing["missing"].to_dict() == {"LTH": 0, "Naive": 0, "Permuted": 1}
    assert missing["expected"].to_dict() == {"LTH": 1, "Naive": 3, "Permuted": 3}


# --- pruned nets ----------------------------------------------------------------------------------------------------
def test_pruning_that_stops_within_a_tolerance_stands_beside_its_target(frames):
    frame = frames["tolerant"]
    pruned = frame[frame["stage"] == "prune"]
    reached = float(pruned["sparsity"].max())
    assert 0.945 <= reached < 0.95
    imp = by_row(frame)["imp"].set_index(["sparsity", "rewind_epoch"])["test_accuracy"]
    assert set(imp.index) == {(0.9, 10), (0.9, 50), (0.95, 10), (0.95, 50)}
    assert imp[0.95, 10] == pruned.loc[pruned["sparsity"] == reached, "test_accuracy"].item()
    assert (
        frame.loc[pruned.index, "sparsity"] == pruned["sparsity"]
    ).all()  # the runs themselves keep what they reached
    assert schema.PARAM_ROUND in frame


@pytest.mark.parametrize(("study", "rates"), [("pruned", 1), ("pruned_rates", 2), ("dense_rates", 2)])
def test_without_sparse_nets_the_pruned_and_dense_nets_are_shown(frames, study, rates):
    frame = frames[study]
    found = by_row(frame)
    for row, runs in found.items():
        of_row = frame[frame["method"] == row].set_index("run_id")
        assert set(runs["run_id"]) == set(of_row.index)
        for name in cells.varied(frame):
            assert runs[name].tolist() == of_row.loc[runs["run_id"], name].tolist()
    assert len(cells.varied(frame)) == rates - 1
    text = summary.short_table(frame)
    assert "Dense" in text
    if "imp" in set(frame["method"]):
        assert "IMP" in text
        assert found["imp"]["sparsity"].max() == 0.9
        assert len(accuracy_table.imp(frame)) == rates * found["imp"]["sparsity"].nunique()
