"""Data are judged before a plan is accepted, and what a key names is compared with what a job finds."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from tiny_images import picture, spoilt, write_folders

from search_spaces import get_space
from study.plan import make_plan, override
from trainables.config import Task
from trainables.data import (
    DATASETS,
    cache,
    check_dataset,
    forget,
    image_folder,
    index,
    layout,
    load_dataset,
    on_disk,
    pictures,
)
from trainables.data.__main__ import main as data_command
from trainables.data.pictures import FORMATS, MAX_ASPECT
from trainables.errors import HostFault, Verdict, verdict
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.storage.store import Store


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "data")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old as soon as they are written."""
    monkeypatch.setattr(index, "RECENT_NS", -1)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every file that is read to judge it."""
    names: list[str] = []
    original = index.examine

    def noting(path: Path) -> index.Picture:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(index, "examine", noting)
    return names


def write_classes(root: Path, names: tuple[str, ...], size: int = 32) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(picture(number, size, size)).save(root / split / name / "0.png")
    return root


def one(folders: Path) -> Path:
    return folders / "train" / "ant" / "0.png"


# --- what the fingerprint names --------------------------------------------------------------------------------------


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def blacken(first: Path, _: Path) -> None:
    first.write_bytes(first.read_bytes()[:60] + bytes(first.stat().st_size - 60))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [swap, blacken])
def test_content_is_in_the_fingerprint(tmp_path: Path, change: Callable[[Path, Path], None]) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(picture(number)).save(tmp_path / split / name / "0.bmp")
    before = check_dataset("image_folder", tmp_path).fingerprint
    files = [tmp_path / "train" / name / "0.bmp" for name in ("ant", "bee")]
    times = [file.stat() for file in files]
    change(*files)
    for file, time in zip(files, times, strict=True):
        assert file.stat().st_size == time.st_size
        os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert check_dataset("image_folder", tmp_path).fingerprint != before


def test_the_fingerprint_says_how_many_images_there_are(folders: Path) -> None:
    (folders / "test" / "bee" / "2.png").unlink()
    assert check_dataset("image_folder", folders).fingerprint.startswith("12+11-")


@pytest.mark.usefixtures("settled")
def test_a_file_is_read_once_until_it_changes(folders: Path, examined: list[str]) -> None:
    first = check_dataset("image_folder", folders)
    assert len(examined) == 24
    assert check_dataset("image_folder", folders) == first
    assert len(examined) == 24
    Image.fromarray(picture(500)).save(one(folders))
    assert check_dataset("image_folder", folders) != first
    assert len(examined) == 25


def test_a_file_that_was_just_written_is_read_again(folders: Path, examined: list[str]) -> None:
    for _ in range(2):  # within a tick of the file system's clock, it might be written again unnoticed
        check_dataset("image_folder", folders)
    assert len(examined) == 48


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", [b"", b"{", b"x" * 100, "flipped", "folder"])
def test_a_damaged_index_is_made_again(
    folders: Path, examined: list[str], damage: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    before = check_dataset("image_folder", folders)
    (kept,) = (folders / ".decoded").glob("index-*.json")
    content = bytearray(kept.read_bytes())
    content[-20] ^= 1
    if damage == "folder":
        kept.unlink()
        kept.mkdir()
    else:
        kept.write_bytes(content if isinstance(damage, str) else damage)
    assert check_dataset("image_folder", folders) == before
    assert len(examined) == 48
    assert str(kept) in caplog.text
    if damage != "folder":
        check_dataset("image_folder", folders)
        assert len(examined) == 48


@pytest.mark.usefixtures("settled")
def test_what_is_found_out_counts_although_the_index_beside_the_data_is_read_only(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dataset("image_folder", folders)
    theirs, own = folders / ".decoded", tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(cache, "folders", lambda root: [theirs, own])
    monkeypatch.setattr(index, "first_writable", lambda *_: own)
    state = next(iter(index._read(folders)))
    index.remember(folders, {state: "cut off"})
    assert index._read(folders)[state].problem == "cut off"
    assert sum(bool(picture.problem) for picture in index._read(folders).values()) == 1


@pytest.mark.usefixtures("settled")
def test_what_was_found_before_an_interruption_is_kept(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_FILES_PER_TASK", 1)
    monkeypatch.setattr(index, "_THREADS", 1)
    original, read = index.examine, list[Path]()

    def interrupted(path: Path) -> index.Picture:
        read.append(path)
        if len(read) == 10:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(index, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_dataset("image_folder", folders)
    before = len(read)
    check_dataset("image_folder", folders)
    assert len(read) == before + 24 - 9


# --- what a job finds ------------------------------------------------------------------------------------------------


def data_of(version: str, data_dir: Path, tmp_path: Path, dataset: str = "image_folder") -> TaskData:
    task = Task(model="mlp", width=0.25, dataset=dataset, data_version=version)
    return TaskData(task, Context(store=Store(tmp_path / "outputs"), data_dir=str(data_dir)))


def test_a_job_refuses_other_data_than_were_planned(folders: Path, tmp_path: Path) -> None:
    planned = check_dataset("image_folder", folders).fingerprint
    unfinished = write_folders(tmp_path / "node", per_class=2)
    with pytest.raises(HostFault) as caught:
        data_of(planned, unfinished, tmp_path)
    assert verdict(caught.value) is Verdict.OF_HOST
    message = str(caught.value)
    assert str(unfinished) in message
    assert "planned 12 training and 12 test images" in message
    assert "found 6 training and 6 test images" in message
    shutil.rmtree(unfinished)
    write_folders(unfinished)  # the copy is complete by now: the same process finds it
    assert len(data_of(planned, unfinished, tmp_path).train_plain) == 1


def test_a_job_refuses_as_many_other_images(folders: Path, tmp_path: Path) -> None:
    planned = check_dataset("image_folder", folders).fingerprint
    swap(one(folders), folders / "train" / "bee" / "0.png")
    with pytest.raises(HostFault, match=r"planned 12 .*content [0-9a-f]{12}, found 12 .*content [0-9a-f]{12}"):
        data_of(planned, folders, tmp_path)


def test_a_job_planned_for_the_published_archive_refuses_a_folder(tmp_path: Path) -> None:
    root = write_classes(tmp_path, DATASETS["cifar10"].class_names)
    with pytest.raises(HostFault, match=r"planned 50,000 training .* found 10 training and 10 test"):
        data_of("", root, tmp_path, "cifar10")
    with pytest.raises(HostFault, match=r"planned version '', found 10 training"):
        data_of("", root, tmp_path)


def test_data_that_are_not_on_a_host_are_that_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(HostFault, match=r"dataset 'svhn': .*nowhere is not a directory"):
        data_of("1+1-f00d", tmp_path / "nowhere", tmp_path, "svhn")


def test_data_are_looked_at_once_per_process(
    folders: Path, tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = check_dataset("image_folder", folders).fingerprint
    data_of(planned, folders, tmp_path)
    before = len(examined)
    monkeypatch.setattr(layout, "look_at", None)
    data_of(planned, folders, tmp_path)
    assert len(examined) == before


# --- decoded arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["train_images.npy", "test_images.npy", "train_labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "torn", "missing"])
def test_damaged_arrays_are_decoded_again(
    folders: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = on_disk.load("image_folder", folders)
    images, labels = before.train.images.clone(), before.train.labels.clone()
    del before
    (damaged,) = (folders / ".decoded").glob(f"*/{file}")
    content = bytearray(damaged.read_bytes())
    content[-2] ^= 1
    damaged.unlink()
    if damage != "missing":
        damaged.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    again = on_disk.load("image_folder", folders)
    assert torch.equal(again.train.images, images)
    assert torch.equal(again.train.labels, labels)
    assert f"{damaged.parent} are damaged ({file}) and decoded again" in caplog.text
    caplog.clear()
    on_disk.load("image_folder", folders)
    assert not caplog.text, "once"
    assert len(list((folders / ".decoded").glob("*/"))) == 1


def test_arrays_of_other_images_are_not_used(folders: Path, tmp_path: Path) -> None:
    on_disk.load("image_folder", folders)
    (published,) = (folders / ".decoded").glob("*/")
    others = write_folders(tmp_path / "others", per_class=3)
    on_disk.load("image_folder", others)
    (stale,) = (others / ".decoded").glob("*/")
    shutil.rmtree(published)
    shutil.copytree(stale, published)
    assert len(on_disk.load("image_folder", folders).train) == 12


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_decoded_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = on_disk.decode_folder

    def changing(*arguments: object) -> object:
        Image.fromarray(picture(99)).save(one(folders))
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "decode_folder", changing)
        with pytest.raises(ValueError, match=r"train/ant/0.png: has changed since it was looked at"):
            on_disk.load("image_folder", folders)
    images = on_disk.load("image_folder", folders).train.images
    np.testing.assert_array_equal(images[0].numpy(), picture(99).transpose(2, 0, 1))


@pytest.mark.usefixtures("settled")
def test_a_disk_that_changes_a_file_without_its_times_is_noticed(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_dataset("image_folder", folders)
    monkeypatch.setattr(image_folder, "digest_of", lambda data: "other")
    with pytest.raises(ValueError, match="24 files cannot be used"):
        on_disk.load("image_folder", folders)
    monkeypatch.undo()
    assert len(on_disk.load("image_folder", folders).train) == 12, "looked at again"


@pytest.mark.usefixtures("settled")
def test_files_that_cannot_be_decoded_are_all_named_and_remembered(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [folders / "train" / "bee" / "1.png", folders / "train" / "cow" / "2.png", folders / "test" / "ant" / "3.png"]
    for path in bad:
        path.write_bytes(spoilt(path.read_bytes()))
    decoded: list[Path] = []
    original = image_folder.decode_file

    def noting(path: Path, form: layout.Form, digest: str) -> np.ndarray | str:
        decoded.append(path)
        return original(path, form, digest)

    monkeypatch.setattr(image_folder, "decode_file", noting)
    assert check_dataset("image_folder", folders).train_images == 12, "only decoding can tell"
    for _ in range(3):
        with pytest.raises(ValueError, match="3 files cannot be used") as caught:
            on_disk.load("image_folder", folders)
        assert all(str(path) in str(caught.value) for path in bad)
        assert len(decoded) == 24, "one pass"
    with pytest.raises(ValueError, match="3 files cannot be used"):
        check_dataset("image_folder", folders)
    for number, path in enumerate(bad):
        Image.fromarray(picture(200 + number)).save(path)
    assert len(on_disk.load("image_folder", folders).train) == 12
    assert len(decoded) == 48


# --- which data ------------------------------------------------------------------------------------------------------


def test_the_folder_of_the_datasets_name_comes_first(tmp_path: Path) -> None:
    write_classes(tmp_path, DATASETS["cifar10"].class_names)
    svhn = write_classes(tmp_path / "svhn", DATASETS["svhn"].class_names)
    facts = {name: check_dataset(name, tmp_path) for name in ("cifar10", "svhn")}
    assert facts["svhn"].source == f"{svhn / 'train'} and test"
    assert facts["cifar10"].source == f"{tmp_path / 'train'} and test"
    space = override(get_space("mask_transfer"), ["batch_size=10"])
    plan = make_plan(space, str(tmp_path))
    versions = {job.config.task.dataset: job.config.task.data_version for job in plan.jobs.values()}
    assert versions == {name: each.fingerprint for name, each in facts.items()}


def test_the_classes_of_one_dataset_are_not_anothers(tmp_path: Path) -> None:
    write_classes(tmp_path, DATASETS["cifar10"].class_names)
    with pytest.raises(ValueError, match=r"train has the classes of cifar10 \(airplane, .*not those of svhn"):
        check_dataset("svhn", tmp_path)


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.class_names])
def test_known_classes_are_those_of_the_registry(name: str) -> None:
    names = DATASETS[name].class_names
    assert len(set(names)) == len(names) == DATASETS[name].num_classes
    assert list(names) == sorted(names), "labels follow the names"


def test_a_subset_under_other_names_is_used_with_warnings(tmp_path: Path) -> None:
    root = write_classes(tmp_path, tuple(f"kind{number}" for number in range(10)))
    first, *warnings = check_dataset("cifar10", root).lines("cifar10")
    assert first == (
        f"cifar10: 10 training and 10 test images, 10 classes, 32x32 pixels, from {tmp_path / 'train'} and test"
    )
    assert warnings == [
        "  warning: cifar10 has 50,000 training and 10,000 test images",
        "  warning: the classes of cifar10 are called airplane, automobile, bird and 7 more, not kind0, kind1, kind2 "
        "and 7 more",
    ]


def test_one_class_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train has one class \(only\)"):
        check_dataset("image_folder", write_classes(tmp_path, ("only",)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset=digits", "batch_size=10000 exceeds the 898 images of digits"),
        ("dataset=image_folder", "the 12 images"),
    ],
)
def test_a_batch_larger_than_the_data_is_refused_when_planning(folders: Path, setting: str, message: str) -> None:
    space = override(get_space("digits_quickstart"), [setting, "batch_size=10000"])
    with pytest.raises(ValueError, match=message):
        make_plan(space, str(folders))


# --- what is a picture -----------------------------------------------------------------------------------------------


def test_pictures_are_known_by_their_content(folders: Path) -> None:
    grey = Image.fromarray(picture(0)[:, :, 0])
    folder = one(folders).parent
    grey.save(folder / "a.gif")
    grey.save(folder / "b.pgm")
    for name in ("c.jfif", "d", "e.heic"):
        shutil.copy(one(folders), folder / name)
    (folder / "more" / "still").mkdir(parents=True)
    shutil.copy(one(folders), folder / "more" / "still" / "f.png")
    facts = check_dataset("image_folder", folders)
    assert facts.train_images == 12 + 6
    assert facts.warnings == ()
    assert len(load_dataset("image_folder", folders).train) == 18


def test_what_is_no_picture_is_left_out_and_named(folders: Path) -> None:
    (folders / "train" / "ant" / "notes.txt").write_text("seen in May")
    (folders / "train" / "ant" / "empty").touch()
    (folders / "train" / "labels.csv").write_text("a,b")
    os.mkfifo(folders / "train" / "ant" / "pipe")
    (warning,) = check_dataset("image_folder", folders).warnings
    assert warning.startswith("4 files left out, which are not pictures: ")
    for name in ("train/labels.csv", "train/ant/pipe", "train/ant/empty", "train/ant/notes.txt"):
        assert name in warning


def test_nothing_but_pictures_is_opened(folders: Path, tmp_path: Path) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (folders / "train" / "ant" / "z.png").write_bytes(postscript)
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    code = f"from trainables.data import load_dataset; load_dataset('image_folder', {str(folders)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
    )
    assert "z.png: no picture that can be read" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert not {"EPS", "PSD", "FPX", "WMF"} & set(FORMATS)


def test_a_pillow_without_a_format_reads_the_others(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    pictures._readers.cache_clear()
    try:
        assert check_dataset("image_folder", folders).train_images == 12
        assert "AVIF" not in pictures._readers()
    finally:
        pictures._readers.cache_clear()


def test_opening_pictures_leaves_the_filters_of_warnings_alone(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to the process: threads that change them for a moment set back those of each other."""
    open_image, during = Image.open, list[list[object]]()

    def opened(*given: object, **named: object) -> Image.Image:
        during.append(list(warnings.filters))
        return open_image(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", opened)
    before = list(warnings.filters)
    check_dataset("image_folder", folders)
    load_dataset("image_folder", folders)
    assert during
    assert all(filters == before for filters in during)
    assert list(warnings.filters) == before


def test_warnings_are_ignored_if_they_are_of_pillow() -> None:
    program = (
        "import warnings, trainables.data.pictures; warned = warnings.warn_explicit; "
        "warned('size', UserWarning, 'a.py', 1, 'PIL.Image'); warned('tag', UserWarning, 'b.py', 1, 'PILS')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "tag" in done.stderr
    assert "size" not in done.stderr


def needs(feature: str) -> pytest.MarkDecorator:
    """Return what skips a test where this Pillow lacks a feature."""
    return pytest.mark.skipif(not features.check(feature), reason=f"Pillow without {feature}")


def deep(kind: type, suffix: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        Image.fromarray(np.full((8, 8), 300, dtype=kind)).save(path.with_suffix(suffix))
        return path.with_suffix(suffix)

    return write


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """Return a PNG of colours as it is, without anybody's opinion of its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"".join((b"\x89PNG\r\n\x1a\n", *parts))


def deep_colours(path: Path) -> Path:
    """Write 16 bits per channel, of which Pillow keeps 8 without a word."""
    path.write_bytes(png(8, 8, 16, bytes(8 * (1 + 8 * 6))))
    return path


def deep_pnm(path: Path) -> Path:
    path.with_suffix(".ppm").write_bytes(b"P6 8 8 1023\n" + bytes(8 * 8 * 6))
    return path.with_suffix(".ppm")


def deep_jpeg2000(path: Path) -> Path:
    """Write a file whose header says that the second of its colours has 16 bits."""
    path = path.with_suffix(".jp2")
    Image.fromarray(picture(0)).save(path)
    content = bytearray(path.read_bytes())
    colours = content.index(b"\xff\x4f\xff\x51") + 42
    assert content[colours : colours + 9 : 3] == b"\7\7\7"
    content[colours + 3] = 15
    path.write_bytes(content)
    return path


def deep_avif(bits: int) -> Callable[[Path], Path]:
    """Return what writes a file whose header says that its colours have 10 or 12 bits."""

    def write(path: Path) -> Path:
        path = path.with_suffix(".avif")
        Image.fromarray(picture(0)).save(path)
        content = bytearray(path.read_bytes())
        colours = content.index(b"pixi") + 9
        assert content[colours : colours + 3] == b"\x08\x08\x08"
        content[colours : colours + 3] = bytes([bits] * 3)
        content[content.index(b"av1C") + 6] |= {10: 0x40, 12: 0x60}[bits]
        path.write_bytes(content)
        return path

    return write


def test_pictures_of_eight_bits_are_used_whatever_their_format(folders: Path) -> None:
    readers = {".jp2": "jpg_2000", ".j2k": "jpg_2000", ".avif": "avif"}
    kinds = [suffix for suffix, feature in readers.items() if features.check(feature)]
    for split in ("train", "test"):
        for number, suffix in enumerate(kinds):
            Image.fromarray(picture(100 + number)).save(folders / split / "ant" / f"new{suffix}")
            Image.fromarray(picture(200 + number)).convert("L").save(folders / split / "ant" / f"grey{suffix}")
    assert check_dataset("image_folder", folders).train_images == 12 + 2 * len(kinds)


def thread(path: Path) -> Path:
    Image.new("RGB", (MAX_ASPECT * 2 + 1, 2)).save(path)
    return path


def bomb(path: Path) -> Path:
    path.write_bytes(png(20_000, 20_000, 8, b""))
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def dangling(path: Path) -> Path:
    path.symlink_to("/not/mounted/1.png")
    return path


def looping(path: Path) -> Path:
    path.symlink_to(path)
    return path


def looping_folder(path: Path) -> Path:
    path.symlink_to(path.parent, target_is_directory=True)
    return path


def cut_off(path: Path) -> Path:
    Image.fromarray(picture(3)).save(path.with_suffix(".jpg"))
    path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:-40])
    return path.with_suffix(".jpg")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (deep(np.uint16, ".png"), "pixels of type I;16"),
        (deep(np.float32, ".tiff"), "pixels of type F"),
        (deep_colours, "16 bits per channel"),
        (deep_pnm, "10 bits per channel"),
        pytest.param(deep_jpeg2000, "16 bits per channel", marks=needs("jpg_2000")),
        pytest.param(deep_avif(10), "10 bits per channel", marks=needs("avif")),
        pytest.param(deep_avif(12), "12 bits per channel", marks=needs("avif")),
        (thread, "at most 64 times"),
        (bomb, "exceeds limit"),
        (empty, "no picture that can be read"),
        (dangling, r"No such file or directory \(a link\)"),
        (looping, r"[Tt]oo many levels of symbolic links \(a link\)"),
        (looping_folder, "a link to a folder that it lies in"),
        (cut_off, "truncated"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_used_is_refused_at_once(folders: Path, write: Callable[[Path], Path], message: str) -> None:
    paths = [write(folders / "train" / name / "new.png") for name in ("ant", "bee")]
    with pytest.raises(ValueError, match=message) as caught:
        check_dataset("image_folder", folders)
    assert all(str(path) in str(caught.value) for path in paths)
    assert re.search(rf"2 files cannot be used \(mend or remove.*\): {paths[0]}: ", str(caught.value))


def test_loss_is_said(folders: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(2)]
    frames[0].save(folders / "train" / "ant" / "two.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.dstack((picture(0), picture(1)[:, :, 0]))).save(folders / "train" / "ant" / "clear.png")
    transparency, several = check_dataset("image_folder", folders).warnings
    assert transparency == "1 image with transparency, which is dropped: train/ant/clear.png"
    assert several == "1 image with several frames, of which the first is used: train/ant/two.gif"


@pytest.mark.parametrize("forbidden", ["scandir", "stat"])
def test_what_may_not_be_read_is_a_wrong_request(
    folders: Path, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    original = getattr(os, forbidden)

    def closed(path: str | os.PathLike[str] | int = ".", *arguments: object, **options: object) -> object:
        if os.fspath(path).endswith("train") if not isinstance(path, int) else False:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, forbidden, closed)
    with pytest.raises(ValueError, match=r"'image_folder'.*Permission denied.*train"):
        check_dataset("image_folder", folders)


def test_a_full_disk_costs_only_the_index(
    folders: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_sealed", full)
    assert check_dataset("image_folder", folders).train_images == 12
    assert "No space left" in caplog.text


def test_the_lock_of_another_user_will_do(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.load("image_folder", folders)
    original = Path.open

    def not_mine(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if path.name.endswith("lock") and mode != "r":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", not_mine)
    Image.fromarray(picture(500)).save(one(folders))
    assert len(on_disk.load("image_folder", folders).train) == 12


def test_planning_with_a_folder_needs_no_torch(folders: Path) -> None:
    program = (
        f"import sys; from trainables.data import check_dataset; check_dataset('image_folder', {str(folders)!r}); "
        "assert not {'torch', 'numpy', 'torchvision', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_dataset_without_files_keeps_its_version() -> None:
    assert check_dataset("digits").fingerprint == ""
    assert dataclasses.replace(check_dataset("digits"), warnings=()) == check_dataset("digits")
    forget()
    assert load_dataset("digits").fingerprint == ""


def test_a_download_repairs_the_archive_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repaired: list[Path] = []
    for folder in (tmp_path, tmp_path / "svhn"):
        folder.mkdir(exist_ok=True)
        (folder / "train_32x32.mat").write_bytes(b"")

    def download(name: str, root: Path) -> None:
        repaired.append(root)
        (root / "test_32x32.mat").write_bytes(b"")

    monkeypatch.setattr("trainables.data.on_disk.download", download)
    assert data_command(["--download", "svhn", "--data-dir", str(tmp_path)]) == 0
    assert repaired == [tmp_path / "svhn"]
