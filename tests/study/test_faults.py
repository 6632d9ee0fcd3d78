"""Processes die at any moment, the study does not notice: same bits, same numbers, nothing twice, nothing missing."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from stored import file_of
from studies import (
    Study,
    assert_as_if_nothing_had_happened,
    assert_whole,
    kill_a_worker,
    planned,
    tracked,
    wait_for_results,
)
from tiny_study import assert_same_result
from waiting import HANG_SECONDS, wait_until

from study.plan import Plan
from trainables import schema


@pytest.mark.parametrize(
    "kills", [pytest.param(6, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.exhaustive)]
)
def test_killed_at_many_moments(tmp_path: Path, undisturbed: Study, plan_of_studies: Plan, kills: int) -> None:
    """Drivers and workers, while Ray starts and while jobs run, until each study has ended all the same."""
    luck = random.Random(20)
    drivers = workers = 0
    studies: list[Study] = []
    try:
        while drivers + workers < kills:
            study = Study(tmp_path / str(len(studies)))
            study.folder.mkdir()
            studies.append(study)
            while drivers + workers < kills and not _is_over(study, undisturbed):
                process = study.start()
                for _ in range(luck.randint(0, 2)):
                    time.sleep(luck.uniform(0.0, 2.0))
                    workers += kill_a_worker(study, process, luck)
                time.sleep(luck.uniform(0.0, 5.0))
                if process.poll() is None:
                    process.kill()
                    drivers += 1
                process.communicate(timeout=HANG_SECONDS)
                if luck.random() < 0.5:  # otherwise its workers may live on for a while beside the next start
                    study.kill_all()
                assert_whole(study.store)
        assert drivers > kills // 4
        assert workers > kills // 4
        for study in studies:
            study.finish()
            assert_as_if_nothing_had_happened(study, undisturbed, plan_of_studies)
    finally:
        for study in studies:
            study.kill_all()


def _is_over(study: Study, undisturbed: Study) -> bool:
    return study.store.keys() == undisturbed.store.keys()


@pytest.mark.slow
def test_termination_leaves_no_process_and_parents_damaged_then_are_made_anew(
    study: Study, undisturbed: Study, plan_of_studies: Plan
) -> None:
    process = study.start()
    assert wait_for_results(study, process, len(undisturbed.store.keys()) // 2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130, (out, err)
    wait_until(lambda: study.processes() == [], "its processes live on")
    store = study.store
    parents = {ref.key for job in plan_of_studies.jobs.values() for _, ref in job.parents} & store.keys()
    assert len(parents) > 3
    for key in sorted(parents)[::2]:
        name = schema.WEIGHTS if schema.WEIGHTS in store.manifest(key)["files"] else schema.PERMUTATION
        path = file_of(store, key, name)
        path.write_bytes(path.read_bytes()[:-10])
    study.finish()
    for key in plan_of_studies.jobs.keys() - parents:
        assert_same_result(store, undisturbed.store, key)
    assert tracked(study.database) == tracked(undisturbed.database)


@pytest.mark.slow
def test_stacked_networks_die_together_and_end_one_by_one(
    tmp_path: Path, undisturbed: Study, plan_of_studies: Plan
) -> None:
    study, plan = Study(tmp_path, arguments=("--set=stacked=true", "--nets-per-trial=4")), planned("stacked=true")
    stacked_twin = dict(zip(plan_of_studies.jobs, plan.jobs, strict=True))
    try:
        process = study.start()
        assert wait_for_results(study, process, 1)
        assert kill_a_worker(study, process, random.Random(1))
        assert wait_for_results(study, process, 2)
        process.kill()
        process.communicate(timeout=HANG_SECONDS)
        study.finish()
    finally:
        study.kill_all()
    assert_whole(study.store)
    status, points, _ = tracked(study.database)
    assert status == dict.fromkeys(plan.jobs, "FINISHED")
    _, expected, _ = tracked(undisturbed.database)
    places = [point[:3] for point in points]
    assert places == sorted((stacked_twin[str(key)], *rest[:2]) for key, *rest in expected), "every point once"
    accuracies = {
        job.key: [
            each.store.read_json(key, schema.METRICS)["final"][schema.TEST_ACCURACY]
            for each, key in ((undisturbed, job.key), (study, stacked_twin[job.key]))
        ]
        for job in plan_of_studies.jobs.values()
        if job.epochs
    }
    differences = [stacked - alone for alone, stacked in accuracies.values()]
    assert abs(sum(differences) / len(differences)) < 3
    assert any(differences), "they were rounded differently"
