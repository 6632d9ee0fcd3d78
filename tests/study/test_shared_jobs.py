"""Jobs that several workers share, on a Ray of their own: a death costs at most an epoch, and changes nothing."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from pathlib import Path

import pytest
from studies import Study, planned
from tiny_study import assert_same_store, publish_all
from waiting import HANG_SECONDS, wait_until

from trainables.jobs.publishing import Context
from trainables.storage.store import Store
from trainables.training.crew import Crew

pytestmark = pytest.mark.slow

ARGUMENTS = (
    *("--set=workers=2", "--set=kernels=dense", "--set=method=dense", "--set=seeds=0", "--set=epochs=12"),
    *("--set=rewind_epoch=1", "--set=interpolation_points=0", "--set=batch_size=299", "--checkpoint-seconds=0"),
)
WORKER = b"ray::_Serving"
"""Name of the processes of workers that do not lead."""


def test_the_driver_and_then_a_worker_killed_in_the_middle_of_a_trial(tmp_path: Path) -> None:
    disturbed, undisturbed = Study(tmp_path, arguments=ARGUMENTS), Store(tmp_path / "undisturbed")
    plan = planned(*(word.removeprefix("--set=") for word in ARGUMENTS if word.startswith("--set=")))
    with closing(Crew(2)) as crew:
        publish_all(plan, Context(store=undisturbed, crew=crew))
    try:
        process = disturbed.start()
        work = disturbed.folder / "outputs" / "work"
        wait_until(lambda: work.exists() and any(work.rglob("*")), "there is no checkpoint", process)
        process.kill()
        process.communicate(timeout=HANG_SECONDS)
        wait_until(lambda: not disturbed.processes(WORKER), "a worker outlives its driver")
        process = disturbed.start()
        wait_until(lambda: disturbed.processes(WORKER), "there is no worker", process)
        os.kill(disturbed.processes(WORKER)[0], signal.SIGKILL)
        out, err = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == 0, (out, err)
        assert "with 2 workers, each with 1 CPU" in out
        assert "a worker was lost" in out + err
        assert_same_store(disturbed.store, undisturbed)
        wait_until(lambda: not disturbed.processes(WORKER), "a worker outlives its trial")
    finally:
        disturbed.kill_all()
