"""Folders of images: what is found, what is refused, and that nothing is decoded twice."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_images import CLASSES, picture, write_folders
from waiting import HANG_SECONDS

from trainables.data import Augmentation, Dataset, check_dataset, image_folder, layout, load_dataset, on_disk


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "data")


def load(root: Path) -> Dataset:
    """Load without the memory that `load_dataset` has of earlier calls."""
    return on_disk.load("image_folder", root)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every decoded file is noted here."""
    paths: list[Path] = []
    original = image_folder.decode_file

    def noting(path: Path, form: layout.Form, digest: str) -> np.ndarray | str:
        paths.append(path)
        return original(path, form, digest)

    monkeypatch.setattr(image_folder, "decode_file", noting)
    return paths


# --- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_images_and_labels(tmp_path: Path, test_folder: str) -> None:
    root = write_folders(tmp_path, test_folder=test_folder)
    facts = check_dataset("image_folder", root)
    assert (facts.num_classes, facts.in_channels, facts.image_size) == (3, 3, 8)
    assert (facts.train_images, facts.test_images) == (12, 12)
    dataset = load_dataset("image_folder", root)
    assert dataset.fingerprint == facts.fingerprint
    expected = np.stack([picture(10 * label + i).transpose(2, 0, 1) for label in range(3) for i in range(4)])
    np.testing.assert_array_equal(dataset.train.images.numpy(), expected)
    np.testing.assert_array_equal(dataset.test.images.numpy(), 255 - expected)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    source = layout.find_source("image_folder", root)
    assert isinstance(source, layout.ImageFolder)
    assert source.class_names == CLASSES
    assert dataset.augmentation == Augmentation(crop_padding=4, horizontal_flip=True)


def test_folder_named_like_the_dataset(tmp_path: Path) -> None:
    write_folders(tmp_path / "image_folder")
    assert check_dataset("image_folder", tmp_path).num_classes == 3


def test_val_is_taken_where_test_has_no_classes(tmp_path: Path) -> None:
    root = write_folders(tmp_path, test_folder="val")
    (root / "test").mkdir()
    Image.fromarray(picture(0)).save(root / "test" / "unlabelled.png")
    assert check_dataset("image_folder", root).test_images == 12


def test_other_files_are_left_out(folders: Path) -> None:
    (folders / "train" / "ant" / ".hidden.png").write_bytes(b"")
    (folders / "train" / "ant" / "notes.txt").write_text("not an image")
    (folders / "train" / ".cache").mkdir()
    assert check_dataset("image_folder", folders).train_images == 12


def test_grey_and_transparent_images_become_rgb(folders: Path) -> None:
    pixels = picture(77)
    Image.fromarray(pixels[:, :, 0]).save(folders / "train" / "ant" / "0.png")
    Image.fromarray(np.dstack((pixels, pixels[:, :, 1]))).save(folders / "train" / "ant" / "1.png")
    images = load(folders).train.images.numpy()
    np.testing.assert_array_equal(images[0], np.broadcast_to(pixels[:, :, 0], (3, 8, 8)))
    np.testing.assert_array_equal(images[1], pixels.transpose(2, 0, 1))


def test_large_images_are_resized_and_cropped(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, (width, height) in {"flat": (300, 200), "tall": (150, 400)}.items():
            (tmp_path / split / name).mkdir(parents=True)
            gradient = np.linspace(0, 255, width).astype(np.uint8)  # brighter to the right
            pixels = np.broadcast_to(gradient[None, :, None], (height, width, 3))
            Image.fromarray(pixels.copy()).save(tmp_path / split / name / "0.png")
    assert check_dataset("image_folder", tmp_path).image_size == 224
    dataset = load(tmp_path)
    assert dataset.train.images.shape == (2, 3, 224, 224)
    assert dataset.augmentation == Augmentation(random_resized_crop=True, horizontal_flip=True)
    for image, width in zip(dataset.train.images.numpy(), (384, 256), strict=True):
        left = (width - 224) // 2
        expected = (np.arange(224) + left + 0.5) / width * 255
        np.testing.assert_allclose(image[0, 100], expected, atol=2)


# --- what is refused ---------------------------------------------------------------------------------------------


def test_empty_class(folders: Path) -> None:
    for path in (folders / "test" / "bee").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test/bee has no images; known formats: .*JPEG"):
        check_dataset("image_folder", folders)


def test_no_classes_or_no_test(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train has no folders of classes"):
        check_dataset("image_folder", tmp_path)
    (tmp_path / "train" / "ant").mkdir()
    with pytest.raises(ValueError, match=r"test/<class> or .*val/<class> is missing"):
        check_dataset("image_folder", tmp_path)


def test_classes_that_differ(folders: Path) -> None:
    (folders / "test" / "cow").rename(folders / "test" / "dog")
    with pytest.raises(ValueError, match=r"train/ alone has cow; test/ alone has dog"):
        check_dataset("image_folder", folders)


def test_cifar10_wants_its_classes_and_its_size(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(ValueError, match=r"train has 3 classes \(ant, bee, cow\), but cifar10 has 10"):
        check_dataset("cifar10", tmp_path)
    for split in ("train", "test"):
        for number in range(7):
            (tmp_path / split / f"kind{number}").mkdir()
            Image.fromarray(picture(number)).save(tmp_path / split / f"kind{number}" / "0.png")
    with pytest.raises(ValueError, match=r"cifar10 has 32x32 pixels, but 38 of the 38 .*ant/0.png \(8x8\)"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all", "half"])
def test_corrupt_image_is_named(folders: Path, content: bytes | str, tmp_path: Path) -> None:
    bad = folders / "test" / "bee" / "2.png"
    bad.write_bytes(bad.read_bytes()[:60] if isinstance(content, str) else content)
    for judge in (lambda: check_dataset("image_folder", folders), lambda: load(folders)):
        with pytest.raises(ValueError, match=str(bad)):
            judge()
    assert not list((folders / ".decoded").glob("*/")), "nothing is published or left behind"


@pytest.mark.parametrize(("width", "height"), [(9, 9), (9, 8), (300, 200)])
def test_one_decision_on_size_for_all_images(folders: Path, width: int, height: int) -> None:
    Image.fromarray(picture(0, width, height)).save(folders / "train" / "cow" / "3.png")
    facts = check_dataset("image_folder", folders)
    assert facts.image_size == 224
    small = 24 if height < 128 else 23
    (warning,) = facts.warnings
    assert warning.startswith(f"{small} images of at most 128 pixels a side, enlarged to 224")
    assert load(folders).train.images.shape[1:] == (3, 224, 224)


def test_images_that_are_all_alike_keep_their_size_only_if_square(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(picture(0, 9, 8)).save(tmp_path / split / name / "0.png")
    assert check_dataset("image_folder", tmp_path).image_size == 224


def test_full_disk_is_noticed_before_decoding(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"4,608 bytes are needed in .*, 100 are free"):
        load(folders)


# --- fingerprint -------------------------------------------------------------------------------------------------


def test_fingerprint_names_the_content_not_the_place(tmp_path: Path) -> None:
    here, there = (write_folders(tmp_path / place) for place in ("here", "there"))
    before = check_dataset("image_folder", here).fingerprint
    os.utime(here / "train" / "ant" / "0.png", ns=(1, 1))
    assert check_dataset("image_folder", here).fingerprint == before
    assert check_dataset("image_folder", there).fingerprint == before
    (there / "train" / "ant" / "0.png").rename(there / "train" / "ant" / "9.png")
    assert check_dataset("image_folder", there).fingerprint != before


# --- decoding once -----------------------------------------------------------------------------------------------


def test_second_load_maps_what_the_first_decoded(folders: Path, decodings: list[Path]) -> None:
    first = load(folders)
    assert len(decodings) == 24
    again = load(folders)
    assert len(decodings) == 24
    np.testing.assert_array_equal(first.train.images.numpy(), again.train.images.numpy())


def test_arrays_are_mapped_not_copied(folders: Path) -> None:
    images = load(folders).train.images
    file = next((folders / ".decoded").glob("*/train_images.npy"))
    mapped = np.load(file, mmap_mode="r+")
    mapped[0, 0, 0, 0] ^= 255
    assert images[0, 0, 0, 0] == mapped[0, 0, 0, 0]


def test_changed_files_are_decoded_again(folders: Path, decodings: list[Path]) -> None:
    load(folders)
    changed = folders / "train" / "ant" / "0.png"
    Image.fromarray(picture(500)).save(changed)
    np.testing.assert_array_equal(load(folders).train.images[0].numpy(), picture(500).transpose(2, 0, 1))
    assert len(decodings) == 48
    (folders / "train" / "ant" / "1.png").unlink()
    assert len(load(folders).train) == 11


def test_a_folder_that_cannot_be_written_to(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (folders / ".decoded").write_text("in the way")  # even the superuser cannot make a directory of it
    for _ in range(2):
        load(folders)
    assert len(decodings) == 24
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "blocked"))
    with pytest.raises(ValueError, match=r"no place to keep what is known .* set XDG_CACHE_HOME"):
        load(folders)


def test_two_processes_at_once_decode_once(folders: Path) -> None:
    program = f"""
import hashlib, time
from pathlib import Path
from trainables.data import on_disk
decode = on_disk.decode_folder
def slowly(*arguments):
    print("decoding")
    time.sleep(0.5)
    return decode(*arguments)
on_disk.decode_folder = slowly
print("ready", flush=True)
input()
images = on_disk.load("image_folder", Path({str(folders)!r})).train.images
print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both are past their imports and start together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=HANG_SECONDS)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = hashlib.sha256(load(folders).train.images.numpy().tobytes()).hexdigest()
    assert sorted(outputs) == sorted([["decoding", expected], [expected]])


def test_what_a_killed_process_left_is_removed(folders: Path) -> None:
    load(folders)
    published = next((folders / ".decoded").glob("*/"))
    prefix = published.name.rsplit("-", 2)[0]
    left = published.with_name(f"{prefix}-tmp-{socket.gethostname()}-abc")
    published.rename(left)
    load(folders)
    assert [path.name for path in (folders / ".decoded").glob("*/")] == [published.name]


def test_without_locks_the_first_to_publish_wins(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    original = on_disk.decode_folder
    raced = False

    def race(source: layout.ImageFolder, directory: Path) -> None:
        nonlocal raced
        if not raced:  # while this decodes, another process does the same and publishes
            raced = True
            load(folders)
        original(source, directory)

    monkeypatch.setattr(on_disk, "decode_folder", race)
    with pytest.warns(UserWarning, match="no file locks"):
        dataset = load(folders)
    assert len(dataset.train) == 12
    assert len(list((folders / ".decoded").glob("*/"))) == 1
