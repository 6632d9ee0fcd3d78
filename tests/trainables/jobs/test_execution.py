"""Ancestors on demand: computed once, shared between processes by leases, and again when they are found damaged."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest
from stored import file_of
from tiny_study import (
    assert_same_result,
    computed_epochs,
    damage_when_read,
    flip_bit,
    publish,
    python,
    tensors,
    tiny_cell,
    trained,
)
from waiting import HANG_SECONDS

from trainables import schema
from trainables.graph import Closure, Job, Ref, dense_job, match_job, prune_job, target
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.storage.lease import STALE_SECONDS
from trainables.storage.store import DamagedArtifact, Store

CELL = tiny_cell()
TARGET = target(CELL)
DENSE_A, DENSE_B = dense_job(CELL, CELL.seed_a), dense_job(CELL, CELL.seed_b)
PRUNED = prune_job(CELL, CELL.seed_a)


# --- ancestors ------------------------------------------------------------------------------------------------------
def test_ancestors_are_computed_once_parents_first(published: Store, context: Context) -> None:
    rows = publish([Ref(TARGET)], context)
    graph = Closure([Ref(TARGET)]).jobs
    assert trained(rows) == {(key, step + 1): 1 for key, job in graph.items() for step in range(job.epochs)}
    assert all(row["stage"] == graph[row["job_key"]].kind for row in rows)
    order = list(dict.fromkeys(row["job_key"] for row in rows))
    for key in order:
        parents = {ref.job.key for _, ref in graph[key].parents if ref.job.epochs}
        assert parents <= set(order[: order.index(key)])
    for key in graph:
        assert_same_result(context.store, published, key)


def test_a_second_target_computes_only_what_is_new(published: Store, context: Context) -> None:
    lth = target(tiny_cell("lth"))
    publish([Ref(TARGET)], context)
    rows = publish([Ref(lth)], context)
    # Only net A's state after one epoch is missing.
    assert trained(rows) == {(DENSE_A.key, 1): 1, (lth.key, 1): 1, (lth.key, 2): 1}
    assert_same_result(context.store, published, lth.key)


def test_published_target_needs_nothing_not_even_its_parents(own_copy: Store) -> None:
    for job in (DENSE_A, PRUNED):
        shutil.rmtree(own_copy.directory(job.key))
    assert publish([Ref(TARGET)], Context(store=own_copy)) == []
    assert DENSE_A.key not in own_copy


def test_only_the_state_that_is_needed_is_computed(context: Context) -> None:
    rows = list(compute(DENSE_B, [1], context))
    assert computed_epochs(rows, DENSE_B) == [1]
    assert Ref(DENSE_B, 1).key in context.store
    assert DENSE_B.key not in context.store


# --- damage ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parent", "name"),
    [
        (Ref(PRUNED), schema.MASK),
        (Ref(DENSE_B, 1), schema.WEIGHTS),
        (Ref(match_job(CELL, CELL.matcher)), schema.PERMUTATION),
        (Ref(PRUNED), schema.MANIFEST),
    ],
)
def test_damaged_parent_is_set_aside_and_computed_again(
    published: Store, own_copy: Store, parent: Ref, name: str
) -> None:
    shutil.rmtree(own_copy.directory(TARGET.key))
    flip_bit(file_of(own_copy, parent.key, name), position=20 if name == schema.MANIFEST else -9)
    rows = publish([Ref(TARGET)], Context(store=own_copy))
    assert tensors(own_copy, parent.key) == tensors(published, parent.key)
    assert_same_result(own_copy, published, TARGET.key)
    assert {row["job_key"] for row in rows} <= {TARGET.key, parent.job.key}
    (aside,) = (own_copy.root / "store" / ".damaged").iterdir()
    assert aside.name.startswith(parent.key)


def test_damage_deep_in_the_chain_is_found_while_it_is_mended(published: Store, own_copy: Store) -> None:
    for job in (TARGET, PRUNED):
        shutil.rmtree(own_copy.directory(job.key))
    last_but_one = PRUNED.parent("previous").job
    flip_bit(file_of(own_copy, last_but_one.key, schema.WEIGHTS))
    flip_bit(file_of(own_copy, last_but_one.parent("previous").key, schema.WEIGHTS))
    publish([Ref(TARGET)], Context(store=own_copy))
    assert_same_result(own_copy, published, TARGET.key)
    assert len(list((own_copy.root / "store" / ".damaged").iterdir())) == 2


def test_storage_that_damages_everything_ends_in_an_error(own_copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(own_copy.directory(TARGET.key))
    damage_when_read(monkeypatch, schema.MASK)
    with pytest.raises(DamagedArtifact, match=f"{schema.MASK} of "):
        publish([Ref(TARGET)], Context(store=own_copy))
    assert TARGET.key not in own_copy


# --- sharing the work -----------------------------------------------------------------------------------------------
SHARE = """
import json, sys
from pathlib import Path
from tiny_study import publish, tiny_cell
from trainables.graph import Ref, target
from trainables.jobs.publishing import Context
from trainables.storage.store import Store
rows = publish([Ref(target(tiny_cell(sys.argv[2])))], Context(store=Store(Path(sys.argv[1]))))
print(json.dumps(rows))
"""


@pytest.mark.slow  # each process imports torch, and waits for the other
def test_processes_share_the_work(published: Store, tmp_path: Path) -> None:
    methods = ("permuted", "permuted")
    processes = [python("-c", SHARE, str(tmp_path / "shared"), method) for method in methods]
    outputs = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    each = [json.loads(out) for out, _ in outputs]
    rows = [row for part in each for row in part]
    expected = Closure([Ref(target(tiny_cell(method))) for method in methods])
    for key, job in expected.jobs.items():
        # A state of a finished net may be requested later; the epochs up to it are then trained again.
        once = {1, 2} if job.kind == schema.DENSE else {1}
        assert all(trained(rows)[key, step + 1] in once for step in range(job.epochs))
    assert any("waiting" in row for row in rows)
    store = Store(tmp_path / "shared")
    for key in expected.jobs:
        if key in store:
            assert_same_result(store, published, key)
    assert not list((store.root / "leases").iterdir())


HOLD = """
import sys, time
from pathlib import Path
from trainables.storage.store import Store
lease = Store(Path(sys.argv[1])).lease(sys.argv[2])
print("held" if lease else "refused", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(own_copy: Store) -> Iterator[Popen[str]]:
    """Another process that holds the lease on the unpublished target."""
    shutil.rmtree(own_copy.directory(TARGET.key))
    process = python("-c", HOLD, str(own_copy.root), TARGET.key)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate(timeout=HANG_SECONDS)


def test_waits_for_a_living_process_and_takes_over_from_a_dead_one(own_copy: Store, holder: Popen[str]) -> None:
    rows = compute(TARGET, [None], Context(store=own_copy))
    for _ in range(3):
        assert next(rows) == {"stage": schema.SPARSE, "job_key": TARGET.key, "waiting": True}
    holder.kill()
    holder.communicate(timeout=HANG_SECONDS)
    rest = [row for row in rows if "waiting" not in row]
    assert computed_epochs(rest, TARGET) == [1, 2]
    assert TARGET.key in own_copy


def test_result_of_the_other_process_is_taken(published: Store, own_copy: Store, holder: Popen[str]) -> None:
    rows = compute(TARGET, [None], Context(store=own_copy))
    assert next(rows)["waiting"]
    shutil.copytree(published.directory(TARGET.key), own_copy.directory(TARGET.key))
    assert [row for row in rows if "waiting" not in row] == []


def test_lease_of_a_silent_process_expires(own_copy: Store, holder: Popen[str]) -> None:
    lease = own_copy.root / "leases" / TARGET.key
    assert next(compute(TARGET, [None], Context(store=own_copy)))["waiting"]
    long_ago = {
        **json.loads(lease.read_text()),
        "owner": "another-host:1:1",
        "renewed": time.time() - 2 * STALE_SECONDS,
    }
    lease.write_text(json.dumps(long_ago))
    rows = list(compute(TARGET, [None], Context(store=own_copy)))
    assert computed_epochs(rows, TARGET) == [1, 2]


def test_work_goes_on_elsewhere_while_one_parent_is_held(context: Context) -> None:
    lease = context.store.lease(DENSE_A.key)
    assert lease is not None
    rows = compute(TARGET, [None], context)
    seen = []
    for row in rows:
        seen.append(row)
        if "waiting" in row:
            break
    assert computed_epochs(seen, DENSE_B) == [1, 2, 3], "all jobs that do not depend on the held one are computed"
    assert seen[-1]["job_key"] == DENSE_A.key
    lease.release()
    assert computed_epochs(list(rows), TARGET) == [1, 2]


def test_a_job_that_is_stopped_gives_its_lease_back(own_copy: Store) -> None:
    shutil.rmtree(own_copy.directory(TARGET.key))
    rows = compute(TARGET, [None], Context(store=own_copy))
    next(rows)
    assert own_copy.lease(TARGET.key) is None
    rows.close()
    lease = own_copy.lease(TARGET.key)
    assert lease is not None
    lease.release()


def test_job_without_training_yields_no_rows(own_copy: Store) -> None:
    match: Job = match_job(CELL, CELL.matcher)
    shutil.rmtree(own_copy.directory(match.key))
    assert publish([Ref(match)], Context(store=own_copy)) == []
    assert match.key in own_copy
