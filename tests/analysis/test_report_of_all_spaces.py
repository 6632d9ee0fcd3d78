"""The report of every search space, and of a large one: no figure is without a study that fills it."""

import os

from checkout import ROOT

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import dataclasses
import html
import re

import pandas as pd
import pytest
import synthetic_runs as synthetic
import synthetic_spaces

from analysis import load, sources, write
from analysis.drawing import files
from analysis.figures import accuracy_table
from analysis.figures.table import FIGURES, loader
from search_spaces import SPACES

LARGE = dataclasses.replace(
    SPACES["resnet20_width_sweep"],
    name="large",
    width=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    rewind_epochs_of_width=(),
    method=("dense", "imp", "lth", "permuted", "naive", "shuffled", "own_mask"),
    match_epoch=(20, -1),
    mask_overlap=True,
)
"""All that a sweep of trained nets is asked for beside the grid itself: some 1,600 jobs for each pair of seeds."""
FILLING = (
    "cifar10_two_cores",
    "mode_connectivity",
    "ensemble_diversity_cifar100",
    "early_matching",
    "match_images",
    "mask_controls",
)
"""Spaces whose reports have every figure among them."""


def reduced(space):
    """A space with little of what there is only more of: it has jobs of the same kinds."""
    few = {name: getattr(space, name)[:2] for name in ("width", "sparsity", "rewind_epoch", "seeds")}
    fine = {name: min(getattr(space, name), 5) for name in ("plane_resolution", "interpolation_points")}
    return dataclasses.replace(space, rewind_epochs_of_width=(), **few, **fine)


def filled(space, uri, names=tuple(FIGURES)):
    """The figures, of some, for which a study has numbers."""
    frames = {}
    for module in (FIGURES[name] for name in names):
        if loader(module) not in frames:
            frames[loader(module)] = loader(module)(space, uri)
    return {name for name in names if len(FIGURES[name].table(frames[loader(FIGURES[name])]))}


def has_table(module, space, uri, out, name):
    """Say whether a report has a figure's table, under its own name or, as equal tables are written once, another's."""
    if (path := out / f"{name}.csv").exists():
        return len(pd.read_csv(path, low_memory=False)) > 0
    files.write_csv(module.table(loader(module)(space, uri)), wanted := out.with_suffix(".csv"))
    return wanted.read_bytes() in {path.read_bytes() for path in out.glob("*.csv")}


SIGNED = re.compile(r"(?<![\w.])-[\d.]|[-+\N{MINUS SIGN}]0(\.0+)?(?![\d.])")
"""A number with a hyphen for a minus sign, or a zero with a sign."""


def check_signs(page):
    """Check that the tables of a page write negative numbers and zeros alike."""
    data = [html.unescape(datum) for datum in re.findall("<td[^>]*>(.*?)</td>", page)]
    assert data
    assert not [datum for datum in data if SIGNED.search(datum)]


def check_report(space, uri, out):
    """Write a report, check that it is whole, and return the names of the figures in it."""
    page = write.write_report(space, uri, out).read_text(encoding="utf-8")
    check_signs(page)
    drawn = set()
    for name, module in FIGURES.items():
        section = page.partition(f' id="{name}">')[2].partition("</section>")[0]
        assert html.escape(module.TITLE) in section
        if "<svg" in section:
            drawn.add(name)
            assert html.escape(module.CAPTION) in section
            assert has_table(module, space, uri, out, name)
            assert all((out / f"{name}.{suffix}").stat().st_size for suffix in ("png", "svg", "pdf"))
        else:
            assert 'class="note"' in section, f"{name} does not say why it is empty"
    return drawn


def test_the_library_as_its_page_shows_it(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    example = page.partition("## Results as data frames")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "outputs").mkdir()
    synthetic_spaces.write_space(tmp_path / "outputs", SPACES["digits_quickstart"])
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    shown = capsys.readouterr().out
    expected = accuracy_table.table(names["runs"])
    assert len(expected) == 8
    for line in expected.itertuples():
        assert f"{line.permuted_minus_naive:.6f}" in shown
    assert shown.count(f"  {len(SPACES['digits_quickstart'].seeds)}\n") == 8
    assert (tmp_path / "rewind.png").stat().st_size > 10_000


def check_reports(names, tmp_path):
    """Check the reports of spaces, and return the names of all figures in them."""
    uri, drawn = synthetic.tracking_uri(tmp_path), set()
    for space in (reduced(SPACES[name]) for name in names):
        synthetic_spaces.write_space(tmp_path, space)
        found = check_report(space.name, uri, tmp_path / space.name)
        assert found == filled(space.name, uri)
        drawn |= found
    return drawn


@pytest.mark.slow
def test_every_figure_is_in_the_report_of_some_space(tmp_path):
    assert check_reports(FILLING, tmp_path) == set(FIGURES)


@pytest.mark.exhaustive
def test_the_reports_of_all_other_spaces_have_what_the_spaces_fill(tmp_path):
    assert check_reports(SPACES.keys() - set(FILLING), tmp_path)


@pytest.mark.parametrize(
    ("widths", "seeds", "least"),
    [
        pytest.param(2, 3, sources.PAGE, marks=pytest.mark.slow),
        pytest.param(6, 14, 20_000, marks=pytest.mark.exhaustive),
    ],
)
def test_a_large_study_is_reported_as_a_whole(tmp_path, widths, seeds, least):
    space = dataclasses.replace(LARGE, width=LARGE.width[:widths], seeds=tuple(range(seeds)))
    jobs = synthetic_spaces.write_space(tmp_path, space).jobs
    assert len(jobs) > least
    uri = synthetic.tracking_uri(tmp_path)
    frame = load.runs(space.name, uri)
    assert set(frame["key"]) == set(jobs)
    drawn = check_report(space.name, uri, tmp_path / "report")
    assert drawn >= {"rewind", "sparsity", "width", "effects", "controls", "mask_overlap", "versus_paper", "cost"}
    assert len(pd.read_csv(tmp_path / "report" / "runs.csv", low_memory=False)) == len(jobs)
    table = pd.read_csv(tmp_path / "report" / "accuracy.csv")
    grid = len(space.width) * len(space.sparsity) * len(space.rewind_epoch)
    assert (len(table), set(table["permuted_n"])) == (grid, {seeds})
