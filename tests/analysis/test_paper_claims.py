"""The paper's tables, run through the analysis as if they were a study of ours, say what the paper's tables say.

The numbers to be reproduced were worked out from the published tables, independently of this code.
"""

from __future__ import annotations

import pytest
import synthetic_effects as synthetic

from analysis import cells, stats
from analysis.drawing import facets
from analysis.figures import effects, versus_paper
from analysis.paper import numbers as published
from trainables import schema

GRID = ["dataset", "model", "width", "sparsity"]
NAMES = {"C10": ("cifar10", "resnet20"), "C100": ("cifar100", "resnet20"), "VGG/C10": ("cifar10", "vgg11")}

ARITHMETIC = """
C10 1 80 | 0.07 0.3 0.67 | 0.42 1.47 22 | 0.29 0.56
C10 1 90 | 0.12 0.9 0.86 | 0.93 1.63 36 | 0.05 0.21
C10 1 95 | 0.35 2.0 0.59 | 1.19 2.29 34 | -0.38 0.12
C10 1 97 | 0.01 0.0 0.42 | 0.85 2.85 23 | -1.25 -0.31
C10 4 80 | 0.03 0.3 0.28 | 0.43 0.52 45 | 0.38 0.15
C10 4 90 | 0.18 1.0 0.46 | 0.71 0.68 51 | 0.10 0.18
C10 4 95 | 0.27 1.9 0.11 | 1.04 0.76 58 | -0.49 0.08
C10 4 97 | 0.18 1.1 0.19 | 1.59 0.90 64 | -0.98 0.31
C10 8 80 | 0.19 1.5 -0.01 | 0.25 0.26 49 | 0.47 0.34
C10 8 90 | 0.00 0.0 -0.09 | 0.56 0.26 69 | -0.06 0.27
C10 8 95 | 0.25 1.8 0.01 | 0.70 0.43 62 | -0.25 0.30
C10 8 97 | 0.07 0.8 0.08 | 1.13 0.48 70 | -0.56 0.19
C10 16 80 | 0.30 2.8 -0.15 | 0.19 0.08 70 | 0.28 0.42
C10 16 90 | 0.21 1.5 0.01 | 0.38 0.19 67 | 0.29 0.24
C10 16 95 | 0.12 0.7 -0.31 | 0.62 0.03 95 | -0.16 0.04
C10 16 97 | 0.13 3.1 0.12 | 0.84 0.28 75 | -0.71 0.37
C100 1 80 | 0.15 0.9 0.65 | 1.18 3.25 27 | -0.04 0.50
C100 1 90 | 0.55 2.2 0.49 | 1.90 4.06 32 | -1.01 0.33
C100 1 95 | 1.08 5.6 0.59 | 2.60 4.24 38 | -1.23 0.20
C100 1 97 | 0.64 1.6 0.76 | 2.77 4.97 36 | -1.90 -0.59
C100 4 80 | 0.38 5.5 0.78 | 0.95 1.75 35 | 1.10 0.95
C100 4 90 | 0.21 1.0 0.36 | 1.78 2.25 44 | -0.02 0.72
C100 4 95 | 0.24 0.9 0.75 | 2.42 2.43 50 | -1.00 0.71
C100 4 97 | 0.68 3.9 -0.02 | 2.90 2.38 55 | -0.84 0.79
C100 8 80 | 0.48 2.7 0.75 | 1.01 1.48 41 | 1.27 0.72
C100 8 90 | 0.49 2.4 0.30 | 1.67 1.61 51 | 0.19 0.83
C100 8 95 | 0.29 2.4 0.31 | 2.47 1.69 59 | -1.10 1.07
C100 8 97 | 0.68 1.6 0.16 | 3.12 2.11 60 | -0.94 0.50
C100 16 80 | 0.04 0.6 0.86 | 0.80 1.10 42 | 1.51 1.37
C100 16 90 | 0.42 1.9 0.11 | 1.41 1.26 53 | 0.31 0.75
C100 16 95 | 0.24 2.1 0.07 | 2.03 1.31 61 | -1.04 0.49
C100 16 97 | 0.58 1.7 0.45 | 2.83 1.67 63 | -1.18 0.49
VGG/C10 1 80 | 0.24 2.5 0.00 | 0.32 0.27 54 | 0.83 0.55
VGG/C10 1 90 | 0.13 1.1 0.03 | 0.97 0.35 74 | -0.01 0.57
"""
"""Per dataset, width and sparsity: at rewind epoch 0 permuted - naive, the same in standard errors, LTH - permuted;
from epoch 10 on the means of permuted - naive and of LTH - permuted and the share of the gap closed (%); change from
epoch 10 to the last of naive and of permuted. Points of accuracy."""
LINES = [line for line in ARITHMETIC.splitlines() if line]


@pytest.fixture(scope="module")
def tables():
    numbers = published.numbers()
    numbers = numbers[numbers["dataset"] != "svhn"]  # the claims are on masks of a net's own dataset
    return numbers[numbers["measure"] == schema.TEST_ACCURACY]


@pytest.fixture(scope="module")
def frame(tables):
    return synthetic.as_if_ours(tables[tables["match_epoch"].isna()])


@pytest.fixture(scope="module")
def gains(frame):
    """All cells; those of several rewind epochs pooled are left out."""
    found = effects.table(frame)
    return found[found["cells"] == 1]


@pytest.fixture(scope="module")
def small(gains):
    """The cells of CIFAR and VGG11."""
    return gains[gains["model"] != "resnet50"]


@pytest.fixture(scope="module")
def numbers(frame):
    """Means, standard deviations and numbers of runs by cell."""
    found = facets.summaries(frame, [schema.TEST_ACCURACY])
    wide = found[found["model"] != "resnet50"].pivot(index=list(cells.CELL), columns="row", values=["n", "mean", "std"])
    return wide.set_axis([f"{row}_{what}" for what, row in wide.columns], axis="columns").reset_index()


def at(found, line):
    """Return the cells of a line of the arithmetic, by rewind epoch."""
    name, width, sparsity = line.split("|")[0].split()
    dataset, model = NAMES[name]
    chosen = (found["dataset"] == dataset) & (found["model"] == model) & (found["width"] == float(width))
    return found[chosen & (found["sparsity"] == int(sparsity) / 100)].set_index("rewind_epoch").sort_index()


def expected(line, part):
    return [float(number) for number in line.split("|")[part].split()]


def rounded(value, decimals=2):
    """Return a tolerance for a number that was rounded to so many decimals; both may have been cut at a tie."""
    return pytest.approx(value, abs=0.5001 * 10**-decimals)


def in_standard_errors(one):
    """Return permuted - naive in standard errors of the difference of two independent means."""
    first, second = (stats.Summary(*(one[f"{row}_{what}"] for what in ("n", "mean", "std"))) for row in COMPARED)
    return stats.welch(first, second).in_standard_errors


COMPARED = (cells.PERMUTED, cells.NAIVE)


def test_the_tables_are_complete(tables, small):
    assert len(small) == 206
    assert set(small["pairs"]) == {3}
    assert len(tables[(tables["model"] == "resnet50")]) == 27


def test_permuted_is_nowhere_behind_naive(small):
    behind = small["permuted_minus_naive"].round(6)
    assert (behind >= 0).all()
    tie = small[behind == 0]
    assert tie[["dataset", "width", "sparsity", "rewind_epoch"]].values.tolist() == [["cifar10", 8.0, 0.9, 0]]


def test_from_an_untouched_initialisation_the_gain_is_small(small, numbers):
    start = small.loc[small["rewind_epoch"] == 0, "permuted_minus_naive"]
    assert len(start) == 34
    assert (start.min(), start.max()) == (rounded(0.0), rounded(1.08))
    sizes = [in_standard_errors(one) for one in numbers[numbers["rewind_epoch"] == 0].to_dict("records")]
    assert sum(round(size, 1) >= 2 for size in sizes) == 12  # one of them is 1.99


@pytest.mark.parametrize("line", LINES)
def test_the_arithmetic_at_epoch_zero(small, numbers, line):
    gain, size, behind = expected(line, 1)
    one = at(small, line).loc[0]
    assert one["permuted_minus_naive"] == rounded(gain)
    assert one["lth_minus_permuted"] == rounded(behind)
    assert in_standard_errors(at(numbers, line).loc[0].to_dict()) == rounded(size, 1)


@pytest.mark.parametrize("line", LINES)
def test_the_arithmetic_from_epoch_ten_on(small, line):
    gain, behind, share = expected(line, 2)
    late = at(small, line).loc[10:]
    means = late[["permuted_minus_naive", "lth_minus_permuted", "lth_minus_naive"]].mean()
    assert means["permuted_minus_naive"] == rounded(gain)
    assert means["lth_minus_permuted"] == rounded(behind)
    lth, naive = means["lth_minus_naive"], 0.0
    assert 100 * stats.share_closed(naive + means["permuted_minus_naive"], naive, lth) == rounded(share, 0)


@pytest.mark.parametrize("line", LINES)
def test_naive_and_permuted_over_the_rewind_epochs(numbers, line):
    found = at(numbers, line)
    for row, change in zip(("naive", "permuted"), expected(line, 3), strict=True):
        assert found[f"{row}_mean"].iloc[-1] - found.loc[10, f"{row}_mean"] == rounded(change)


def mean_from_ten(small, dataset, column, **place):
    chosen = small[(small["dataset"] == dataset) & (small["model"] == "resnet20") & (small["rewind_epoch"] >= 10)]
    for name, value in place.items():
        chosen = chosen[chosen[name] == value]
    return chosen.groupby(["width", "sparsity"])[column].mean()


@pytest.mark.parametrize(
    ("dataset", "gaps"), [("cifar10", [2.85, 0.90, 0.48, 0.28]), ("cifar100", [4.97, 2.38, 2.11, 1.67])]
)
def test_the_gap_to_lth_at_97_percent_shrinks_with_width(small, dataset, gaps):
    found = mean_from_ten(small, dataset, "lth_minus_permuted", sparsity=0.97).tolist()
    assert found == [rounded(gap) for gap in gaps]
    assert found == sorted(found, reverse=True)


def test_at_width_one_a_third_of_the_gap_is_closed_at_most(small):
    for dataset in ("cifar10", "cifar100"):
        gain = mean_from_ten(small, dataset, "permuted_minus_naive", width=1.0)
        share = 100 * gain / mean_from_ten(small, dataset, "lth_minus_naive", width=1.0)
        assert share.between(21.5, 38.5).all()


def test_permuted_edges_lth_only_in_the_widest_nets(small):
    late = small[(small["rewind_epoch"] >= 10) & (small["lth_minus_permuted"] < -1e-9)]
    exceptions = late[["dataset", "width", "sparsity", "rewind_epoch"]].values.tolist()
    assert exceptions == [["cifar10", 16.0, 0.95, 10], ["cifar10", 16.0, 0.95, 50]]


def test_the_gain_grows_with_sparsity_in_wide_nets(small):
    for dataset in ("cifar10", "cifar100"):
        gain = mean_from_ten(small, dataset, "permuted_minus_naive")
        assert all(gain[width].is_monotonic_increasing for width in (4.0, 8.0, 16.0))
    narrow = mean_from_ten(small, "cifar10", "permuted_minus_naive", width=1.0).tolist()
    assert narrow == [rounded(gain) for gain in (0.42, 0.93, 1.19, 0.85)]


@pytest.mark.parametrize(("dataset", "least", "most"), [("cifar10", 0.16, 1.25), ("cifar100", 0.84, 1.90)])
def test_naive_falls_with_the_rewind_epoch_at_high_sparsity(numbers, dataset, least, most):
    high = numbers[(numbers["dataset"] == dataset) & (numbers["model"] == "resnet20") & (numbers["sparsity"] >= 0.95)]
    means = high.pivot_table(index=["width", "sparsity"], columns="rewind_epoch", values="naive_mean")
    fall = means[10] - means[100]
    assert (fall.min(), fall.max()) == (rounded(least), rounded(most))


@pytest.mark.parametrize(
    ("name", "least", "most"), [("C10", 0.13, 0.28), ("VGG/C10", 0.11, 0.14), ("C100", 0.20, 0.48)]
)
def test_how_much_seeds_differ(numbers, name, least, most):
    dataset, model = NAMES[name]
    here = numbers[(numbers["dataset"] == dataset) & (numbers["model"] == model)]
    stds = here.groupby("width")[[f"{row}_std" for row in ("lth", "naive", "permuted")]].mean()
    assert (stds.min(axis=None), stds.max(axis=None)) == (rounded(least), rounded(most))


@pytest.mark.parametrize(
    ("column", "expected_gaps"),
    [
        ("permuted_minus_naive", [[0.74, 0.91, 0.84], [0.76, 1.60, 2.94], [1.09, 2.00, 1.20]]),
        ("lth_minus_permuted", [[3.00, 2.31, 4.09], [5.15, 4.37, 3.22], [6.13, 5.30, 6.85]]),
    ],
)
def test_imagenet(gains, column, expected_gaps):
    found = gains[gains["model"] == "resnet50"].pivot_table(index="sparsity", columns="rewind_epoch", values=column)
    assert found.to_numpy().tolist() == [[rounded(gap) for gap in line] for line in expected_gaps]
    assert set(gains.loc[gains["model"] == "resnet50", "pairs"]) == {1}


def test_gains_of_early_matches_are_small(tables, numbers):
    early = tables[tables["match_epoch"].notna()]
    base = numbers[(numbers["model"] == "resnet20") & (numbers["dataset"] == "cifar10") & (numbers["width"] == 1.0)]
    naive = base[base["rewind_epoch"] == 20].set_index("sparsity")["naive_mean"]
    gained = early["mean"].to_numpy() - naive[early["sparsity"]].to_numpy()
    assert len(early) == 16
    assert (gained.min(), gained.max()) == (rounded(0.06), rounded(0.73))


def test_what_ensembles_gain_over_their_members():
    votes = published.numbers().set_index(["dataset", "method", "measure"])["mean"]
    for dataset, by_method in {
        "cifar10": {"imp": 2.16, "lth": 0.28, "permuted": 2.37, "naive": 2.39},
        "cifar100": {"imp": 4.81, "lth": 0.64, "permuted": 5.37, "naive": 5.10},
    }.items():
        for method, gained in by_method.items():
            mean, vote = (
                votes[dataset, method, name] for name in (schema.MEMBER_ACCURACY_MEAN, schema.ENSEMBLE_ACCURACY)
            )
            assert vote - mean == rounded(gained)
        assert votes[dataset, "lth", schema.DISAGREEMENT] < votes[dataset, "permuted", schema.DISAGREEMENT] / 2


def test_compared_with_themselves_the_tables_do_not_differ(frame, tables):
    found = versus_paper.table(frame)
    assert len(found) == len(tables[tables["match_epoch"].isna()]) == 3 * 206 + 9 + 27
    assert found["difference"].abs().max() < 1e-9
    spread = found[found["paper_std"].notna()]
    assert len(spread) == 3 * 206
    assert spread["ours_std"].to_numpy() == pytest.approx(spread["paper_std"].to_numpy())
    assert spread["in_standard_errors"].abs().max() < 1e-6
