"""The types of a dataset: its row in the registry, the facts known before it is loaded, and the loaded arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # the planner imports this module and has no torch
    import torch
    from torch import Tensor

    from trainables.data.streaming import Decoder

    Device = torch.device | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How folders of images are read. The fields are knobs, which ``trainables.knobs`` documents."""

    image_size: int = 0
    streaming: bool = False
    damaged_images: int = 0

    @classmethod
    def of(cls, settings: object) -> Reading:
        """Return the fields of an object that has these knobs."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})


BY_DEFAULT: Final = Reading()


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of a training image, applied in the order of the fields. Evaluation never augments.

    Attributes:
        crop_padding: width in pixels (>= 0) of a black border, from which a crop of the original size is taken; this
            shifts the image by up to as many pixels along each axis. 0 switches it off.
        random_resized_crop: zoom into a random part with 8 to 100 % of the area, resized to the original size.
        horizontal_flip: mirror with probability one half.
    """

    crop_padding: int = 0
    random_resized_crop: bool = False
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0 pixels, got {self.crop_padding}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntry:
    """A row of the registry: what is known without opening a file. ``None`` means that it is found in the data.

    Attributes:
        module: imported on first use; has ``load(name, data_dir, reading) -> Dataset``.
        num_classes: number of labels.
        in_channels: 1 (grey) or 3 (RGB).
        image_size: height and width in pixels.
        train_images: size of the training split, for estimates of cost.
        test_images: size of the test split.
        mean: per channel, on the scale where white is 1; subtracted.
        std: per channel, same scale, > 0; divided by.
        augmentation: of the training images.
        needs_data_dir: whether the user has to provide the data.
        description: one sentence for people.
        archive_files: files that torchvision's download unpacks; empty if it cannot download the dataset.
        class_names: official names in the order of the labels; empty if they are found in the data.
    """

    module: str
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    description: str
    num_classes: int | None = None
    image_size: int | None = None
    train_images: int | None = None
    test_images: int | None = None
    needs_data_dir: bool = True
    archive_files: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.mean) == len(self.std) == self.in_channels, f"{self.mean}, {self.std}: {self.in_channels} each"
        assert min(self.std) > 0, f"std {self.std}"

    def facts(self, source: str = "") -> DatasetFacts:
        """Return the facts of a dataset that never changes.

        Args:
            source: where its files are; empty if it comes with a library.
        """
        assert self.num_classes is not None
        assert self.train_images is not None
        assert self.test_images is not None
        return DatasetFacts(
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
            train_images=self.train_images,
            test_images=self.test_images,
            source=source,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """What `check_dataset` finds out about a dataset without decoding it.

    Attributes:
        num_classes: number of labels.
        in_channels: 1 (grey) or 3 (RGB).
        image_size: height and width in pixels.
        train_images: size of the training split.
        test_images: size of the test split.
        fingerprint: numbers of images and digest of the names and contents of a folder's files; it does not depend on
            the folder's path, and changes when a file is added, removed, renamed or changed. It is part of every job's
            key, since a dataset's name says nothing about a user's images. Empty for ``digits`` and torchvision's
            archives, which their name determines.
        source: where the data are; empty if they come with a library.
        warnings: for a person to read before the data are used.
    """

    num_classes: int
    in_channels: int
    image_size: int | None
    train_images: int
    test_images: int
    fingerprint: str = ""
    source: str = ""
    warnings: tuple[str, ...] = ()

    def lines(self, name: str) -> list[str]:
        """Describe the dataset called `name` in a line, followed by a line for each warning."""
        size = f", {self.image_size}x{self.image_size} pixels" if self.image_size else ""
        where = f", from {self.source}" if self.source else ""
        images = f"{self.train_images:,} training and {self.test_images:,} test images"
        first = f"{name}: {images}, {self.num_classes} classes{size}{where}"
        return [first, *(f"  warning: {warning}" for warning in self.warnings)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class Split:
    """Images and labels in memory, mapped from a file, or decoded as they are needed.

    Attributes:
        images: uint8 (N, C, H, W). Never write to it: it may be a file mapped read-only and shared by all processes of
            a machine. With a decoder, it lies on the device ``meta``: it has a shape and no pixels.
        labels: int64 (N,), values in [0, num_classes).
        decoder: decodes the images; None if they are in `images`.
    """

    images: Tensor
    labels: Tensor
    decoder: Decoder | None = None

    def __post_init__(self) -> None:
        assert self.images.ndim == 4, f"images of shape {tuple(self.images.shape)}"
        assert self.labels.shape == self.images.shape[:1], f"{len(self.images)} images, {len(self.labels)} labels"

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: Device) -> Split:
        """Return the split on `device`, without a copy if it is there already."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset(DatasetFacts):
    """A loaded dataset: the facts about it, to be compared with the planned ones, and its arrays.

    Attributes:
        train: the training split, in a fixed order.
        test: the test split.
        mean: per channel, on the scale where white is 1.
        std: per channel, same scale.
        augmentation: of the training images.
    """

    image_size: int
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation

    def __post_init__(self) -> None:
        shape = (self.in_channels, self.image_size, self.image_size)
        assert tuple(self.train.images.shape[1:]) == shape, f"train {tuple(self.train.images.shape)}, not {shape}"
        assert tuple(self.test.images.shape[1:]) == shape, f"test {tuple(self.test.images.shape)}, not {shape}"
