"""The registry, the digits, torchvision's archives, and batches as a pure function of seed and epoch."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch import Tensor
from waiting import HANG_SECONDS

from trainables.data import DATASETS, Augmentation, Dataset, Split, check_dataset, load_dataset, on_disk
from trainables.data import batches as batches_module
from trainables.data.__main__ import main
from trainables.data.batches import EvalBatches, TrainBatches, cpu_generator, one_ahead, random_order
from trainables.seeding import derive_seed

SHIFT_FLIP_CROP = Augmentation(crop_padding=1, horizontal_flip=True, random_resized_crop=True)
NOTHING = Augmentation()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def numbered() -> Split:
    """103 images with a number of their own in every pixel, which is also the label."""
    numbers = torch.arange(103)
    return Split(images=numbers.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4).contiguous(), labels=numbers)


def train_batches(split: Split, **changes: object) -> TrainBatches:
    arguments: dict[str, object] = {
        "mean": (0.0,) * split.images.shape[1],
        "std": (1 / 255,) * split.images.shape[1],  # so that pixels keep their values
        "augmentation": NOTHING,
        "batch_size": 10,
        "seed": 0,
    }
    return TrainBatches(split, **(arguments | changes))  # type: ignore[arg-type]


def all_of(batches: TrainBatches, epoch: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.epoch(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


# --- registry ----------------------------------------------------------------------------------------------------


def test_planning_needs_no_torch() -> None:
    program = (
        "import sys; from trainables.data import DATASETS, check_dataset; facts = check_dataset('digits'); "
        "assert facts.train_images == 898, facts; "
        "assert not {'torch', 'numpy', 'torchvision', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DATASETS)
def test_entries_are_complete(name: str) -> None:
    entry = DATASETS[name]
    assert entry.description
    assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
    # A mirrored digit is another sign.
    assert entry.augmentation.horizontal_flip == (name not in {"digits", "svhn"})


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cifar_10' \(did you mean 'cifar10'\?\); known: digits, cifar10, "):
        check_dataset("cifar_10")
    with pytest.raises(ValueError, match="unknown dataset 'xyz'; known: digits"):
        load_dataset("xyz")


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.needs_data_dir])
def test_missing_data_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' needs --data-dir DIR.*train/<class>") as caught:
        check_dataset(name)
    assert (f"python -m trainables.data --download {name}" in str(caught.value)) == (name != "image_folder")
    with pytest.raises(ValueError, match="nowhere is not a directory"):
        check_dataset(name, tmp_path / "nowhere")
    (tmp_path / "something_else").mkdir()
    with pytest.raises(ValueError, match="which has: something_else"):
        check_dataset(name, tmp_path)


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits_are_what_the_registry_says(digits: Dataset) -> None:
    facts = check_dataset("digits", "/unused")
    assert facts.fingerprint == digits.fingerprint == ""
    assert (len(digits.train), len(digits.test)) == (facts.train_images, facts.test_images) == (898, 899)
    assert digits.train.images.shape == (898, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    pixels = digits.train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(digits.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(digits.std[0], abs=2e-4)
    assert digits.train.images.max() == 255


def test_digits_are_split_by_class_and_for_ever(digits: Dataset) -> None:
    per_class = digits.test.labels.bincount()
    assert (per_class - 899 * (per_class + digits.train.labels.bincount()) / 1797).abs().max() <= 1
    everything = {bytes(image.numpy()) for split in (digits.train, digits.test) for image in split.images}
    assert len(everything) == 1797  # no image is in both, or missing
    digest = hashlib.sha256(digits.test.images.numpy().tobytes() + digits.test.labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "af070570a649550d"


def test_a_process_loads_a_dataset_once(digits: Dataset) -> None:
    assert load_dataset("digits") is digits


# --- training batches --------------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_but_for_the_dropped_batch(numbered: Split) -> None:
    batches = train_batches(numbered)
    sizes = [len(labels) for _, labels in batches.epoch(0)]
    assert sizes == [10] * batches.steps_per_epoch == [10] * 10
    images, labels = all_of(batches, 0)
    assert len(set(labels.tolist())) == 100
    np.testing.assert_allclose(images.numpy(), np.broadcast_to(labels[:, None, None, None], (100, 3, 4, 4)), rtol=1e-5)


def test_order_and_augmentation_are_functions_of_seed_and_epoch(digits: Dataset) -> None:
    reference = all_of(train_batches(digits.train, augmentation=SHIFT_FLIP_CROP, seed=3), 5)
    resumed = train_batches(digits.train, augmentation=SHIFT_FLIP_CROP, seed=3)
    torch.manual_seed(1)  # nobody else's generator takes part, nor is it touched
    state = torch.get_rng_state()
    list(resumed.epoch(2))
    again = all_of(resumed, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(reference, again, strict=True))
    for other in (all_of(resumed, 6), all_of(train_batches(digits.train, augmentation=SHIFT_FLIP_CROP, seed=4), 5)):
        assert not torch.equal(reference[1], other[1])


def test_order_does_not_depend_on_the_augmentation_nor_on_the_batch_size(numbered: Split) -> None:
    _, labels = all_of(train_batches(numbered), 1)
    assert torch.equal(all_of(train_batches(numbered, augmentation=SHIFT_FLIP_CROP), 1)[1], labels)
    assert torch.equal(all_of(train_batches(numbered, batch_size=25), 1)[1], labels)
    expected = torch.randperm(103, generator=torch.Generator().manual_seed(derive_seed(0, "order", 1)))[:100]
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 2**30])
@pytest.mark.parametrize("channels_last", [False, True])
def test_chunks_change_nothing(digits: Dataset, chunk_bytes: int, channels_last: bool) -> None:
    reference = all_of(train_batches(digits.train, augmentation=SHIFT_FLIP_CROP), 0)
    chunked = train_batches(
        digits.train, augmentation=SHIFT_FLIP_CROP, chunk_bytes=chunk_bytes, channels_last=channels_last
    )
    assert all(torch.equal(*pair) for pair in zip(reference, all_of(chunked, 0), strict=True))


def test_channels_last_is_only_a_memory_format(numbered: Split) -> None:
    plain = next(train_batches(numbered).epoch(0))[0]
    images = next(train_batches(numbered, channels_last=True).epoch(0))[0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, plain)


def test_augmentation_changes_images_and_epochs_differ(digits: Dataset) -> None:
    one_batch = train_batches(digits.train, augmentation=Augmentation(crop_padding=1), batch_size=898)
    images, labels = all_of(one_batch, 0)
    plain, plain_labels = all_of(train_batches(digits.train, batch_size=898), 0)
    assert torch.equal(labels, plain_labels)
    unmoved = (images == plain).flatten(1).all(1).float().mean().item()
    assert unmoved == pytest.approx(1 / 9, abs=0.03)


def test_augmentation_is_drawn_anew_in_every_epoch(digits: Dataset) -> None:
    same_image = digits.train.images[:1].expand(898, 1, 8, 8)  # so that the order, which differs, does not show
    batches = train_batches(
        Split(images=same_image, labels=digits.train.labels), augmentation=Augmentation(crop_padding=1)
    )
    first, second = (all_of(batches, epoch)[0] for epoch in (0, 1))
    assert (first == second).flatten(1).all(1).float().mean().item() == pytest.approx(1 / 9, abs=0.03)


def test_the_data_survive_training(digits: Dataset) -> None:
    before = digits.train.images.clone()
    for images, _ in train_batches(digits.train).epoch(0):
        images.zero_()
    for images, _ in EvalBatches(digits.train, mean=(0.5,), std=(0.5,), batch_size=100):
        images.zero_()
    assert torch.equal(digits.train.images, before)


@pytest.mark.parametrize("batch_size", [0, 104])
def test_impossible_batch_sizes_are_refused(numbered: Split, batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"within 1 and 103 .*got {batch_size}"):
        train_batches(numbered, batch_size=batch_size)
    assert train_batches(numbered, batch_size=103).steps_per_epoch == 1


def test_negative_epochs_are_refused(numbered: Split) -> None:
    with pytest.raises(ValueError, match="-1"):
        next(train_batches(numbered).epoch(-1))


def test_the_next_is_fetched_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(3)]

    def fetch(number: int) -> int:
        begun[number].set()
        return number**2

    fetched = one_ahead(fetch, range(3))
    assert next(fetched) == 0
    assert begun[1].wait(HANG_SECONDS)
    assert not begun[2].is_set(), "one ahead, not all: a chunk takes memory"
    assert list(fetched) == [1, 4]
    assert list(one_ahead(fetch, ())) == []


def test_what_fails_ahead_fails_in_its_turn() -> None:
    fetched = one_ahead(lambda number: 1 // number, [1, 0])
    assert next(fetched) == 1
    with pytest.raises(ZeroDivisionError):
        next(fetched)


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_images_from_elsewhere_travel_chunk_by_chunk(
    digits: Dataset, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "RESIDENT_BYTES", 0)
    settings: dict[str, Any] = {"device": "meta", "chunk_bytes": chunk_bytes}
    seen = list(train_batches(digits.train, batch_size=100, **settings).epoch(0))
    assert [(images.device.type, tuple(images.shape), len(labels)) for images, labels in seen] == [
        ("meta", (100, 1, 8, 8), 100)
    ] * 8
    test = EvalBatches(digits.test, mean=digits.mean, std=digits.std, batch_size=500, **settings)
    assert [(images.device.type, len(labels)) for images, labels in test] == [("meta", 500), ("meta", 399)]


@pytest.mark.parametrize("share", [0.24, 0.26])
def test_a_split_that_takes_too_much_of_a_device_stays_outside(
    digits: Dataset, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "memory_of", lambda _device: digits.train.images.numel() / share)
    batches = train_batches(digits.train, batch_size=100, device="meta")
    assert batches.split.images.device.type == ("meta" if share < batches_module.RESIDENT_SHARE else "cpu")
    assert {images.device.type for images, _ in batches.epoch(0)} == {"meta"}


@pytest.mark.gpu
def test_the_device_gets_the_same_batches(digits: Dataset) -> None:
    augmentation = Augmentation(crop_padding=1, horizontal_flip=True)
    images, labels = all_of(train_batches(digits.train, augmentation=augmentation, device="cuda"), 2)
    reference, reference_labels = all_of(train_batches(digits.train, augmentation=augmentation), 2)
    assert images.is_cuda
    assert torch.equal(labels.cpu(), reference_labels)
    torch.testing.assert_close(images.cpu(), reference)


def test_nets_of_a_process_share_one_copy_on_the_device(monkeypatch: pytest.MonkeyPatch, numbered: Split) -> None:
    copied = []
    to = Split.to

    def counting(split: Split, device: torch.device | str) -> Split:
        copied.append((split, str(device)))
        return to(split, device)

    monkeypatch.setattr(Split, "to", counting)
    first, second = (train_batches(numbered, seed=seed, device="meta") for seed in (0, 1))
    tests = EvalBatches(numbered, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=10, device=torch.device("meta"))
    assert copied == [(numbered, "meta")]
    other = Split(images=numbered.images, labels=numbered.labels)
    others = train_batches(other, device="meta")
    assert copied[1:] == [(other, "meta")], "no other split's, however much alike"
    del first, tests
    train_batches(numbered, device="meta")
    assert len(copied) == 2, "as long as anybody uses it"
    del second
    train_batches(numbered, device="meta")
    assert copied[2:] == [(numbered, "meta")], "and no longer"
    del others


# --- evaluation batches and subsets ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 2**30])
def test_evaluation_sees_everything_in_order_every_time(digits: Dataset, chunk_bytes: int) -> None:
    batches = EvalBatches(digits.test, mean=digits.mean, std=digits.std, batch_size=100, chunk_bytes=chunk_bytes)
    for _ in range(2):
        images, labels = zip(*batches, strict=True)
        assert [len(part) for part in labels] == [100] * 8 + [99]
        assert torch.equal(torch.cat(labels), digits.test.labels)
        expected = (digits.test.images.numpy() / 255 - digits.mean[0]) / digits.std[0]
        np.testing.assert_allclose(torch.cat(images).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert len(batches) == 9
    assert batches.num_images == 899


def test_evaluation_refuses_nonsense(numbered: Split) -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        EvalBatches(numbered, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=0)
    empty = Split(images=numbered.images[:0], labels=numbered.labels[:0])
    with pytest.raises(ValueError, match="without images"):
        EvalBatches(empty, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=1)


def test_random_order_is_seeded_and_without_repetition(numbered: Split) -> None:
    chosen, again, other = (random_order(numbered, seed, 40) for seed in (0, 0, 1))
    assert len(chosen) == len(set(chosen.tolist())) == 40
    assert torch.equal(chosen, again)
    assert not torch.equal(chosen, other)
    whole = random_order(numbered, 0)
    assert sorted(whole.tolist()) == list(range(103))
    assert torch.equal(whole[:40], chosen)
    for count in (0, 104):
        with pytest.raises(ValueError, match=rf"1 to 103 images .*got {count}"):
            random_order(numbered, 0, count)


def test_evaluation_takes_images_in_the_order_given(numbered: Split) -> None:
    order = random_order(numbered, 0, 40)
    batches = EvalBatches(numbered, mean=(0.0,) * 3, std=(1 / 255,) * 3, batch_size=16, order=order, chunk_bytes=1)
    assert len(batches) == 3
    assert torch.equal(torch.cat([labels for _, labels in batches]), order)
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images[:, 0, 0, 0].round().long(), order)


def test_evaluation_can_augment_and_every_iteration_is_the_same() -> None:
    split = Split(images=torch.randint(256, (23, 3, 8, 8), dtype=torch.uint8), labels=torch.arange(23))
    augmentation = Augmentation(horizontal_flip=True, crop_padding=2)

    def images(augmentation: Augmentation | None, seed: int, batch_size: int = 7) -> torch.Tensor:
        batches = EvalBatches(
            split, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=batch_size, augmentation=augmentation, seed=seed
        )
        first, second = (torch.cat([images for images, _ in batches]) for _ in range(2))
        assert torch.equal(first, second)
        return first

    augmented = images(augmentation, 0)
    assert torch.equal(augmented, images(augmentation, 0, batch_size=5))
    assert not torch.equal(augmented, images(augmentation, 1))
    assert not torch.equal(augmented, images(None, 0))


def test_generators_are_seeded_by_purpose() -> None:
    assert cpu_generator(1, "order", 2).initial_seed() == derive_seed(1, "order", 2)


# --- torchvision's archives --------------------------------------------------------------------------------------


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    """Write archives of 4 random images per file; return train and test images, (N, 3, 32, 32)."""
    random = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        rows = random.integers(0, 256, (4, 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": rows, "labels": [0, 3, 9, 1]}))
        written["test" if file == "test_batch" else "train"].append(rows.reshape(4, 3, 32, 32))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))
    return {split: np.concatenate(parts) for split, parts in written.items()}


@pytest.fixture
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda _: True)


@pytest.mark.usefixtures("no_checksums")
@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_archive(tmp_path: Path, below: str) -> None:
    written = write_cifar10(tmp_path / below)
    dataset = load_dataset("cifar10", tmp_path)
    assert check_dataset("cifar10", tmp_path).fingerprint == dataset.fingerprint == ""
    np.testing.assert_array_equal(dataset.train.images.numpy(), written["train"])
    np.testing.assert_array_equal(dataset.test.images.numpy(), written["test"])
    assert dataset.train.labels.tolist() == [0, 3, 9, 1] * 5
    assert dataset.mean == (0.485, 0.456, 0.406)  # the paper's code normalises CIFAR-10 so


@pytest.mark.usefixtures("no_checksums")
def test_cifar100_archive_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 32, 32), dtype=np.uint8)
    for split, pixels in zip(("train", "test"), images, strict=True):
        content = {"data": pixels.reshape(3, 3072), "fine_labels": [99, 0, 50], "coarse_labels": [1, 2, 3]}
        (folder / split).write_bytes(pickle.dumps(content))
    names = [f"class{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": []}))
    dataset = load_dataset("cifar100", tmp_path)
    np.testing.assert_array_equal(dataset.train.images.numpy(), images[0])
    np.testing.assert_array_equal(dataset.test.images.numpy(), images[1])
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [99, 0, 50]
    assert (dataset.num_classes, DATASETS["cifar100"].class_names[99]) == (100, "worm")


@pytest.mark.usefixtures("no_checksums")
def test_svhn_archive(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[1], [10], [2], [3], [9]])})
    dataset = load_dataset("svhn", tmp_path)
    np.testing.assert_array_equal(dataset.train.images.numpy(), images.transpose(3, 2, 0, 1))
    assert dataset.test.labels.tolist() == [1, 0, 2, 3, 9]  # the files write 10 for the digit 0


def test_damaged_and_incomplete_archives_are_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    with pytest.raises(ValueError, match=rf"'cifar10' in {tmp_path} is damaged"):
        load_dataset("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"lacks cifar-10-batches-py/data_batch_3; .*--download cifar10"):
        check_dataset("cifar10", tmp_path)


# --- downloads ---------------------------------------------------------------------------------------------------


def test_a_failed_download_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(name: str, data_dir: Path) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(on_disk, "download", offline)
    assert main(["--download", "cifar10", "--data-dir", str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert "downloading cifar10" in message
    assert "no route to host" in message


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("digits", 0, "no download"), ("image_folder", 2, "only: cifar10"), ("mnist", 2, "known:")],
)
def test_what_cannot_be_downloaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, message: str
) -> None:
    assert main(["--download", name, "--data-dir", str(tmp_path)]) == code
    output = capsys.readouterr()
    assert message in output.out + output.err


# --- the real thing ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR does not say where CIFAR-10 lies")
def test_real_cifar10() -> None:
    directory = os.environ["CIFAR10_DIR"]
    facts = check_dataset("cifar10", directory)
    assert (facts.num_classes, facts.image_size, facts.train_images, facts.test_images) == (10, 32, 50_000, 10_000)
    dataset = load_dataset("cifar10", directory)
    assert dataset.train.images.shape == (50_000, 3, 32, 32)
    assert dataset.train.labels.bincount().tolist() == [5_000] * 10
    batches = train_batches(dataset.train, augmentation=dataset.augmentation, batch_size=128)
    assert batches.steps_per_epoch == 390
