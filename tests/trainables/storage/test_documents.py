"""Stored documents: whatever has become of one, commands end as they always do, name it, and lose nothing else."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import time
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from s3_server import environment
from stored import location
from test_object_store import fresh_s3, s3, server
from tiny_study import only_space, tiny_space
from waiting import wait_until

from analysis import load, watch
from analysis.sources import Record
from search_spaces import SPACES
from study import clean, fastest, run
from study.benchmark.results import Rate
from study.estimate import benchmark_file
from study.plan import Plan, make_plan
from trainables import schema
from trainables.graph import canonical
from trainables.host.processes import me
from trainables.storage import documents, lease
from trainables.storage.documents import Malformed, parse
from trainables.storage.store import Store
from trainables.training.engines import CPU

__all__ = ["server"]  # a fixture

KEY = hashlib.sha256(b"a result").hexdigest()
ROW = {"step": 1, "timestamp": 1_700_000_000_000, "test_loss": 0.5}
NOTE = {"space": "tiny", "jobs": 7}
LEASE = {"token": "ab", "owner": "another-host:1:1", "since": 1.7e9, "renewed": 1.7e9, "note": NOTE}
RATE = asdict(Rate(model="mlp", width=1.0, precision="fp32", image_size=8, images_per_second=9.0, sparsity=0.9))
PLANE = {
    "networks": ["dense", "lth", "permuted"],
    "coordinates": [[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]],
    "network_errors": [1.0, 2.0, 3.0],
    "network_losses": [0.1, 0.2, 0.3],
    "xs": [0.0, 1.0],
    "ys": [0.0],
    "errors": [[1.0, 2.0]],
    "losses": [[0.1, float("nan")]],
}
KINDS: dict[str, documents.Kind] = {
    name: kind for name, kind in vars(documents).items() if name.isupper() and isinstance(kind, dict) and name[0] != "_"
}
"""Every kind of document that a study keeps."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "MANIFEST": {
        "key": KEY,
        "files": {"metrics.json": {"sha256": KEY, "bytes": 12}},
        "kind": "dense",
        "config": {"task": {"dataset": "digits", "model": "resnet8", "width": 0.25}},
        "parents": {"init": KEY},
        "finished": 1_700_000_000_000,
        "environment": {"host": "here"},
        "seconds": 1.5,
    },
    "METRICS": {"history": [ROW], "final": {"test_accuracy": 91.5, "loss_barrier": float("inf")}},
    "PLANE": PLANE,
    "CHECKPOINT": {
        "format": "3",
        "job": KEY,
        "document": {"epoch": 1, "train_seconds": 1.0, "seconds": 2.0, "history": [ROW], "log": ["a line"]},
    },
    "LEASE": LEASE,
    "FAILURE": {"error": "ValueError: no", "at": 1_700_000_000_000, "environment": {}, "log": "..."},
    "CHOICE": {"settings": {"precision": "fp32", "compiled": False}, "given": {}, "commit": None},
    "BENCHMARK": {"measurements": [{"what": "training", "settings": {}, "rates": [RATE]}]},
    "FACTS": {
        **dict.fromkeys(("dataset", "fingerprint", "source"), "image_folder"),
        **dict.fromkeys(("num_classes", "in_channels", "train_images", "test_images"), 3),
        "image_size": None,
    },
    "PLACE": {
        "stage": "sparse",
        "method": "permuted",
        "width": 0.25,
        "sparsity": 0.9,
        "seed_a": 0,
        "matching": {"match_epoch": -1},
    },
    "SETTINGS": {"lr": 0.1, "augment": True, "init": "default"},
    "VARIED": {"varied": [{"lr": 0.1, "augment": True, "init": None}]},
    "START": {
        "space": "tiny",
        "command": "python -m study.run --space tiny",
        "started": 1_700_000_000_000,
        "ended": 1_700_000_001_000,
        "seconds": 12.5,
        "jobs": {KEY: 1.5},
    },
    "RECORD": {
        "space": "tiny",
        "question": "Does it work?",
        "recipe": "ab",
        "settings": {"lr": 0.1},
        "starts": [
            {
                "id": "ab",
                "command": "python -m study.run --space tiny",
                "started": "2026-01-02T03:04:05.678+00:00",
                "ended": "2026-01-02T03:04:06.000+00:00",
                "jobs": 7,
                "new_jobs": 7,
                "estimated_seconds": 12.5,
                "end_noted": True,
            }
        ],
    },
    "GPU_CHECK": {
        "check": "speed plain fp32",
        "error": "",
        "ok": None,
        "seconds": 2.5,
        "found": {"launches": 170},
        "rows": [{"kind": "Figure", "name": "launches", "value": 170.0}],
        "on": {"card": "NVIDIA H100 80GB HBM3"},
    },
}


# --- damages ----------------------------------------------------------------------------------------------------------
Damage = Callable[[bytes, random.Random], bytes]


def _places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a document."""
    items: Any = document.items() if isinstance(document, dict) else enumerate(document)
    for name, value in items:
        yield (*at, name)
        if isinstance(value, dict | list):
            yield from _places(value, (*at, name))


def _changed(content: bytes, luck: random.Random, change: Callable[[Any, Any], None]) -> bytes:
    document = json.loads(content)
    *above, last = luck.choice(list(_places(document)))
    change(functools.reduce(lambda value, name: value[name], above, document), last)
    return json.dumps(document).encode()


def _swapped(content: bytes, luck: random.Random) -> bytes:
    others = [None, True, -1, 10**400, 0.5, float("nan"), "text", "\ud800", [], {}, [[1]], {"a": {}}]
    return _changed(content, luck, lambda holder, name: holder.__setitem__(name, luck.choice(others)))


def _nested(content: bytes, luck: random.Random) -> bytes:
    depth = luck.choice([40, 900, 100_000])
    mark = b'"the deep place"'
    shallow = _changed(content, luck, lambda holder, name: holder.__setitem__(name, "the deep place"))
    return shallow.replace(mark, b"[" * depth + b"]" * depth)


def _flipped(content: bytes, luck: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(luck.choice([1, 1, 3])):
        changed[luck.randrange(len(changed))] ^= 1 << luck.randrange(8)
    return bytes(changed)


DAMAGES: dict[str, Damage] = {
    "empty": lambda content, luck: b"",
    "torn": lambda content, luck: content[: luck.randrange(len(content))],
    "zeros": lambda content, luck: bytes(len(content)),
    "flipped": _flipped,
    "no UTF-8": lambda content, luck: content.replace(b'"', b'"\xff', 1),
    "of another type": _swapped,
    "a field less": lambda content, luck: _changed(content, luck, lambda holder, name: holder.pop(name)),
    "a field twice": lambda content, luck: b'{"key": 1, "key": 2, ' + content.lstrip()[1:],
    "deep": _nested,
    "a list": lambda content, luck: b"[" + content + b"]",
    "a number": lambda content, luck: b"7",
    "foreign": lambda content, luck: b"\x00\x00\x00\x01Bud1\x00\x00\x10",
}
CERTAIN = {"empty", "torn", "zeros", "no UTF-8", "a field twice", "a list", "a number", "foreign"}
"""Damages that leave nothing that could be read."""


# --- the reader -------------------------------------------------------------------------------------------------------
def test_every_kind_has_an_example_here() -> None:
    assert EXAMPLES.keys() == KINDS.keys()


def read(content: bytes, kind: str) -> dict[str, Any] | str:
    """Return a document, or what is wrong with it."""
    try:
        return parse(content, KINDS[kind])
    except Malformed as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_is_read_or_said_to_be_malformed(kind: str) -> None:
    content, luck = json.dumps(EXAMPLES[kind]).encode(), random.Random(kind)
    assert json.dumps(parse(content, KINDS[kind])) == json.dumps(EXAMPLES[kind])
    for name, damage in DAMAGES.items():
        for _ in range(40):
            damaged = damage(content, luck)
            outcome = read(damaged, kind)
            if isinstance(outcome, str):
                assert outcome.isprintable(), name
                assert len(outcome) < 500, name
            else:
                assert name not in CERTAIN, damaged
                json.dumps(outcome, ensure_ascii=False).encode()  # it can be walked through, and printed


def test_a_name_that_is_no_utf8_is_no_damage() -> None:
    error = os.fsdecode(b"no such file: \xff.png")
    found = parse(json.dumps({"error": error, "log": "\N{SNOWMAN} \N{GRINNING FACE}"}), documents.FAILURE)
    assert found == {"error": "no such file: ?.png", "log": "\N{SNOWMAN} \N{GRINNING FACE}"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_later_version_adds_is_no_damage(kind: str) -> None:
    document = {**EXAMPLES[kind], "of a later version": {"a": [1, None]}}
    assert parse(json.dumps(document), KINDS[kind]).keys() == document.keys()


@pytest.mark.parametrize(
    ("kind", "name", "value", "reason"),
    [
        ("LEASE", "owner", 3, r"owner: 3 in place of text"),
        ("LEASE", "renewed", float("inf"), r"renewed: inf is no number from 0 to 1e\+11"),
        ("LEASE", "note", {"jobs": 1.5}, r"note: jobs: 1\.5 is no whole number"),
        ("LEASE", "note", {"out": "host-a"}, r"note: out: 'host-a' in place of a list"),
        ("LEASE", "note", [], r"note: a list in place of an object"),
        ("FAILURE", "error", None, r"error: None in place of text"),
        ("BENCHMARK", "measurements", [{"what": "x", "settings": {}, "rates": [{}]}], r"rates: 0: without image_size"),
        ("MANIFEST", "files", {"../x.json": {"sha256": KEY, "bytes": 1}}, r"'\.\./x\.json' is not of"),
        ("MANIFEST", "attempt", "../../elsewhere", r"attempt: '\.\./\.\./elsewhere' is not of"),
        ("METRICS", "final", {"test_loss": 10**400}, r"test_loss: a number that is too large"),
        ("METRICS", "final", {"test_loss": True}, r"test_loss: True in place of a number"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(kind: str, name: str, value: Any, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse(json.dumps({**EXAMPLES[kind], name: value}), KINDS[kind])


# --- commands ---------------------------------------------------------------------------------------------------------
STRAY = (
    *("store/.DS_Store", "store/.tmp/a-b/x", f"store/{KEY[:2]}/{KEY}/.DS_Store", "store/ab/Thumbs.db"),
    *("work/.DS_Store", "failed/.DS_Store", "leases/.DS_Store"),
)
COMMANDS = (["--status", "--fastest"], ["--dry-run", "--fastest"], ["--clean"], ["--clean", "--yes"], ["--verify"])


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """The tiny study is the only space there is; a sweep ends when it has read what it reads before it starts."""

    def run_sweep(plan: Plan, uri: str, store: Store, *_: Any) -> int:
        store.sweep(plan.closure.todo(store.keys()))
        return 0

    monkeypatch.setattr("study.run.run_sweep", run_sweep)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.06)  # what a lease is waited for
    with only_space("tiny", tiny_space(interpolation_points=3)):
        yield make_plan(SPACES["tiny"])


PLACES: dict[str, list[pytest.MarkDecorator]] = {"local": [], "memory": [], "s3": s3}
"""Where a store can be, with the marks of its tests."""


@pytest.fixture(params=[pytest.param(place, marks=marks) for place, marks in PLACES.items()])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    if request.param == "local":
        return Store(tmp_path / "outputs")
    if request.param == "memory":
        return Store(f"memory://bucket/{uuid.uuid4().hex}")
    for name, value in environment(request.getfixturevalue("server")).items():
        monkeypatch.setenv(name, value)
    return fresh_s3()


class Scene:
    """A storage with a document of each kind that commands read, and files of others among them."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.store, self.plan = store, plan
        *done, self.failed, self.running = plan.jobs.values()
        manifest = {name: EXAMPLES["MANIFEST"][name] for name in ("finished", "environment", "seconds")}
        for job in done:
            metrics = json.dumps({"history": [ROW], "final": {"seconds": 1.0}}).encode()
            about = {"kind": job.kind, "config": canonical(job.config), **manifest}
            store.publish(job.key, {schema.METRICS: metrics}, about)
        for ref in {parent for job in done for _, parent in job.parents if parent.epoch is not None}:
            store.publish(ref.key, {}, {**manifest, "kind": "snapshot"})
        self.first = done[0].key
        path = fastest.file(CPU, ("resnet8", 0.25), {})
        fastest.keep(store, path, fastest.Way(), {}, {})
        self.documents = {
            "manifest": location(store, self.first, schema.MANIFEST),
            "metrics": location(store, self.first, schema.METRICS),
            "failure": f"failed/{self.failed.key}.json",
            "choice": path,
            "lease": f"leases/{self.running.key}",
            "registration": f"studies/{'ab' * 8}",
            "benchmark": "",
        }
        store.record_failure(self.failed.key, EXAMPLES["FAILURE"])
        for stray in STRAY:
            store.storage.write(stray, b"\x00\x00\x00\x01Bud1")
        self.benchmark = benchmark_file(store)
        self.benchmark.parent.mkdir(parents=True, exist_ok=True)
        self.benchmark.write_text(json.dumps(EXAMPLES["BENCHMARK"]))
        self.whole = {path: store.storage.read(path) for path in self.paths()}

    def paths(self) -> set[str]:
        folders = ("store", "failed", "fastest", "leases", "studies", "work")
        return {path for folder in folders for path in self.store.storage.names(folder)}

    def content(self, what: str) -> bytes:
        """Return what is in a document while it is whole."""
        if what in ("lease", "registration"):
            return json.dumps({**LEASE, "owner": f"elsewhere:{me()}", "renewed": time.time()}).encode()
        return self.benchmark.read_bytes() if what == "benchmark" else self.whole[self.documents[what]]

    def damage(self, what: str, content: bytes) -> None:
        if what == "benchmark":
            self.benchmark.write_bytes(content)
        else:
            self.store.storage.write(self.documents[what], content)

    def restore(self) -> None:
        found = {path: self.store.storage.read(path) for path in self.paths()}
        for path in found.keys() - self.whole.keys():
            self.store.storage.remove(path)
        for path, content in self.whole.items():
            if found.get(path) != content:
                self.store.storage.write(path, content)
        self.benchmark.write_text(json.dumps(EXAMPLES["BENCHMARK"]))


def trial(scene: Scene, what: str, damage: str, luck: random.Random, said: Callable[[], str]) -> None:
    """Damage a document in some way, and give commands that read it."""
    damaged = DAMAGES[damage](scene.content(what), luck)
    readers = {
        "failure": [["--status", "--fastest"]],
        "benchmark": [["--status", "--fastest"], ["--dry-run", "--fastest"]],
        "choice": COMMANDS[:4],
        "metrics": [["--verify"]],
        "manifest": [["--status", "--fastest"], ["--verify"]],
        "registration": [["--status", "--fastest"], ["--clean"], ["--verify"]],
        "lease": [["--status", "--fastest"], ["--clean"], ["--verify"]],
    }
    for command in COMMANDS:
        scene.damage(what, damaged)
        code = run.main(["--space", "tiny", "--storage", scene.store.uri, *command])
        text = said()
        busy = command[0] == "--clean" and what in ("lease", "registration") and "is running on" in text
        assert code == 0 or (busy and damage not in CERTAIN), (command, damaged, text)
        assert "Traceback" not in text
        if damage in CERTAIN and command in readers[what]:
            named = scene.first[:12] if what in ("manifest", "metrics") else scene.documents[what] or "benchmark.json"
            assert named in text, (command, damaged, text)
        lost = scene.plan.closure.todo(scene.store.keys()).keys() - {scene.failed.key, scene.running.key}
        assert lost <= ({scene.first} if what in ("manifest", "metrics") else set()), (command, damaged)
        for path in STRAY:
            assert scene.store.storage.read(path) == scene.whole[path], "files of others are left alone"
        if damage in CERTAIN and command in (["--clean"], ["--verify"]) and what in ("lease", "registration"):
            assert scene.store.storage.read(scene.documents[what]) is None, "nobody holds it"
        scene.restore()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Return what has been printed or logged since it was asked last."""

    def since() -> str:
        out, err = capsys.readouterr()
        logged = caplog.text
        caplog.clear()
        return out + err + logged

    return since


WHAT = ("manifest", "metrics", "failure", "choice", "lease", "registration", "benchmark")
AMONG_OBJECTS = ("manifest", "lease")
"""What is damaged in S3 among the slow tests: a document that is written once, and one that is written again."""


def marks_of(place: str, what: str) -> list[pytest.MarkDecorator]:
    return [*PLACES[place], *([pytest.mark.exhaustive] if place == "s3" and what not in AMONG_OBJECTS else [])]


@pytest.mark.parametrize(
    ("store", "what"),
    [pytest.param(place, what, marks=marks_of(place, what)) for place in PLACES for what in WHAT],
    indirect=["store"],
)
def test_commands_survive_any_damage(what: str, space: Plan, store: Store, said: Callable[[], str]) -> None:
    luck = random.Random(what)
    scene = Scene(store, space)
    few = 1 if store.uri.startswith("s3:") else 3
    for damage in DAMAGES if store.is_local else luck.sample(sorted(DAMAGES), few):
        trial(scene, what, damage, luck, said)


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", WHAT)
def test_commands_survive_many_damages(what: str, space: Plan, tmp_path: Path, said: Callable[[], str]) -> None:
    luck = random.Random(f"{what}, many")
    scene = Scene(Store(tmp_path / "outputs"), space)
    for _ in range(30):
        trial(scene, what, luck.choice(list(DAMAGES)), luck, said)


# --- leases -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", [*sorted(CERTAIN), "gone"])
def test_a_holder_mends_its_lease(
    damage: str, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    with store.lease(KEY, NOTE) or pytest.fail("nobody holds it") as held:
        whole = store.storage.read(held.path)
        if damage == "gone":
            store.storage.remove(held.path)
        else:
            store.storage.write(held.path, DAMAGES[damage](whole, random.Random(1)))
        wait_until(lambda: store.leases().get(KEY, {}).get("note") == NOTE)
        assert store.lease(KEY) is None, "it is still held"
    assert store.storage.read(held.path) is None


def test_cleaning_waits_for_a_holder_to_mend_its_registration(
    space: Plan, store: Store, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        wait_until(store.studies, "its holder does not mend it")

    monkeypatch.setattr(clean, "time", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(lease, "LEASE_SECONDS", 3.0)
    with store.register_study({"space": "tiny"}) as held:
        store.storage.write(held.path, b"")
        assert run.main(["--clean", "--yes", "--storage", store.uri]) == 2
        assert "a study or a job is running on" in said()
    assert waited == [2 * lease.renewal_seconds()]
    assert run.main(["--clean", "--yes", "--storage", store.uri]) == 0


# --- analysis ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", [*DAMAGES, "lists that do not fit together"])
def test_a_damaged_plane_is_counted(
    damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    luck, whole = random.Random(damage), json.dumps(PLANE).encode()
    named = {"run_id": "a-run", "name": "", "status": "FINISHED", "started": 0, "ended": 1, "artifacts": ""}
    record = Record(**named, params={}, metrics={}, tags={schema.TAG_KEY: KEY})  # type: ignore[arg-type]
    job = load.Job(record, {schema.PARAM_STAGE: schema.PLANE, schema.PARAM_WIDTH: 1}, [{}])
    for _ in range(12):
        damaged = json.dumps({**PLANE, "xs": []}).encode() if damage not in DAMAGES else DAMAGES[damage](whole, luck)
        reader = types.SimpleNamespace(text=lambda *_, damaged=damaged: damaged.decode(errors="surrogateescape"))
        monkeypatch.setattr(load, "_of_stage", lambda *_, reader=reader: (reader, [job]))
        found = load.planes("tiny")
        assert found.attrs["unreadable"] in ([1] if damage in CERTAIN or damage not in DAMAGES else [0, 1])
        assert (len(found) > 0) == (not found.attrs["unreadable"])
    assert damage not in CERTAIN or f"{schema.PLANE_GRID} of run a-run is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_registration_does_not_end_watching(damage: str, store: Store, tmp_path: Path) -> None:
    luck, whole = random.Random(damage), json.dumps({**LEASE, "renewed": time.time()}).encode()
    for _ in range(12 if store.is_local else 2):
        store.storage.write(f"studies/{'ab' * 8}", DAMAGES[damage](whole, luck))
        watched = watch._Watch("tiny", "", store.uri, tmp_path, 60)
        watched.look_at_storage()
        assert not watched.jobs or damage not in CERTAIN
