"""Ours beside the paper's: what is compared with what, how far apart it is, and what is said about it."""

import dataclasses
import json
import math
import re

import pandas as pd
import pytest
import synthetic_effects as synthetic
import synthetic_runs
import synthetic_spaces
from scipy import stats as scipy_stats

from analysis import load
from analysis.drawing.signs import DASH, TIMES
from analysis.figures import versus_paper
from analysis.paper import numbers
from analysis.record import readme
from search_spaces import SPACES, SearchSpace
from study.plan import override
from study.tracking.labels import run_params, settings_tag
from trainables import schema
from trainables.knobs import KNOBS
from trainables.methods import METHODS
from trainables.models import MODELS

PAPER = {"dense_epochs": 200, "dense_lr": 0.08, "lr": 0.02, "batch_size": 128, "momentum": 0.9, "weight_decay": 0.0005}
PLACE = {"sparsity": 0.97, "rewind": 10}


def only(found, **where):
    for name, value in where.items():
        found = found[found[name] == value]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def frame():
    """The cell of width 1, 97 % and epoch 10, where the paper's naive nets reach 86.03 ± 0.17 (see its table 5)."""
    return synthetic.runs(
        [
            *synthetic.cell({"naive": [86.0, 86.5, 87.0], "permuted": [86.0, 86.2, 86.7], "lth": [89.0] * 3}, **PLACE),
            *synthetic.cell({"naive": [70.0], "shuffled": [60.0], "own_mask": [71.0]}, sparsity=0.5, rewind=10),
            *(synthetic.dense(93.0, seed) for seed in range(6)),
        ],
        **PAPER,
    )


# --- the paper's numbers ----------------------------------------------------------------------------------------------
def test_every_number_of_the_files_is_there_once():
    found = numbers.numbers()
    rows = {name: len(pd.read_csv(numbers.FOLDER / f"{name}.csv")) for name in ("results", "ensembles")}
    counts = found["measure"].value_counts()
    assert rows["results"] == 654 + 16  # on SVHN
    assert counts[schema.TEST_ACCURACY] == rows["results"] + 16  # four early epochs of table 15 at four sparsities
    assert counts[schema.TEST_TOP5_ACCURACY] == 27
    assert {counts[name] for name in (schema.MEMBER_ACCURACY_MEAN, *numbers.VOTES)} == {rows["ensembles"]}
    assert not found.duplicated([*numbers.PLACE, "measure"]).any()
    assert found["mean"].notna().all()
    assert set(found["model"]) <= set(MODELS)
    assert set(found["method"]) - {""} <= set(METHODS)
    assert found.loc[found["measure"].str.contains("accuracy"), "mean"].between(40, 100).all()
    assert found["source"].str.len().min() > 0


@pytest.mark.parametrize(
    ("place", "mean", "std", "source"),
    [
        (("resnet20", "cifar10", 1.0, 0.8, 0, "lth"), 90.41, 0.14, "Table 5"),
        (("resnet20", "cifar10", 1.0, 0.8, 100, "permuted"), 90.82, 0.21, "Table 5"),
        (("resnet20", "cifar10", 8.0, 0.97, 10, "naive"), 94.39, 0.04, "Table 7"),
        (("resnet50", "image_folder", 1.0, 0.9, 25, "permuted"), 66.37, math.nan, "Table 10"),
    ],
)
def test_some_numbers_as_printed(place, mean, std, source):
    found = numbers.numbers()
    found = found[(found["measure"] == schema.TEST_ACCURACY) & found["match_epoch"].isna()]
    one = only(found, **dict(zip((*numbers.PLACE[:5], "method"), place, strict=True)))
    assert (one["mean"], one["source"]) == (mean, source)
    assert one["std"] == pytest.approx(std, nan_ok=True)
    assert one["n"] == (1 if source == "Table 10" else 3)


# --- beside ours ------------------------------------------------------------------------------------------------------
def test_a_cell_in_standard_errors(frame):
    one = only(versus_paper.table(frame), method="naive")
    theirs = only(
        numbers.numbers(),
        model="resnet20",
        dataset="cifar10",
        width=1.0,
        sparsity=0.97,
        rewind_epoch=10,
        method="naive",
        measure=schema.TEST_ACCURACY,
    )
    welch = scipy_stats.ttest_ind_from_stats(86.5, 0.5, 3, theirs["mean"], theirs["std"], 3, equal_var=False)
    assert (one["ours_mean"], one["ours_std"], one["ours_n"]) == pytest.approx((86.5, 0.5, 3))
    assert (one["paper_mean"], one["paper_std"], one["paper_n"]) == (theirs["mean"], theirs["std"], 3)
    assert one["difference"] == pytest.approx(86.5 - theirs["mean"])
    assert (one["in_standard_errors"], one["p"]) == pytest.approx((welch.statistic, welch.pvalue))


def test_the_table_that_people_read_has_both_means(frame):
    (dense, cell) = versus_paper.formatted(frame).sort_values("sparsity", ascending=False).to_dict("records")
    assert dense["Dense"] == "93.00 / 92.88"
    one = only(versus_paper.table(frame), method="naive")
    size = f"{one['in_standard_errors']:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert cell["Naive"] == f"86.50 / {one['paper_mean']:.2f} ({size})"
    assert cell["Dense"] == ""


def test_only_what_both_have_is_compared(frame):
    found = versus_paper.table(frame)
    assert sorted(found["method"]) == ["dense", "lth", "naive", "permuted"]
    dense = only(found, method="dense")
    assert (dense["ours_mean"], dense["ours_n"], dense["paper_mean"]) == (93.0, 6, 92.88)
    assert dense[["paper_std", "standard_error", "in_standard_errors", "p"]].isna().all()
    assert dense["difference"] == pytest.approx(0.12)


def test_other_ways_to_match_are_not_the_papers(frame):
    other = frame.assign(matching=[how and {**how, "matcher": "weight"} for how in frame["matching"]])
    assert "permuted" not in set(versus_paper.table(other)["method"])


def test_masks_of_another_dataset_are_not_the_papers(frame):
    foreign = frame.assign(mask_dataset=["svhn"] * len(frame))
    assert versus_paper.table(foreign).empty
    assert len(versus_paper.table(frame.assign(mask_dataset="cifar10"))) == 4


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Return a function that reads a study of masks from CIFAR-10 and from SVHN on either dataset."""
    folder = tmp_path_factory.mktemp("foreign")
    for dataset, methods in (("cifar10", "dense,naive,permuted"), ("svhn", "dense,naive,permuted")):
        values = ["mask_dataset=cifar10,svhn", "sparsity=0.9", "rewind_epoch=10", "width=1", f"method={methods}"]
        space = override(SPACES["resnet20_width_sweep"], [*values, f"dataset={dataset}"])
        synthetic_spaces.write_space(folder, dataclasses.replace(space, name=dataset))
    return lambda name: load.runs(name, synthetic_runs.tracking_uri(folder))


def test_where_masks_are_from_several_datasets_the_papers_numbers_are_for_its_own(foreign):
    found = versus_paper.table(foreign("cifar10"))
    accuracies = found[found["measure"] == schema.TEST_ACCURACY]
    lines = accuracies[["method", "mask_dataset", "ours_n"]].sort_values("method").to_numpy().tolist()
    assert lines == [["dense", "cifar10", 6], ["naive", "cifar10", 3], ["permuted", "cifar10", 3]]
    assert set(versus_paper.table(foreign("svhn"))["mask_dataset"].dropna()) == {"cifar10"}


def test_a_record_shows_the_papers_numbers_beside_nets_under_its_masks_only(foreign):
    for dataset, theirs in (("cifar10", ["92.88", "89.50", "88.83"]), ("svhn", ["94.47", "92.93"])):
        head, _, *lines = readme.results(foreign(dataset))[:4]
        assert "mask_dataset" in head
        shown = {line.split(" | ")[3]: re.findall(r"<br>paper ([0-9.]+)", line) for line in lines}
        dense = theirs[:1] if dataset == "cifar10" else []
        assert shown["svhn"] == dense, "the dense net has no mask"
        assert len(shown["cifar10"]) == len(theirs)


def test_early_matches_are_compared_with_table_15():
    place = {"sparsity": 0.9, "rewind": 20}
    lines = synthetic.cell({"naive": [88.0, 89.0, 90.0]}, **place)
    for epoch, accuracy in ((5, 89.0), (-1, 89.6), (7, 80.0)):
        lines += synthetic.cell({"permuted": [accuracy - 0.1, accuracy, accuracy + 0.1]}, match_epoch=epoch, **place)
    found = versus_paper.table(synthetic.runs(lines))
    permuted = found[found["method"] == "permuted"].set_index("source")
    assert permuted.loc["Table 15", ["match_epoch", "paper_mean", "ours_mean"]].tolist() == [
        5,
        89.16,
        pytest.approx(89),
    ]
    assert permuted.loc["Table 5", ["paper_mean", "ours_mean"]].tolist() == [89.50, pytest.approx(89.6)]
    assert len(permuted) == 2
    assert len(versus_paper.figure(synthetic.runs(lines)).axes) == 1


def test_barriers_are_compared_with_those_of_repair():
    def path(width, correction="bn_reset", matcher="activation", kind="pair", seed=0):
        line = {"stage": schema.CONNECT, "matcher": matcher, "correction": correction, "path": kind, "width": width}
        return line | {"seed_a": seed, "match_epoch": -1, schema.LOSS_BARRIER: 1.0 / width, schema.ERROR_BARRIER: 20.0}

    lines = [path(1.0), path(1.0, seed=2), path(16.0), path(3.0), path(2.0, "none"), path(4.0, matcher="identity")]
    found = versus_paper.table(synthetic.runs([*lines, path(8.0, matcher="", kind="imp")]))
    assert sorted(set(found["width"])) == [1.0, 16.0]
    one = only(found, width=1.0, measure=schema.LOSS_BARRIER)
    assert (one["paper_mean"], one["ours_mean"], one["ours_n"]) == (0.993, 1.0, 2)
    assert only(found, width=16.0, measure=schema.ERROR_BARRIER)["difference"] == pytest.approx(20 - 1.45)


def test_ensembles_are_compared_with_table_1():
    numbers = {schema.MEMBERS: 5.0, schema.MEMBER_ACCURACY_MEAN: 91.0, schema.MEMBER_ACCURACY_STD: 0.2}
    numbers |= {schema.ENSEMBLE_ACCURACY: 91.5, schema.DISAGREEMENT: 0.04}
    line = {"stage": schema.ENSEMBLE, "method": "lth", "sparsity": 0.9, "rewind_epoch": 25, "seed_a": 0, **numbers}
    found = versus_paper.table(synthetic.runs([line])).set_index("measure")
    members = found.loc[schema.MEMBER_ACCURACY_MEAN]
    assert members[["ours_n", "paper_n", "paper_std", "rewind_epoch"]].tolist() == [5, 5, 0.163, 25]
    assert members["in_standard_errors"] == pytest.approx((91.0 - 91.15) / math.hypot(0.2, 0.163) * math.sqrt(5))
    assert found.loc[schema.DISAGREEMENT, "difference"] == pytest.approx(0.005)
    assert math.isnan(found.loc[schema.DISAGREEMENT, "p"])
    assert schema.KL_DIVERGENCE not in found.index  # not measured here
    assert any("states neither the rewind epoch" in note for note in versus_paper.notes(synthetic.runs([line])))


def test_members_are_those_of_the_first_seed_in_whatever_order_ensembles_started():
    line = {"stage": schema.ENSEMBLE, "method": "lth", "sparsity": 0.9, "rewind_epoch": 25, schema.MEMBERS: 5.0}
    first, second = (
        line | {"seed_a": seed, schema.MEMBER_ACCURACY_MEAN: mean, schema.ENSEMBLE_ACCURACY: 92.0}
        for seed, mean in ((0, 89.0), (2, 90.0))
    )
    for started in ([first, second], [second, first]):
        found = only(versus_paper.table(synthetic.runs(started)), measure=schema.MEMBER_ACCURACY_MEAN)
        assert found["ours_mean"] == 89.0


@pytest.mark.parametrize(("dataset", "width", "said"), [("cifar10", 1.0, False), ("cifar100", 4.0, True)])
def test_the_sparsity_of_table_1_on_cifar_100_is_doubted(dataset, width, said):
    line = {"stage": schema.ENSEMBLE, "method": "lth", "sparsity": 0.9, "rewind_epoch": 25, "seed_a": 0}
    line |= {"dataset": dataset, "width": width, schema.MEMBERS: 5.0, schema.ENSEMBLE_ACCURACY: 76.0}
    notes = versus_paper.notes(synthetic.runs([line]))
    assert any("at 95 % (table 12)" in note for note in notes) == said


# --- what is said -----------------------------------------------------------------------------------------------------
def test_the_papers_recipe_goes_without_saying_and_any_other_does_not(frame):
    assert not any("differs from what the paper" in note for note in versus_paper.notes(frame))
    other = frame.assign(lr="0.1", weight_decay="5e-4", dense_epochs="20")
    said = " ".join(versus_paper.notes(other))
    assert "Training of resnet20 differs from what the paper and its code state" in said
    assert "dense_epochs 20 (200), lr 0.1 (0.02)" in said
    assert "weight_decay" not in said  # 5e-4 is 0.0005


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("schedule", "constant"),
        ("precision", "bf16"),
        ("init", "fan_out"),
        ("imp_schedule", "steps"),
        ("warmup_epochs", "5"),
        ("prune_shortcuts", "True"),
        ("prune_tolerance", "0.005"),
        ("augment", "False"),
        ("match_images", "100"),
        ("rewind_offset", "1"),
        ("shortcut", "conv1x1"),
        ("imp_momentum", "0.0"),
        ("imp_weight_decay", "0.0"),
    ],
)
def test_training_network_mask_and_match_are_compared_with_the_papers_too(frame, name, ours):
    theirs = numbers.RECIPES["resnet20"][name]
    assert not any(f"{name} " in note for note in versus_paper.notes(frame.assign(**{name: str(theirs)})))
    said = "all" if (name, theirs) == ("match_images", 0) else theirs
    assert f"{name} {ours} ({said})" in " ".join(versus_paper.notes(frame.assign(**{name: ours})))


def test_a_schedule_that_sparse_nets_resume_is_not_the_papers(frame):
    resumed = frame.copy()
    resumed.attrs["settings"] = json.dumps({"sparse_schedule": "resume", "lr": 0.5})
    assert "sparse_schedule resume (restart)" in " ".join(versus_paper.notes(resumed))
    assert " lr " not in " ".join(versus_paper.notes(resumed)), "runs record their own, which is the paper's"
    varied = frame.assign(sparse_schedule=["restart", "resume"] * (len(frame) // 2) + ["resume"] * (len(frame) % 2))
    assert "sparse_schedule restart and resume (restart)" in " ".join(versus_paper.notes(varied))


@pytest.mark.parametrize("lr", ["0.02", "fast"])
def test_a_setting_that_is_no_number_differs(frame, lr):
    assert ("lr fast (0.02)" in " ".join(versus_paper.notes(frame.assign(lr=lr)))) == (lr == "fast")


def test_every_setting_that_affects_results_is_compared_and_recorded():
    space = SearchSpace(name="test", question="?", rewind_epoch=(0,), method=("permuted",), seeds=(0,))
    plan = synthetic_spaces.plan_of(space)
    job = next(job for job in plan.jobs.values() if job.kind == schema.SPARSE)
    recorded = {*run_params(job, plan.cells[job.key]), *versus_paper.UNRECORDED}
    assert numbers.RECIPES["resnet20"].keys() <= recorded
    assert json.loads(settings_tag(space)).keys() >= set(versus_paper.UNRECORDED)
    parts = {"training", "network", "rewinding", "pruning", "matching"}
    knobs = {name for name, knob in KNOBS.items() if knob.part in parts and knob.affects_results}
    rounding = {"compiled", "kernels", "stacked", "graphs", "deterministic"}
    renamed = {"epochs": "dense_epochs", "lr": "dense_lr", "sparse_lr": "lr"}
    compared = {renamed.get(name, name) for name in knobs - rounding - {"match_epoch"}}
    assert compared == numbers.RECIPES["resnet20"].keys()


@pytest.mark.parametrize(
    ("model", "recipe"), [("resnet20", "paper"), ("vgg11", "paper"), ("resnet50", "paper_imagenet")]
)
def test_our_recipes_of_the_paper_are_the_papers(model, recipe):
    space, code = (
        override(SearchSpace(name="test", question="?", model=(model,), rewind_epoch=(0,)), [f"recipe={name}"])
        for name in (recipe, "paper_code")
    )
    for name, theirs in numbers.MATCHES[model].items():
        assert getattr(code, name) == theirs, name
    for name in numbers.RECIPES[model].keys() - numbers.MATCHES[model].keys():
        theirs = numbers.RECIPES[model][name]
        value = getattr(space, {"dense_epochs": "epochs", "dense_lr": "lr", "lr": "sparse_lr"}.get(name, name))
        value = (
            {"init": MODELS[model].init, "imp_schedule": space.schedule}[name] if value in ("default", "") else value
        )
        assert value == theirs, name


def test_references_of_svhn_are_of_masks_from_cifar10_and_vggs_barriers_of_repair():
    place = {"dataset": "svhn", "sparsity": 0.9, "rewind": 10}
    runs = synthetic.runs(synthetic.cell({"permuted": [94.0, 95.0]}, **place))
    assert versus_paper.table(runs.assign(mask_dataset="svhn")).empty
    found = versus_paper.table(runs.assign(mask_dataset="cifar10"))
    assert found["paper_mean"].tolist() == [94.47]
    assert numbers.CORRECTIONS["vgg11"] == "repair"
    barriers = numbers.numbers()
    barriers = barriers[barriers["measure"] == schema.LOSS_BARRIER].set_index(["model", "dataset", "width"])["mean"]
    assert barriers["vgg11", "cifar10", 1.0] == 0.15
    assert barriers["resnet20", "svhn", 4.0] == 0.077


def test_how_many_differ_is_said_with_what_chance_would_give(frame):
    said = versus_paper.notes(frame)[0]
    assert "1 of 3 means differ from the paper's with p < 0.05 (Welch), where chance alone would give about 0" in said


def test_a_study_without_counterpart_says_so(frame):
    ours = frame.assign(dataset="digits")
    assert versus_paper.table(ours).empty
    assert versus_paper.notes(ours)[0].startswith("This study has no number in common with the paper")
    versus_paper.figure(ours)


def test_numbers_are_drawn_against_the_papers_and_clear_differences_are_filled(frame):
    axes = versus_paper.figure(frame).axes[0]
    assert axes.get_title(loc="right") == f"n = 3{DASH}6, paper 3"
    found = versus_paper.table(frame)
    points = [
        (*point, line.get_markerfacecolor() != "none")
        for line in (container.lines[0] for container in axes.containers)
        for point in line.get_xydata()
    ]
    far = found["in_standard_errors"].abs() >= versus_paper.CLEAR
    assert 0 < far.sum() < len(found)
    expected = zip(found["paper_mean"], found["difference"], far, strict=True)
    assert sorted(points) == [pytest.approx(point) for point in sorted(expected)]


def test_accuracies_have_a_panel_for_each_width_and_other_measures_one_for_all():
    paths = [
        {"stage": schema.CONNECT, "width": width, "sparsity": math.nan, "matcher": "activation"}
        | {"correction": "bn_reset", "match_epoch": -1, schema.ERROR_BARRIER: 20.0, "seed_a": 0, "seed_b": 1}
        for width in (1.0, 8.0)
    ]
    nets = [synthetic.cell({"naive": [90.0]}, width=width, **PLACE) for width in (8.0, 1.0)]
    panels = versus_paper.figure(synthetic.runs([*paths, *nets[0], *nets[1]])).axes
    shown = {axes.get_xlabel(): [len(each.lines[0].get_xdata()) for each in axes.containers] for axes in panels}
    accuracy = f"The paper's test accuracy at width {TIMES}"
    assert list(shown.items()) == [
        (f"{accuracy}1", [1]),
        (f"{accuracy}8", [1]),
        ("The paper's error barrier (pp)", [2]),
    ]


def test_image_folders_are_taken_for_imagenet_and_it_is_said():
    place = {"model": "resnet50", "dataset": "image_folder", "sparsity": 0.9, "rewind": 25}
    frame = synthetic.runs(synthetic.cell({"permuted": [67.0]}, **place, **{schema.TEST_TOP5_ACCURACY: 88.0}))
    found = versus_paper.table(frame).set_index("measure")
    assert found.loc[schema.TEST_ACCURACY, "difference"] == pytest.approx(0.63)
    assert found.loc[schema.TEST_TOP5_ACCURACY, "difference"] == pytest.approx(0.63)
    assert "The folder of images is assumed to be ImageNet." in versus_paper.notes(frame)
    assert len(versus_paper.figure(frame).axes) == 2


@pytest.mark.parametrize("part", [slice(0, 0), slice(0, 1), slice(-1, None)])
def test_parts_of_a_study(frame, part):
    versus_paper.figure(frame.iloc[part])
    assert len(versus_paper.table(frame.iloc[part])) <= 1
    assert all(isinstance(note, str) for note in versus_paper.notes(frame.iloc[part]))
