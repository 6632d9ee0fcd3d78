"""A method, a matcher, a figure and an engine are each added by a row: plan, ``--set``, MLflow and report find it."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from copies import Copy, copy_project
from tiny_study import assignments

from analysis import load
from search_spaces import get_space
from trainables import schema
from trainables.storage.store import Store

pytestmark = pytest.mark.slow

SPACE = "digits_quickstart"
METHOD, LABEL = "mask_of_b", "Mask of B"
MATCHER, FIGURE, TITLE = "kept", "added", "A figure that was added"
ENGINE, SAID = "delegating", "an epoch of the engine that was added"
SETTINGS = [
    *assignments(get_space(SPACE)),
    f"method=dense,naive,permuted,{METHOD}",
    f"matcher=activation,{MATCHER}",
    f"kernels={ENGINE}",
]

MODULE = f'''"""Figure: how many runs there are."""

import pandas as pd
from matplotlib.figure import Figure

TITLE = "{TITLE}"
CAPTION = "The number of runs."


def figure(frame: pd.DataFrame) -> Figure:
    drawn = Figure()
    drawn.subplots().bar(["runs"], [len(frame)])
    return drawn


def table(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({{"runs": [len(frame)]}})


def notes(frame: pd.DataFrame) -> list[str]:
    return []
'''


TRAINER = f'''"""An engine that leaves everything to the plain one."""

import logging

from trainables.training.engines import plain


class Trainer(plain.Trainer):
    def train_epoch(self, trainings):
        logging.getLogger(__name__).warning("{SAID}")
        return super().train_epoch(trainings)
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The project with one more row in each table, and a study of it that was planned, run and reported."""
    copy = copy_project(tmp_path_factory.mktemp("extended"))
    row = f'    "{METHOD}": Method(label="{LABEL}", init="a", mask="b"),\n'
    copy.insert("trainables/methods.py", row, after="METHODS: dict[str, Method] = {\n")
    row = f'    "{MATCHER}": Matcher(description="a control", solve="trainables.symmetry.matching:identity"),\n'
    copy.insert("trainables/methods.py", row, after="MATCHERS: dict[str, Matcher] = {\n")
    copy.write(f"analysis/figures/{FIGURE}.py", MODULE)
    copy.insert("analysis/figures/table.py", f'    "{FIGURE}",\n', after='    "sparsity",\n')
    copy.write(f"trainables/training/engines/{ENGINE}.py", TRAINER)
    row = f'    "{ENGINE}": Engine(module="{ENGINE}", selected_by=("kernels", "{ENGINE}")),\n'
    copy.insert("trainables/training/engines/__init__.py", row, after="ENGINES: Final[dict[str, Engine]] = {\n")
    copy.insert("trainables/knobs.py", f'    "{ENGINE}": "they delegate",\n', after="KERNELS: dict[str, str] = {\n")
    settings = [f"--set={each}" for each in SETTINGS]
    (copy.folder / "plan.txt").write_text(copy.run("-m", "study.run", "--space", SPACE, *settings, "--dry-run"))
    copy.run("-m", "study.run", "--space", SPACE, *settings)
    copy.run("-m", "analysis.report", "--space", SPACE, "--no-log")
    return copy


@pytest.fixture(scope="module")
def runs(extended: Copy) -> pd.DataFrame:
    return load.runs(SPACE, f"sqlite:///{extended.folder}/outputs/mlflow.db")


def page(extended: Copy) -> str:
    return (extended.folder / "outputs" / "report" / SPACE / "index.html").read_text(encoding="utf-8")


def test_a_method_is_planned_trained_tracked_and_reported(extended: Copy, runs: pd.DataFrame) -> None:
    trained = runs[runs[schema.PARAM_METHOD] == METHOD]
    assert list(trained["status"]) == ["FINISHED"]
    assert trained[schema.PARAM_SEED_B].isna().all()
    assert LABEL in page(extended)


def test_a_matcher_is_planned_computed_tracked_and_reported(extended: Copy, runs: pd.DataFrame) -> None:
    matched = runs[runs[schema.PARAM_MATCHER] == MATCHER]
    assert set(matched["stage"]) == {schema.MATCH, schema.SPARSE, schema.CONNECT}
    assert set(matched["status"]) == {"FINISHED"}
    (match,) = matched.loc[matched["stage"] == schema.MATCH, schema.MOVED_UNITS]
    assert match == 0
    assert f"Permuted ({MATCHER})" in page(extended)


def test_a_figure_is_drawn_with_its_table(extended: Copy, runs: pd.DataFrame) -> None:
    section = page(extended).partition(f' id="{FIGURE}">')[2].partition("</section>")[0]
    assert TITLE in section
    assert "<svg" in section
    report = extended.folder / "outputs" / "report" / SPACE
    assert list(pd.read_csv(report / f"{FIGURE}.csv")["runs"]) == [len(runs)]


def test_an_engine_trains_all_jobs_and_is_in_their_keys_their_params_and_the_report(
    extended: Copy, runs: pd.DataFrame
) -> None:
    trained = runs[runs["stage"].isin([schema.DENSE, schema.PRUNE, schema.SPARSE])]
    store = Store(extended.folder / "outputs")
    assert set(trained["kernels"]) == {ENGINE}
    for key in trained["key"]:
        assert store.manifest(key)["config"]["recipe"]["kernels"] == ENGINE, "the key is the digest of this"
        assert store.read(key, schema.LOG).decode().count(SAID) >= 1
    assert f"fp32 on {ENGINE} kernels" in page(extended)


def test_the_plan_counts_what_was_added(extended: Copy) -> None:
    plan = (extended.folder / "plan.txt").read_text()
    counts = dict(re.findall(r"^ +(\w+) +([\d,]+)", plan, flags=re.MULTILINE))
    assert (counts[schema.SPARSE], counts[schema.MATCH]) == ("4", "3")


def test_without_its_row_a_name_is_unknown(tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = copy_project(tmp_path_factory.mktemp("unchanged"))
    for setting in (f"method={METHOD}", f"matcher={MATCHER}", f"kernels={ENGINE}"):
        copy.run("-m", "study.run", "--space", SPACE, "--set", setting, "--dry-run", code=2)
