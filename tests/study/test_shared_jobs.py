"""Jobs that several workers share, on a Ray of their own: a death costs at most an epoch, and changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from studies import Study
from tiny_study import assert_same_result
from waiting import HANG_SECONDS, wait_until

pytestmark = pytest.mark.slow

ARGUMENTS = (
    *("--set=workers=2", "--set=kernels=dense", "--set=method=dense", "--set=seeds=0", "--set=epochs=12"),
    *("--set=rewind_epoch=1", "--set=interpolation_points=0", "--set=batch_size=299", "--checkpoint-seconds=0"),
)
WORKER = b"ray::_Serving"
"""Name of the processes of workers that do not lead."""


def test_the_driver_and_then_a_worker_killed_in_the_middle_of_a_trial(tmp_path: Path) -> None:
    studies = [Study(tmp_path / name, arguments=ARGUMENTS) for name in ("undisturbed", "disturbed")]
    for study in studies:
        study.folder.mkdir()
    undisturbed, disturbed = studies
    try:
        out, _ = undisturbed.finish()
        assert "with 2 workers, each with 1 CPU" in out
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
        assert "a worker was lost" in out + err
        keys = undisturbed.store.keys()
        assert keys == disturbed.store.keys()
        for key in keys:
            assert_same_result(disturbed.store, undisturbed.store, key)
        wait_until(lambda: not disturbed.processes(WORKER), "a worker outlives its trial")
    finally:
        for study in studies:
            study.kill_all()
