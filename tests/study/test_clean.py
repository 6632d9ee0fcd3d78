"""Removing what no search space needs: never a needed result, never under a running study."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_study import only_space, tiny_space

from search_spaces import SPACES
from study import clean, run
from study.clean import surplus
from study.known_data import remember
from study.plan import Plan, make_plan
from trainables import schema
from trainables.data.dataset import DatasetFacts
from trainables.graph import canonical, snapshot_key
from trainables.storage.store import Store

OTHER = hashlib.sha256(b"of no space").hexdigest()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(tiny_space(interpolation_points=3))


@pytest.fixture
def only_tiny() -> Iterator[None]:
    """The tiny study is the only space there is."""
    with only_space("tiny", tiny_space(interpolation_points=3)):
        yield


def paths(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def test_what_a_plan_needs_stays(plan: Plan, own_copy: Store) -> None:
    needed = plan.jobs.keys() | {ref.key for job in plan.jobs.values() for _, ref in job.parents}
    found = surplus(own_copy, [plan], [])
    assert not found.keys & needed
    clean.remove(own_copy, found)
    assert own_copy.keys() == needed & own_copy.keys()
    assert needed <= own_copy.keys()
    assert not plan.closure.todo(own_copy.keys())


def test_states_of_dense_nets_that_are_asked_for_stay(plan: Plan, own_copy: Store) -> None:
    dense = next(job for job in plan.jobs.values() if job.kind == schema.DENSE)
    snapshot = snapshot_key(dense.key, 1)
    assert snapshot in own_copy
    assert snapshot not in surplus(own_copy, [plan], []).keys
    assert snapshot in surplus(own_copy, [], []).keys


def test_without_a_plan_everything_may_go(own_copy: Store) -> None:
    found = surplus(own_copy, [], [])
    assert found.keys == own_copy.keys()
    text = "\n".join(clean.lines(found, {}))
    assert text.startswith(f"{len(found.keys)} results that no search space needs, ")
    clean.remove(own_copy, found)
    assert own_copy.keys() == set()
    assert not [path for path in (own_copy.root / "store").rglob("*") if path.is_file()]


def test_results_of_spaces_that_cannot_be_planned_stay(own_copy: Store) -> None:
    found = surplus(own_copy, [], ["digits"])
    assert found.keys == set()
    assert found.kept == {"digits": len(own_copy.keys())}


def test_results_on_other_images_than_those_of_the_plans_stay(tmp_path: Path) -> None:
    def plan_on(fingerprint: str, **settings: object) -> Plan:
        facts = DatasetFacts(
            num_classes=2, in_channels=3, image_size=8, train_images=200, test_images=40, fingerprint=fingerprint
        )
        space = tiny_space(dataset="image_folder", **settings)
        return make_plan(space, facts_of=lambda *_: facts)

    store = Store(tmp_path)
    mine, theirs = plan_on("a" * 64), plan_on("b" * 64)
    for plan in (mine, theirs, plan_on("a" * 64, lr=0.3)):
        for key, job in plan.jobs.items():
            if key not in store:
                store.publish(key, {schema.METRICS: b"{}"}, {"kind": job.kind, "config": canonical(job.config)})
    store.storage.write(f"work/{OTHER}/checkpoint", b"maybe of a job on images that are elsewhere")
    remember(mine, store)
    assert len(surplus(store, [mine], []).leftovers) == 1
    remember(theirs, store)
    found = surplus(store, [mine], [])
    assert found.keys == store.keys() - mine.jobs.keys() - theirs.jobs.keys()
    assert found.keys, "of another learning rate on the same images"
    assert found.kept == {"other images of image_folder than those in --data-dir": len(theirs.jobs)}
    assert not found.leftovers
    assert "  kept: " in "\n".join(clean.lines(found, {}))


def test_the_reason_why_a_space_is_not_planned_is_given_once(own_copy: Store) -> None:
    missing = {"one": "no data", "two": "batch_size=1024 exceeds the 600 images", "three": "no data"}
    text = clean.lines(surplus(own_copy, [], []), missing)
    assert [line for line in text if line.startswith("not planned")] == [
        "not planned: one, three: no data",
        "not planned: two: batch_size=1024 exceeds the 600 images",
    ]


def test_checkpoint_of_a_published_net_on_its_way_to_a_state_stays(plan: Plan, own_copy: Store) -> None:
    child, state = next((key, ref) for key, job in plan.jobs.items() for _, ref in job.parents if ref.epoch is not None)
    own_copy.write_checkpoint(state.job.key, b"a study that was stopped goes on from here")
    path = f"work/{state.job.key}/checkpoint.safetensors"
    assert path in surplus(own_copy, [plan], []).leftovers, "the state is there"
    for key in (child, state.key):
        own_copy.remove(key)
    assert path not in surplus(own_copy, [plan], []).leftovers
    assert path not in surplus(own_copy, [], ["digits"]).leftovers, "an unplanned space may need the state"


def test_what_belongs_to_nothing(plan: Plan, own_copy: Store) -> None:
    before = paths(own_copy)
    unneeded = surplus(own_copy, [plan], []).keys
    done, _ = plan.jobs.keys(), shutil.rmtree(own_copy.directory(next(reversed(plan.jobs))))
    missing = next(reversed(done))
    published = next(iter(done))
    own_copy.write_checkpoint(missing, b"work on it goes on at the next start")
    own_copy.record_failure(missing, {"error": "why"})
    own_copy.write_checkpoint(published, b"of no use")
    own_copy.record_failure(OTHER, {"error": "of nobody's job"})
    own_copy.storage.write(f"store/.damaged/{OTHER}-12/{schema.WEIGHTS}", b"damaged")
    found = surplus(own_copy, [plan], [])
    assert set(found.leftovers) == {
        f"work/{published}/checkpoint.safetensors",
        f"failed/{OTHER}.json",
        f"store/.damaged/{OTHER}-12/{schema.WEIGHTS}",
    }
    careful = surplus(own_copy, [plan], ["cifar10"])
    assert f"failed/{OTHER}.json" not in careful.leftovers, "it may be of a space that is not known here"
    clean.remove(own_copy, found)
    gone = {path for path in before if path.split("/")[2] in {missing, *unneeded}}
    assert paths(own_copy) == before - gone | {f"work/{missing}/checkpoint.safetensors", f"failed/{missing}.json"}


@pytest.mark.parametrize("location", ["directory", "memory"])
def test_attempts_that_were_not_published_go(location: str, tmp_path: Path) -> None:
    store = Store(tmp_path if location == "directory" else "memory://bucket/attempts")
    key = hashlib.sha256(b"tried twice").hexdigest()
    store.publish(key, {schema.WEIGHTS: b"good"}, {"kind": "dense", "config": {"task": {"dataset": "cifar10"}}})
    other = f"store/{key[:2]}/{key}/{'01' * 6}/{schema.WEIGHTS}"
    store.storage.write(other, b"of a writer that was killed")
    half = f"store/{key[:2]}/{key}/{schema.MANIFEST}-a-host:1:1-0123abcd.tmp"
    store.storage.write(half, b"likewise, a moment later")
    orphan = f"store/{OTHER[:2]}/{OTHER}/{'01' * 6}/{schema.WEIGHTS}"
    store.storage.write(orphan, b"likewise, and nobody published it since")
    found = surplus(store, [], ["cifar10"])
    assert set(found.leftovers) == {other, half, orphan}
    assert not found.strange
    clean.remove(store, found)
    assert store.read(key, schema.WEIGHTS) == b"good"


def test_nothing_is_removed_while_something_runs(own_copy: Store) -> None:
    found = surplus(own_copy, [], [])
    for lease in (own_copy.register_study({"space": "tiny"}), own_copy.lease(OTHER)):
        assert lease is not None
        with lease, pytest.raises(ValueError, match=r"is running on .*: clean up once it has ended"):
            clean.remove(own_copy, found)
    assert own_copy.keys() == found.keys


@pytest.mark.usefixtures("only_tiny")
@pytest.mark.parametrize("confirmed", [False, True])
def test_on_the_command_line(own_copy: Store, capsys: pytest.CaptureFixture[str], confirmed: bool) -> None:
    own_copy.storage.write(f"store/.damaged/{OTHER}-12/{schema.WEIGHTS}", b"damaged")
    surplus_keys = surplus(own_copy, [make_plan(SPACES["tiny"])], []).keys
    before = own_copy.keys()
    arguments = ["--clean", "--storage", str(own_copy.root), *(["--yes"] if confirmed else [])]
    assert run.main(arguments) == 0
    out = capsys.readouterr().out
    assert "1 files left over" in out
    assert ("removed" in out.splitlines()) == confirmed
    assert ("nothing was removed" in out) != confirmed
    assert own_copy.keys() == (before - surplus_keys if confirmed else before)


@pytest.mark.usefixtures("only_tiny")
@pytest.mark.parametrize("location", ["local", "memory://bucket/strays"])
def test_files_that_no_study_has_put_there_are_named_and_stay(
    location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "storage" if location == "local" else location)
    strays = ["store/.DS_Store", "store/ab/x", f"store/00/{OTHER}/x", "work/.DS_Store", "work/a/b/c", "failed/x.json"]
    for path in strays:
        store.storage.write(path, b"somebody's")
    for command in (["--clean"], ["--clean", "--yes"]):
        assert run.main([*command, "--storage", store.uri]) == 0
        out = capsys.readouterr().out
        assert all(f"left alone, because no study wrote it: {path}" in out for path in strays)
    assert {path for folder in ("store", "work", "failed") for path in store.storage.names(folder)} == {*strays}


@pytest.mark.usefixtures("only_tiny")
def test_a_space_named_with_settings_is_needed(own_copy: Store) -> None:
    named = run.main(
        ["--clean", "--yes", "--space", "tiny", "--set", "sparsity=0.5,0.9", "--storage", str(own_copy.root)]
    )
    assert named == 0
    assert not make_plan(SPACES["tiny"]).closure.todo(own_copy.keys())


def test_not_under_a_running_study(own_copy: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with own_copy.register_study({"space": "tiny"}):
        assert run.main(["--clean", "--yes", "--storage", str(own_copy.root)]) == 2
    assert "a study or a job is running on" in capsys.readouterr().err


def test_a_storage_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--clean", "--yes", "--storage", str(tmp_path / "x"), "--data-dir", str(tmp_path)]) == 0
    assert "0 results that no search space needs" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()
