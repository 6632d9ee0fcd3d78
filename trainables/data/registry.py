"""All that is known of the datasets before a file is opened: one row for each. Torch-free."""

from __future__ import annotations

from typing import Final

from trainables.checks import known
from trainables.data.dataset import Augmentation, DatasetEntry

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_SHIFT_AND_FLIP: Final = Augmentation(crop_padding=4, horizontal_flip=True)
_DIGITS: Final = tuple(map(str, range(10)))
_CIFAR100: Final = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""

DATASETS: Final[dict[str, DatasetEntry]] = {
    "digits": DatasetEntry(
        module="trainables.data.digits",
        num_classes=10,
        in_channels=1,
        image_size=8,
        train_images=898,
        test_images=899,
        mean=(0.3060,),  # of the training split
        std=(0.3762,),
        augmentation=Augmentation(crop_padding=1),
        needs_data_dir=False,
        class_names=_DIGITS,
        description="8x8 grey handwritten digits that come with scikit-learn; stratified split by a fixed seed",
    ),
    "cifar10": DatasetEntry(
        module="trainables.data.on_disk",
        num_classes=10,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        mean=_IMAGENET_MEAN,  # the paper's code uses ImageNet's values here
        std=_IMAGENET_STD,
        augmentation=_SHIFT_AND_FLIP,
        archive_files=(
            *(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
            *("cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"),
        ),
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        description="32x32 colour images of 10 kinds of things",
    ),
    "cifar100": DatasetEntry(
        module="trainables.data.on_disk",
        num_classes=100,
        in_channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        augmentation=_SHIFT_AND_FLIP,
        archive_files=("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
        class_names=tuple(_CIFAR100.split()),
        description="32x32 colour images of 100 kinds of things",
    ),
    "svhn": DatasetEntry(
        module="trainables.data.on_disk",
        num_classes=10,
        in_channels=3,
        image_size=32,
        train_images=73_257,
        test_images=26_032,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        augmentation=Augmentation(crop_padding=4),  # a mirrored digit is not a digit
        archive_files=("train_32x32.mat", "test_32x32.mat"),
        class_names=_DIGITS,
        description="32x32 colour photographs of house numbers; the training split without the extra images",
    ),
    "image_folder": DatasetEntry(
        module="trainables.data.on_disk",
        in_channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        augmentation=_SHIFT_AND_FLIP,
        description="images in train/<class>/ and test/<class>/ or val/<class>/, such as ImageNet",
    ),
}

DOWNLOADABLE: Final = tuple(name for name, entry in DATASETS.items() if entry.archive_files)
"""Datasets that ``python -m trainables.data --download`` can fetch."""


def get_entry(name: str) -> DatasetEntry:
    """Return the entry of the dataset called `name`.

    Raises:
        ValueError: there is none; the message suggests the nearest name and lists all.
    """
    known("dataset", name, DATASETS)
    return DATASETS[name]
