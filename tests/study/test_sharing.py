"""Two studies at the same time on one storage: what both need is computed once, and recorded once."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from checkout import SUPPORT
from studies import SETTINGS, SPACE, Study, assert_whole, tracked
from tiny_study import assert_same_result
from waiting import HANG_SECONDS

from search_spaces import get_space
from study.plan import Plan, make_plan, override

pytestmark = pytest.mark.slow
COUNTING = SUPPORT / "counting"


def begun(folder: Path) -> Counter[str]:
    """Return how often each job was begun."""
    return Counter(line.split()[0] for line in (folder / "begun").read_text().splitlines())


def start(study: Study, *arguments: str) -> subprocess.Popen[str]:
    study.environment = {
        "COUNT_JOBS": str(study.folder / "begun"),
        "PYTHONPATH": os.pathsep.join((str(COUNTING), str(SUPPORT))),
    }
    return study.start(*arguments)


def test_two_studies_of_one_plan(study: Study, undisturbed: Study, plan_of_studies: Plan) -> None:
    drivers = [start(study) for _ in range(2)]
    outputs = [driver.communicate(timeout=HANG_SECONDS) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    assert begun(study.folder) == dict.fromkeys(plan_of_studies.jobs, 1)
    assert_whole(study.store)
    for key in plan_of_studies.jobs:
        assert_same_result(study.store, undisturbed.store, key)
    assert tracked(study.database) == tracked(undisturbed.database)


def test_two_studies_that_share_a_part(study: Study, undisturbed: Study, plan_of_studies: Plan) -> None:
    """The second asks for another method, and needs the same dense nets, masks and matches."""
    other = "method=lth,own_mask,permuted"
    drivers = [start(study), start(study, "--set", other)]
    outputs = [driver.communicate(timeout=HANG_SECONDS) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    both = make_plan(override(get_space(SPACE), [*SETTINGS, other])).jobs.keys() | plan_of_studies.jobs.keys()
    assert len(both) > len(plan_of_studies.jobs)
    assert begun(study.folder) == dict.fromkeys(both, 1)
    for key in plan_of_studies.jobs:
        assert_same_result(study.store, undisturbed.store, key)
    status, _, _ = tracked(study.database)
    assert status == dict.fromkeys(both, "FINISHED")
