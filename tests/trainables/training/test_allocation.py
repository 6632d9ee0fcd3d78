"""Memory that a process frees stays with it, until it is given back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from trainables.training.allocation import give_back, keep_freed_memory

SCRIPT = """
import ctypes, json, resource
import numpy as np
from trainables.training.allocation import give_back, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [np.ones(8 * 2**20, np.uint8) for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

PR_SET_THP_DISABLE = 41  # or one fault brings 2 MiB, and the first time has hardly more of them than the second
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
keep_freed_memory()
print(json.dumps([faults(), faults()]))
give_back()
print(faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_freed_memory_is_used_again_until_it_is_given_back() -> None:
    answer = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    kept, given_back = answer.splitlines()
    first, again = json.loads(kept)
    assert first > 10 * again, "the memory of the first time is still there the second time"
    assert int(given_back) > 10 * again


def test_nothing_of_it_raises_however_often_it_is_asked() -> None:
    assert keep_freed_memory() == keep_freed_memory()
    give_back()
    give_back()
