"""Images of any size: one decision for a folder, and batches that do not depend on where their images come from."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles import DoubleCrew, assert_agree, use_doubles
from PIL import Image
from tiny_images import CLASSES, MIXED, TURNED, scene, spoilt, write_folders, write_mixed
from tiny_study import assert_same_store, publish

from search_spaces import get_space
from study.plan import make_plan, override
from study.tracking.labels import recipe_digest
from trainables import schema
from trainables.config import Cell, Task
from trainables.data import Augmentation, Dataset, Reading, check_dataset, load_dataset, on_disk, streaming
from trainables.data import layout as layout_module
from trainables.data.batches import EvalBatches, TrainBatches
from trainables.data.image_folder import decode_file
from trainables.data.layout import Form
from trainables.data.pictures import digest_of
from trainables.errors import HostFault
from trainables.graph import Closure, Job, Ref, measurements, target
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.storage.artifacts import read_mask
from trainables.storage.store import Store
from trainables.training.crew import Crew

SIZES = ((14, 14), (40, 25), (30, 90), (120, 80), (500, 375))
IMAGES = len(CLASSES) * (len(MIXED) + 1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed(tmp_path_factory.mktemp("mixed"), SIZES)


def use_workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(streaming, "workers", lambda: count)


# --- batches ---------------------------------------------------------------------------------------------------------
def batches_of(dataset: Dataset, chunk_bytes: int) -> list[torch.Tensor]:
    """Return all batches of two epochs, in no order of theirs, and of an evaluation of some and of all images."""
    common: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std, "chunk_bytes": chunk_bytes}
    train = TrainBatches(dataset.train, batch_size=4, augmentation=dataset.augmentation, seed=3, **common)
    some = EvalBatches(dataset.train, batch_size=3, order=torch.tensor([5, 0, 17, 5]), **common)
    every = EvalBatches(dataset.test, batch_size=8, **common)
    batches = [*train.epoch(2), *train.epoch(0), *some, *every]
    return [part for batch in batches for part in batch]


@pytest.mark.parametrize(("image_size", "workers", "chunk_bytes"), [(16, 1, 1), (16, 2, 2**16), (0, 2, 2**23)])
def test_streamed_batches_have_the_bits_of_those_in_memory(
    mixed: Path, image_size: int, workers: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_workers(monkeypatch, workers)
    monkeypatch.setattr(streaming, "PART_BYTES", 3 * 16**2 * 3)  # several parts in a chunk
    streamed = on_disk.load("image_folder", mixed, Reading(image_size=image_size, streaming=True))
    assert streamed.train.images.is_meta, "nothing is decoded yet"
    in_memory = on_disk.load("image_folder", mixed, Reading(image_size=image_size))
    assert in_memory.train.decoder is None
    state = torch.get_rng_state()
    found, expected = batches_of(streamed, chunk_bytes), batches_of(in_memory, chunk_bytes)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert found[0].shape[2:] == (image_size or 224,) * 2


def test_a_job_that_stops_early_leaves_no_process(mixed: Path) -> None:
    streamed = on_disk.load("image_folder", mixed, Reading(image_size=16, streaming=True))
    batches = iter(EvalBatches(streamed.train, mean=streamed.mean, std=streamed.std, batch_size=2, chunk_bytes=1))
    threads = torch.get_num_threads()
    next(batches)
    assert torch.get_num_threads() == threads, "for the training"
    assert torch.multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]
    assert not torch.multiprocessing.active_children()


@pytest.mark.parametrize("memory", [100, 10**12])
def test_a_folder_that_is_too_large_for_the_memory_is_streamed(
    mixed: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout_module, "memory", lambda: memory)
    is_large = memory == 100
    warnings = check_dataset("image_folder", mixed, Reading(image_size=16)).warnings
    assert any("decoded anew in every epoch" in warning for warning in warnings) == is_large
    dataset = on_disk.load("image_folder", mixed, Reading(image_size=16))
    assert (dataset.train.decoder is not None) == is_large


# --- jobs ------------------------------------------------------------------------------------------------------------
def compute_all(root: Path, reading: Reading, store: Store, crew: Crew | None = None, **settings: Any) -> Job:
    """Compute what a permuted cell needs: dense nets, pruning rounds, match, sparse net, and paths by both remedies.

    Returns:
        The job of the LTH net beside it, which is computed, too.
    """
    values: dict[str, Any] = {
        "method": "permuted",
        "dataset": "image_folder",
        "data_version": check_dataset("image_folder", root, reading).fingerprint,
        "image_size": reading.image_size,
        "epochs": 2,
        "rewind_epoch": 1,
        "batch_size": 8,
        "sparsity": 0.9,
        "prune_fraction": 0.7,
        "imp_epochs": 1,
        "match_images": 10,
        "match_augment": True,
        "interpolation_points": 3,
        **settings,
    }
    cell, repaired = (Cell(**values, correction=correction) for correction in ("bn_reset", "repair"))
    # The last measurement is the path after matching.
    ticket = target(dataclasses.replace(cell, method="lth"))
    roots = [Ref(job) for job in (ticket, target(cell), measurements(cell)[-1], measurements(repaired)[-1])]
    kinds = {job.kind for job in Closure(roots).jobs.values()}
    assert kinds == {schema.DENSE, schema.PRUNE, schema.MATCH, schema.SPARSE, schema.CONNECT}
    reading = dataclasses.replace(reading, image_size=0)
    publish(roots, Context(store=store, data_dir=str(root), reading=reading, crew=crew or Crew()))
    mask = read_mask(store, target(cell).key)
    count = sum(kept.numel() for kept in mask.values())
    assert sum(int((~kept).sum()) for kept in mask.values()) == round(0.9 * count)
    return ticket


def assert_jobs_agree(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Reading, **settings: Any
) -> None:
    in_memory = Store(tmp_path / "memory")
    compute_all(root, reading, in_memory, **settings)
    for workers in (1, 2):
        use_workers(monkeypatch, workers)
        streamed = Store(tmp_path / f"{workers}")
        compute_all(root, dataclasses.replace(reading, streaming=True), streamed, **settings)
        assert_same_store(in_memory, streamed)


@pytest.mark.slow  # every way of reading decodes in processes of its own
def test_jobs_do_not_depend_on_where_images_come_from(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_jobs_agree(mixed, tmp_path, monkeypatch, Reading(image_size=12), model="mlp", width=0.25)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reading]:
    """Images from 14 to 4000 pixels of all kinds, two of which cannot be used; and how to read them."""
    root = write_mixed(tmp_path_factory.mktemp("hostile"), (*SIZES, (32, 32), (77, 800)))
    folder = root / "train" / "ant"
    scene(99, 4000, 3000).save(folder / "huge.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "huge.jpg").read_bytes()[:-1000])
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(folder / "deep.png")
    with pytest.raises(ValueError, match="2 files cannot be used"):
        check_dataset("image_folder", root, Reading(image_size=32))
    return root, Reading(image_size=32, damaged_images=2)


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([(1, False), (2, True)], marks=pytest.mark.slow),
        pytest.param([(1, False), (1, True), (2, False), (2, True)], marks=pytest.mark.exhaustive),
    ],
    ids=len,
)
def test_jobs_of_resnet50_on_images_from_14_to_4000_pixels_by_one_and_two_workers(
    hostile: tuple[Path, Reading], ways: list[tuple[int, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the ways given, each a number of workers and whether images are streamed."""
    use_doubles(monkeypatch)
    use_workers(monkeypatch, 2)  # that decode
    root, reading = hostile
    # A second pruning round amplifies the rounding of sums from 1e-9 to 1e-3.
    settings = {"model": "resnet50", "width": 0.25, "epochs": 1, "rewind_epoch": 0, "lr": 0.01, "pruner": "one_shot"}
    stores: dict[tuple[int, bool], Store] = {}
    for workers, streamed in ways:
        store = stores[workers, streamed] = Store(tmp_path / f"{workers}-{streamed}")
        how = dataclasses.replace(reading, streaming=streamed)
        with closing(DoubleCrew(2) if workers == 2 else Crew()) as crew:
            ticket = compute_all(root, how, store, crew, **settings)
        if streamed and (workers, False) in stores:
            assert_same_store(stores[workers, False], store)
    # The nets that depend on no matching: where two units fit equally well, rounding decides which one is matched.
    for key in Closure([Ref(ticket)]).jobs:
        assert_agree(stores[1, False], stores[2, True], key, within=1e-6)


def test_the_size_of_images_is_in_the_key_and_how_they_are_read_is_not(mixed: Path) -> None:
    asked = ["dataset=image_folder", "seeds=0", "width=0.5", "batch_size=4", "model=mlp"]
    space = override(get_space("digits_quickstart"), asked)
    default = make_plan(space, str(mixed))
    streamed = make_plan(override(space, ["streaming=true", "damaged_images=7"]), str(mixed))
    small = make_plan(override(space, ["image_size=16"]), str(mixed))
    assert streamed.jobs.keys() == default.jobs.keys()
    assert not small.jobs.keys() & default.jobs.keys()
    assert (default.facts["image_folder"].image_size, small.facts["image_folder"].image_size) == (224, 16)
    assert recipe_digest(streamed.space) == recipe_digest(space) != recipe_digest(small.space)
    with pytest.raises(ValueError, match="image_size takes one value, got 16, 32"):
        make_plan(override(space, ["image_size=16,32"]), str(mixed))


# --- one decision on size --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_dataset_that_has_a_size_takes_no_other(name: str, tmp_path: Path) -> None:
    for judge in (check_dataset, load_dataset):
        with pytest.raises(ValueError, match=rf"image_size=64: images of {name} always have \d+x\d+ pixels"):
            judge(name, tmp_path, Reading(image_size=64))


def test_squares_of_the_chosen_size_are_used_as_they_are(tmp_path: Path) -> None:
    root = write_folders(tmp_path)
    own, chosen = (on_disk.load("image_folder", root, Reading(image_size=size)) for size in (0, 8))
    assert torch.equal(own.train.images, chosen.train.images)
    assert own.augmentation == chosen.augmentation == Augmentation(crop_padding=4, horizontal_flip=True)
    other = on_disk.load("image_folder", root, Reading(image_size=9))
    assert other.train.images.shape[2:] == (9, 9)
    assert other.augmentation == Augmentation(random_resized_crop=True, horizontal_flip=True)
    (warning,) = other.warnings
    assert warning.startswith("24 images of at most 8 pixels a side, enlarged to 9: train/ant/0.png (8x8)")


def decoded(path: Path, form: Form) -> np.ndarray:
    found = decode_file(path, form, digest_of(path.read_bytes()))
    assert not isinstance(found, str), found
    return found.astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_with_a_chosen_size_images_are_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = scene(1, 90, 60)
    lying.save(tmp_path / "tagged.jpg", exif=exif, quality=95)
    upright = tmp_path / "upright.jpg"
    with Image.open(tmp_path / "tagged.jpg") as tagged:
        turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> a member of Image.Transpose
        turned = lying.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else lying
        assert tagged.getexif()[0x0112] == orientation
    turned.save(upright, quality=95)
    form = Form(32, cropped=True, chosen=True)
    assert np.abs(decoded(tmp_path / "tagged.jpg", form) - decoded(upright, form)).mean() < 3
    ignored = decoded(tmp_path / "tagged.jpg", form._replace(chosen=False))
    plain = decoded(upright, form._replace(chosen=False))
    assert (np.abs(ignored - plain).mean() > 10) == (orientation > 1)


def test_images_that_are_not_turned_are_named(mixed: Path) -> None:
    (turned,) = (line for line in check_dataset("image_folder", mixed).warnings if "EXIF" in line)
    assert turned.startswith("6 images turned by their EXIF orientation, which is used only with an image_size: ")
    assert f"train/ant/{TURNED}" in turned
    assert not any("EXIF" in line for line in check_dataset("image_folder", mixed, Reading(image_size=16)).warnings)


def test_damaged_tags_do_not_damage_an_image(tmp_path: Path) -> None:
    root = write_folders(tmp_path)
    scene(1, 8, 8).save(root / "train" / "ant" / "tagged.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    assert check_dataset("image_folder", root, Reading(image_size=8)).train_images == 13
    assert len(on_disk.load("image_folder", root, Reading(image_size=8)).train) == 13


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, form = tmp_path / "large.jpg", Form(28, cropped=True, chosen=True)
    scene(2, 640, 480).save(path, quality=95)
    sizes: list[tuple[int, int]] = []
    convert = Image.Image.convert

    def noting(image: Image.Image, *arguments: Any) -> Image.Image:
        sizes.append(image.size)
        return convert(image, *arguments)

    monkeypatch.setattr(Image.Image, "convert", noting)
    small, whole = decoded(path, form), decoded(path, form._replace(chosen=False))
    assert sizes == [(80, 60), (640, 480)]
    assert np.abs(small - whole).mean() < 3


def test_the_square_of_an_image_is_the_middle_of_the_resized_image(tmp_path: Path) -> None:
    for index, (width, height) in enumerate([(500, 375), (77, 200), (333, 64), (40, 31), (64, 64)]):
        image = scene(index, width, height)
        image.save(path := tmp_path / f"{index}.png")
        form = Form(56, cropped=True, chosen=True)
        shares = (side * form.shorter_side / min(image.size) for side in image.size)
        resized = image.resize(tuple(map(round, shares)), Image.Resampling.BILINEAR)
        left, top = ((side - 56) // 2 for side in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 56, top + 56))).transpose(2, 0, 1).astype(int)
        np.testing.assert_allclose(decoded(path, form), expected, atol=1)


# --- files that cannot be used ---------------------------------------------------------------------------------------
@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder, and those of its files that only decoding finds to be damaged, in both splits."""
    root = write_folders(tmp_path / "data")
    bad = [root / "train" / "bee" / "1.png", root / "train" / "cow" / "2.png", root / "test" / "ant" / "3.png"]
    for path in bad:
        path.write_bytes(spoilt(path.read_bytes()))
    return root, bad


def test_what_fails_in_the_middle_is_named_with_all_others_and_then_left_out_if_allowed(
    damaged: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.data.index.RECENT_NS", -1)
    root, bad = damaged
    planned = check_dataset("image_folder", root)
    streamed = on_disk.load("image_folder", root, Reading(streaming=True, damaged_images=2))
    with pytest.raises(HostFault, match=r"3 files cannot be used \(.*damaged_images=3") as caught:
        list(EvalBatches(streamed.train, mean=streamed.mean, std=streamed.std, batch_size=5))
    assert all(str(path) in str(caught.value) for path in bad)
    with pytest.raises(ValueError, match="3 files cannot be used"):
        check_dataset("image_folder", root, Reading(damaged_images=2))
    left = check_dataset("image_folder", root, Reading(damaged_images=3))
    assert (left.train_images, left.test_images) == (10, 11)
    assert left.fingerprint != planned.fingerprint, "other data, so other keys"
    (warning,) = left.warnings
    assert warning.startswith("3 damaged images left out, as damaged_images allows: train/bee/1.png: ")
    assert len(on_disk.load("image_folder", root, Reading(damaged_images=3)).train) == 10


def test_a_folder_that_cannot_be_read_is_never_left_out(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data")
    (root / "train" / "ant" / "more").symlink_to(root / "train" / "ant")
    with pytest.raises(ValueError, match="a link to a folder that it lies in"):
        check_dataset("image_folder", root, Reading(damaged_images=9))


def test_a_file_that_changes_while_it_is_streamed_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "data")
    streamed = on_disk.load("image_folder", root, Reading(streaming=True))
    changed = root / "train" / "bee" / "1.png"
    scene(9, 8, 8).save(changed)
    with pytest.raises(HostFault, match=f"{changed}: has changed"):
        list(EvalBatches(streamed.train, mean=streamed.mean, std=streamed.std, batch_size=5))


def test_a_job_reads_as_its_surroundings_say(mixed: Path, tmp_path: Path) -> None:
    reading = Reading(streaming=True)
    version = check_dataset("image_folder", mixed, reading).fingerprint
    task = Task(model="mlp", width=0.25, dataset="image_folder", data_version=version, image_size=12)
    data = TaskData(task, Context(store=Store(tmp_path), data_dir=str(mixed), reading=reading))
    assert data.train_plain.split.decoder is not None
    (images, labels) = next(iter(data.train_plain))
    assert images.shape == (IMAGES, 3, 12, 12)
    assert labels.tolist() == sorted(labels.tolist())
